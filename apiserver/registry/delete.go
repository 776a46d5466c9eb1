package registry

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Delete deletes one object. word is any word for its kind that FindKind knows.
func (r *Registry) Delete(ctx context.Context, word, namespace, name string) (*api.ApplyResult, error) {
	kind, namespace, err := r.place(word, namespace)
	if err != nil {
		return nil, err
	}
	result, err := r.delete(ctx, []object{{kind: kind, namespace: namespace, name: name}}, false)
	if err == nil && result.Objects[0].Action == api.Absent {
		return nil, r.absent(kind, namespace, name)
	}
	return result, err
}

// DeleteManifest deletes the objects that a manifest names, all of them or none. One
// that does not exist is reported as absent. A dry run deletes nothing and returns what
// would have happened.
func (r *Registry) DeleteManifest(ctx context.Context, manifest []byte, opts api.ManifestOptions) (*api.ApplyResult, error) {
	objects, problems := readManifest(manifest, opts, true)
	if len(problems) > 0 {
		return nil, refusal(problems)
	}
	if err := tooMany(objects); err != nil {
		return nil, err
	}
	return r.delete(ctx, objects, opts.DryRun)
}

func (r *Registry) delete(ctx context.Context, objects []object, dryRun bool) (*api.ApplyResult, error) {
	going := map[string]bool{}
	for _, o := range objects {
		going[o.key()] = true
	}
	for range attempts {
		result := &api.ApplyResult{Cluster: r.conf.Cluster, DryRun: dryRun}
		var txn store.Txn
		var problems []api.Problem
		for _, o := range objects {
			if o.skipped {
				result.Objects = append(result.Objects, r.applied(&o, api.Skipped))
				continue
			}
			old, err := r.store.Get(ctx, o.key())
			if errors.Is(err, store.ErrNotFound) {
				result.Objects = append(result.Objects, r.applied(&o, api.Absent))
				continue
			}
			if err != nil {
				return nil, storeError(err)
			}
			problem, err := r.mayGo(ctx, &o, old, going)
			if err != nil {
				return nil, storeError(err)
			}
			if problem != "" {
				problems = append(problems, o.problem("%s", problem))
				continue
			}
			result.Objects = append(result.Objects, r.applied(&o, api.Deleted))
			txn.If = append(txn.If, store.Cond{Key: o.key(), Modified: old.Modified})
			txn.Then = append(txn.Then, store.Delete(o.key()))
			if o.kind.Plural == "services" {
				var svc corev1.Service
				if json.Unmarshal(old.Value, &svc) == nil && allocated(&svc) {
					txn.Then = append(txn.Then, store.Delete(serviceIPKey(svc.Spec.ClusterIP)))
				}
			}
		}
		if len(problems) > 0 {
			return nil, refusal(problems)
		}
		if dryRun || len(txn.Then) == 0 {
			return result, nil
		}
		_, done, err := r.store.Commit(ctx, txn)
		if err != nil {
			return nil, commitError(err)
		}
		if done {
			return result, nil
		}
	}
	return nil, busy()
}

// mayGo returns why an object cannot be deleted; "" if it can. going has the keys of the
// objects that are deleted with it.
func (r *Registry) mayGo(ctx context.Context, o *object, old store.KV, going map[string]bool) (string, error) {
	switch o.kind.Plural {
	case "endpointslices":
		var slice discoveryv1.EndpointSlice
		if json.Unmarshal(old.Value, &slice) == nil && slice.Labels[discoveryv1.LabelManagedBy] == wire.ManagedBy {
			return "is derived from its service and deleted with it: " + "delete service " + slice.Labels[discoveryv1.LabelServiceName] + " instead", nil
		}
	case "namespaces":
		var left []string
		for _, kind := range kinds {
			if !kind.Namespaced {
				continue
			}
			kvs, _, err := r.store.List(ctx, listPrefix(kind, o.name))
			if err != nil {
				return "", err
			}
			for _, kv := range kvs {
				_, _, name, _ := wire.ParseObjectKey(kv.Key)
				if kind.Plural == "endpointslices" && managed(kv.Value) || going[kv.Key] {
					continue
				}
				left = append(left, kind.Name+" "+name)
			}
		}
		if len(left) > 5 {
			left = append(left[:5], "…")
		}
		if len(left) > 0 {
			return "still holds " + strings.Join(left, ", ") + "; delete them first or with the same manifest", nil
		}
	}
	return "", nil
}

func managed(text []byte) bool {
	var slice discoveryv1.EndpointSlice
	return json.Unmarshal(text, &slice) == nil && slice.Labels[discoveryv1.LabelManagedBy] == wire.ManagedBy
}
