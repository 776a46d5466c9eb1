package registry

import (
	"context"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Ref names an object.
type Ref struct {
	Plural    string // of its kind
	Namespace string // "" if it belongs to none
	Name      string
}

// Key is the object's key in the store.
func (r Ref) Key() string { return wire.ObjectKey(r.Plural, r.Namespace, r.Name) }

func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Name
	}
	return r.Namespace + "/" + r.Name
}

// Delta is what has changed in a source.
type Delta struct {
	Put []Unit
	// Delete are objects that the source no longer has. One that it does not own stays.
	Delete []Ref
}

// Update changes those of the source's objects that have changed there, at the cost of these
// alone. Its outcome lists all mistakes, and Kept is 0. It may be repeated at any time.
func (s *Owned) Update(ctx context.Context, d Delta) (*Outcome, error) {
	if callerOf(ctx).User == "" {
		ctx = By(ctx, Caller{User: "source " + s.owner})
	}
	return s.make(ctx, func(out *Outcome) ([]change, error) {
		*out = Outcome{}
		changes, err := s.planUnits(ctx, d.Put, writer{owner: s.owner}, out)
		if err != nil {
			return nil, err
		}
		gone, err := s.planGone(ctx, d.Delete)
		return append(changes, gone...), err
	})
}

// Held lists the objects that the source owns.
func (s *Owned) Held(ctx context.Context) ([]Ref, error) {
	objects, err := s.registry.heldBy(ctx, s.owner, nil)
	refs := make([]Ref, len(objects))
	for i, o := range objects {
		refs[i] = Ref{o.kind.Plural, o.namespace, o.name}
	}
	return refs, err
}

// planGone plans the deletion of those objects that the source owns. What it no longer has is
// gone, whatever else is in a namespace: whoever has that decides about it.
func (s *Owned) planGone(ctx context.Context, refs []Ref) ([]change, error) {
	keys := make([]string, len(refs))
	for i, ref := range refs {
		keys[i] = ref.Key()
	}
	kvs, err := s.registry.store.GetMany(ctx, keys...)
	if err != nil {
		return nil, storeError(err)
	}
	var changes []change
	for i, kv := range kvs {
		kind, known := FindKind(refs[i].Plural)
		if kv.Modified == 0 || !known || api.OwnerOf(kv.Value) != s.owner {
			continue
		}
		o := object{kind: kind, namespace: refs[i].Namespace, name: refs[i].Name}
		c := change{
			object: o, old: kv, action: api.Deleted,
			writes: []wire.Write{{Key: kv.Key, Delete: true, Action: string(api.Deleted)}},
			conds:  []store.Cond{{Key: kv.Key, Modified: kv.Modified}},
		}
		if s.owner != api.OwnerKubernetes { // which allocates itself
			freed, err := s.registry.frees(ctx, &o, kv)
			if err != nil {
				return nil, storeError(err)
			}
			c.writes = append(c.writes, freed...)
		}
		changes = append(changes, c)
	}
	return changes, nil
}
