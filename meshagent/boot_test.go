package meshagent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fullSink refuses everything while it is full.
type fullSink struct {
	Sink
	mu   sync.Mutex
	full bool
}

func (s *fullSink) set(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
}

func (s *fullSink) Put(ctx context.Context, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// What is said of pods is what counts.
	if s.full && strings.Contains(key, "/endpoints/") {
		return errors.New("full")
	}
	return s.Sink.Put(ctx, key, value)
}

// A machine that has booted answers probes only after the store knows that its
// pods are starting anew; an agent that restarts changes nothing about its
// address, not even without a store.
func TestABootedMachineIsFoundAliveOnceItsPodsAreKnownToStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		east.pod("web-1", "web")
		sink := &fullSink{full: true}
		east.alter = func(e *Edges) { sink.Sink = e.Sink; e.Sink = sink }
		began := time.Now()
		east.run()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := east.host.Network(); n.Internal.IsValid() || n.MTU == 0 {
			t.Errorf("before it was told: %+v", n)
		}
		sink.set(false)
		time.Sleep(2 * time.Second) // the publisher's longest pause
		synctest.Wait()
		if n := east.host.Network(); n.Internal != east.internal() || time.Since(began) >= toldPatience {
			t.Errorf("after it was told: %+v", n)
		}
		w.step()
		east.stop()

		east.cluster.store.SetAway(true)
		east.run()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := east.host.Network(); n.Internal != east.internal() {
			t.Errorf("restarted: %+v", n)
		}
		east.stop()
	})
}

// A store that takes nothing does not keep a machine away for good.
func TestABootedMachineDoesNotWaitForAFullStoreForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		east.pod("web-1", "web")
		sink := &fullSink{full: true}
		east.alter = func(e *Edges) { sink.Sink = e.Sink; e.Sink = sink }
		east.run()
		time.Sleep(2 * toldPatience)
		synctest.Wait()
		if n := east.host.Network(); n.Internal != east.internal() {
			t.Errorf("kept away: %+v", n)
		}
		east.stop()
	})
}
