package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-mesh/weft/api"
)

func TestAWatchShowsOnlyWhatItsSelectorChooses(t *testing.T) {
	put := func(name, app string) api.WatchEvent {
		return api.WatchEvent{Type: "put", Namespace: "shop", Name: name, Object: json.RawMessage(fmt.Sprintf(`{"metadata":{"labels":{"app":%q}}}`, app))}
	}
	gone := func(name string) api.WatchEvent {
		return api.WatchEvent{Type: "delete", Namespace: "shop", Name: name}
	}
	for _, c := range []struct {
		name, selector string
		events         []api.WatchEvent
		want           string
	}{
		{"without a selector, everything", "", []api.WatchEvent{put("a", "db"), {Type: "synced"}, gone("b")}, "put a, synced , delete b"},
		{"what matches, until it is deleted", "app=web", []api.WatchEvent{put("a", "web"), {Type: "synced"}, put("a", "web"), gone("a")}, "put a, synced , put a, delete a"},
		{"not the deletion of others", "app=web", []api.WatchEvent{put("a", "db"), {Type: "synced"}, gone("a")}, "synced "},
		{"what begins to match", "app=web", []api.WatchEvent{put("a", "db"), put("a", "web")}, "put a"},
		{"what stops matching is gone, once", "app=web", []api.WatchEvent{put("a", "web"), put("a", "db"), put("a", "db"), gone("a")}, "put a, delete a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			chosen, err := labels.Parse(c.selector)
			if err != nil {
				t.Fatal(err)
			}
			part := selection{chosen, map[string]bool{}}
			var got []string
			for _, ev := range c.events {
				if ev, ok := part.pass(ev); ok {
					got = append(got, ev.Type+" "+ev.Name)
				}
			}
			if text := strings.Join(got, ", "); text != c.want {
				t.Errorf("shown %q, want %q", text, c.want)
			}
		})
	}
}
