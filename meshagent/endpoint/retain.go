package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// startAdd notes that a pod is being added, until the returned function is called.
func (e *Endpoints) startAdd(pod string) (end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.adds[pod]++
	e.adding[pod]++
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if _, ok := e.records[pod]; ok {
			e.adds[pod]++
		} else {
			delete(e.adds, pod)
		}
		if e.adding[pod]--; e.adding[pod] == 0 {
			delete(e.adding, pod)
		}
	}
}

// lost is a pod that has not remained, as it was when that was said.
type lost struct {
	Record
	adds uint64
}

// Retain implements api.EndpointRequests. A pod that nobody attached to the network by its
// sandbox is not the runtime's to name. One that is added while this goes on may be younger
// than the list.
func (e *Endpoints) Retain(ctx context.Context, keep api.EndpointRetention) error {
	if err := keep.Validate(); err != nil {
		return err
	}
	remain := map[api.EndpointAttachment]bool{}
	for _, a := range keep.Attachments {
		remain[a] = true
	}
	var all []lost
	e.mu.Lock()
	for key, r := range e.records {
		attachment := api.EndpointAttachment{Container: r.Container, Interface: r.Device()}
		if r.Container != "" && r.Network == keep.Network && !remain[attachment] && e.adding[key] == 0 {
			all = append(all, lost{r, e.adds[key]})
		}
	}
	e.mu.Unlock()
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	for i, l := range all {
		wg.Go(func() {
			if err := e.removeLost(ctx, l); err != nil {
				errs[i] = fmt.Errorf("remove pod %s: %w", l.Key(), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// removeLost takes a pod's network away unless it was added again.
func (e *Endpoints) removeLost(ctx context.Context, l lost) error {
	leave, err := e.enter(ctx, l.Key())
	if err != nil {
		return err
	}
	defer leave()
	e.mu.Lock()
	now, ok := e.records[l.Key()]
	same := ok && now == l.Record && e.adds[l.Key()] == l.adds && e.adding[l.Key()] == 0
	e.mu.Unlock()
	if !same {
		return nil
	}
	e.mark(l.Record)
	free, err := e.plumber(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer free()
	e.cfg.Log.Info("the runtime no longer has this pod's sandbox", "pod", l.Key(), "container", l.Container)
	return e.remove(l.Record)
}

// drain makes the removals that were left to the agent while none answered.
func (e *Endpoints) drain(ctx context.Context) {
	if e.cfg.Spool == "" {
		return
	}
	err := e.cfg.Spool.Each(func(r api.EndpointRequest) error {
		e.cfg.Log.Info("removal was requested while no agent answered", "pod", r.Key(), "container", r.Container)
		return e.Remove(ctx, r)
	})
	if ctx.Err() == nil {
		e.cfg.TellSpool(err)
	}
}

// awaitIdentity waits until packets of a pod pass, as long as the request says.
func (e *Endpoints) awaitIdentity(ctx context.Context, req api.EndpointRequest, got *api.EndpointResult) (*api.EndpointResult, error) {
	if !got.Held || req.WaitSeconds == 0 {
		return got, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(req.WaitSeconds*float64(time.Second)))
	defer cancel()
	for {
		row, changed := tables.Watch(e.cfg.Tables.DB.ReadTxn(), e.cfg.Tables.Endpoints, req.Key())
		switch {
		case row == nil || row.Phase == tables.Removing || row.UID != got.UID:
			return nil, api.Refuse(http.StatusServiceUnavailable, "repeat the request if the pod still exists", "pod %s was removed while its identity was awaited", req.Key())
		case row.Phase == tables.Live:
			got.Held = false
			return got, nil
		}
		select {
		case <-changed:
		case <-e.ended:
			return got, nil
		case <-ctx.Done():
			e.cfg.Log.Warn("pod starts before its identity is known: until then nothing passes", "pod", req.Key(), "container", cmp.Or(req.Container, "-"))
			return got, nil
		}
	}
}

// noteRoomLocked notes whether the last pod that asked for an address got one.
func (e *Endpoints) noteRoomLocked(err error) {
	switch {
	case errors.Is(err, ErrNoAddress), errors.Is(err, ErrResting):
		e.short = time.Now()
		e.cfg.TellPool(err.Error())
	case err == nil && !e.short.IsZero():
		e.short = time.Time{}
		e.cfg.TellPool("")
	}
}

// shortFor is how long a lack of addresses is told after the last pod that got none: a
// runtime tries again within minutes.
const shortFor = 10 * time.Minute

// lookForRoom notices that there are addresses again, or that nobody asks for any.
func (e *Endpoints) lookForRoom(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.short.IsZero() {
		return
	}
	if _, err := e.pool.address(now); err == nil || now.Sub(e.short) > shortFor {
		e.short = time.Time{}
		e.cfg.TellPool("")
	}
}
