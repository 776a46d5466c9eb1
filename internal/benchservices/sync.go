package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/weft-mesh/weft/lab"
)

// syncing are the modes that have services to write into the kernel.
var syncing = []mode{weft, iptables, nftables}

// pauseAfter is how long a slice stays before it is changed again. kube-proxy writes at most
// once a second by default, and waits longer if it has just written.
func pauseAfter(m mode) time.Duration {
	if m == weft {
		return 200 * time.Millisecond
	}
	return 1700 * time.Millisecond
}

// syncOne measures the time from sending a slice with another endpoint to its API server
// until a first connection reaches that endpoint.
func (b *bench) syncOne(ctx context.Context) error {
	if !b.wants("sync-one") {
		return nil
	}
	took, answered := map[mode][]float64{}, map[mode][]float64{}
	// One mode at a time: what one writes must not slow another down.
	per := max(1, b.changes/3)
	for range 3 {
		for _, m := range syncing {
			changes, err := b.changeOne(ctx, b.machines[m], per)
			if err != nil {
				return fmt.Errorf("%s: %w", m, err)
			}
			for _, c := range changes {
				took[m] = append(took[m], millis(c.seen.Sub(c.sent)))
				answered[m] = append(answered[m], millis(c.answered.Sub(c.sent)))
			}
		}
	}
	var same []figure
	for _, m := range syncing {
		f := figure{Line: "sync-one", Mode: m, Services: b.services, Unit: "ms", Value: percentile(took[m], 0.99), Detail: map[string]float64{
			"p50": percentile(took[m], 0.5), "max": percentile(took[m], 1), "samples": float64(len(took[m])), "written_p50": percentile(answered[m], 0.5),
		}}
		same = append(same, f)
	}
	for _, f := range compared(same) {
		b.print(f)
	}
	return nil
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// A change is when a slice was sent, when the API server had answered, and when the
// endpoint was first reached.
type change struct{ sent, answered, seen time.Time }

// changeOne changes the slice of the extra service so many times.
func (b *bench) changeOne(ctx context.Context, m *machine, times int) (changes []change, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	task, err := b.lab.StartAt(lab.Place{Node: m.node}, "watch", w, m.inPod(clientName, "watch", "-to", netip.AddrPortFrom(extraService, servePort).String())...)
	w.Close()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, task.Stop()) }()
	turns := make(chan turn, 64)
	go func() {
		defer close(turns)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			var t turn
			if json.Unmarshal(lines.Bytes(), &t) == nil {
				turns <- t
			}
		}
	}()
	// The first turn tells which backend it is now.
	at, err := next(ctx, turns, 10*time.Second, "")
	if err != nil {
		return nil, err
	}
	for range times {
		to := (int(at.Letter[0]-'a') + 1) % len(b.pods)
		c := change{sent: time.Now()}
		if err := b.storeOf(m).replace(ctx, endpointSlice(extra, b.pods[to:to+1])); err != nil {
			return nil, err
		}
		c.answered = time.Now()
		t, err := next(ctx, turns, b.patience, string(rune('a'+to)))
		if err != nil {
			return nil, err
		}
		at, c.seen = t, time.Unix(0, t.At)
		changes = append(changes, c)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pauseAfter(m.mode)):
		}
	}
	return changes, nil
}

// next is the next turn, to a backend if that is named.
func next(ctx context.Context, turns <-chan turn, patience time.Duration, letter string) (turn, error) {
	late := time.After(patience)
	for {
		select {
		case t, ok := <-turns:
			if !ok {
				return t, errors.New("the client has ended")
			}
			if letter == "" || t.Letter == letter {
				return t, nil
			}
		case <-late:
			return turn{}, fmt.Errorf("no connection reached backend %q within %v", letter, patience)
		case <-ctx.Done():
			return turn{}, context.Cause(ctx)
		}
	}
}

func (b *bench) storeOf(m *machine) store {
	if m.mode == weft {
		return b.stores[weft]
	}
	return b.stores[iptables] // both kube-proxies read the same
}

// syncFull measures the time from the start of an agent or kube-proxy, with nothing of its
// in the kernel, until every service that leads somewhere has answered.
func (b *bench) syncFull(ctx context.Context) error {
	took, failed := map[mode][]float64{}, map[mode]error{}
	for range b.syncs {
		for _, m := range syncing {
			if failed[m] != nil {
				continue
			}
			seconds, err := b.fromNothing(ctx, b.machines[m])
			if err != nil {
				failed[m] = err // the others are measured all the same
				continue
			}
			took[m] = append(took[m], seconds)
			progress("%d services: %s wrote all in %.2f s", b.services, m, seconds)
		}
	}
	var same []figure
	for _, m := range syncing {
		f := figure{Line: "sync-full", Mode: m, Services: b.services, Unit: "s", Value: median(took[m]),
			Detail: map[string]float64{"samples": float64(len(took[m])), "min": percentile(took[m], 0), "max": percentile(took[m], 1)}}
		if len(took[m]) == 0 {
			f.Error = fmt.Sprint(failed[m])
		}
		same = append(same, f)
	}
	for _, f := range compared(same) {
		b.print(f)
	}
	var all error
	for m, err := range failed {
		all = errors.Join(all, fmt.Errorf("%s: %w", m, err))
	}
	return all
}

// fromNothing removes what a mode has in the kernel and starts it.
func (b *bench) fromNothing(ctx context.Context, m *machine) (seconds float64, err error) {
	var start func() error
	if m.mode == weft {
		agents, err := b.lab.Refs("agent@" + m.node.Full())
		if err != nil {
			return 0, err
		}
		if err := lab.Stop(agents); err != nil {
			return 0, err
		}
		// Maps and programs end with their pins.
		pins, err := filepath.Glob(m.node.Path("/sys/fs/bpf/weft/*"))
		if err != nil {
			return 0, err
		}
		if len(pins) == 0 {
			return 0, fmt.Errorf("node %s has no pins to remove", m.node.Full())
		}
		for _, pin := range pins {
			if err := os.Remove(pin); err != nil {
				return 0, err
			}
		}
		start = func() error { return lab.Start(agents) }
	} else {
		if err := b.kube.stopProxy(m); err != nil {
			return 0, err
		}
		if err := b.kube.flush(ctx, m); err != nil {
			return 0, err
		}
		start = func() error { return b.kube.startProxy(m) }
	}
	if err := b.silent(ctx, m); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := start(); err != nil {
		return 0, err
	}
	var at int64
	if err := m.run(ctx, &at, "await", "-to", b.destinations(m), "-patience", b.patience.String()); err != nil {
		return 0, errors.Join(err, b.kube.failed(m))
	}
	seconds = time.Unix(0, at).Sub(began).Seconds()
	return seconds, b.settled(ctx, m)
}

// silent fails if a machine's services still answer.
func (b *bench) silent(ctx context.Context, m *machine) error {
	var at int64
	if m.run(ctx, &at, "await", "-to", b.destination(m, 0), "-patience", "200ms") == nil {
		return fmt.Errorf("services answer on %s though nothing forwards them", m.node.Full())
	}
	return nil
}
