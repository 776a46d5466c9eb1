package meshagent

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// PodsFrom says who requests the networks of a node's pods.
type PodsFrom string

const (
	// Objects: the agent itself, for each pod object of its node. It is for machines
	// without a container runtime.
	Objects PodsFrom = "objects"
	// Requests: whoever starts the pods, on the agent's socket.
	Requests PodsFrom = "requests"
)

// requester requests the networks of the pods that the list of objects shows on this node,
// where nobody else does. Everywhere, it has that of a pod removed when the list no longer
// shows it, and the record of one that was damaged written again.
type requester struct {
	node      node
	from      PodsFrom
	booted    bool // nothing of the pods has survived
	tables    *tables.Tables
	endpoints *endpoint.Endpoints
	// listed is closed once all sources have been read.
	listed <-chan struct{}
	// first is closed once the table of endpoints holds exactly the wanted pods.
	first chan struct{}

	// Of the loop alone.
	busy  map[string]bool      // a request is being handled
	again map[string]time.Time // of those that failed: when to request it again
	seen  map[string]string    // UIDs of pods with a network that the list has shown
	wg    sync.WaitGroup
	done  chan asked
}

// asked is the outcome of one request.
type asked struct {
	pod string
	err error
}

func newRequester(n node, from PodsFrom, booted bool, t *tables.Tables, e *endpoint.Endpoints, listed <-chan struct{}) *requester {
	return &requester{
		node: n, from: from, booted: booted, tables: t, endpoints: e, listed: listed, first: make(chan struct{}), done: make(chan asked),
		busy: map[string]bool{}, again: map[string]time.Time{}, seen: map[string]string{},
	}
}

// Run works until ctx ends.
func (r *requester) Run(ctx context.Context) error {
	defer r.wg.Wait()
	for _, gate := range []<-chan struct{}{r.endpoints.Adopted(), r.listed} {
		select {
		case <-ctx.Done():
			return nil
		case <-gate:
		}
	}
	for ctx.Err() == nil {
		txn := r.tables.DB.ReadTxn()
		_, pods := r.tables.Pods.AllWatch(txn)
		r.reconcile(ctx, r.wanted(tables.All(txn, r.tables.Pods)))
		if !closed(r.first) {
			if len(r.busy) > 0 {
				r.noteAll(ctx)
				continue // a pod that was removed may make room for another of its name
			}
			close(r.first)
		}
		var again <-chan time.Time
		if len(r.again) > 0 {
			again = time.After(endpoint.Again)
		}
		select {
		case <-ctx.Done():
		case <-pods:
		case done := <-r.done:
			r.note(done)
		case <-again:
		}
	}
	return nil
}

// wanted are the pods that belong on this node, by name.
func (r *requester) wanted(pods []*tables.Pod) map[string]*corev1.Pod {
	out := map[string]*corev1.Pod{}
	for _, p := range pods {
		if p.Object != nil && p.Object.Spec.NodeName == r.node.name && !p.Object.Spec.HostNetwork {
			out[p.Key()] = p.Object
		}
	}
	return out
}

// reconcile makes the requests that are due. It does not wait: a slow pod must not hold up
// the others.
func (r *requester) reconcile(ctx context.Context, want map[string]*corev1.Pod) {
	now := time.Now()
	records := map[string]endpoint.Record{}
	for _, have := range r.endpoints.Records() {
		key := have.Key()
		records[key] = have
		same := want[key] != nil && (have.UID == "" || have.UID == string(want[key].UID))
		if same {
			r.seen[key] = have.UID
		}
		switch {
		case !r.gone(have, same):
			if have.UID != "" && !r.removing(key) {
				delete(r.again, key) // on disk: the endpoint itself tries again
			}
		case r.due(key, now):
			r.request(ctx, key, func(ctx context.Context) error {
				return r.endpoints.Remove(ctx, api.EndpointRequest{Namespace: have.Namespace, Name: have.Pod, UID: have.UID})
			})
		}
	}
	maps.DeleteFunc(r.seen, func(key, _ string) bool { _, ok := records[key]; return !ok })
	r.add(ctx, want, records, now)
	for key := range r.again {
		// It never got an address and is no longer wanted.
		if _, ok := records[key]; !ok && want[key] == nil && r.due(key, now) {
			namespace, pod, _ := strings.Cut(key, "/")
			r.request(ctx, key, func(ctx context.Context) error {
				return r.endpoints.Remove(ctx, api.EndpointRequest{Namespace: namespace, Name: pod})
			})
		}
	}
}

// add requests the networks that nobody else does, in order of name: pods that are applied
// together get addresses in that order.
func (r *requester) add(ctx context.Context, want map[string]*corev1.Pod, records map[string]endpoint.Record, now time.Time) {
	var due []api.EndpointRequest
	for _, key := range slices.Sorted(maps.Keys(want)) {
		// A record without a UID was recovered from the kernel and is not on disk, and a
		// runtime does not request twice what it has. One of another UID is being removed.
		// This very one is back in the list if the store was restored before its removal
		// came to an end.
		have, ok := records[key]
		pod := want[key]
		back := have.UID == string(pod.UID) && r.removing(key)
		if (ok && have.UID == "" || (!ok || back) && r.from == Objects) && r.due(key, now) {
			due = append(due, api.EndpointRequest{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)})
		}
	}
	r.endpoints.Prepare(due)
	for _, req := range due {
		r.request(ctx, req.Key(), func(ctx context.Context) error {
			_, err := r.endpoints.Add(ctx, req)
			return err
		})
	}
}

// removing reports whether the network of a pod is being removed, or could not be.
func (r *requester) removing(pod string) bool {
	t := tables.Get(r.tables.DB.ReadTxn(), r.tables.Endpoints, pod)
	return t != nil && t.Phase == tables.Removing
}

// gone says whether the complete list shows that a pod with a network is gone. The list may
// have this very pod.
func (r *requester) gone(have endpoint.Record, listed bool) bool {
	seen, ok := r.seen[have.Key()]
	inherited := r.endpoints.Inherited(have.Key())
	return gone(evidence{
		listed: listed, ours: r.from == Objects, seen: ok && seen == have.UID,
		ran: inherited && r.endpoints.Ran(have.Key()), dead: inherited && r.booted,
	})
}

// evidence is what is known of a pod with a network.
type evidence struct {
	listed bool // the list has it
	ours   bool // nothing was requested but what is listed
	seen   bool // the list had it before
	ran    bool // the list had it before this agent started: it has an identity
	dead   bool // the machine has rebooted since it was requested
}

// gone says whether a pod is gone. A list that never had it may be older than the request
// for its network.
func gone(e evidence) bool {
	return !e.listed && (e.ours || e.seen || e.ran || e.dead)
}

// due reports whether a request may be made for a pod: no other one is being handled, and
// its last failure is long enough ago.
func (r *requester) due(pod string, now time.Time) bool {
	return !r.busy[pod] && !now.Before(r.again[pod])
}

// request makes one request.
func (r *requester) request(ctx context.Context, pod string, do func(context.Context) error) {
	r.busy[pod] = true
	r.wg.Go(func() {
		done := asked{pod, do(ctx)}
		select {
		case r.done <- done:
		case <-ctx.Done():
		}
	})
}

// noteAll waits until no request is being handled.
func (r *requester) noteAll(ctx context.Context) {
	for len(r.busy) > 0 {
		select {
		case <-ctx.Done():
			return
		case done := <-r.done:
			r.note(done)
		}
	}
}

func (r *requester) note(done asked) {
	delete(r.busy, done.pod)
	delete(r.again, done.pod)
	if done.err != nil {
		r.again[done.pod] = time.Now().Add(endpoint.Again)
	}
}

// byObject refuses what only whoever starts the pods may request, where the agent requests
// pods' networks itself.
type byObject struct{ api.EndpointRequests }

// byObjectHint is what to do about that.
const byObjectHint = "start the agent with --pods-from " + string(Requests) + " if a container runtime starts this node's pods"

func (byObject) refusal(what string) error {
	return api.Conflict(byObjectHint, "%s: this node's agent gives pods their networks by their objects", what)
}

// Add implements api.EndpointRequests.
func (b byObject) Add(_ context.Context, r api.EndpointRequest) (*api.EndpointResult, error) {
	return nil, b.refusal("pod " + r.Key())
}

// Remove implements api.EndpointRequests.
func (b byObject) Remove(_ context.Context, r api.EndpointRequest) error {
	return b.refusal("pod " + r.Key())
}

// Retain implements api.EndpointRequests.
func (b byObject) Retain(_ context.Context, r api.EndpointRetention) error {
	return b.refusal("network " + r.Network)
}
