package probe_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/tunnel/probe/probetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	n1 = probe.Target{Cluster: "west", Node: "n1", Addr: netip.MustParseAddr("10.2.1.1"), Device: 7}
	n2 = probe.Target{Cluster: "west", Node: "n2", Addr: netip.MustParseAddr("10.2.2.1")}
)

// bench runs a prober against a network in a bubble of time.
type bench struct {
	*probe.Prober
	network *probetest.Network
	changes chan probe.Observation
}

func inBubble(t *testing.T, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{network: &probetest.Network{}, changes: make(chan probe.Observation, 1000)}
		cfg := probe.Defaults()
		cfg.OnChange = func(o probe.Observation) { b.changes <- o }
		p, err := probe.New(cfg, b.network)
		if err != nil {
			t.Fatal(err)
		}
		b.Prober = p
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		f(t, b)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// next waits for a change of state and returns how long it took.
func (b *bench) next(t *testing.T, within time.Duration) (probe.Observation, time.Duration) {
	t.Helper()
	start := time.Now()
	select {
	case o := <-b.changes:
		return o, time.Since(start)
	case <-time.After(within):
		t.Fatalf("no change within %v: %+v", within, b.Observations())
		return probe.Observation{}, 0
	}
}

func (b *bench) quiet(t *testing.T, during time.Duration) {
	t.Helper()
	select {
	case o := <-b.changes:
		t.Fatalf("changed to %s: %s", o.State, o.Reason)
	case <-time.After(during):
	}
}

func TestSilentNodeIsDownIn600ms(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.network.Answer(n1.Addr, time.Millisecond)
		b.Set([]probe.Target{n1})
		if o, after := b.next(t, time.Second); o.State != probe.Up || after > 150*time.Millisecond {
			t.Errorf("%s after %v, want up after the second answer", o.State, after)
		}
		if d := b.network.Last(n1.Addr).Device; d != n1.Device {
			t.Errorf("sent on device %d, want %d", d, n1.Device)
		}
		b.quiet(t, time.Minute)
		b.network.Cut(n1.Addr)
		o, after := b.next(t, 2*time.Second)
		if o.State != probe.Down || after > 620*time.Millisecond {
			t.Errorf("%s after %v, want down within 600 ms", o.State, after)
		}
		if o.Misses != 5 || o.Reason == "" || time.Since(o.Answered) > time.Second {
			t.Errorf("the row does not say what was seen: %+v", o)
		}
		b.network.Answer(n1.Addr, time.Millisecond)
		if o, after := b.next(t, time.Second); o.State != probe.Up || after > 250*time.Millisecond {
			t.Errorf("%s after %v, want up again after two answers", o.State, after)
		}
	})
}

func TestGossipMakesItLookSooner(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.network.Answer(n1.Addr, time.Millisecond)
		b.network.Answer(n2.Addr, time.Millisecond)
		b.Set([]probe.Target{n1, n2})
		b.next(t, time.Second)
		b.next(t, time.Second)
		// It is wrong about n2, and n2 stays up.
		b.SetEvidence(map[string]probe.Evidence{n1.Name(): {GossipDead: true}, n2.Name(): {GossipDead: true}})
		b.network.Cut(n1.Addr)
		o, after := b.next(t, 2*time.Second)
		if o.Target != n1 || o.State != probe.Down || after > 420*time.Millisecond {
			t.Errorf("%s %s after %v, want n1 down within 400 ms", o.Target.Name(), o.State, after)
		}
		if !strings.Contains(o.Reason, "gossip") {
			t.Errorf("reason %q does not name the evidence", o.Reason)
		}
		b.quiet(t, 10*time.Second)
	})
}

func TestStalledProberConcludesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.network.Answer(n1.Addr, time.Millisecond)
		b.Set([]probe.Target{n1})
		b.next(t, time.Second)
		for range 50 {
			// For half a second nothing runs here and nothing is answered: holding
			// Arrival simulates a machine that does not schedule us.
			b.network.Cut(n1.Addr)
			b.quiet(t, 150*time.Millisecond)
			b.network.Hold(500 * time.Millisecond)
			b.network.Answer(n1.Addr, time.Millisecond)
			b.quiet(t, 900*time.Millisecond)
		}
	})
}

func TestSlowPathIsNotADeadOne(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.network.Answer(n1.Addr, 20*time.Millisecond)
		b.Set([]probe.Target{n1})
		b.next(t, time.Second)
		// From 20 to 350 ms at once, far beyond the patience it was given.
		b.network.Answer(n1.Addr, 350*time.Millisecond)
		b.quiet(t, time.Minute)
		if o := b.Observations()[0]; o.RTT < 340*time.Millisecond || o.RTT > 360*time.Millisecond || o.State != probe.Up {
			t.Errorf("after a minute at 350 ms: %+v", o)
		}
	})
}

func TestSteadyLossIsNotADeadPath(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.network.Answer(n1.Addr, time.Millisecond)
		b.Set([]probe.Target{n1})
		b.next(t, time.Second)
		for range 100 { // 3 of 4 lost
			b.network.Cut(n1.Addr)
			b.quiet(t, 300*time.Millisecond)
			b.network.Answer(n1.Addr, time.Millisecond)
			b.quiet(t, 100*time.Millisecond)
		}
	})
}

func TestTargetsComeAndGo(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.Set([]probe.Target{n1, n2})
		b.network.Answer(n1.Addr, time.Millisecond)
		b.network.Answer(n2.Addr, time.Millisecond)
		b.next(t, time.Second)
		b.next(t, time.Second)
		since := b.Observations()[0].Since
		b.Set([]probe.Target{n1}) // n1 keeps what is known of it
		b.quiet(t, time.Second)
		if rows := b.Observations(); len(rows) != 1 || rows[0].State != probe.Up || !rows[0].Since.Equal(since) {
			t.Errorf("after n2 left: %+v", rows)
		}
		moved := n1
		moved.Addr = netip.MustParseAddr("10.2.9.1")
		b.Set([]probe.Target{moved}) // another address is another path
		if rows := b.Observations(); rows[0].State != probe.Unknown {
			t.Errorf("a moved node is known by its old address: %+v", rows)
		}
		if o, _ := b.next(t, time.Second); o.State != probe.Down {
			t.Errorf("nobody answers at the new address, and it is %s", o.State)
		}
		before := b.network.Sent()
		b.Set(nil)
		b.quiet(t, time.Minute)
		if after := b.network.Sent(); after > before+1 {
			t.Errorf("%d probes without a target", after-before)
		}
	})
}

func TestBrokenTransportEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := probe.New(probe.Defaults(), broken{})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Run(t.Context()); !errors.Is(err, errBroken) {
			t.Errorf("ended with %v", err)
		}
	})
}

var errBroken = errors.New("socket is gone")

type broken struct{ *probetest.Network }

func (broken) Receive() ([]probe.Answer, error) { return nil, errBroken }

func TestConfigNamesEveryMistake(t *testing.T) {
	_, err := probe.New(probe.Config{}, nil)
	for _, want := range []string{"interval", "patience", "stall", "thresholds"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in: %v", want, err)
		}
	}
}

// Hundreds of targets cost what the budget says. What is in use is found dead as fast as in
// a small mesh, and everything else as much later as it is probed less often.
func TestProbesDoNotGrowWithTheMesh(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		var targets []probe.Target
		for n := range 500 {
			target := probe.Target{Cluster: "gen", Node: fmt.Sprint(n), Addr: netip.AddrFrom4([4]byte{10, 3, byte(n >> 8), byte(n)})}
			b.network.Answer(target.Addr, time.Millisecond)
			targets = append(targets, target)
		}
		targets[0].Busy = true
		b.Set(targets)
		for range targets {
			if o, _ := b.next(t, time.Second); o.State != probe.Up {
				t.Fatalf("%s is %s", o.Target.Name(), o.State)
			}
		}
		before := b.network.Sent()
		b.quiet(t, 5*time.Second)
		const budget, busy = 5 * 1000, 5 * 10
		if sent := b.network.Sent() - before; sent > budget*11/10+busy || sent < budget*8/10 {
			t.Errorf("%d probes in 5 s, want about %d", sent, budget)
		}
		for n, within := range []time.Duration{620 * time.Millisecond, 625*time.Millisecond + 620*time.Millisecond} {
			b.network.Cut(targets[n].Addr)
			if o, after := b.next(t, 5*time.Second); o.State != probe.Down || o.Target != targets[n] || after > within {
				t.Errorf("%s is %s after %v, want target %d down within %v", o.Target.Name(), o.State, after, n, within)
			}
			b.network.Answer(targets[n].Addr, time.Millisecond)
			if o, after := b.next(t, 5*time.Second); o.State != probe.Up || after > within {
				t.Errorf("%s is %s after %v, want it up again within %v", o.Target.Name(), o.State, after, within)
			}
		}
		targets[1].Busy = true
		b.Set(targets)
		b.network.Cut(targets[1].Addr)
		if o, after := b.next(t, 5*time.Second); o.State != probe.Down || after > 620*time.Millisecond {
			t.Errorf("%s after %v: a target that is in use by now is down within 620 ms", o.State, after)
		}
	})
}
