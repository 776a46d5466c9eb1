package endpoints

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// name is a namespaced name.
type name struct{ namespace, name string }

func (n name) String() string { return n.namespace + "/" + n.name }

// model is the part of weft/state/ that endpoints are derived from. One watch feeds it,
// so at any time it is what the store was at one revision.
type model struct {
	namespaces map[string]map[string]string // labels
	pods       map[name]*state.Pod
	services   map[name]*service.Service
	nodes      map[string]*node
	endpoints  map[name]stored[wire.Endpoint]
	// slices are those derived here, by service and then by name.
	slices map[name]map[string]stored[*discoveryv1.EndpointSlice]
	// manual are the slices that were applied by hand, and blocked the services
	// that need the names of some of them.
	manual  map[name]bool
	blocked map[name]name

	// byIP are the pods that have an address or are about to get it.
	byIP map[netip.Addr]name
	// sliceOf is the service of each derived slice.
	sliceOf map[name]name
	// claimants are the nodes that claim a pod.
	claimants map[name]map[string]bool
	// inNamespace and servicesIn are the endpoints and services by namespace.
	inNamespace, servicesIn map[string]map[name]bool
	// endpointsOn and podsOn are the endpoints and declared pods by node.
	endpointsOn, podsOn map[string]map[name]bool
	// spreads are the services that have endpoints, members those that a pod is an
	// endpoint of.
	spreads map[name]*spread
	members map[name]map[name]bool
	// gone are the UIDs of recently deleted pods: claims about them are late, not
	// wrong.
	gone map[string]bool

	// What has to be decided again.
	podWork, serviceWork *work
	todo                 map[name]*todo // about services that are dirty, or will be
	dirtyNodes           map[string]bool
	// awaited are keys whose last write, ours or another's, is not in the model yet.
	awaited map[string]await
	// retried is when what could not be written was last tried again.
	retried time.Time
}

// await says which event of a key is awaited: the first of at least this revision.
type await struct {
	revision int64
	who      name
	of       *work
}

// work is the set of pods, or of services, to decide about.
//
//	dirty ──taken, written──► waiting ──event──► dirty
//	  ▲          └──refused by the store──► later
//	  └──────────────── a while later ────────┘
type work struct {
	dirty   map[name]bool
	later   map[name]bool
	waiting map[name]int // events each waits for; never 0
}

func newWork() *work {
	return &work{dirty: map[name]bool{}, later: map[name]bool{}, waiting: map[name]int{}}
}

// take empties dirty and returns those to decide about now. The others wait for an event,
// which makes them dirty again.
func (w *work) take() []name {
	maps.DeleteFunc(w.dirty, func(who name, _ bool) bool { return w.waiting[who] > 0 })
	names := sorted(w.dirty)
	clear(w.dirty)
	return names
}

// retry makes dirty what could not be written.
func (w *work) retry() {
	maps.Copy(w.dirty, w.later)
	clear(w.later)
}

// later notes a write to try again.
func (m *model) later(w pending, of *work) {
	of.later[w.who] = true
	if of == m.serviceWork {
		_, _, slice, _ := wire.ParseObjectKey(w.key)
		m.touch(w.who).parts[slice] = true
	}
}

// await makes who wait for the event of a key.
func (m *model) await(key string, revision int64, who name, of *work) {
	if _, ok := m.awaited[key]; !ok {
		of.waiting[who]++
	}
	m.awaited[key] = await{revision, who, of}
}

// arrived ends the waiting for an event.
func (m *model) arrived(ev state.Event) {
	a, ok := m.awaited[ev.Key]
	if !ok || ev.Modified < a.revision {
		return
	}
	delete(m.awaited, ev.Key)
	a.of.dirty[a.who] = true
	if a.of == m.serviceWork {
		_, _, slice, _ := wire.ParseObjectKey(ev.Key)
		m.touch(a.who).parts[slice] = true
	}
	if a.of.waiting[a.who]--; a.of.waiting[a.who] == 0 {
		delete(a.of.waiting, a.who)
	}
}

// stored is a value with the revision of its last change.
type stored[T any] struct {
	value    T
	modified int64
	text     []byte
}

type node struct {
	registration *wire.Registration      // nil: not registered
	state        *stored[wire.NodeState] // nil: not claimed
	synced       bool
	claims       map[name]*claim
}

// claim is what an agent says about a pod on its node.
type claim struct {
	wire.EndpointState
	modified int64
	// honest is set once the claim was about a pod declared on the node. When the
	// pod is deleted, the claim is late, not wrong.
	honest bool
}

func newModel() *model {
	return &model{
		namespaces: map[string]map[string]string{}, pods: map[name]*state.Pod{}, services: map[name]*service.Service{},
		nodes: map[string]*node{}, endpoints: map[name]stored[wire.Endpoint]{},
		slices:    map[name]map[string]stored[*discoveryv1.EndpointSlice]{},
		claimants: map[name]map[string]bool{}, byIP: map[netip.Addr]name{}, sliceOf: map[name]name{},
		manual: map[name]bool{}, blocked: map[name]name{},
		inNamespace: map[string]map[name]bool{}, servicesIn: map[string]map[name]bool{},
		endpointsOn: map[string]map[name]bool{}, podsOn: map[string]map[name]bool{},
		spreads: map[name]*spread{}, members: map[name]map[name]bool{}, todo: map[name]*todo{}, gone: map[string]bool{},
		podWork: newWork(), serviceWork: newWork(), dirtyNodes: map[string]bool{}, awaited: map[string]await{},
	}
}

// apply takes in a change. What cannot be parsed counts as absent: only our own programs
// write it, and a node's claims are checked later.
func (m *model) apply(ev state.Event) {
	m.arrived(ev)
	switch {
	case strings.HasPrefix(ev.Key, wire.ObjectsPrefix):
		m.applyObject(ev)
	case strings.HasPrefix(ev.Key, wire.NodesPrefix):
		m.applyNode(ev)
	case strings.HasPrefix(ev.Key, wire.EndpointsPrefix):
		m.applyEndpoint(ev)
	case strings.HasPrefix(ev.Key, wire.RegistrationsPrefix):
		m.applyRegistration(ev)
	}
}

// read returns the value of an event; nil if it was deleted or cannot be read.
func read[T any](ev state.Event) *T {
	v, _ := ev.Object.(*T)
	return v
}

func (m *model) applyObject(ev state.Event) {
	plural, ns, objectName, ok := wire.ParseObjectKey(ev.Key)
	if !ok {
		return
	}
	who := name{ns, objectName}
	switch plural {
	case manifest.Namespaces:
		var labels map[string]string
		if v := read[corev1.Namespace](ev); v != nil {
			labels = v.Labels
		}
		if maps.Equal(labels, m.namespaces[objectName]) {
			return
		}
		if m.namespaces[objectName] = labels; labels == nil {
			delete(m.namespaces, objectName)
		}
		// Pods without an endpoint have nothing in which the labels count.
		maps.Copy(m.podWork.dirty, m.inNamespace[objectName])
	case manifest.Pods:
		m.applyPod(who, read[state.Pod](ev))
	case manifest.Services:
		delete(m.services, who)
		unset(m.servicesIn, ns, who)
		// Kubernetes derives the slices of its services itself.
		if v := read[state.Service](ev); v != nil && v.Wrong == nil && !v.Kubernetes {
			m.services[who] = &v.Service
			set(m.servicesIn, ns, who)
		}
		m.touch(who).whole = true
		m.serviceWork.dirty[who] = true
	case manifest.EndpointSlices:
		m.applySlice(who, ev)
	}
}

func (m *model) applyPod(who name, v *state.Pod) {
	old := m.pods[who]
	if old != nil && (v == nil || v.UID != old.UID) {
		if len(m.gone) > 4096 {
			clear(m.gone)
		}
		m.gone[old.UID] = true
	}
	if old != nil {
		unset(m.podsOn, old.Node, who)
	}
	if v == nil {
		delete(m.pods, who)
	} else {
		set(m.podsOn, v.Node, who)
		m.pods[who] = v
		// The labels decide which services select the pod.
		m.touchServices(who)
	}
	m.podWork.dirty[who] = true
}

func (m *model) applySlice(who name, ev state.Event) {
	if svc, ok := m.sliceOf[who]; ok {
		if delete(m.slices[svc], who.name); len(m.slices[svc]) == 0 {
			delete(m.slices, svc)
		}
		delete(m.sliceOf, who)
		m.touchSlice(svc, who)
	}
	if svc, ok := m.blocked[who]; ok {
		delete(m.blocked, who)
		m.touchSlice(svc, who)
	}
	delete(m.manual, who)
	v := read[discoveryv1.EndpointSlice](ev)
	if v == nil || v.Labels[discoveryv1.LabelManagedBy] != wire.ManagedBy {
		if !ev.Deleted {
			m.manual[who] = true
		}
		return
	}
	svc := name{who.namespace, v.Labels[discoveryv1.LabelServiceName]}
	if m.slices[svc] == nil {
		m.slices[svc] = map[string]stored[*discoveryv1.EndpointSlice]{}
	}
	m.sliceOf[who] = svc
	m.slices[svc][who.name] = stored[*discoveryv1.EndpointSlice]{v, ev.Modified, ev.Value}
	m.touchSlice(svc, who)
}

// touchSlice marks a slice of a service.
func (m *model) touchSlice(svc, slice name) {
	m.touch(svc).parts[slice.name] = true
	m.serviceWork.dirty[svc] = true
}

func (m *model) node(nodeName string) *node {
	n := m.nodes[nodeName]
	if n == nil {
		n = &node{claims: map[name]*claim{}}
		m.nodes[nodeName] = n
	}
	return n
}

func (m *model) applyNode(ev state.Event) {
	nodeName, entry, ns, podName, ok := wire.ParseNodesKey(ev.Key)
	if !ok {
		return
	}
	n := m.node(nodeName)
	defer m.tidy(nodeName)
	switch entry {
	case wire.NodeEntryNode:
		n.state = nil
		if v := read[wire.NodeState](ev); v != nil {
			n.state = &stored[wire.NodeState]{value: *v, modified: ev.Modified}
		}
		m.dirtyNodes[nodeName] = true
	case wire.NodeEntrySynced:
		n.synced = !ev.Deleted
		if !n.synced {
			return
		}
		// The agent's claims are complete: pods without one are gone.
		for who := range m.endpointsOn[nodeName] {
			if _, claimed := n.claims[who]; !claimed {
				m.podWork.dirty[who] = true
			}
		}
	case wire.NodeEntryEndpoint:
		who := name{ns, podName}
		delete(n.claims, who)
		delete(m.claimants[who], nodeName)
		if v := read[wire.EndpointState](ev); v != nil {
			n.claims[who] = &claim{EndpointState: *v, modified: ev.Modified}
			if m.claimants[who] == nil {
				m.claimants[who] = map[string]bool{}
			}
			m.claimants[who][nodeName] = true
		} else if len(m.claimants[who]) == 0 {
			delete(m.claimants, who)
		}
		m.podWork.dirty[who] = true
	}
}

func (m *model) applyRegistration(ev state.Event) {
	nodeName, ok := wire.ParseRegistrationKey(ev.Key)
	if !ok {
		return
	}
	n := m.node(nodeName)
	defer m.tidy(nodeName)
	zone := n.registration.Zone()
	n.registration = read[wire.Registration](ev)
	moved := n.registration.Zone() != zone
	m.dirtyNodes[nodeName] = true
	for who := range m.podsOn[nodeName] {
		m.podWork.dirty[who] = true
		if moved {
			m.touchServices(who)
		}
	}
	maps.Copy(m.podWork.dirty, m.endpointsOn[nodeName])
	for who := range n.claims {
		m.podWork.dirty[who] = true
	}
}

// tidy forgets a node that is not registered and of which the store has nothing.
func (m *model) tidy(nodeName string) {
	n := m.nodes[nodeName]
	if n.registration == nil && n.state == nil && !n.synced && len(n.claims) == 0 {
		delete(m.nodes, nodeName)
		m.dirtyNodes[nodeName] = true
	}
}

func (m *model) applyEndpoint(ev state.Event) {
	ns, podName, ok := wire.ParseEndpointKey(ev.Key)
	if !ok {
		return
	}
	who := name{ns, podName}
	if old, ok := m.endpoints[who]; ok {
		delete(m.endpoints, who)
		unset(m.inNamespace, ns, who)
		unset(m.endpointsOn, old.value.Node, who)
		m.free(old.value.Node, old.value.IPs(), who)
	}
	if v := read[wire.Endpoint](ev); v != nil {
		for _, ip := range v.IPs() {
			m.byIP[ip] = who
		}
		set(m.inNamespace, ns, who)
		set(m.endpointsOn, v.Node, who)
		m.endpoints[who] = stored[wire.Endpoint]{*v, ev.Modified, ev.Value}
	}
	m.podWork.dirty[who] = true
	m.touchServices(who)
}

// giveBack frees addresses that were reserved for an endpoint which was not written.
func (m *model) giveBack(ips []netip.Addr, who name) {
	have, there := m.endpoints[who]
	ips = slices.DeleteFunc(ips, func(ip netip.Addr) bool { return there && slices.Contains(have.value.IPs(), ip) })
	if p := m.pods[who]; p != nil {
		m.free(p.Node, ips, who)
	}
}

// free frees addresses, so that other pods that claim one are decided again.
func (m *model) free(nodeName string, ips []netip.Addr, who name) {
	freed := slices.DeleteFunc(ips, func(ip netip.Addr) bool { return m.byIP[ip] != who })
	for _, ip := range freed {
		delete(m.byIP, ip)
	}
	n := m.nodes[nodeName]
	if n == nil || len(freed) == 0 {
		return
	}
	for other, claim := range n.claims {
		if other != who && slices.ContainsFunc(freed, func(ip netip.Addr) bool { return ip == claim.IP || ip == claim.Second }) {
			m.podWork.dirty[other] = true
		}
	}
}

// touchServices marks a pod for the services that it is an endpoint of, and for those that
// select it.
func (m *model) touchServices(who name) {
	mark := func(svc name) {
		m.touch(svc).pods[who] = true
		m.serviceWork.dirty[svc] = true
	}
	for svc := range m.members[who] {
		mark(svc)
	}
	p := m.pods[who]
	if p == nil {
		return
	}
	candidate := service.Pod{Namespace: who.namespace, Labels: p.Labels}
	for svc := range m.servicesIn[who.namespace] {
		if m.services[svc].Selects(&candidate) {
			mark(svc)
		}
	}
}

// set and unset maintain an index, in which no empty set stays behind.
func set[K comparable](index map[K]map[name]bool, key K, who name) {
	if index[key] == nil {
		index[key] = map[name]bool{}
	}
	index[key][who] = true
}

func unset[K comparable](index map[K]map[name]bool, key K, who name) {
	if delete(index[key], who); len(index[key]) == 0 {
		delete(index, key)
	}
}
