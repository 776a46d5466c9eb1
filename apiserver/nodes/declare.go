package nodes

import (
	"context"
	"errors"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// declareOps is how many writes of a declaration share one transaction; etcd takes 128.
const declareOps = 80

// Declare registers nodes for a source, without bundles: those are given to who asks with
// AddFrom. Nodes that an operator has added stay as they are. The register is read once,
// however many nodes there are. Before one takes the place of another object of its name,
// confirm says whether it is still there: the source may be behind an agent that has joined
// as the new one. A node that cannot be registered is in refused, with why.
func (r *Registrar) Declare(ctx context.Context, requests []api.NodeRequest, source string, confirm func(context.Context, api.NodeRequest) (bool, error)) (refused map[string]error, err error) {
	d := declaration{Registrar: r, source: source, confirm: confirm, refused: map[string]error{}, ours: map[string]bool{}}
	due := requests
	for range attempts {
		if len(due) == 0 {
			break
		}
		o, err := r.roster(ctx)
		if err != nil {
			return nil, err
		}
		if due, err = d.register(ctx, o, due); err != nil {
			return nil, err
		}
	}
	if len(due) > 0 {
		return nil, busy()
	}
	for _, request := range requests {
		if !d.ours[request.Name] {
			continue
		}
		// An agent that has its bundle from before goes on with it.
		if err := r.conf.Users.SetUser(ctx, agentRights(request.Name)); err != nil {
			return nil, err
		}
	}
	return d.refused, nil
}

// declaration is a Declare under way.
type declaration struct {
	*Registrar
	source  string
	confirm func(context.Context, api.NodeRequest) (bool, error)
	refused map[string]error
	ours    map[string]bool // registered, and of the source
}

// register registers nodes in as few transactions as there may be, and returns those that are
// left because somebody else has changed the register meanwhile.
func (d *declaration) register(ctx context.Context, o *roster, due []api.NodeRequest) ([]api.NodeRequest, error) {
	for len(due) > 0 {
		var ops []store.Op
		n := 0
		for n < len(due) && len(ops) < declareOps {
			more, err := d.plan(ctx, o, due[n])
			if err != nil {
				return due, err
			}
			ops = append(ops, more...)
			n++
		}
		if len(ops) > 0 {
			if done, err := d.commit(ctx, o, ops); err != nil || !done {
				return due, err
			}
		}
		due = due[n:]
	}
	return nil, nil
}

// plan decides what one node writes.
func (d *declaration) plan(ctx context.Context, o *roster, request api.NodeRequest) ([]store.Op, error) {
	node := request.Name
	delete(d.refused, node)
	delete(d.ours, node)
	if old, there := o.nodes[node]; there && old.Source == d.source && replaces(request, old) {
		is, err := d.confirm(ctx, request)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			d.refused[node] = err
		}
		if err != nil || !is {
			return nil, nil
		}
	}
	reg, ops, err := d.Registrar.plan(o, request, d.source)
	if err != nil {
		d.refused[node] = err
		return nil, nil
	}
	d.ours[node] = reg.Source == d.source
	return ops, nil
}

// Withdraw removes the node that a source has declared for the object uid, and nothing of any
// other: whoever has its name by now stays. An empty uid is any. Its pods are the source's to
// withdraw.
//
// The registration goes first, on the condition that it is still the one that was looked at,
// and the rights after it. A withdrawal that ends in between is finished by the next attempt,
// or by Settle.
func (r *Registrar) Withdraw(ctx context.Context, node, uid, source string) error {
	for range attempts {
		kv, err := r.get(ctx, node)
		if err != nil {
			return err
		}
		if kv.Modified == 0 {
			return r.finish(ctx, node)
		}
		reg, err := wire.Unmarshal[wire.Registration](kv.Value)
		if err != nil {
			return err
		}
		if reg.Source != source || uid != "" && reg.UID != "" && reg.UID != uid {
			return r.finish(ctx, node)
		}
		_, done, err := r.conf.Store.Commit(ctx, store.Txn{
			If: []store.Cond{{Key: kv.Key, Modified: kv.Modified}},
			Then: []store.Op{
				store.Put(wire.RegistrationsTurnKey, nil), store.Delete(kv.Key),
				store.DeletePrefix(wire.NodePrefix(node)), store.Put(wire.WithdrawnKey(node), nil),
			},
		})
		if err != nil {
			return err
		}
		if done {
			return r.settle(ctx, node)
		}
	}
	return busy()
}

// Settle finishes withdrawals that were interrupted.
func (r *Registrar) Settle(ctx context.Context) error {
	kvs, _, err := r.conf.Store.List(ctx, wire.WithdrawnPrefix)
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		if node, ok := wire.ParseWithdrawnKey(kv.Key); ok {
			if err := r.settle(ctx, node); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish settles an earlier withdrawal, if there was one that did not come to its end.
func (r *Registrar) finish(ctx context.Context, node string) error {
	_, err := r.conf.Store.Get(ctx, wire.WithdrawnKey(node))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return r.settle(ctx, node)
}

// settle takes away the rights of a node that was withdrawn, and what it wrote until then. If
// it has been registered again meanwhile, its rights were granted after that, perhaps before
// they were taken away here: they are granted again.
func (r *Registrar) settle(ctx context.Context, node string) error {
	if err := r.conf.Users.RemoveUser(ctx, authority.AgentUser(node)); err != nil {
		return err
	}
	_, gone, err := r.conf.Store.Commit(ctx, store.Txn{
		If:   []store.Cond{{Key: wire.RegistrationKey(node)}},
		Then: []store.Op{store.DeletePrefix(wire.NodePrefix(node)), store.Delete(wire.WithdrawnKey(node))},
	})
	if err != nil || gone {
		return err
	}
	if err := r.conf.Users.SetUser(ctx, agentRights(node)); err != nil {
		return err
	}
	return store.Write(ctx, r.conf.Store, store.Delete(wire.WithdrawnKey(node)))
}
