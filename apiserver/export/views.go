package export

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// view is a part of the export that is rebuilt as a whole: one node, one endpoint, one
// identity, one slice, one service, or one service export.
type view struct {
	kind     kind
	ns, name string
}

type kind uint8

const (
	ofCluster kind = iota
	ofNode
	ofEndpoint
	ofIdentity
	ofSlice
	ofService // in the older format
	ofServiceExport
)

// views holds the state and the export derived from it. It is pure: events in, wanted
// keys out.
//
//	state key ──apply──► dirty views ──refresh──► wanted keys
//
// Two views may want the same key: two endpoints, while an address moves from one pod
// to another. Then the smaller view's value counts until that view is gone.
type views struct {
	cluster    wire.Cluster
	split      identity.Split
	kept       map[string]bool // namespaces that are not exported
	register   map[string]*wire.Registration
	claimed    map[string]wire.NodeState // what nodes claim about themselves
	agreed     map[string]wire.NodeState // the last claim that agreed with the registration
	endpoints  map[[2]string]*wire.Endpoint
	identities map[identity.Number]identity.Labels
	services   map[[2]string]*state.Service
	backends   map[[2]string]*backends // by service, also of those that are absent
	sliceOf    map[[2]string]string    // slice to service
	offered    map[[2]string]*mcs.ServiceExport

	made     map[view]map[string][]byte
	wanted   map[string]map[view]bool
	problems map[string]string // by key of the state
	changed  map[string]bool   // keys of problems, since takeChanged
}

func newViews(c wire.Cluster) *views {
	split, err := identity.SplitFor(int(c.MaxConnectedClusters))
	if err != nil {
		split = identity.Split255
	}
	v := &views{
		cluster: c, split: split,
		kept:       map[string]bool{},
		register:   map[string]*wire.Registration{},
		claimed:    map[string]wire.NodeState{},
		agreed:     map[string]wire.NodeState{},
		endpoints:  map[[2]string]*wire.Endpoint{},
		identities: map[identity.Number]identity.Labels{},
		services:   map[[2]string]*state.Service{},
		backends:   map[[2]string]*backends{},
		sliceOf:    map[[2]string]string{},
		offered:    map[[2]string]*mcs.ServiceExport{},
		made:       map[view]map[string][]byte{},
		wanted:     map[string]map[view]bool{},
		problems:   map[string]string{},
		changed:    map[string]bool{},
	}
	v.refresh(dirty{{kind: ofCluster}: atOnce})
	return v
}

// dirty are views to rebuild, and when.
type dirty map[view]when

type when bool

const (
	atOnce when = true
	// inTime is for views of which only a part has changed, and which take the time of
	// all of them.
	inTime when = false
)

func (d dirty) add(of view) { d[of] = atOnce }

// touch adds a view that may be rebuilt in time, unless something else about it has
// changed.
func (d dirty) touch(of view) {
	if _, there := d[of]; !there {
		d[of] = inTime
	}
}

// apply takes in events and returns the views they affect. Values that cannot be
// parsed count as absent and are reported as problems.
func (v *views) apply(events []state.Event) dirty {
	d := dirty{}
	for _, e := range events {
		v.note(e.Key, "")
		if err := v.event(e, d); err != nil {
			v.note(e.Key, err.Error())
		}
	}
	return d
}

// note records why a key of the state is not exported as it should be; "" means that it
// is.
func (v *views) note(key, problem string) {
	if v.problems[key] == problem {
		return
	}
	v.changed[key] = true
	if problem == "" {
		delete(v.problems, key)
	} else {
		v.problems[key] = problem
	}
}

// takeChanged returns the keys whose problems may have changed since it was last called.
func (v *views) takeChanged() map[string]bool {
	changed := v.changed
	v.changed = map[string]bool{}
	return changed
}

func (v *views) event(e state.Event, d dirty) error {
	if node, entry, _, _, ok := wire.ParseNodesKey(e.Key); ok {
		// A node's state is tied to its agent's lease. A silent agent has not
		// withdrawn anything, so only the end of the registration counts.
		if entry != wire.NodeEntryNode || e.Deleted {
			return nil
		}
		if e.Wrong != nil {
			// As with a claim that contradicts the registration, the last agreed
			// one stays exported, because peers talk to the node's pods whatever
			// its agent says. But the earlier claim is void.
			delete(v.claimed, node)
			return e.Wrong
		}
		d.add(view{kind: ofNode, name: node})
		v.claimed[node] = *e.Object.(*wire.NodeState)
		return nil
	}
	if node, ok := wire.ParseRegistrationKey(e.Key); ok {
		d.add(view{kind: ofNode, name: node})
		if e.Deleted {
			delete(v.claimed, node)
		}
		return set(v.register, node, e)
	}
	if ns, pod, ok := wire.ParseEndpointKey(e.Key); ok {
		d.add(view{ofEndpoint, ns, pod})
		return set(v.endpoints, [2]string{ns, pod}, e)
	}
	if n, ok := wire.ParseIdentityIDKey(e.Key); ok {
		d.add(view{kind: ofIdentity, name: fmt.Sprint(uint32(n))})
		return set(v.identities, n, e)
	}
	if plural, ns, name, ok := wire.ParseObjectKey(e.Key); ok {
		return v.object(e, plural, ns, name, d)
	}
	return nil
}

func (v *views) object(e state.Event, plural, ns, name string, d dirty) error {
	switch plural {
	case manifest.Namespaces:
		if e.Wrong != nil {
			return e.Wrong
		}
		keep := false
		if obj, ok := e.Object.(*corev1.Namespace); ok {
			keep = strings.EqualFold(obj.Annotations[service.AnnotationNamespaceGlobal], "false")
		}
		if keep != v.kept[name] {
			v.kept[name] = keep
			v.touchNamespace(name, d)
		}
	case manifest.Services:
		v.touchService(ns, name, d)
		if v.offered[[2]string{ns, name}] != nil {
			d.add(view{ofServiceExport, ns, name})
		}
		return set(v.services, [2]string{ns, name}, e)
	case manifest.ServiceExports:
		d.add(view{ofServiceExport, ns, name})
		return set(v.offered, [2]string{ns, name}, e)
	case manifest.EndpointSlices:
		d.add(view{ofSlice, ns, name})
		if was, ok := v.deleteSlice(ns, name); ok {
			d.touch(view{ofService, ns, was})
		}
		slice, ok := e.Object.(*discoveryv1.EndpointSlice)
		if !ok {
			return e.Wrong
		}
		if owner := slice.Labels[wire.ServiceNameLabel]; owner != "" {
			v.putSlice(ns, owner, slice)
			d.touch(view{ofService, ns, owner})
		}
	}
	return nil
}

// set makes an event's object the value of a key; it has none if there is no object.
func set[K comparable, T any](in map[K]T, key K, e state.Event) error {
	delete(in, key)
	if object, ok := e.Object.(T); ok {
		in[key] = object
	}
	return e.Wrong
}

func (v *views) touchNamespace(ns string, d dirty) {
	for key := range v.endpoints {
		if key[0] == ns {
			d.add(view{ofEndpoint, key[0], key[1]})
		}
	}
	for key := range v.services {
		if key[0] == ns {
			v.touchService(key[0], key[1], d)
		}
	}
	for key := range v.offered {
		if key[0] == ns {
			d.add(view{ofServiceExport, key[0], key[1]})
		}
	}
	for n := range v.identities {
		d.add(view{kind: ofIdentity, name: fmt.Sprint(uint32(n))})
	}
}

// touchService adds a service and all of its slices.
func (v *views) touchService(ns, name string, d dirty) {
	d.add(view{ofService, ns, name})
	if b := v.backends[[2]string{ns, name}]; b != nil {
		for slice := range b.slices {
			d.add(view{ofSlice, ns, slice})
		}
	}
}

// refresh rebuilds dirty views and returns the keys that they want or wanted before.
func (v *views) refresh(all dirty) map[string]bool {
	touched := map[string]bool{}
	for d := range all {
		if d.kind == ofNode {
			// Its keys may exist although this process did not make them; see keeps.
			touched[wire.NodeStateKey(v.cluster.Name, d.name)] = true
			touched[wire.ExportNodeKey(d.name)] = true
		}
		for key := range v.made[d] {
			touched[key] = true
			delete(v.wanted[key], d)
			if len(v.wanted[key]) == 0 {
				delete(v.wanted, key)
			}
		}
		made := v.make(d)
		if len(made) == 0 {
			delete(v.made, d)
			continue
		}
		v.made[d] = made
		for key := range made {
			touched[key] = true
			if v.wanted[key] == nil {
				v.wanted[key] = map[view]bool{}
			}
			v.wanted[key][d] = true
		}
	}
	return touched
}

// value returns the wanted value of a key; false if the key is not wanted.
func (v *views) value(key string) ([]byte, bool) {
	wanting := v.wanted[key]
	if len(wanting) == 0 {
		return nil, false
	}
	first := slices.MinFunc(slices.Collect(maps.Keys(wanting)), view.compare)
	return v.made[first][key], true
}

// all makes every view and returns all wanted keys.
func (v *views) all() map[string][]byte {
	d := dirty{{kind: ofCluster}: atOnce}
	for name := range v.claimed {
		d.add(view{kind: ofNode, name: name})
	}
	for key := range v.endpoints {
		d.add(view{ofEndpoint, key[0], key[1]})
	}
	for n := range v.identities {
		d.add(view{kind: ofIdentity, name: fmt.Sprint(uint32(n))})
	}
	for key := range v.services {
		v.touchService(key[0], key[1], d)
	}
	for key := range v.offered {
		d.add(view{ofServiceExport, key[0], key[1]})
	}
	v.refresh(d)
	all := make(map[string][]byte, len(v.wanted))
	for key := range v.wanted {
		all[key], _ = v.value(key)
	}
	return all
}

// keeps reports whether an exported key must stay although no view wants it: it belongs
// to a registered node whose agent has been silent since our restart.
func (v *views) keeps(key string) bool {
	node, ok := strings.CutPrefix(key, wire.ExportNodesPrefix)
	if !ok {
		node, ok = strings.CutPrefix(key, wire.Nodes.StatePrefix(v.cluster.Name))
	}
	if !ok {
		return false
	}
	_, registered := v.register[node]
	_, known := v.agreed[node]
	return registered && !known
}

func inside(all []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(all, func(c netip.Prefix) bool {
		return c.Bits() <= p.Bits() && c.Contains(p.Addr())
	})
}

func contains(all []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(all, func(c netip.Prefix) bool { return c.Contains(a) })
}
