package peering

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// A peer follows the API servers: one that was added after the invite is used, and one that
// was deleted is forgotten. The mirror goes on meanwhile.
func TestPeersFollowTheAPIServers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		var mu sync.Mutex
		servers := []string{"west"}
		west.stop()
		west.p.conf.EtcdEndpoints = func() (all []string) {
			mu.Lock()
			defer mu.Unlock()
			for _, name := range servers {
				all = append(all, endpointOf(name))
			}
			return all
		}
		west.p.conf.GossipAddresses = func() []string { return []string{"west.test:7947", "west-2.test:7947"} }
		w.set(func() { w.stores[endpointOf("west-2")] = west.st })
		west.p = New(west.p.conf)
		west.start()
		knows := func(what string, want ...string) {
			t.Helper()
			w.tellAll()
			for i := range want {
				want[i] = endpointOf(want[i])
			}
			slices.Sort(want)
			peer, _, err := east.p.peer(t.Context(), "west")
			slices.Sort(peer.Endpoints)
			if err != nil || !slices.Equal(peer.Endpoints, want) {
				t.Errorf("%s: endpoints %v, %v, want %v", what, peer.Endpoints, err, want)
			}
		}
		change := func(to ...string) {
			mu.Lock()
			servers = to
			mu.Unlock()
			west.p.Moved()
		}
		east.read(west)
		west.read(east)
		knows("added", "west")
		before := east.status("west").Control.Since
		change("west", "west-2")
		knows("another API server", "west", "west-2")
		if peer, _, _ := east.p.peer(t.Context(), "west"); len(peer.Gossip) != 2 {
			t.Error("gossip:", peer.Gossip)
		}
		change("west-2")
		knows("the first was deleted", "west-2")
		peer, _, _ := east.p.peer(t.Context(), "west")
		peer.Endpoints = append(peer.Endpoints, endpointOf("lb"))
		if err := store.Write(t.Context(), east.st, store.Put(wire.PeerKey("west"), wire.Marshal(peer))); err != nil {
			t.Fatal(err)
		}
		change("west-2", "west-3")
		knows("with one that was added by hand", "west-2", "west-3", "lb")
		change("west-2")
		knows("one deleted, with one that was added by hand", "west-2", "lb")
		if now := east.status("west").Control.Since; !now.Equal(before) {
			t.Error("the link was interrupted at", now)
		}

		// The next session goes to the server that there is.
		w.set(func() { w.down[endpointOf("west")] = true })
		east.restart()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := east.status("west").Control.State; got != "up" {
			t.Error("control link:", got)
		}

		// What is named by mistake does not cut us off from its correction.
		concerns := func() (all []string) {
			for _, c := range east.p.Concerns(time.Now()) {
				all = append(all, c.Reason+": "+c.Message)
			}
			return all
		}
		w.set(func() { w.down[endpointOf("west-4")], w.down[endpointOf("lb")] = true, true })
		change("west-4")
		knows("nothing answers where it says that it is", "west-2", "west-4", "lb")
		writes := east.st.Revision()
		time.Sleep(5 * moveRetry)
		if n := east.st.Revision() - writes; n > 1 { // when it was last heard
			t.Errorf("%d writes while nothing changes", n)
		}
		if c := concerns(); len(c) != 1 || !strings.HasPrefix(c[0], "PeerMoved: peer west: ") || !strings.Contains(c[0], endpointOf("west-2")+" stays in use") {
			t.Error("concerns:", c)
		}
		for n := range 3 * mostAccess { // one after the other, where nothing answers
			e := endpointOf(fmt.Sprint("y-", n))
			w.set(func() { w.down[e] = true })
			if err := store.Write(t.Context(), west.st, store.Put(wire.PeerAccessKey("east"), wire.Marshal(wire.Access{Etcd: []string{e}}))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * moveTurn)
		}
		if peer, _, err := east.p.peer(t.Context(), "west"); err != nil || len(peer.Endpoints) > 2*mostAccess+1 || !slices.Contains(peer.Endpoints, endpointOf("west-2")) {
			t.Errorf("endpoints %v, %v", peer.Endpoints, err)
		}
		w.set(func() { w.stores[endpointOf("west-4")] = west.st; w.down[endpointOf("west-4")] = false })
		change("west-4", "west-5")
		w.tellAll()
		change("west-4")
		time.Sleep(moveRetry)
		knows("it answers there now", "west-4", "lb")
		if c := concerns(); len(c) != 0 {
			t.Error("concerns:", c)
		}

		// What cannot be is not used.
		node := wire.Registration{Name: "n7", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.7")}}
		if err := store.Write(t.Context(), east.st, store.Put(wire.RegistrationKey("n7"), wire.Marshal(node))); err != nil {
			t.Fatal(err)
		}
		ok := endpointOf("west-4")
		for what, a := range map[string]wire.Access{
			"it names 0 endpoints and 0 gossip addresses":          {},
			"is not of the form https://host:port":                 {Etcd: []string{ok, "http://west-2.test:2379"}},
			`endpoint "https://west-2.test" is not`:                {Etcd: []string{ok, "https://west-2.test"}},
			`gossip address "x" is not of the form host:port`:      {Etcd: []string{ok, endpointOf("x")}, Gossip: []string{"x"}},
			"it names 17 endpoints":                                {Etcd: slices.Repeat([]string{ok}, mostAccess+1)},
			"and 17 gossip addresses":                              {Etcd: []string{ok, endpointOf("x")}, Gossip: slices.Repeat([]string{"x:1"}, mostAccess+1)},
			`172.16.1.7 belongs to node "n7" of this cluster`:      {Etcd: []string{ok, "https://172.16.1.7:443"}},
			`172.16.1.7 belongs to node "n7"`:                      {Etcd: []string{ok}, Gossip: []string{"[::ffff:172.16.1.7]:53"}},
			"169.254.169.254 is not an address of another machine": {Etcd: []string{ok, "https://169.254.169.254:80"}},
			"127.0.0.1 is not an address of another machine":       {Etcd: []string{ok, "https://127.0.0.1:2379"}},
		} {
			if err := store.Write(t.Context(), west.st, store.Put(wire.PeerAccessKey("east"), wire.Marshal(a))); err != nil {
				t.Fatal(err)
			}
			knows(what, "west-4", "lb")
			if c := concerns(); len(c) != 1 || !strings.Contains(c[0], what) {
				t.Errorf("concerns %q, want %q", c, what)
			}
		}

		// Who changes it all the time costs a write in a turn.
		writes = east.st.Revision()
		for n := range 500 {
			a := wire.Access{Etcd: []string{ok, endpointOf(fmt.Sprint("x-", n))}}
			if err := store.Write(t.Context(), west.st, store.Put(wire.PeerAccessKey("east"), wire.Marshal(a))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * moveTurn)
		if n := east.st.Revision() - writes; n > 8 {
			t.Errorf("%d writes for 5 s of changes", n)
		}
		knows("the last one counts", "west-4", "x-499", "lb")
	})
}

// set changes the world under its lock.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// tellAll waits until all peers have been told how they reach each other.
func (w *world) tellAll() {
	time.Sleep(2 * moveTurn)
	synctest.Wait()
}

// A peer that was removed and added again is told again.
func TestAPeerAddedAgainIsTold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		for range 2 {
			east.read(west)
			west.read(east)
			w.tellAll()
			// A restored store may tell what was so before.
			for _, restored := range []bool{false, true} {
				if restored {
					if err := west.st.Put(t.Context(), wire.PeerAccessKey("east"), []byte(`{"etcd":["https://old:2379"]}`)); err != nil {
						t.Fatal(err)
					}
					backup := west.st.Copy()
					if err := west.st.Put(t.Context(), wire.PeerKey("south"), []byte(`{"name":"south"}`)); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					west.st.PutBack(backup)
					w.tellAll()
				}
				kv, err := west.st.Get(t.Context(), wire.PeerAccessKey("east"))
				if err != nil || !strings.Contains(string(kv.Value), endpointOf("west")) {
					t.Errorf("restored: %v: %s, %v", restored, kv.Value, err)
				}
			}
			for _, c := range []*cluster{east, west} {
				if err := c.p.Remove(t.Context(), map[*cluster]string{east: "west", west: "east"}[c]); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			if got := west.st.Dump(wire.JoinedClustersPrefix); len(got) != 0 {
				t.Error("left over:", got)
			}
		}
	})
}
