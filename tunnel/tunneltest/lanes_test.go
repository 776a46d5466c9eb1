package tunneltest_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/tunnel/tunneltest"
)

// agent does what a node's agent does with its lanes, once per turn: publish, configure,
// choose, and rotate when it may.
type agent struct {
	name  string
	lanes *tunneltest.Lanes
	own   tunnel.Own
	used  map[string]int
}

func (a *agent) turn(t *testing.T, all []*agent, wanted uint64) {
	t.Helper()
	ctx := context.Background()
	var err error
	if a.own, err = a.lanes.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	var peers []tunnel.Peer
	epochs := map[string]uint64{}
	for i, other := range all {
		wanted = max(wanted, other.own.Epoch)
		if other == a {
			continue
		}
		p := tunnel.Peer{Cluster: "w", Node: other.name, Allowed: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, byte(i), 0}), 24)}}
		for lane := range p.Keys {
			p.Keys[lane] = other.own.Lanes[lane].PublicKey
		}
		peers = append(peers, p)
		epochs[p.Name()] = other.own.Epoch
	}
	if st, err := a.lanes.Set(ctx, peers, true); err != nil || len(st.Refused) > 0 {
		t.Fatalf("%v, refused %v", err, st.Refused)
	}
	st, err := a.lanes.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Peers {
		name := p.Cluster + "/" + p.Node
		before, known := a.used[name]
		if !known {
			before = -1
		}
		a.used[name] = tunnel.Choose(a.own.Epoch, epochs[name], before, p.Handshaken())
		// Traffic arrives at the other end of the lane.
		for _, other := range all {
			if other.name == p.Node && p.Handshaken()[a.used[name]] {
				other.lanes.Receive(a.used[name])
			}
		}
	}
	to := tunnel.NextEpoch(a.own.Epoch, wanted)
	if to == a.own.Epoch {
		return
	}
	switch err := tunnel.MayRotate(a.own.Epoch, to, epochs, time.Since(a.own.Since), st.Quiet[to%tunnel.LaneCount]); {
	case errors.Is(err, tunnel.ErrNotYet):
	case err != nil:
		t.Fatal(err)
	default:
		if _, err := a.lanes.Rotate(ctx, to); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAMeshFollowsTheHighestEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wire tunneltest.Wire
		var all []*agent
		for i := range 4 {
			all = append(all, &agent{name: fmt.Sprintf("n%d", i), lanes: wire.New(), used: map[string]int{}})
		}
		level := func(epoch uint64) bool {
			return !slices.ContainsFunc(all, func(a *agent) bool { return a.own.Epoch != epoch })
		}
		run := func(wanted uint64, within time.Duration) {
			t.Helper()
			start := time.Now()
			for !level(wanted) {
				if time.Since(start) > within {
					t.Fatalf("not at epoch %d after %v: %+v", wanted, within, all[0].own)
				}
				for _, a := range all {
					a.turn(t, all, wanted)
				}
				<-time.After(200 * time.Millisecond)
			}
			for range 2 {
				for _, a := range all {
					a.turn(t, all, wanted)
				}
			}
			for _, a := range all {
				for name, lane := range a.used {
					if lane != int(wanted%2) {
						t.Errorf("%s talks to %s on lane %d at epoch %d", a.name, name, lane, wanted)
					}
				}
			}
		}
		for epoch := range uint64(5) {
			run(epoch, time.Minute)
		}
		// A new node in a mesh at epoch 4 catches up.
		all = append(all, &agent{name: "late", lanes: wire.New(), used: map[string]int{}})
		run(4, time.Minute)
		run(5, time.Minute)
	})
}

func TestFailureAndHostTwin(t *testing.T) {
	var wire tunneltest.Wire
	l := wire.New()
	broken := errors.New("no kernel today")
	l.Fail(broken)
	if _, err := l.Ensure(t.Context()); !errors.Is(err, broken) {
		t.Errorf("ensure: %v", err)
	}
	l.Fail(nil)
	if _, err := l.Set(t.Context(), nil, true); err == nil {
		t.Error("set without lanes")
	}
	var h tunneltest.Host
	east, west := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	for _, step := range []struct {
		members  []netip.Prefix
		complete bool
		want     []netip.Prefix
	}{
		{[]netip.Prefix{east}, false, []netip.Prefix{east}},
		{[]netip.Prefix{west}, false, []netip.Prefix{east, west}},
		{[]netip.Prefix{west}, true, []netip.Prefix{west}},
	} {
		if err := h.Set(t.Context(), tunnel.Network{Members: step.members}, step.complete); err != nil {
			t.Fatal(err)
		}
		if got := h.Routes(); !slices.Equal(got, step.want) {
			t.Errorf("routes %v, want %v", got, step.want)
		}
	}
}
