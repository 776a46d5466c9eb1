package trust_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/meshagent/trust"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestANodeStaysWithItsStore(t *testing.T) {
	cluster := func(name, generation string, released bool) []byte {
		return wire.Marshal(wire.Cluster{Name: name, ID: 1, Generation: generation, Released: released})
	}
	for _, test := range []struct {
		name   string
		before string // generation of an earlier store, "": none
		store  []byte // nil: empty
		ok     bool
		holds  string
	}{
		{"first store", "", cluster("east", "g1", false), true, ""},
		{"the same one", "g1", cluster("east", "g1", false), true, ""},
		{"another cluster's", "g1", cluster("west", "g1", false), false, ""},
		{"emptied", "g1", nil, false, ""},
		{"broken", "g1", []byte("{"), false, ""},
		{"rebuilt", "g1", cluster("east", "g2", false), false, "g1"},
		{"rebuilt and released", "g1", cluster("east", "g2", true), true, ""},
		{"one that does not say", "g1", cluster("east", "", false), true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "agent", "generation")
			judge := func(value []byte) (*trust.Trust, error) {
				twin := storetest.New()
				if value != nil {
					if err := twin.Put(t.Context(), wire.ClusterKey, value); err != nil {
						t.Fatal(err)
					}
				}
				tr, err := trust.New("east", path, twin, func(string, error) {}, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				return tr, tr.Judge(t.Context())
			}
			if test.before != "" {
				if _, err := judge(cluster("east", test.before, false)); err != nil {
					t.Fatal(err)
				}
			}
			tr, err := judge(test.store)
			holds, _ := tr.Holding()
			if (err == nil) != test.ok || holds != test.holds {
				t.Errorf("judged %v, holding %q", err, holds)
			}
		})
	}
}

// A machine that moves to another cluster is told so, not that a store was
// rebuilt, and releasing that cluster's nodes does not take away what it has.
func TestAnotherClustersStateIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "generation")
	join := func(cluster string) error {
		twin := storetest.New()
		if err := twin.Put(t.Context(), wire.ClusterKey, wire.Marshal(wire.Cluster{Name: cluster, ID: 1, Generation: "of-" + cluster, Released: true})); err != nil {
			t.Fatal(err)
		}
		tr, err := trust.New(cluster, path, twin, func(string, error) {}, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return tr.Judge(t.Context())
	}
	if err := join("east"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := join("west")
		for _, want := range []string{`for cluster "west"`, `from cluster "east"`, "leave east for good", "delete " + path} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, without %q", err, want)
			}
		}
	}
	if err := join("east"); err != nil {
		t.Errorf("back in its cluster: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := join("west"); err != nil {
		t.Errorf("left for good: %v", err)
	}
}

// An operator's word, or the return of the store, ends the hold, and whoever
// waits is told.
func TestAHoldEnds(t *testing.T) {
	for name, next := range map[string]wire.Cluster{
		"released":  {Name: "east", ID: 1, Generation: "g2", Released: true},
		"came back": {Name: "east", ID: 1, Generation: "g1"},
	} {
		t.Run(name, func(t *testing.T) {
			twin := storetest.New()
			put := func(c wire.Cluster) { _ = twin.Put(t.Context(), wire.ClusterKey, wire.Marshal(c)) }
			tr, err := trust.New("east", filepath.Join(t.TempDir(), "generation"), twin, func(string, error) {}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			put(wire.Cluster{Name: "east", ID: 1, Generation: "g1"})
			first := tr.Judge(t.Context())
			put(wire.Cluster{Name: "east", ID: 1, Generation: "g2"})
			if err := tr.Judge(t.Context()); first != nil || err == nil {
				t.Fatalf("judged %v, then %v", first, err)
			}
			_, changed := tr.Holding()
			put(next)
			if err := tr.Judge(t.Context()); err != nil {
				t.Error(err)
			}
			<-changed
			if holds, _ := tr.Holding(); holds != "" {
				t.Errorf("still holding %q", holds)
			}
		})
	}
}

func TestAStoreThatIsAwayIsNotJudged(t *testing.T) {
	twin := storetest.New()
	twin.SetAway(true)
	tr, err := trust.New("east", filepath.Join(t.TempDir(), "generation"), twin, func(string, error) {}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Judge(context.Background()); !errors.Is(err, store.ErrUnavailable) {
		t.Error(err)
	}
}

// The store's copy of a peer counts as complete as of a revision, if the canary is from
// before it. About what is no peer, there is nothing to wait for.
func TestWhoseCopyIsIncomplete(t *testing.T) {
	peer := func(p wire.Peer) store.Op { return store.Put(wire.PeerKey("west"), wire.Marshal(p)) }
	canary := store.Put(wire.Nodes.CacheSyncedKey("west"), wire.TimeText(time.Now()))
	added := peer(wire.Peer{Name: "west", Connected: true})
	for _, test := range []struct {
		name       string
		ops        []store.Op // each at its own revision
		at         int64      // how many of them had been made
		incomplete bool
	}{
		{"complete", []store.Op{added, canary}, 2, false},
		{"restored, not read yet", []store.Op{added, canary, store.Delete(canary.Key)}, 3, true},
		{"complete since", []store.Op{added, canary}, 1, true},
		{"no peer", nil, 0, false},
		{"being removed", []store.Op{peer(wire.Peer{Name: "west", Removing: true})}, 1, false},
		{"invited only", []store.Op{peer(wire.Peer{Name: "west", Invited: true})}, 1, false},
		{"a damaged record", []store.Op{store.Put(added.Key, []byte("{"))}, 1, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			twin := storetest.New()
			tr, err := trust.New("east", filepath.Join(t.TempDir(), "generation"), twin, func(string, error) {}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			at := twin.Revision()
			for i, op := range test.ops {
				if err := store.Write(t.Context(), twin, op); err != nil {
					t.Fatal(err)
				}
				if int64(i) < test.at {
					at = twin.Revision()
				}
			}
			got, err := tr.Incomplete(t.Context(), []string{"west"}, at)
			if err != nil || (len(got) == 1) != test.incomplete {
				t.Errorf("incomplete: %v, %v", got, err)
			}
		})
	}
}
