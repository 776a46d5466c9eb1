package peering

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// A mirror asks under its own lock who owns an address. Whoever asks the mirror for
// something at the same moment must not hold the lock that the answer needs.
func TestAskingAMirrorHoldsNoLockThatItNeeds(t *testing.T) {
	w := &world{stores: map[string]*storetest.Store{}, down: map[string]bool{}}
	west := &cluster{t: t, own: describe("west", 2), st: storetest.New()}
	w.stores[endpointOf("west")] = west.st
	west.export(`{"id":2,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"endpointSlicesExportMode":"services-and-endpointslices"}}`)
	node := wire.Node{Name: "n1", Cluster: "west", ClusterID: 2, IPAddresses: []wire.NodeAddress{{Type: wire.NodeInternalIP, IP: netip.MustParseAddr("172.16.2.1")}}}
	if err := store.Write(t.Context(), west.st, store.Put(wire.NodeStateKey("west", "n1"), wire.Marshal(node))); err != nil {
		t.Fatal(err)
	}
	p := New(Config{Cluster: describe("east", 1), Store: storetest.New(), Dialer: w, Log: slog.New(slog.DiscardHandler)})
	asked, answer := make(chan struct{}), make(chan struct{})
	m := mirror.New(mirror.Config{
		Own: p.conf.Cluster, Peer: wire.Peer{Name: "west", ID: 2, PodCIDRs: west.own.PodCIDRs, MaxConnectedClusters: 255}, Store: p.conf.Store, Log: p.conf.Log,
		Dial: func() (mirror.Source, error) { return w.Open([]string{endpointOf("west")}, nil) },
		Taken: func(a netip.Addr) string {
			close(asked)
			<-answer
			return p.taken("west", a)
		},
	})
	p.mirrors["west"] = &running{mirror: m}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	<-asked
	heard := make(chan struct{})
	go func() { p.heardNow(); close(heard) }()
	stacks := make([]byte, 1<<20)
	eventuallyTrue(t, "heardNow asks the mirror", func() bool {
		return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("(*Mirror).Heard("))
	})
	if p.mu.TryLock() {
		p.mu.Unlock()
		close(answer)
	} else {
		t.Fatal("the mirror and heardNow wait for each other")
	}
	<-heard
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// eventuallyTrue repeats what until it holds.
func eventuallyTrue(t *testing.T, name string, what func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !what(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("not so after a minute: %s", name)
		}
	}
}
