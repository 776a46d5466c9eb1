package peering

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// consult runs a directory while look looks. Use it in a synctest bubble.
func consult(t *testing.T, s *storetest.Store, look func(*Directory)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	d := NewDirectory("east", s, slog.New(slog.DiscardHandler))
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	synctest.Wait()
	look(d)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func gossipPeers(t *testing.T, s *storetest.Store) (out []GossipPeer) {
	t.Helper()
	consult(t, s, func(d *Directory) { out = d.Gossip() })
	return out
}

// A server without mirrors claims nothing about the links.
func TestDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		put := func(key string, v any) {
			t.Helper()
			if err := store.Write(t.Context(), s, store.Put(key, wire.Marshal(v))); err != nil {
				t.Fatal(err)
			}
		}
		heard := time.Now().Add(-time.Minute)
		put(wire.PeerKey("west"), wire.Peer{Name: "west", Connected: true, Gossip: []string{"192.0.2.1:7947"}})
		put(wire.PeerSecretKey("west"), wire.PeerSecret{GossipKey: []byte{1}})
		put(wire.PeerKey("south"), wire.Peer{Name: "south", Invited: true})
		put(wire.PeerKey("north"), wire.Peer{Name: "north", Removing: true})
		put(wire.HeardKey, wire.Heard{Peers: map[string]time.Time{"west": heard}})
		consult(t, s, func(d *Directory) {
			states := func() (out [4]string) {
				all, err := d.Status(t.Context())
				if err != nil {
					t.Error(err)
				}
				for i, p := range all {
					out[i] = p.Name + " " + p.Control.State
				}
				return out
			}
			if got := states(); got != [4]string{"north " + api.LinkRemoving, "south " + api.LinkInvited, "west " + api.LinkUnknown} {
				t.Error(got)
			}
			all, _ := d.Status(t.Context())
			if c := all[2].Control; !c.LastHeard.Equal(heard) || c.AgeSeconds != 60 {
				t.Errorf("%+v", c)
			}
			if g := d.Gossip(); len(g) != 1 || g[0].Name != "west" {
				t.Error(g)
			}
			if err := store.Write(t.Context(), s, store.Delete(wire.PeerKey("west"))); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			if got := states(); got[2] != "" || len(d.Gossip()) != 0 {
				t.Error(got)
			}
		})
	})
}
