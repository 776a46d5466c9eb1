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
	for live, want := range map[uint64]int{0: 100, 1 << 20: 100, 32 << 20: 100, 64 << 20: 50, 128 << 20: 25, 4 << 30: 25} {
		if got := percentFor(live); got != want {
			t.Errorf("%d MiB in use: %d %%, want %d %%", live>>20, got, want)
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
	become("with 256 MiB in use", func(p int) bool { return p < 50 })
	runtime.KeepAlive(much)
	cancel()
	if err := <-done; err != nil || setting() != 77 {
		t.Errorf("in the end %d %%, %v", setting(), err)
	}
}
