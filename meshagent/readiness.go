package meshagent

import (
	"context"
	"fmt"
	"sync"

	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// readiness runs the readiness probes of this node's pods, and says of each whether it is
// ready.
type readiness struct {
	tables    *tables.Tables
	endpoints *endpoint.Endpoints
	// first is closed once the table of endpoints holds exactly the wanted pods.
	first <-chan struct{}
	// settled is closed once what is known of their readiness is in the table too.
	settled chan struct{}

	// Of the loop alone.
	probes map[string]*probing
	wg     sync.WaitGroup
}

// probing is the readiness check of one pod.
type probing struct {
	uid  string
	stop context.CancelFunc
}

// Run works until ctx ends.
func (r *readiness) Run(ctx context.Context) error {
	defer r.wg.Wait()
	defer func() {
		for _, p := range r.probes {
			p.stop()
		}
	}()
	select {
	case <-ctx.Done():
		return nil
	case <-r.first:
	}
	for ctx.Err() == nil {
		txn := r.tables.DB.ReadTxn()
		_, pods := r.tables.Pods.AllWatch(txn)
		_, endpoints := r.tables.Endpoints.AllWatch(txn)
		there := map[string]bool{}
		for e := range r.tables.Endpoints.All(txn) {
			there[e.Key()] = e.Phase != tables.Removing
			r.watch(ctx, e, tables.Get(txn, r.tables.Pods, e.Key()))
		}
		for key, p := range r.probes {
			if !there[key] {
				p.stop()
				delete(r.probes, key)
			}
		}
		if !closed(r.settled) {
			close(r.settled)
		}
		select {
		case <-ctx.Done():
		case <-pods:
		case <-endpoints:
		}
	}
	return nil
}

// watch starts the probes of a pod once it can be reached.
func (r *readiness) watch(ctx context.Context, e *tables.Endpoint, pod *tables.Pod) {
	if p := r.probes[e.Key()]; p != nil && p.uid == e.UID || e.Phase != tables.Live || pod == nil || pod.Object == nil {
		return
	}
	if p := r.probes[e.Key()]; p != nil {
		p.stop()
	}
	probes, err := endpoint.ReadProbes(pod.Object, e.IP)
	ctx, stop := context.WithCancel(ctx)
	r.probes[e.Key()] = &probing{uid: e.UID, stop: stop}
	of := endpoint.Record{Namespace: e.Namespace, Pod: e.Pod, UID: e.UID}
	switch {
	case err != nil:
		r.tell(of, false, err)
	case len(probes) == 0:
		r.tell(of, true, nil)
	default:
		// Until its first probe, a pod stays as it was before the agent restarted.
		was := r.endpoints.Ran(e.Key()) && pod.Endpoint != nil && pod.Endpoint.Ready && pod.Endpoint.IP == e.IP
		if was {
			r.tell(of, true, nil)
		}
		r.wg.Go(func() {
			endpoint.WatchAll(ctx, probes, was, func(ready bool, why error) { r.tell(of, ready, why) })
		})
	}
}

func (r *readiness) tell(of endpoint.Record, ready bool, why error) {
	text := ""
	if why != nil {
		text = fmt.Sprintf("readiness probe: %v", why)
	}
	r.endpoints.SetReady(of, ready, text)
}
