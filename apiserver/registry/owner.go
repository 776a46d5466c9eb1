package registry

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

// writer is who changes objects.
type writer struct {
	owner string
	// takeOver says that objects of other owners become the writer's.
	takeOver bool
}

// owns decides whose an object is once by has written it, and whether it may. same says
// that the object would become no other: then nobody's wishes are hurt, and what was
// applied by hand goes to the source that has it now.
func (by writer) owns(was string, same bool) (owner string, may bool) {
	switch {
	case was == by.owner, by.takeOver, same && was == api.OwnerApply:
		return by.owner, true
	}
	return was, same
}

// mayDelete reports whether the writer may delete an object of an owner.
func (by writer) mayDelete(was string) bool { return was == by.owner || by.takeOver }

// conflict says whose an object is that the writer may not overwrite.
func (by writer) conflict(was string) string {
	switch {
	case by.owner == api.OwnerApply:
		return fmt.Sprintf("belongs to the source %q: change it there, or repeat with --take-over", was)
	case was == api.OwnerApply:
		return "was applied with `weft apply` and differs: apply this manifest with `weft apply` to hand the object over, or `weft delete` it"
	}
	return fmt.Sprintf("belongs to the source %q: remove it from one of the two", was)
}

// setOwner notes an object's owner in it. That of an object that was applied is not noted.
func setOwner(meta metav1.Object, owner string) {
	meta.SetManagedFields(nil)
	if owner != api.OwnerApply {
		meta.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: owner, Operation: metav1.ManagedFieldsOperationApply}})
	}
}

// encodeFor decides whose an object becomes, and returns its JSON. The problem is empty if
// the writer may write it.
func (p *planner) encodeFor(c *change) (text []byte, problem string, err error) {
	owner, may := p.by.owner, true
	if c.old.Modified != 0 {
		was := api.OwnerOf(c.old.Value)
		setOwner(c.meta(), was)
		if text, err = c.encode(); err != nil {
			return nil, "", err
		}
		if owner, may = p.by.owns(was, bytes.Equal(text, c.old.Value)); !may {
			return nil, p.by.conflict(was), nil
		}
		if owner == was {
			return text, "", nil
		}
	}
	setOwner(c.meta(), owner)
	text, err = c.encode()
	return text, "", err
}

// heldBy lists what an owner has in the store, except for the objects with the given keys.
func (r *Registry) heldBy(ctx context.Context, owner string, except map[string]bool) (all []object, err error) {
	for _, kind := range kinds {
		kvs, _, err := r.store.List(ctx, listPrefix(kind, ""))
		if err != nil {
			return nil, storeError(err)
		}
		for _, kv := range kvs {
			_, namespace, name, ok := wire.ParseObjectKey(kv.Key)
			if ok && !except[kv.Key] && api.OwnerOf(kv.Value) == owner {
				all = append(all, object{kind: kind, namespace: namespace, name: name})
			}
		}
	}
	return slices.Clip(all), nil
}
