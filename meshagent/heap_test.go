package meshagent

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPercentFor(t *testing.T) {
	for live, want := range map[uint64]int{0: 100, 1 << 20: 100, 16 << 20: 100, 32 << 20: 50, 64 << 20: 25, 128 << 20: 12, 4 << 30: 12} {
		if got := percentFor(live); got != want {
			t.Errorf("%d MiB in use: %d %%, want %d %%", live>>20, got, want)
		}
	}
}

func TestGiveBack(t *testing.T) {
	for name, c := range map[string]struct {
		live, idle uint64
		after      time.Duration
		want       bool
	}{
		"a little of a small heap":     {10 << 20, 32 << 20, time.Hour, false},
		"more than a small heap needs": {10 << 20, 33 << 20, time.Hour, true},
		"as a large heap keeps":        {400 << 20, 100 << 20, time.Hour, false},
		"what a burst has left":        {400 << 20, 101 << 20, time.Hour, true},
		"soon after the last time":     {400 << 20, 200 << 20, idlePause - 1, false},
		"not soon any more":            {400 << 20, 200 << 20, idlePause, true},
	} {
		if got := giveBack(c.live, c.idle, c.after); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The collector is set once everything has been read and not before, follows what is in
// use, and is left as it was.
func TestHeapStaysSmall(t *testing.T) {
	t.Setenv("GOGC", "")
	setting := func() int {
		sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(sample)
		return int(sample[0].Value.Uint64())
	}
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	read := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- heap{read}.Run(ctx) }()
	become := func(when string, ok func(percent int) bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(setting()); {
			if time.Now().After(end) {
				t.Fatalf("%s: %d %%", when, setting())
			}
			runtime.GC()
		}
	}
	if got := setting(); got != 77 {
		t.Errorf("before everything was read: %d %%", got)
	}
	close(read)
	become("with little in use", func(p int) bool { return p == 100 })
	much := make([]byte, 256<<20)
	become("with 256 MiB in use", func(p int) bool { return p < 25 })
	runtime.KeepAlive(much)
	cancel()
	if err := <-done; err != nil || setting() != 77 {
		t.Errorf("in the end %d %%, %v", setting(), err)
	}
}
