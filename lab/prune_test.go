package lab

import (
	"slices"
	"testing"
	"time"
)

// Others try every lab's lock to see whether it lives, also that of one which
// is just being raised.
func TestOwnerWaitsForWhoOnlyLooks(t *testing.T) {
	dir := t.TempDir()
	look, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	owned := make(chan error, 1)
	go func() {
		f, err := ownDir(dir)
		if err == nil {
			err = f.Close()
		}
		owned <- err
	}()
	select {
	case err := <-owned:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	look.Close()
	if err := <-owned; err != nil {
		t.Error(err)
	}
}

func TestRecordNamesItsClusters(t *testing.T) {
	r := Record{Nodes: map[string]NodeRecord{"west/n1": {}, "east/n2": {}, "east/n1": {}, "operator": {}}}
	if got := r.Clusters(); !slices.Equal(got, []string{"east", "west"}) {
		t.Errorf("clusters are %q", got)
	}
}
