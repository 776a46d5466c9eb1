package apiserver

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/weft-mesh/weft/store"
)

func TestHistoryGoesWhereItTakesTooMuch(t *testing.T) {
	now := time.Now()
	samples := []sample{{now.Add(-90 * time.Second), 10}, {now.Add(-61 * time.Second), 20}, {now.Add(-59 * time.Second), 30}, {now, 40}}
	for _, test := range []struct {
		name    string
		inUse   int64
		least   int64
		samples []sample
		want    int64
	}{
		{"half is free", 80, 0, samples, 0},
		{"less is free: the last minute stays", 81, 0, samples, 20},
		{"a store that has only started", 81, 0, samples[3:], 0},
		{"three eighths are free", 100, 0, samples, 20},
		{"less than that: none stays", 101, 0, samples, 40},
		{"it is not history", 101, 92, samples, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := compactTo(test.samples, test.inUse, test.least, 160); got != test.want {
				t.Errorf("up to %d, want %d", got, test.want)
			}
		})
	}
}

// A key that is rewritten without end leaves no more history than there is room
// for, in a real etcd.
func TestHistoryDoesNotFillTheStore(t *testing.T) {
	p := start(t, config(t))
	const quota = 8 << 20
	ctx, cancel := context.WithCancel(t.Context())
	h := &history{turn: 20 * time.Millisecond, quota: quota, usage: p.srv.store.Usage, compact: p.srv.store.Compact, log: p.conf.Log}
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	value := make([]byte, 256<<10)
	for i := range 8 * 5 {
		if err := store.Write(t.Context(), p.srv.store, store.Put("weft/state/test", fmt.Append(value, i))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "history goes", func() error {
		_, inUse, err := p.srv.store.Usage(t.Context())
		if err == nil && inUse > quota/8*5 {
			err = fmt.Errorf("%d bytes are in use", inUse)
		}
		return err
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
