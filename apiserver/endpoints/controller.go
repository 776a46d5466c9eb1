package endpoints

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/apiserver/store"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/wire"
)

// writers is how many writes are under way at once. etcd commits what arrives
// together in one go, so waiting for each would waste most of its speed.
const writers = 16

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
	problems map[string]string  // what could not be written, and why
	status   Status
}

// claimKey is one claim: of a node, about a pod or itself.
type claimKey struct{ node, resource, what string }

// refusalKey is what refusals are counted by.
type refusalKey struct{ node, resource, reason string }

// Status is what the controller knows, for the API.
type Status struct {
	// Synced is set once everything was derived for the first time.
	Synced bool
	// Endpoints counts accepted endpoints by node.
	Endpoints map[string]int
	Refusals  []api.Refusal
	Problems  []string
}

// New makes a Controller.
func New(c Config) *Controller {
	return &Controller{conf: c, refusals: map[refusalKey]*api.Refusal{}, counted: map[claimKey]int64{}, problems: map[string]string{}}
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	return store.Persist(ctx, c.conf.Log, "deriving endpoints", func(ctx context.Context) error {
		m := newModel()
		return store.Follow(ctx, c.conf.Store, wire.StatePrefix, func(b store.Batch) error {
			if b.Complete {
				m = newModel()
			}
			for _, ev := range b.Events {
				m.apply(ev)
			}
			if err := c.settle(ctx, m); err != nil {
				return err
			}
			if b.Complete {
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
	for _, key := range slices.Sorted(maps.Keys(c.problems)) {
		out.Problems = append(out.Problems, key+": "+c.problems[key])
	}
	return out
}

func (k refusalKey) compare(other refusalKey) int {
	return slices.Compare([]string{k.node, k.resource, k.reason}, []string{other.node, other.resource, other.reason})
}

// settle writes what follows from everything that is dirty. What another writer
// changed meanwhile stays dirty: its event is on the way. An error ends the
// following of the store, and everything is derived anew.
func (c *Controller) settle(ctx context.Context, m *model) error {
	c.nodes(m)
	podsLeft, err := c.each(ctx, sorted(m.dirtyPods), func(who name) func(context.Context) (bool, error) {
		return c.pod(m, who)
	})
	if err != nil {
		return err
	}
	m.dirtyPods = podsLeft
	servicesLeft, err := c.each(ctx, sorted(m.dirtyServices), func(svc name) func(context.Context) (bool, error) {
		return c.service(m, svc)
	})
	if err != nil {
		return err
	}
	m.dirtyServices = servicesLeft

	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Synced, c.status.Endpoints = true, maps.Clone(m.perNode)
	return nil
}

// each decides one after the other, because decisions share the model, and
// writes side by side. It returns the names that are not done.
func (c *Controller) each(ctx context.Context, names []name, decide func(name) func(context.Context) (done bool, err error)) (map[name]bool, error) {
	var mu sync.Mutex
	left := map[name]bool{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for _, who := range names {
		act := decide(who)
		if act == nil {
			continue
		}
		g.Go(func() error {
			done, err := act(ctx)
			if !done {
				mu.Lock()
				left[who] = true
				mu.Unlock()
			}
			return err
		})
	}
	return left, g.Wait()
}

// pod decides about one pod's endpoint and returns the write; nil for none.
func (c *Controller) pod(m *model, who name) func(context.Context) (bool, error) {
	want, v, no := m.endpoint(c.conf.Cluster, who)
	for _, claim := range no {
		c.refuse("endpoint", who.String(), claim)
	}
	have, there := m.endpoints[who]
	key := wire.EndpointKey(who.namespace, who.name)
	unchanged := identity.Condition{Key: key, Revision: have.modified}
	switch {
	case v == keep, v == remove && !there:
		return nil
	case v == remove:
		return func(ctx context.Context) (bool, error) {
			err := c.conf.Allocator.Release(ctx, have.value.Labels, who.String(), identity.Txn{
				If:   []identity.Condition{unchanged},
				Then: []identity.Change{{Key: key, Delete: true}},
			})
			return c.outcome(key, err)
		}
	}
	if there && have.value.Labels.Equal(want.Labels) {
		want.Identity = have.value.Identity
		if bytes.Equal(wire.Marshal(want), have.text) {
			return nil
		}
	}
	m.byIP[want.IP] = who
	return func(ctx context.Context) (bool, error) {
		_, err := c.conf.Allocator.Acquire(ctx, want.Labels, who.String(), func(n identity.Number) identity.Txn {
			e := want
			e.Identity = n
			txn := identity.Txn{If: []identity.Condition{unchanged}, Then: []identity.Change{{Key: key, Value: wire.Marshal(e)}}}
			if there && !have.value.Labels.Equal(want.Labels) {
				txn.Then = append(txn.Then, identity.Change{Key: identity.ReferenceKey(have.value.Labels, who.String()), Delete: true})
			}
			return txn
		})
		return c.outcome(key, err)
	}
}

// service decides about one service's slices and returns the write; nil for
// none.
func (c *Controller) service(m *model, svc name) func(context.Context) (bool, error) {
	derived := m.serviceSlices(svc)
	m.remember(svc, derived)
	var txns []store.Txn
	add := func(sliceName string, modified int64, op store.Op) {
		txns = append(txns, store.Txn{If: []store.Cond{{Key: op.Key, Modified: modified}}, Then: []store.Op{op}})
	}
	have := m.slices[svc]
	for _, sliceName := range slices.Sorted(maps.Keys(derived)) {
		text, old := encode(derived[sliceName]), have[sliceName]
		if !bytes.Equal(text, old.text) {
			add(sliceName, old.modified, store.Put(wire.ObjectKey("endpointslices", svc.namespace, sliceName), text))
		}
	}
	for _, sliceName := range slices.Sorted(maps.Keys(have)) {
		if derived[sliceName] == nil {
			add(sliceName, have[sliceName].modified, store.Delete(wire.ObjectKey("endpointslices", svc.namespace, sliceName)))
		}
	}
	if len(txns) == 0 {
		return nil
	}
	return func(ctx context.Context) (bool, error) {
		all := true
		for _, txn := range txns {
			_, done, err := c.conf.Store.Commit(ctx, txn)
			if err == nil && !done {
				err = identity.ErrContended
			}
			done, err = c.outcome(txn.Then[0].Key, err)
			if err != nil {
				return false, err
			}
			all = all && done
		}
		return all, nil
	}
}

// outcome sorts a write's error: being overtaken is settled by the event on its
// way; what cannot be written at all is shown and tried again; the rest ends
// the following of the store.
func (c *Controller) outcome(key string, err error) (done bool, fatal error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		delete(c.problems, key)
		return true, nil
	case errors.Is(err, identity.ErrContended):
		return false, nil
	case errors.Is(err, identity.ErrExhausted), errors.Is(err, store.ErrTooLarge), errors.Is(err, store.ErrFull):
		c.problems[key] = err.Error()
		return false, nil
	}
	return false, fmt.Errorf("write %s: %w", key, err)
}

// nodes looks at what nodes say of themselves. Nothing follows from it here:
// whoever uses it asks the register too. A lie is counted and shown.
func (c *Controller) nodes(m *model) {
	for nodeName := range m.dirtyNodes {
		n := m.nodes[nodeName]
		if n.registration == nil || n.state == nil {
			continue
		}
		if err := n.registration.Check(n.state.value); err != nil {
			c.refuse("node", nodeName, refused{nodeName, n.state.modified, "contradicts its registration", nodeName + " " + err.Error()})
		}
	}
	clear(m.dirtyNodes)
}

// refuse counts a claim that is not believed, once for each time it was made.
func (c *Controller) refuse(resource, what string, no refused) {
	c.mu.Lock()
	defer c.mu.Unlock()
	claim := claimKey{no.node, resource, what}
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
