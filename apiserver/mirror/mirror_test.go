package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open is a peer's store opened for one session, with the real ones' bound on lists.
type open struct {
	*storetest.Store
	most Limit
}

func (o open) List(ctx context.Context, prefix string) ([]store.KV, store.Point, error) {
	kvs, at, err := o.Store.List(ctx, prefix)
	bytes := 0
	for _, kv := range kvs {
		bytes += len(kv.Key) + len(kv.Value)
	}
	switch {
	case len(kvs) > o.most.Entries:
		return nil, at, store.ErrTooMany
	case bytes > o.most.Bytes:
		return nil, at, store.ErrTooMuch
	}
	return kvs, at, err
}

func (open) Close() error { return nil }

// bench is our store, the peer's store, and a mirror between them.
type bench struct {
	t      *testing.T
	ours   *storetest.Store
	theirs *storetest.Store
	m      *Mirror
	heard  time.Time // before the start
	stop   func()
}

func run(t *testing.T, each func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, ours: storetest.New(), theirs: storetest.New()}
		b.fill("w1")
		b.start()
		each(b)
		b.stop()
	})
}

func (b *bench) start() { b.startOn(b.ours) }

func (b *bench) startOn(ours store.Store) { b.startAs(westAsPeer, ours) }

// startAs runs the mirror of a peer.
func (b *bench) startAs(peer wire.Peer, ours store.Store) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error)
	b.m = New(Config{Own: east, Peer: peer, Store: ours, Heard: b.heard, Log: slog.New(slog.DiscardHandler),
		Dial: func() (Source, error) { return open{b.theirs, b.m.conf.Limit.Read()}, nil }})
	go func() { done <- b.m.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
	}
	synctest.Wait()
}

// fill fills the peer's store with a small cluster: two nodes, three pods.
func (b *bench) fill(generation string) {
	b.config(2, 255)
	b.there(store.Put(wire.ExportClusterKey, wire.Marshal(wire.ExportCluster{PodCIDRs: west.PodCIDRs, Generation: generation})))
	for n := 1; n <= 2; n++ {
		b.there(store.Put(fmt.Sprintf("cilium/state/nodes/v1/west/n%d", n), fmt.Appendf(nil, `{"Name":"n%d","Cluster":"west","ClusterID":2}`, n)))
		b.there(store.Put(fmt.Sprintf("weft/export/nodes/n%d", n), fmt.Appendf(nil, `{"name":"n%d","epoch":1}`, n)))
	}
	b.there(store.Put("cilium/state/identities/v1/id/131073", []byte("k8s:io.cilium.k8s.policy.cluster=west;")))
	for p := 2; p <= 4; p++ {
		b.pod(p, 131073)
	}
	b.canaries()
}

func (b *bench) config(id, most int) {
	b.there(store.Put("cilium/cluster-config/west", fmt.Appendf(nil, `{"id":%d,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":%d,"endpointSlicesExportMode":"services-and-endpointslices"}}`, id, most)))
}

func (b *bench) canaries() {
	for _, r := range wire.Resources {
		b.there(store.Put(r.StateSyncedKey("west"), wire.TimeText(time.Now())))
	}
}

func podKey(n int) string { return fmt.Sprintf("cilium/state/ip/v1/default/10.2.1.%d", n) }

func (b *bench) pod(n int, id identity.Number) {
	ip := netip.AddrFrom4([4]byte{10, 2, 1, byte(n)})
	b.there(store.Put(podKey(n), wire.Marshal(wire.IPIdentityPair{IP: ip, ID: id})))
}

// there writes to the peer's store.
func (b *bench) there(ops ...store.Op) {
	b.t.Helper()
	if err := store.Write(context.Background(), b.theirs, ops...); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

// rebuilt gives the peer an empty store.
func (b *bench) rebuilt() {
	old := b.theirs
	b.theirs = storetest.New()
	old.Fail(func(string, string) error { return store.ErrUnavailable })
	b.wait()
}

// wait lets a minute pass, longer than any pause.
func (b *bench) wait() {
	time.Sleep(time.Minute)
	synctest.Wait()
}

// want is the copy we expect of the peer's store.
func (b *bench) want() []string {
	var out []string
	config := wire.ClusterConfig{}
	if kv, err := b.theirs.Get(context.Background(), wire.ClusterConfigKey("west")); err == nil {
		config, _ = wire.ParseClusterConfig(kv.Value)
	}
	for _, f := range b.m.claims.read(config.Capabilities) {
		for _, line := range b.theirs.Dump(f.prefix) {
			key, value, _ := strings.Cut(line, "=")
			if ours, kept, _, _ := b.m.claims.judge(f, key, []byte(value)); kept != nil {
				out = append(out, ours+"="+string(kept))
			}
		}
	}
	slices.Sort(out)
	return out
}

func (b *bench) got() []string {
	out := append(b.ours.Dump(wire.CiliumCachePrefix), b.ours.Dump(wire.CachePrefix)...)
	slices.Sort(out)
	return out
}

func (b *bench) same() {
	b.t.Helper()
	if diff := cmp.Diff(b.want(), b.got()); diff != "" {
		b.t.Errorf("copy (-peer +ours):\n%s", diff)
	}
}

func (b *bench) state() api.ControlStatus { return b.m.Status(time.Now()).Control }

// concerns are the lines of a status, of a reason and an object each.
func (b *bench) concerns() string {
	var lines []string
	for _, c := range b.m.Concerns(time.Now()) {
		if c.Object != "peer west" || c.Reason == "" || c.Next == "" {
			b.t.Errorf("parts of %+v", c)
		}
		lines = append(lines, c.String())
	}
	return strings.Join(lines, "\n")
}

func (b *bench) held() int {
	n, _ := b.m.Held()
	return n
}

func TestCopy(t *testing.T) {
	run(t, func(b *bench) {
		if s := b.state(); s.State != api.LinkUp || s.LastHeard.IsZero() {
			t.Errorf("control %+v", s)
		}
		if len(b.got()) != 9 {
			t.Errorf("%d entries", len(b.got()))
		}
		b.same()
		for _, r := range wire.Resources {
			if got, want := len(b.ours.Dump(r.CacheSyncedKey("west"))) == 1, r != wire.Services && r != wire.ServiceExports; got != want {
				t.Errorf("canary of %s: %v", r, got)
			}
		}
		kv, err := b.ours.Get(t.Context(), "cilium/cluster-config/west")
		if err != nil {
			t.Fatal(err)
		}
		if c, err := wire.ParseClusterConfig(kv.Value); err != nil || !c.Capabilities.Cached || c.Capabilities.EndpointSlicesExportMode != wire.EndpointSlicesOnly || c.ID != 2 {
			t.Errorf("config %+v, %v", c, err)
		}
		b.pod(9, 131074)
		b.there(store.Delete(podKey(2)), store.Delete(podKey(3)))
		b.same()
		// Changed twice: the last value counts.
		b.pod(4, 131075)
		b.pod(4, 131073)
		b.same()
	})
}

func TestRestartWritesNothing(t *testing.T) {
	run(t, func(b *bench) {
		b.stop()
		before := b.ours.Revision()
		b.start()
		b.same()
		if after := b.ours.Revision(); after != before {
			t.Errorf("%d revisions written", after-before)
		}
	})
}

func TestWaitsForCanaries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, ours: storetest.New(), theirs: storetest.New()}
		b.config(2, 255)
		b.pod(2, 131073)
		b.start()
		b.wait()
		if n := len(b.ours.Dump("")); n != 0 {
			t.Errorf("%d keys before the peer was complete", n)
		}
		if s := b.state(); s.State != api.LinkConnecting || !strings.Contains(s.Error, "4 of its resources are not complete") {
			t.Errorf("control %+v", s)
		}
		b.canaries()
		b.same()
		if s := b.state(); s.State != api.LinkUp || s.Error != "" {
			t.Errorf("control %+v", s)
		}
		b.stop()
	})
}

// A Cilium 1.19 peer has neither slices nor our prefix.
func TestOlderCiliumPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, ours: storetest.New(), theirs: storetest.New()}
		b.there(store.Put("cilium/cluster-config/west", []byte(`{"id":2,"capabilities":{"syncedCanaries":true}}`)))
		b.pod(2, 131073)
		b.canaries()
		b.there(store.Delete(wire.EndpointSlices.StateSyncedKey("west")))
		b.theirs.Fail(func(_, key string) error {
			if strings.HasPrefix(key, "weft/") {
				return store.ErrDenied
			}
			return nil
		})
		b.start()
		b.same()
		if len(b.ours.Dump(wire.EndpointSlices.CacheSyncedKey("west"))) != 0 {
			t.Error("slices count as complete, though the peer has none")
		}
		b.there(store.Delete(podKey(2)))
		b.same()
		b.stop()
	})
}

func TestContradictionsImportNothing(t *testing.T) {
	for name, c := range map[string]struct {
		id, most int
		want     string
	}{
		"our ID":          {1, 255, "which is ours"},
		"another ID":      {3, 255, "was added with 2"},
		"another maximum": {2, 511, "maxConnectedClusters"},
		"ID 0":            {0, 255, "reserved"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &bench{t: t, ours: storetest.New(), theirs: storetest.New()}
				b.fill("w1")
				b.config(c.id, c.most)
				b.start()
				if s := b.state(); s.State != api.LinkRefused || !strings.Contains(s.Error, c.want) {
					t.Errorf("control %+v", s)
				}
				if n := len(b.ours.Dump("")); n != 0 {
					t.Errorf("%d keys were imported", n)
				}
				b.config(2, 255)
				b.wait()
				b.same()
				b.stop()
			})
		})
	}
}

func TestLinkDownKeepsEverything(t *testing.T) {
	run(t, func(b *bench) {
		before := b.got()
		b.theirs.Fail(func(string, string) error { return store.ErrUnavailable })
		b.wait()
		s := b.state()
		if s.State != api.LinkDown || s.AgeSeconds < 59 || s.Error == "" {
			t.Errorf("control %+v", s)
		}
		if diff := cmp.Diff(before, b.got()); diff != "" {
			t.Error(diff)
		}
		b.theirs.Fail(nil)
		b.pod(9, 131073)
		b.there(store.Delete(podKey(2)))
		b.theirs.Compact()
		b.wait()
		b.same()
		if s := b.state(); s.State != api.LinkUp || b.held() != 0 {
			t.Errorf("control %+v, held %d", s, b.held())
		}
	})
}

func TestRebuiltStoreIsHeld(t *testing.T) {
	run(t, func(b *bench) {
		before := b.got()
		b.rebuilt()
		if diff := cmp.Diff(before, b.got()); diff != "" {
			t.Errorf("an empty store was believed:\n%s", diff)
		}
		// It fills again, without two pods and a node.
		b.fill("w2")
		b.there(store.Delete(podKey(3)), store.Delete(podKey(4)), store.Delete("cilium/state/nodes/v1/west/n2"))
		b.wait()
		if b.state().State != api.LinkUp || b.held() != 3 {
			t.Fatalf("state %+v, held %d", b.state(), b.held())
		}
		if diff := cmp.Diff(before, b.got()); diff != "" {
			t.Errorf("held deletions changed our copy:\n%s", diff)
		}
		s := b.m.Status(time.Now())
		if i := slices.IndexFunc(s.Mirrors, func(m api.MirrorStatus) bool { return m.Resource == "ip" }); s.Mirrors[i].Held != 2 {
			t.Errorf("mirrors %+v", s.Mirrors)
		}
		if p := b.concerns(); !strings.Contains(p, "held: 3 deletions") || !strings.Contains(p, "weft peer release west") {
			t.Errorf("problems %q", p)
		}

		// New entries are still copied, and one held entry comes back.
		b.pod(9, 131073)
		b.pod(3, 131073)
		if b.held() != 2 || len(b.ours.Dump("cilium/cache/ip/v1/west/10.2.1.9")) != 1 {
			t.Errorf("held %d", b.held())
		}

		// Neither our restart nor a second list forgets them.
		b.stop()
		b.start()
		b.wait()
		if b.held() != 2 {
			t.Errorf("held %d after a restart", b.held())
		}

		n, err := b.m.Release(t.Context())
		if n != 2 || err != nil {
			t.Errorf("released %d, %v", n, err)
		}
		b.same()
		if n, err := b.m.Release(t.Context()); n != 0 || err != nil {
			t.Errorf("released once more: %d, %v", n, err)
		}
		b.stop()
		b.start()
		b.same()
		if b.held() != 0 {
			t.Errorf("held %d after release and restart", b.held())
		}
	})
}

func TestRebuiltStoreThatComesBackWhole(t *testing.T) {
	run(t, func(b *bench) {
		b.rebuilt()
		b.fill("w2")
		b.there(store.Delete(podKey(3)))
		b.wait()
		if b.held() != 1 {
			t.Fatalf("held %d", b.held())
		}
		b.pod(3, 131073)
		if n, why := b.m.Held(); n != 0 || why != "" {
			t.Errorf("held %d, %q", n, why)
		}
		b.same()
		// Our copy is of w2 now: a single deletion is carried out again.
		b.theirs.Fail(func(string, string) error { return store.ErrUnavailable })
		b.wait()
		b.theirs.Fail(nil)
		b.there(store.Delete(podKey(3)))
		b.wait()
		b.same()
	})
}

// The generation changes while we are connected, because the store was emptied in
// place. That calls for a new list, not for a stream of deletions.
func TestGenerationChangesInPlace(t *testing.T) {
	run(t, func(b *bench) {
		b.there(store.Put(wire.ExportClusterKey, wire.Marshal(wire.ExportCluster{PodCIDRs: west.PodCIDRs, Generation: "w2"})))
		b.wait()
		b.same()
		if b.held() != 0 || b.m.Status(time.Now()).Generation != "w2" {
			t.Errorf("held %d, generation %s", b.held(), b.m.Status(time.Now()).Generation)
		}
	})
}

// A peer's store is restored from an older copy and reaches its old revision again
// before we look: our copy is what it says now, not a mixture.
func TestAPeersStoreThatWentBackIsReadAgain(t *testing.T) {
	run(t, func(b *bench) {
		before := b.theirs.Copy()
		b.pod(2, 131074)
		b.pod(9, 131074)
		b.there(store.Delete(podKey(4)))
		b.same()
		b.theirs.PutBack(before)
		for _, n := range []int{3, 3, 10} {
			b.pod(n, 131075)
		}
		b.wait()
		b.same()
		if s := b.state(); s.State != api.LinkUp || b.held() != 0 {
			t.Errorf("control %+v, held %d", s, b.held())
		}
	})
}

// Our own store fails in the middle of a copy: the copy is complete in the end.
func TestOurStoreFails(t *testing.T) {
	run(t, func(b *bench) {
		fails := 0
		b.ours.Fail(func(call, _ string) error {
			if fails++; call == "commit" && fails < 5 {
				return store.ErrUnavailable
			}
			return nil
		})
		b.pod(4, 131074)
		b.pod(5, 131074)
		b.pod(4, 131073)
		b.wait()
		b.same()
	})
}

func TestDeniedIsSaid(t *testing.T) {
	run(t, func(b *bench) {
		b.theirs.Fail(func(string, string) error { return store.ErrDenied })
		b.wait()
		if s := b.state(); s.State != api.LinkRefused || !strings.Contains(s.Error, "new invite") {
			t.Errorf("control %+v", s)
		}
	})
}

func TestDialFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Config{Own: east, Peer: westAsPeer, Store: storetest.New(), Log: slog.New(slog.DiscardHandler),
			Dial: func() (Source, error) { return nil, errors.New("no route") }})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
		if s := m.Status(time.Now()).Control; s.State != api.LinkDown || s.Error != "no route" {
			t.Errorf("control %+v", s)
		}
	})
}
