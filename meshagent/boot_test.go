package meshagent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/store"
)

// fullSink refuses everything while it is full.
type fullSink struct {
	Store
	mu   sync.Mutex
	full bool
}

func (s *fullSink) set(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
}

func (s *fullSink) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, op := range txn.Then {
		// What is said of pods is what counts.
		if s.full && strings.Contains(op.Key, "/endpoints/") {
			return 0, false, errors.New("full")
		}
	}
	return s.Store.Commit(ctx, txn)
}

// A machine that has booted answers probes only after the store knows that its
// pods are starting anew, and everybody has heard of it; an agent that restarts
// changes nothing about its address, not even without a store.
func TestABootedMachineIsFoundAliveOnceItsPodsAreKnownToStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		east.pod("web-1", "web")
		sink := &fullSink{full: true}
		east.alter = func(e *Edges) { sink.Store = e.Store; e.Store = sink }
		began := time.Now()
		east.run()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := east.host.Network(); n.Internal.IsValid() || n.MTU == 0 {
			t.Errorf("before it was told: %+v", n)
		}
		sink.set(false)
		<-east.agent.publisher.told
		if waited := time.Since(began); waited >= toldPatience {
			t.Errorf("told after %v", waited)
		}
		time.Sleep(newsTime - time.Nanosecond)
		synctest.Wait()
		if n := east.host.Network(); n.Internal.IsValid() {
			t.Errorf("before others have heard: %+v", n)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if n := east.host.Network(); n.Internal != east.internal() {
			t.Errorf("after others have heard: %+v", n)
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

// Without pods there is no news to wait for.
func TestABootedMachineWithoutPodsIsFoundAliveAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		east := newWorld(t).node("east", 1)
		east.run()
		<-east.agent.publisher.told
		synctest.Wait()
		if n := east.host.Network(); n.Internal != east.internal() {
			t.Errorf("it has %+v", n)
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
		east.alter = func(e *Edges) { sink.Store = e.Store; e.Store = sink }
		east.run()
		time.Sleep(2 * toldPatience)
		synctest.Wait()
		if n := east.host.Network(); n.Internal != east.internal() {
			t.Errorf("kept away: %+v", n)
		}
		east.stop()
	})
}
