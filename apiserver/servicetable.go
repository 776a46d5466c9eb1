package apiserver

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// serviceTable follows the cluster's services and their slices of every cluster, so that
// looking for concerns costs what changed, not all services.
type serviceTable struct {
	own   string
	store store.Store
	log   *slog.Logger

	mu      sync.Mutex // guards what follows
	objects map[serviceName]serviceObject
	parts   map[string]servicePart          // by key in the store
	partsOf map[serviceName]map[string]bool // their keys
	damaged map[string]string               // own keys that cannot be read, and why
	dirty   map[serviceName]bool            // changed since concerns was last called
	// suspects are the services with a port that all backends of a cluster lack. How
	// far paths are up can only make it fewer.
	suspects map[serviceName]bool
}

// serviceName is a service's place in a cluster.
type serviceName struct{ namespace, name string }

func (n serviceName) compare(other serviceName) int {
	return cmp.Or(cmp.Compare(n.namespace, other.namespace), cmp.Compare(n.name, other.name))
}

type serviceObject struct {
	service.Service
	clusterIPs, externalIPs []string
}

// servicePart is what one key says about a service's backends.
type servicePart struct {
	of      serviceName
	cluster string
	slices  []service.Slice
	// value is what a peer wrote, in place of slices: most services of peers do not exist
	// here, and their slices would take ten times as much.
	value []byte
	// fallback: a peer's service, which counts only if the peer has no slices of it.
	fallback bool
}

func newServiceTable(own string, s store.Store, log *slog.Logger) *serviceTable {
	return &serviceTable{
		own: own, store: s, log: log,
		objects: map[serviceName]serviceObject{}, parts: map[string]servicePart{}, partsOf: map[serviceName]map[string]bool{},
		damaged: map[string]string{}, dirty: map[serviceName]bool{}, suspects: map[serviceName]bool{},
	}
}

func servicePrefixes() []string {
	return []string{wire.ObjectKindPrefix(manifest.Services), wire.ObjectKindPrefix(manifest.EndpointSlices), wire.EndpointSlices.AllCachePrefix(), wire.Services.AllCachePrefix()}
}

// Run follows the store until ctx ends.
func (t *serviceTable) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, prefix := range servicePrefixes() {
		g.Go(func() error {
			return store.Persist(ctx, t.log, "following "+prefix, func(ctx context.Context) error {
				return store.Follow(ctx, t.store, prefix, func(b store.Batch) error {
					t.apply(prefix, b)
					return nil
				})
			})
		})
	}
	return g.Wait()
}

// replace makes a complete list of a prefix the content of the table.
func (t *serviceTable) replace(prefix string, kvs []store.KV) {
	b := store.Batch{Complete: true, Events: make([]store.Event, len(kvs))}
	for i, kv := range kvs {
		b.Events[i].KV = kv
	}
	t.apply(prefix, b)
}

func (t *serviceTable) apply(prefix string, b store.Batch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b.Complete {
		listed := make(map[string]bool, len(b.Events))
		for _, ev := range b.Events {
			listed[ev.Key] = true
		}
		for key := range t.parts {
			if strings.HasPrefix(key, prefix) && !listed[key] {
				t.applyLocked(key, nil)
			}
		}
		for key := range t.damaged {
			if strings.HasPrefix(key, prefix) && !listed[key] {
				t.applyLocked(key, nil)
			}
		}
		for who := range t.objects {
			if key := wire.ObjectKey(manifest.Services, who.namespace, who.name); strings.HasPrefix(key, prefix) && !listed[key] {
				t.applyLocked(key, nil)
			}
		}
	}
	for _, ev := range b.Events {
		value := ev.Value
		if ev.Deleted {
			value = nil
		}
		t.applyLocked(ev.Key, value)
	}
}

// applyLocked takes in the value of a key; nil if it is gone. What the mirror would not
// have taken in from a peer is left out.
func (t *serviceTable) applyLocked(key string, value []byte) {
	delete(t.damaged, key)
	if plural, ns, name, ok := wire.ParseObjectKey(key); ok && plural == manifest.Services {
		who := serviceName{ns, name}
		t.dirty[who] = true
		delete(t.objects, who)
		if value == nil {
			return
		}
		object, err := readService(value)
		if err != nil {
			t.damaged[key] = err.Error()
			return
		}
		t.objects[who] = object
		return
	}
	if old, ok := t.parts[key]; ok {
		t.dirty[old.of] = true
		delete(t.parts, key)
		if delete(t.partsOf[old.of], key); len(t.partsOf[old.of]) == 0 {
			delete(t.partsOf, old.of)
		}
	}
	if value == nil {
		return
	}
	p, ok, err := t.read(key, value)
	if err != nil {
		t.damaged[key] = err.Error()
	}
	if !ok {
		return
	}
	t.dirty[p.of] = true
	if p.cluster != t.own {
		p.slices, p.value = nil, value
	}
	t.parts[key] = p
	if t.partsOf[p.of] == nil {
		t.partsOf[p.of] = map[string]bool{}
	}
	t.partsOf[p.of][key] = true
}

func readService(value []byte) (serviceObject, error) {
	var object corev1.Service
	if err := json.Unmarshal(value, &object); err != nil {
		return serviceObject{}, err
	}
	svc, err := service.FromKubernetes(&object)
	return serviceObject{svc, service.ClusterIPs(&object), service.ExternalAddresses(&object)}, err
}

// read parses a slice or a peer's service; false if nothing of it counts. An error is
// about one of our own slices.
func (t *serviceTable) read(key string, value []byte) (p servicePart, ok bool, err error) {
	if _, _, _, own := wire.ParseObjectKey(key); own {
		var object discoveryv1.EndpointSlice
		if err := json.Unmarshal(value, &object); err != nil {
			return p, false, err
		}
		slice := service.SliceFromKubernetes(&object)
		return servicePart{of: serviceName{slice.Namespace, slice.Service}, cluster: t.own, slices: []service.Slice{slice}}, true, nil
	}
	ref, ok := wire.ParseCiliumCacheKey(key)
	if !ok {
		return p, false, nil
	}
	if ref.Resource == wire.EndpointSlices {
		remote, err := wire.ParseSlice(ref, 0, value)
		if err != nil {
			return p, false, nil
		}
		slice := remote.Slice()
		return servicePart{of: serviceName{slice.Namespace, slice.Service}, cluster: ref.Cluster, slices: []service.Slice{slice}}, true, nil
	}
	svc, err := wire.ParseClusterService(ref, 0, value)
	if err != nil || !svc.Shared {
		return p, false, nil
	}
	return servicePart{of: serviceName{ref.Namespace, ref.Name}, cluster: ref.Cluster, slices: svc.Slices(), fallback: true}, true, nil
}

// all returns every service, in order of name.
func (t *serviceTable) all() []stored {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []stored
	for _, who := range slices.SortedFunc(maps.Keys(t.objects), serviceName.compare) {
		out = append(out, t.storedLocked(who))
	}
	return out
}

func (t *serviceTable) storedLocked(who serviceName) stored {
	object := t.objects[who]
	out := stored{object.Service, object.clusterIPs, object.externalIPs, map[string][]service.Slice{}}
	keys := slices.Sorted(maps.Keys(t.partsOf[who]))
	sliced := map[string]bool{}
	for _, key := range keys {
		if p := t.parts[key]; !p.fallback {
			sliced[p.cluster] = true
		}
	}
	for _, key := range keys {
		p := t.parts[key]
		if p.fallback && sliced[p.cluster] {
			continue
		}
		if p.value != nil {
			p, _, _ = t.read(key, p.value) // as when it was taken in
		}
		out.slices[p.cluster] = append(out.slices[p.cluster], p.slices...)
	}
	return out
}

// concerns returns what is wrong with services, given who reaches whom. It looks at those
// that changed and at those with which something was wrong.
func (t *serviceTable) concerns(r reach) (out []api.Concern) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for who := range t.dirty {
		delete(t.suspects, who)
		if _, there := t.objects[who]; there && len(misfitConcerns(serviceList(t.own, []stored{t.storedLocked(who)}, reach{}))) > 0 {
			t.suspects[who] = true
		}
	}
	clear(t.dirty)
	for _, who := range slices.SortedFunc(maps.Keys(t.suspects), serviceName.compare) {
		out = append(out, misfitConcerns(serviceList(t.own, []stored{t.storedLocked(who)}, r))...)
	}
	for _, key := range slices.Sorted(maps.Keys(t.damaged)) {
		c := exported(t.own, key)
		c.Reason = "ObjectDamaged"
		c.Message = fmt.Sprintf("%s in the store cannot be read and is left out: %s", c.Object, t.damaged[key])
		out = append(out, c)
	}
	return out
}
