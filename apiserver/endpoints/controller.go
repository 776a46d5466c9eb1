package endpoints

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/identities"
	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// retryAfter is the shortest pause before trying again what the store did not take, such
// as an endpoint for which no identity is left.
const retryAfter = time.Second

// Config of a Controller.
type Config struct {
	// State is what endpoints are derived from, Store where they are written.
	State     *state.Cache
	Store     store.Store
	Allocator *identities.Allocator
	Cluster   string
	Log       *slog.Logger
}

// Controller keeps endpoints and endpoint slices equal to what follows from pods, claims
// and services. Its writes are conditional on what it has seen, so a second one, or an
// operator, may interfere. Run it once only.
type Controller struct {
	conf    Config
	changed chan struct{} // has one element when problems may have changed

	mu        sync.Mutex // guards what follows
	refusals  *refusals
	unwritten unwritten
	round     int  // number of the current complete list
	looked    bool // at everything, once
}

// Status is what the controller knows, for the API.
type Status struct {
	// Refusals counts what was refused since the start, Standing the claims that
	// are refused now.
	Refusals, Standing []api.Refusal
	// Concerns are endpoints and slices that cannot be written.
	Concerns []api.Concern
}

// New returns a Controller.
func New(c Config) *Controller {
	return &Controller{conf: c, changed: make(chan struct{}, 1), refusals: newRefusals(c.Cluster, c.Log), unwritten: unwritten{}}
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	return store.Persist(ctx, c.conf.Log, "deriving endpoints", func(ctx context.Context) error {
		m := newModel()
		return c.conf.State.Follow(ctx, func(b state.Batch) error {
			if b.Complete {
				m = newModel()
				c.startRound()
			}
			for _, ev := range b.Events {
				m.apply(ev)
			}
			// The store is idle, or some time has passed: what failed may work now.
			if now := time.Now(); len(b.Events) == 0 || now.Sub(m.retried) >= retryAfter {
				m.retried = now
				m.podWork.retry()
				m.serviceWork.retry()
			}
			if err := c.settle(ctx, m); err != nil {
				return err
			}
			defer c.tell()
			if b.Complete {
				c.endRound(m)
				return c.releaseOthers(ctx, m)
			}
			return nil
		})
	})
}

// Status returns a copy of what is known.
func (c *Controller) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Status{Refusals: c.refusals.total(), Standing: c.refusals.current(), Concerns: c.unwritten.concerns()}
}

// settle decides about everything that is dirty and writes the results, many in one
// transaction. What it wrote, and what another writer wrote first, is decided again
// only when its event arrives: until then the model is behind the store, and every try
// would fail. After an error the store is followed from scratch and everything is
// derived again.
func (c *Controller) settle(ctx context.Context, m *model) error {
	c.nodes(m)
	if err := c.pods(ctx, m); err != nil {
		return err
	}
	return c.services(ctx, m)
}

// pending is a write of an endpoint or a slice.
type pending struct {
	who      name         // the pod or service it is for
	key      string       // of what is written
	modified int64        // the key's revision as far as the model knows
	takes    []netip.Addr // the addresses reserved for a pod's endpoint
}

// pods writes the endpoints of dirty pods.
func (c *Controller) pods(ctx context.Context, m *model) error {
	var releases, acquisitions []pending
	var uses []identities.Use
	var requests []identities.Request
	for _, who := range m.podWork.take() {
		w, use, request := c.pod(m, who)
		switch {
		case use != nil:
			releases, uses = append(releases, w), append(uses, *use)
		case request != nil:
			acquisitions, requests = append(acquisitions, w), append(requests, *request)
		default:
			c.nothingToWrite(podOwner(who), func(string) bool { return false })
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
func (c *Controller) pod(m *model, who name) (pending, *identities.Use, *identities.Request) {
	want, v, no := m.endpoint(c.conf.Cluster, who)
	c.refuse(subject{"endpoint", who.String()}, no)
	have, there := m.endpoints[who]
	w := pending{who: who, key: wire.EndpointKey(who.namespace, who.name), modified: have.modified}
	unchanged := []store.Cond{{Key: w.key, Modified: w.modified}}
	switch {
	case v == keep, v == remove && !there:
		return w, nil, nil
	case v == remove:
		return w, &identities.Use{Labels: have.value.Labels, Owner: who.String(), Also: store.Txn{
			If: unchanged, Then: []store.Op{store.Delete(w.key)},
		}}, nil
	}
	if there && have.value.Labels.Equal(want.Labels) {
		want.Identity = have.value.Identity
		if bytes.Equal(wire.Marshal(want), have.text) {
			return w, nil, nil
		}
	}
	w.takes = want.IPs()
	for _, ip := range w.takes {
		m.byIP[ip] = who
	}
	return w, nil, &identities.Request{Labels: want.Labels, Owner: who.String(), Also: func(n identity.Number) store.Txn {
		e := want
		e.Identity = n
		txn := store.Txn{If: unchanged, Then: []store.Op{store.Put(w.key, wire.Marshal(e))}}
		if there && !have.value.Labels.Equal(want.Labels) {
			txn.Then = append(txn.Then, store.Delete(wire.IdentityOwnerKey(have.value.Labels.String(), who.String())))
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
		d := c.service(m, svc)
		for _, op := range d.ops {
			w := m.sliceWrite(svc, op.Key)
			writes = append(writes, w)
			txns = append(txns, store.Txn{If: []store.Cond{{Key: w.key, Modified: w.modified}}, Then: []store.Op{op}})
		}
		still := slices.Concat(writes[first:], d.taken)
		c.nothingToWrite(serviceOwner(svc), func(key string) bool {
			return !d.looked[key] || slices.ContainsFunc(still, func(w pending) bool { return w.key == key })
		})
		c.cannotTake(serviceOwner(svc), d.taken)
	}
	for i, o := range store.CommitEach(ctx, c.conf.Store, txns) {
		if o.Err == nil && o.Revision == 0 {
			o.Err = identities.ErrStale
		}
		if err := c.outcome(m, writes[i], serviceOwner(writes[i].who), o.Revision, o.Err, m.serviceWork); err != nil {
			return err
		}
	}
	return nil
}

// decided is what has to be done about a service's slices.
type decided struct {
	looked map[string]bool // keys of the slices that were looked at
	ops    []store.Op
	// taken are slices whose names are taken by slices that were applied by hand; those
	// are left alone.
	taken []pending
}

// sliceWrite is a write of one of a service's slices.
func (m *model) sliceWrite(svc name, key string) pending {
	_, _, sliceName, _ := wire.ParseObjectKey(key)
	return pending{who: svc, key: key, modified: m.slices[svc][sliceName].modified}
}

// service decides about those slices of a service about which something has changed.
func (c *Controller) service(m *model, svc name) decided {
	d := decided{looked: map[string]bool{}}
	var gone []store.Op
	for _, sliceName := range slices.Sorted(maps.Keys(m.place(svc))) {
		key := wire.ObjectKey(manifest.EndpointSlices, svc.namespace, sliceName)
		d.looked[key] = true
		want := m.spreads[svc].slice(sliceName)
		have, there := m.slices[svc][sliceName]
		switch by := (name{svc.namespace, sliceName}); {
		case want != nil && m.manual[by]:
			m.blocked[by] = svc
			d.taken = append(d.taken, m.sliceWrite(svc, key))
		case want != nil:
			if text := encode(want); !bytes.Equal(text, have.text) {
				d.ops = append(d.ops, store.Put(key, text))
			}
		case there:
			gone = append(gone, store.Delete(key))
		}
	}
	d.ops = append(d.ops, gone...)
	return d
}

// outcome handles the result of a write. One that was made, or overtaken by another
// writer's, is settled by its event. One that the store refuses is shown in the status
// and tried again later. Any other error is returned.
func (c *Controller) outcome(m *model, w pending, o owner, revision int64, err error, of *work) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		m.giveBack(w.takes, w.who)
	}
	switch {
	case err == nil:
		c.unwritten.keep(o, func(key string) bool { return key != w.key })
		m.await(w.key, revision, w.who, of)
	case errors.Is(err, identities.ErrStale):
		m.await(w.key, w.modified+1, w.who, of)
	case errors.Is(err, identities.ErrContended):
		m.later(w, of)
	case cannotWrite(err):
		f := failure{cause: err, round: c.round}
		if p := m.pods[w.who]; p != nil && of == m.podWork {
			f.node = p.Node
		}
		c.unwritten.fail(o, w.key, f)
		m.later(w, of)
	default:
		return fmt.Errorf("write %s: %w", w.key, err)
	}
	return nil
}

// cannotTake records slices that cannot be written because their names are taken.
func (c *Controller) cannotTake(o owner, taken []pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range taken {
		c.unwritten.fail(o, w.key, failure{cause: nameTaken(w.key), round: c.round})
	}
}

// nothingToWrite forgets an owner's failures, except those that stand.
func (c *Controller) nothingToWrite(o owner, stands func(key string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unwritten.keep(o, stands)
}

// startRound begins a complete list: everything is about to be decided again.
func (c *Controller) startRound() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.round++
	c.refusals.round = c.round
}

// endRound ends it: what did not come up again is gone.
func (c *Controller) endRound(m *model) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unwritten.settled(c.round)
	c.refusals.settled(func(node string) bool { return m.nodes[node] != nil })
	c.looked = true
}

// nodes compares what nodes say about themselves with their registrations. It only
// reports what contradicts: others who use a node's word check it themselves.
func (c *Controller) nodes(m *model) {
	for nodeName := range m.dirtyNodes {
		n := m.nodes[nodeName]
		if n == nil {
			c.forgetNode(nodeName)
			continue
		}
		var no []refused
		if n.registration != nil && n.state != nil {
			if err := n.registration.Check(n.state.value); err != nil {
				no = []refused{{node: nodeName, modified: n.state.modified, reason: "contradicts its registration", example: nodeName + " " + err.Error()}}
			}
		}
		c.refuse(subject{"node", nodeName}, no)
	}
	clear(m.dirtyNodes)
}

// refuse makes these the refused claims about a subject; earlier ones are forgotten.
func (c *Controller) refuse(about subject, no []refused) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusals.set(about, no)
}

// forgetNode forgets what was refused of a node that is gone, claims and all.
func (c *Controller) forgetNode(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusals.forget(node)
}

// releaseOthers drops identity references of pods that were removed while no controller
// ran. A reference is written together with its endpoint, so one whose endpoint another
// API server has just written is kept.
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
