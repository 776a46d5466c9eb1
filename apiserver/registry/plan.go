package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// change is what happens to one object.
type change struct {
	object
	old    store.KV // Modified is 0 if there is none
	action api.Action
	writes []wire.Write
	conds  []store.Cond
}

// planner compares the objects of one manifest with the store. What it reads for one
// object it does not read again for the next.
type planner struct {
	*Registry
	by        writer
	seen      map[string]store.KV // what was read
	groups    map[string]bool     // of prefixes, in the same manifest
	ips       serviceIPs
	ports     nodePorts
	register  []store.KV // registrations of nodes; nil until needed
	addresses map[netip.Addr]string
}

// plan compares the objects with the store and returns what to write, or what is wrong with
// the objects.
func (r *Registry) plan(ctx context.Context, objects []object, by writer) ([]change, []api.Problem, error) {
	p := planner{Registry: r, by: by, seen: map[string]store.KV{}, groups: map[string]bool{}, ips: serviceIPs{registry: r}, ports: nodePorts{registry: r}}
	var keys []string
	for _, o := range objects {
		if o.skipped {
			continue
		}
		keys = append(keys, o.key())
		switch v := o.value.(type) {
		case *policy.CIDRGroup:
			p.groups[o.name] = true
		case *corev1.Pod:
			keys = append(keys, wire.RegistrationKey(v.Spec.NodeName))
		}
	}
	if err := p.read(ctx, keys); err != nil {
		return nil, nil, storeError(err)
	}
	changes := make([]change, len(objects))
	var problems []api.Problem
	for i, o := range objects {
		c := &changes[i]
		c.object = o
		problem, err := p.plan(ctx, c)
		if err != nil {
			return nil, nil, storeError(err)
		}
		if problem != "" {
			problems = append(problems, o.problem("%s", problem))
		}
		c.value = nil // from here on, only the JSON in its write is needed
	}
	return changes, problems, nil
}

// read reads the keys that were not read before.
func (p *planner) read(ctx context.Context, keys []string) error {
	var missing []string
	for _, key := range keys {
		if _, ok := p.seen[key]; !ok {
			p.seen[key] = store.KV{}
			missing = append(missing, key)
		}
	}
	kvs, err := p.store.GetMany(ctx, missing...)
	for _, kv := range kvs {
		p.seen[kv.Key] = kv
	}
	return err
}

// plan compares one object with the store and says what to write. A problem is for the
// operator to correct, an error is the store's.
func (p *planner) plan(ctx context.Context, c *change) (problem string, err error) {
	if c.skipped {
		c.action = api.Skipped
		return "", nil
	}
	c.old = p.seen[c.key()]
	derives := p.by.owner == api.OwnerMCS
	if c.kind.Plural == manifest.ServiceImports && !derives {
		return "follows from the ServiceExports of all clusters: apply a ServiceExport in a cluster that has the service", nil
	}
	if p.conf.Kubernetes && !p.by.native() && !derives && kubernetesAlone[c.kind.Plural] {
		return "is Kubernetes' to have in this cluster: apply it there, with `kubectl apply`", nil
	}
	if problem, err := p.fit(ctx, c); problem != "" || err != nil {
		return problem, err
	}
	text, problem, err := p.encodeFor(c)
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", c.key(), err)
	}
	if problem != "" {
		return problem, nil
	}
	if len(text) > maxObjectBytes {
		return fmt.Sprintf("has %d bytes; an object may have %d", len(text), maxObjectBytes), nil
	}
	switch {
	case c.old.Modified == 0:
		c.action = api.Created
	case bytes.Equal(c.old.Value, text):
		c.action, c.writes, c.conds = api.Unchanged, nil, nil
		return "", nil
	default:
		c.action = api.Configured
	}
	c.writes = append(c.writes, wire.Write{Key: c.key(), Value: text, Action: string(c.action)})
	c.conds = append(c.conds, store.Cond{Key: c.key(), Modified: c.old.Modified})
	return "", nil
}

// fit checks an object against the store and completes it.
func (p *planner) fit(ctx context.Context, c *change) (problem string, err error) {
	if problem := p.identify(c); problem != "" {
		return problem, nil
	}
	switch v := c.value.(type) {
	case *policy.Policy:
		return "", p.warnOfGroups(ctx, c, v)
	case *corev1.Pod:
		return p.fitPod(ctx, c, v)
	case *corev1.Service:
		if c.native {
			return p.fitNative(ctx, c, v)
		}
		if problem, err := p.ips.fit(ctx, c, v); problem != "" || err != nil {
			return problem, err
		}
		if problem, err := p.fitExternal(ctx, c, v); problem != "" || err != nil {
			return problem, err
		}
		return p.ports.fit(ctx, c, v)
	case *discoveryv1.EndpointSlice:
		var old discoveryv1.EndpointSlice
		if c.old.Modified != 0 && json.Unmarshal(c.old.Value, &old) == nil && old.Labels[discoveryv1.LabelManagedBy] == wire.ManagedBy {
			return "is derived from service " + old.Labels[discoveryv1.LabelServiceName] + "; choose another name", nil
		}
		if c.native {
			return "", nil // agents leave out what no service may lead to
		}
		return p.fitSlice(ctx, v)
	}
	return "", nil
}

// warnOfGroups warns if a policy refers to groups that are neither in the store nor in the
// manifest. They may be applied later.
func (p *planner) warnOfGroups(ctx context.Context, c *change, of *policy.Policy) (err error) {
	missing := of.MissingGroups(func(name string) bool {
		key := wire.ObjectKey(manifest.CIDRGroups, "", name)
		if e := p.read(ctx, []string{key}); e != nil {
			err = e
		}
		return p.groups[name] || p.seen[key].Modified != 0
	})
	for _, name := range missing {
		c.warn("there is no %s %q: what refers to it selects nobody until there is one", policy.KindCIDRGroup, name)
	}
	return err
}

// identify keeps an object's UID and creation time when it changes. A new object of the
// same name gets a new UID. Kubernetes' own have those that they have there.
func (r *Registry) identify(c *change) (problem string) {
	meta, old := c.meta(), c.old
	if c.native {
		meta.SetUID(types.UID(c.uid))
		meta.SetCreationTimestamp(metav1.NewTime(c.created.UTC()))
		return ""
	}
	if old.Modified == 0 {
		meta.SetUID(uuid.NewUUID())
		meta.SetCreationTimestamp(metav1.NewTime(r.now().UTC().Truncate(time.Second)))
		return ""
	}
	var was metav1.PartialObjectMetadata
	if err := json.Unmarshal(old.Value, &was); err != nil {
		return damaged(err)
	}
	meta.SetUID(was.UID)
	meta.SetCreationTimestamp(metav1.NewTime(was.CreationTimestamp.UTC()))
	return ""
}

func (p *planner) fitPod(ctx context.Context, c *change, pod *corev1.Pod) (string, error) {
	node := pod.Spec.NodeName
	kv := p.seen[wire.RegistrationKey(node)]
	if kv.Modified == 0 {
		return p.unknownNode(ctx, node)
	}
	c.conds = append(c.conds, store.Cond{Key: kv.Key, Modified: kv.Modified})
	if c.old.Modified == 0 || c.native { // Kubernetes decides what of a pod may change
		return "", nil
	}
	var old corev1.Pod
	if err := json.Unmarshal(c.old.Value, &old); err != nil {
		return damaged(err), nil
	}
	if old.Spec.NodeName != node {
		return fmt.Sprintf("runs on node %s and cannot move to %s; delete it first", old.Spec.NodeName, node), nil
	}
	was, err := json.Marshal(old.Spec)
	if err != nil {
		return "", err
	}
	is, err := json.Marshal(pod.Spec)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(was, is) {
		return "its spec cannot change while it runs (labels and annotations can); delete it first", nil
	}
	return "", nil
}

// registrations returns those of all nodes.
func (p *planner) registrations(ctx context.Context) (kvs []store.KV, err error) {
	if p.register == nil {
		if kvs, _, err = p.store.List(ctx, wire.RegistrationsPrefix); err != nil {
			return nil, err
		}
		p.register = append([]store.KV{}, kvs...)
	}
	return p.register, nil
}

// insideAddresses returns the nodes' names by their addresses inside the mesh.
func (p *planner) insideAddresses(ctx context.Context) (map[netip.Addr]string, error) {
	if p.addresses != nil {
		return p.addresses, nil
	}
	kvs, err := p.registrations(ctx)
	if err != nil {
		return nil, err
	}
	p.addresses = map[netip.Addr]string{}
	for _, kv := range kvs {
		if reg, err := wire.Unmarshal[wire.Registration](kv.Value); err == nil {
			for _, a := range reg.Internals() {
				p.addresses[a] = reg.Name
			}
		}
	}
	return p.addresses, nil
}

func (p *planner) unknownNode(ctx context.Context, node string) (string, error) {
	kvs, err := p.registrations(ctx)
	if err != nil {
		return "", err
	}
	if len(kvs) == 0 {
		return fmt.Sprintf("spec.nodeName %q is not a node of cluster %s, which has none yet; add it with `weft node add`", node, p.conf.Cluster), nil
	}
	names := make([]string, 0, len(kvs))
	for _, kv := range kvs {
		if name, ok := wire.ParseRegistrationKey(kv.Key); ok {
			names = append(names, name)
		}
	}
	if len(names) > 10 {
		names = append(names[:10], "…")
	}
	return fmt.Sprintf("spec.nodeName %q is not a node of cluster %s; its nodes are %s", node, p.conf.Cluster, strings.Join(names, ", ")), nil
}
