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
	// takeOver says that objects of other owners become the writer's, except for those of the
	// source lasting, which would have them back at once.
	takeOver bool
	lasting  string
}

// operator is whoever uses `weft apply` or `weft delete`.
func (r *Registry) operator(opts api.ManifestOptions) writer {
	by := writer{owner: api.OwnerApply, takeOver: opts.TakeOver}
	if r.conf.Kubernetes {
		by.lasting = api.OwnerKubernetes
	}
	return by
}

// takes reports whether the writer may have what belongs to an owner.
func (by writer) takes(was string) bool {
	return was == by.owner || by.takeOver && was != by.lasting
}

// native reports whether the writer is Kubernetes: its objects keep the UIDs, the times of
// creation, the addresses and the node ports that they have there.
func (by writer) native() bool { return by.owner == api.OwnerKubernetes }

// owns decides whose an object is once by has written it, and whether it may. same says
// that the object would become no other: then nobody's wishes are hurt, and what was
// applied by hand goes to the source that has it now.
func (by writer) owns(was string, same bool) (owner string, may bool) {
	switch {
	case by.takes(was), same && was == api.OwnerApply:
		return by.owner, true
	}
	return was, same
}

// mayDelete reports whether the writer may delete an object of an owner.
func (by writer) mayDelete(was string) bool { return by.takes(was) }

// conflict says whose an object is that the writer may not overwrite.
func (by writer) conflict(was string) string {
	switch {
	case was == by.lasting:
		return "comes from Kubernetes: change it there, with `kubectl apply` or `kubectl delete`"
	case by.owner == api.OwnerKubernetes && was == api.OwnerApply:
		return "was applied here with `weft apply`: `weft delete` it, and what Kubernetes has takes its place"
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
