package main

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/weft-mesh/weft/api"
)

// A cluster that does not answer delays none of the others' answers.
func TestEveryClusterIsAskedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := []*api.Client{api.NewUnixClient("a"), api.NewUnixClient("b"), api.NewUnixClient("c")}
		answered := make(chan string, len(all))
		away := errors.New("away")
		answers, err := askAll(t.Context(), all, func(_ context.Context, c *api.Client) (string, error) {
			if c.Name() == "a" {
				<-answered
				<-answered
				return "", away
			}
			answered <- c.Name()
			return c.Name(), nil
		})
		if !slices.Equal(answers, []string{"b", "c"}) || !errors.Is(err, away) {
			t.Errorf("got %v and %v, want what b and c answered, and a's error", answers, err)
		}
	})
}
