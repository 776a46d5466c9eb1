package registry

import (
	"context"
	"encoding/json"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Delete deletes one object. word is any word for its kind that FindKind knows. What opts
// say of manifests is not about it.
func (r *Registry) Delete(ctx context.Context, word, namespace, name string, opts api.ManifestOptions) (*api.ApplyResult, error) {
	kind, namespace, err := r.place(word, namespace)
	if err != nil {
		return nil, err
	}
	result, err := r.delete(ctx, []object{{kind: kind, namespace: namespace, name: name}}, opts)
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
	return r.delete(ctx, objects, opts)
}

func (r *Registry) delete(ctx context.Context, objects []object, opts api.ManifestOptions) (*api.ApplyResult, error) {
	for range attempts {
		result, done, err := r.change(ctx, opts.DryRun, func() ([]change, error) {
			return accepted(r.planDeletion(ctx, objects, r.operator(opts)))
		})
		if err != nil || done {
			return result, err
		}
	}
	return nil, busy()
}

// planDeletion looks up the objects and returns what to delete, and why others cannot be.
func (r *Registry) planDeletion(ctx context.Context, objects []object, by writer) ([]change, []api.Problem, error) {
	going := map[string]bool{}
	var keys []string
	namespaces := 0
	for _, o := range objects {
		if o.skipped {
			continue
		}
		if keys = append(keys, o.key()); o.kind.Plural == manifest.Namespaces {
			namespaces++
		}
		going[o.key()] = true
	}
	kvs, err := r.store.GetMany(ctx, keys...)
	if err != nil {
		return nil, nil, storeError(err)
	}
	holds := contents{Registry: r, all: namespaces > fewNamespaces}
	changes := make([]change, 0, len(objects))
	var problems []api.Problem
	for _, o := range objects {
		c := change{object: o}
		if o.skipped {
			c.action = api.Skipped
			changes = append(changes, c)
			continue
		}
		c.old, kvs = kvs[0], kvs[1:]
		if c.old.Modified == 0 {
			c.action = api.Absent
			changes = append(changes, c)
			continue
		}
		problem, err := holds.mayGo(ctx, &o, c.old, going)
		if err != nil {
			return nil, nil, storeError(err)
		}
		if was := api.OwnerOf(c.old.Value); problem == "" && !by.mayDelete(was) {
			problem = by.conflict(was)
		}
		if problem != "" {
			problems = append(problems, o.problem("%s", problem))
			continue
		}
		c.action = api.Deleted
		c.conds = []store.Cond{{Key: o.key(), Modified: c.old.Modified}}
		c.writes = []wire.Write{{Key: o.key(), Delete: true, Action: string(c.action)}}
		freed, err := r.frees(ctx, &o, c.old)
		if err != nil {
			return nil, nil, storeError(err)
		}
		c.writes = append(c.writes, freed...)
		changes = append(changes, c)
	}
	return changes, problems, nil
}

// frees returns the writes that give back what a service was allocated.
func (r *Registry) frees(ctx context.Context, o *object, old store.KV) (writes []wire.Write, err error) {
	var svc corev1.Service
	if o.kind.Plural != manifest.Services || json.Unmarshal(old.Value, &svc) != nil {
		return nil, nil
	}
	for _, ip := range allocated(&svc) {
		writes = append(writes, wire.Write{Key: wire.ServiceIPKey(ip), Delete: true})
	}
	ports, err := r.freeNodePorts(ctx, &svc, o.namespace+"/"+o.name)
	return append(writes, ports...), err
}

// fewNamespaces is how many are listed one by one.
const fewNamespaces = 4

// contents looks up what is in namespaces.
type contents struct {
	*Registry
	all    bool // list every namespace at once
	listed map[string][]store.KV
}

// of returns what a namespace holds of all kinds.
func (c *contents) of(ctx context.Context, namespace string) (kvs []store.KV, err error) {
	if c.all && c.listed != nil {
		return c.listed[namespace], nil
	}
	in := namespace
	if c.all {
		in, c.listed = "", map[string][]store.KV{}
	}
	for _, kind := range kinds {
		if !kind.Namespaced {
			continue
		}
		found, _, err := c.store.List(ctx, listPrefix(kind, in))
		if err != nil {
			return nil, err
		}
		if !c.all {
			kvs = append(kvs, found...)
			continue
		}
		for _, kv := range found {
			_, ns, _, _ := wire.ParseObjectKey(kv.Key)
			c.listed[ns] = append(c.listed[ns], kv)
		}
	}
	if c.all {
		return c.listed[namespace], nil
	}
	return kvs, nil
}

// mayGo returns why an object cannot be deleted; "" if it can. going has the keys of the
// objects that are deleted with it.
func (c *contents) mayGo(ctx context.Context, o *object, old store.KV, going map[string]bool) (string, error) {
	switch o.kind.Plural {
	case manifest.EndpointSlices:
		var slice discoveryv1.EndpointSlice
		if json.Unmarshal(old.Value, &slice) == nil && slice.Labels[discoveryv1.LabelManagedBy] == wire.ManagedBy {
			return "is derived from its service and deleted with it: " + "delete service " + slice.Labels[discoveryv1.LabelServiceName] + " instead", nil
		}
	case manifest.Namespaces:
		kvs, err := c.of(ctx, o.name)
		if err != nil {
			return "", err
		}
		var left []string
		for _, kv := range kvs {
			plural, _, name, _ := wire.ParseObjectKey(kv.Key)
			if plural == manifest.EndpointSlices && managed(kv.Value) || going[kv.Key] || api.OwnerOf(kv.Value) == api.OwnerMCS {
				continue
			}
			kind, _ := FindKind(plural)
			left = append(left, kind.Name+" "+name)
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
