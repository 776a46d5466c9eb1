package endpoints

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/apiserver/store"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/wire"
)

// retryAfter is the shortest pause between two tries of what the store would not
// take, such as an endpoint for which no identity is left.
const retryAfter = time.Second

// Config of a Controller.
type Config struct {
	Store     store.Store
	Allocator *identity.Allocator
	Cluster   string
	Log       *slog.Logger
}

// Controller keeps endpoints and slices equal to what follows from pods, claims
// and services. If several API servers run one, they agree by transactions.
type Controller struct {
	conf Config

	mu       sync.Mutex // guards what follows
	refusals map[refusalKey]*api.Refusal
	counted  map[claimKey]int64 // the revision that was counted last
	// standing are the claims that are made and refused now, by node.
	standing  map[subject]map[string]api.Refusal
	unwritten unwritten
	round     int // of complete lists
	status    Status
}

// claimKey is one claim: of a node, about a pod or itself.
type claimKey struct{ node, resource, what string }

// subject is what claims of several nodes may be about.
type subject struct{ resource, what string }

// refusalKey is what refusals are counted by.
type refusalKey struct{ node, resource, reason string }

// Status is what the controller knows, for the API.
type Status struct {
	// Synced is set once everything was derived for the first time.
	Synced bool
	// Endpoints counts accepted endpoints by node.
	Endpoints map[string]int
	// Refusals counts what was refused since the start, Standing the claims that
	// are refused now.
	Refusals, Standing []api.Refusal
	// Concerns are endpoints and slices that cannot be written.
	Concerns []api.Concern
}

// New makes a Controller.
func New(c Config) *Controller {
	return &Controller{conf: c, refusals: map[refusalKey]*api.Refusal{}, counted: map[claimKey]int64{}, standing: map[subject]map[string]api.Refusal{}, unwritten: unwritten{}}
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	return store.Persist(ctx, c.conf.Log, "deriving endpoints", func(ctx context.Context) error {
		m := newModel()
		return store.Follow(ctx, c.conf.Store, wire.StatePrefix, func(b store.Batch) error {
			if b.Complete {
				m = newModel()
				c.forget()
			}
			for _, ev := range b.Events {
				m.apply(ev)
			}
			// A sign of life, or a while later: what failed may work now.
			if now := time.Now(); len(b.Events) == 0 || now.Sub(m.retried) >= retryAfter {
				m.retried = now
				m.podWork.retry()
				m.serviceWork.retry()
			}
			if err := c.settle(ctx, m); err != nil {
				return err
			}
			if b.Complete {
				c.settled()
				return c.releaseOthers(ctx, m)
			}
			return nil
		})
	})
}

// Status is a copy of what is known.
func (c *Controller) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.status
	out.Endpoints = maps.Clone(c.status.Endpoints)
	for _, key := range slices.SortedFunc(maps.Keys(c.refusals), refusalKey.compare) {
		out.Refusals = append(out.Refusals, *c.refusals[key])
	}
	standing := map[refusalKey]*api.Refusal{}
	for about, byNode := range c.standing {
		for node, r := range byNode {
			key := refusalKey{node, about.resource, r.Reason}
			if sum := standing[key]; sum == nil {
				standing[key] = &r
			} else {
				sum.Count, sum.Example = sum.Count+1, min(sum.Example, r.Example)
				if r.Last.After(sum.Last) {
					sum.Last = r.Last
				}
			}
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(standing), refusalKey.compare) {
		out.Standing = append(out.Standing, *standing[key])
	}
	out.Concerns = c.unwritten.concerns()
	return out
}

func (k refusalKey) compare(other refusalKey) int {
	return slices.Compare([]string{k.node, k.resource, k.reason}, []string{other.node, other.resource, other.reason})
}

// settle decides about everything that is dirty and writes what follows, many
// in one transaction. What was written, and what another writer was quicker
// with, is looked at again when its event arrives, and not before: until then
// the model is behind the store, and every try would be in vain. An error ends
// the following of the store, and everything is derived again.
func (c *Controller) settle(ctx context.Context, m *model) error {
	c.nodes(m)
	if err := c.pods(ctx, m); err != nil {
		return err
	}
	if err := c.services(ctx, m); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Synced, c.status.Endpoints = true, maps.Clone(m.perNode)
	return nil
}

// pending is a write of an endpoint or a slice.
type pending struct {
	who      name   // the pod, or the service
	key      string // what is written
	modified int64  // the key's revision as far as the model knows
}

// pods writes the endpoints of dirty pods.
func (c *Controller) pods(ctx context.Context, m *model) error {
	var releases, acquisitions []pending
	var uses []identity.Use
	var requests []identity.Request
	for _, who := range m.podWork.take() {
		w, use, request := c.pod(m, who)
		switch {
		case use != nil:
			releases, uses = append(releases, w), append(uses, *use)
		case request != nil:
			acquisitions, requests = append(acquisitions, w), append(requests, *request)
		default:
			c.nothingToWrite(podOwner(who), nil)
		}
	}
	// Releases first: what is released makes room.
	results := c.conf.Allocator.ReleaseAll(ctx, uses)
	results = append(results, c.conf.Allocator.AcquireAll(ctx, requests)...)
	for i, w := range append(releases, acquisitions...) {
		if err := c.outcome(m, w, podOwner(w.who), results[i].Revision, results[i].Err, m.podWork); err != nil {
			return err
		}
	}
	return nil
}

// pod decides about one pod's endpoint and returns the write, if there is one.
func (c *Controller) pod(m *model, who name) (pending, *identity.Use, *identity.Request) {
	want, v, no := m.endpoint(c.conf.Cluster, who)
	c.withdrawn(subject{"endpoint", who.String()}, no)
	for _, claim := range no {
		c.refuse("endpoint", who.String(), claim)
	}
	have, there := m.endpoints[who]
	w := pending{who, wire.EndpointKey(who.namespace, who.name), have.modified}
	unchanged := []identity.Condition{{Key: w.key, Revision: w.modified}}
	switch {
	case v == keep, v == remove && !there:
		return w, nil, nil
	case v == remove:
		return w, &identity.Use{Labels: have.value.Labels, Owner: who.String(), Also: identity.Txn{
			If: unchanged, Then: []identity.Change{{Key: w.key, Delete: true}},
		}}, nil
	}
	if there && have.value.Labels.Equal(want.Labels) {
		want.Identity = have.value.Identity
		if bytes.Equal(wire.Marshal(want), have.text) {
			return w, nil, nil
		}
	}
	m.byIP[want.IP] = who
	return w, nil, &identity.Request{Labels: want.Labels, Owner: who.String(), Also: func(n identity.Number) identity.Txn {
		e := want
		e.Identity = n
		txn := identity.Txn{If: unchanged, Then: []identity.Change{{Key: w.key, Value: wire.Marshal(e)}}}
		if there && !have.value.Labels.Equal(want.Labels) {
			txn.Then = append(txn.Then, identity.Change{Key: identity.ReferenceKey(have.value.Labels, who.String()), Delete: true})
		}
		return txn
	}}
}

// services writes the slices of dirty services.
func (c *Controller) services(ctx context.Context, m *model) error {
	var writes []pending
	var txns []store.Txn
	for _, svc := range m.serviceWork.take() {
		first := len(writes)
		for w, op := range c.service(m, svc) {
			writes = append(writes, w)
			txns = append(txns, store.Txn{If: []store.Cond{{Key: w.key, Modified: w.modified}}, Then: []store.Op{op}})
		}
		c.nothingToWrite(serviceOwner(svc), writes[first:])
	}
	for i, o := range store.CommitEach(ctx, c.conf.Store, txns) {
		if o.Err == nil && o.Revision == 0 {
			o.Err = identity.ErrStale
		}
		if err := c.outcome(m, writes[i], serviceOwner(writes[i].who), o.Revision, o.Err, m.serviceWork); err != nil {
			return err
		}
	}
	return nil
}

// service decides about one service's slices and goes through the writes.
func (c *Controller) service(m *model, svc name) iter.Seq2[pending, store.Op] {
	derived := m.serviceSlices(svc)
	m.remember(svc, derived)
	have := m.slices[svc]
	at := func(sliceName string) pending {
		return pending{svc, wire.ObjectKey("endpointslices", svc.namespace, sliceName), have[sliceName].modified}
	}
	return func(yield func(pending, store.Op) bool) {
		for _, sliceName := range slices.Sorted(maps.Keys(derived)) {
			text, w := encode(derived[sliceName]), at(sliceName)
			if !bytes.Equal(text, have[sliceName].text) && !yield(w, store.Put(w.key, text)) {
				return
			}
		}
		for _, sliceName := range slices.Sorted(maps.Keys(have)) {
			if w := at(sliceName); derived[sliceName] == nil && !yield(w, store.Delete(w.key)) {
				return
			}
		}
	}
}

// outcome sorts what became of a write: one that was made, or overtaken, is
// settled by its event; what cannot be written at all is shown and tried again
// later; the rest ends the following of the store.
func (c *Controller) outcome(m *model, w pending, o owner, revision int64, err error, of *work) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.unwritten.keep(o, func(key string) bool { return key != w.key })
		m.await(w.key, revision, w.who, of)
	case errors.Is(err, identity.ErrStale):
		m.await(w.key, w.modified+1, w.who, of)
	case errors.Is(err, identity.ErrContended):
		of.later[w.who] = true
	case cannotWrite(err):
		f := failure{cause: err, round: c.round}
		if p := m.pods[w.who]; p != nil && of == m.podWork {
			f.node = p.node
		}
		c.unwritten.fail(o, w.key, f)
		of.later[w.who] = true
	default:
		return fmt.Errorf("write %s: %w", w.key, err)
	}
	return nil
}

// nothingToWrite forgets the failures of an owner's keys, but for these.
func (c *Controller) nothingToWrite(o owner, but []pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unwritten.keep(o, func(key string) bool {
		return slices.ContainsFunc(but, func(w pending) bool { return w.key == key })
	})
}

// settled ends a round: everything was decided about anew.
func (c *Controller) settled() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unwritten.settled(c.round)
}

// nodes looks at what nodes say of themselves. Nothing follows from it here:
// whoever uses it asks the register too. A lie is counted and shown.
func (c *Controller) nodes(m *model) {
	for nodeName := range m.dirtyNodes {
		n := m.nodes[nodeName]
		c.withdrawn(subject{"node", nodeName}, nil)
		if n.registration == nil || n.state == nil {
			continue
		}
		if err := n.registration.Check(n.state.value); err != nil {
			c.refuse("node", nodeName, refused{nodeName, n.state.modified, "contradicts its registration", nodeName + " " + err.Error()})
		}
	}
	clear(m.dirtyNodes)
}

// withdrawn forgets the refusals of claims that are made no longer: all about the
// subject but those of the nodes in no.
func (c *Controller) withdrawn(about subject, no []refused) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.standing[about], func(node string, _ api.Refusal) bool {
		return !slices.ContainsFunc(no, func(r refused) bool { return r.node == node })
	})
	if len(c.standing[about]) == 0 {
		delete(c.standing, about)
	}
}

// forget starts over: all that is refused now is about to be refused again, and
// all that cannot be written is tried again.
func (c *Controller) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.standing)
	c.round++
}

// refuse counts a claim that is not believed, once for each time it was made.
func (c *Controller) refuse(resource, what string, no refused) {
	c.mu.Lock()
	defer c.mu.Unlock()
	claim := claimKey{no.node, resource, what}
	about := subject{resource, what}
	if c.standing[about] == nil {
		c.standing[about] = map[string]api.Refusal{}
	}
	if was, still := c.standing[about][no.node]; !still || was.Reason != no.reason || was.Example != no.example {
		c.standing[about][no.node] = api.Refusal{Cluster: c.conf.Cluster, Node: no.node, Resource: resource, Reason: no.reason, Count: 1, Example: no.example, Last: time.Now()}
	}
	if c.counted[claim] == no.modified {
		return
	}
	c.counted[claim] = no.modified
	key := refusalKey{no.node, resource, no.reason}
	r := c.refusals[key]
	if r == nil {
		r = &api.Refusal{Cluster: c.conf.Cluster, Node: no.node, Resource: resource, Reason: no.reason}
		c.refusals[key] = r
	}
	r.Count++
	r.Example, r.Last = no.example, time.Now()
	c.conf.Log.Warn("refused a node's claim", "node", no.node, "resource", resource, "reason", no.reason, "example", no.example)
}

// releaseOthers drops references to identities by pods that no longer are,
// after a start: those that left while nobody looked. A reference is written
// together with its endpoint, so an endpoint that another API server has just
// written speaks for its own.
func (c *Controller) releaseOthers(ctx context.Context, m *model) error {
	owners := map[string]bool{}
	for who := range m.endpoints {
		owners[who.String()] = true
	}
	var failed error
	_, err := c.conf.Allocator.ReleaseOthers(ctx, func(owner string) bool {
		ns, pod, ok := strings.Cut(owner, "/")
		if owners[owner] || !ok || failed != nil {
			return true
		}
		_, err := c.conf.Store.Get(ctx, wire.EndpointKey(ns, pod))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			failed = err
		}
		return !errors.Is(err, store.ErrNotFound)
	})
	return errors.Join(err, failed)
}
