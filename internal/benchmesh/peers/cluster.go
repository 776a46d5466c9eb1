package peers

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/wire"
)

// Names of what every cluster has.
const (
	// Namespace holds all services and pods.
	Namespace = "mesh"
	// LargeService is the service with Shape.Large backends.
	LargeService = "large"
	// Port is the port of every service, TargetPort that of its backends; both TCP.
	Port, TargetPort = 80, 8080
	// GroupLabel is a label of every identity, g0 to g9, for policies to select.
	GroupLabel = "group"
	groups     = 10
)

// perSlice is how many endpoints an endpoint slice holds at most, Kubernetes' default.
const perSlice = 100

// ServiceName returns the name of service n of all clusters together.
func ServiceName(n int) string { return fmt.Sprintf("svc-%05d", n) }

// Cluster is one generated cluster. Several goroutines may use it.
type Cluster struct {
	shape Shape
	index int
	first identity.Number
	Store *Store

	// What follows is guarded by Store's writers: see Cluster.change.
	gate   chan struct{} // holds one element; who has it may change the cluster
	nodes  int           // 0 … nodes-1 exist
	pods   map[netip.Addr]identity.Number
	order  []netip.Addr // of pods, for choosing one
	at     map[netip.Addr]int
	free   []netip.Addr
	idents map[identity.Number]bool
	slices map[sliceAt][]netip.Addr
	in     map[netip.Addr][]sliceAt // the slices that list an address
}

// sliceAt names an endpoint slice: a service and the slice's number.
type sliceAt struct {
	service string
	n       int
}

func (a sliceAt) name() string { return fmt.Sprintf("%s-%d", a.service, a.n) }

// newCluster makes cluster i and writes everything it exports.
func newCluster(s Shape, i int) *Cluster {
	first, _ := s.Split.Range(s.ID(i))
	c := &Cluster{
		shape: s, index: i, first: first + 1, Store: NewStore(), gate: make(chan struct{}, 1),
		pods: map[netip.Addr]identity.Number{}, at: map[netip.Addr]int{}, idents: map[identity.Number]bool{},
		slices: map[sliceAt][]netip.Addr{}, in: map[netip.Addr][]sliceAt{},
	}
	c.gate <- struct{}{}
	c.fill()
	return c
}

// Name is the cluster's name.
func (c *Cluster) Name() string { return c.shape.Name(c.index) }

// ID is the cluster's ID.
func (c *Cluster) ID() identity.ClusterID { return c.shape.ID(c.index) }

// PodCIDR holds the addresses of its pods.
func (c *Cluster) PodCIDR() netip.Prefix { return c.shape.PodCIDR(c.index) }

func (c *Cluster) fill() {
	name, s := c.Name(), c.shape
	w := c.Store.begin()
	off := false
	w.put(wire.ClusterConfigKey(name), wire.Marshal(wire.ClusterConfig{ID: uint32(c.ID()), Capabilities: wire.Capabilities{
		SyncedCanaries: true, MaxConnectedClusters: uint32(s.Split), ServiceExportsEnabled: &off,
		EndpointSlicesExportMode: wire.ServicesAndEndpointSlices,
	}}))
	w.put(wire.ExportClusterKey, wire.Marshal(wire.ExportCluster{PodCIDRs: []netip.Prefix{c.PodCIDR()}, Generation: "generated"}))
	w.put(wire.ExportLineageKey, wire.Marshal(wire.Lineage{Starts: []wire.Start{{ID: "generated"}}}))
	for range s.Nodes {
		c.addNode(w)
	}
	for m := range s.Identities {
		c.putIdentity(w, c.first+identity.Number(m))
	}
	for j := range s.Nodes {
		for n := range s.slots() {
			c.free = append(c.free, s.slot(c.index, j, n))
		}
	}
	// Round robin over the nodes: free is ordered by node.
	for k := range s.Endpoints {
		a := s.slot(c.index, k%s.Nodes, k/s.Nodes)
		c.addPod(w, a, c.first+identity.Number(k%s.Identities))
	}
	c.free = slices.DeleteFunc(c.free, func(a netip.Addr) bool { _, used := c.pods[a]; return used })
	for n := range s.Services {
		own, next := c.index*s.Services+n, (c.index+s.Clusters-1)%s.Clusters*s.Services+n
		c.offer(w, ServiceName(own), c.order[n*s.Backends%(s.Endpoints-s.Backends+1):][:s.Backends])
		if next != own {
			c.offer(w, ServiceName(next), c.order[(n*s.Backends+7)%(s.Endpoints-s.Backends+1):][:s.Backends])
		}
	}
	if n := s.large(c.index); n > 0 {
		c.offer(w, LargeService, c.order[:n])
	}
	now := wire.TimeText(time.Now())
	for _, r := range wire.Resources {
		w.put(r.StateSyncedKey(name), now)
	}
	w.put(wire.HeartbeatKey, now)
	w.end()
}

// change runs f alone and makes what it writes visible at once.
func (c *Cluster) change(f func(w *writer)) {
	<-c.gate
	defer func() { c.gate <- struct{}{} }()
	w := c.Store.begin()
	f(w)
	w.end()
}

func (c *Cluster) addNode(w *writer) {
	c.putNode(w, c.nodes, firstEpoch)
	c.nodes++
}

// nodeName returns the name of node j.
func nodeName(j int) string { return fmt.Sprintf("n%04d", j) }

// putNode writes node j in the given epoch of its keys.
func (c *Cluster) putNode(w *writer, j int, epoch uint64) {
	s, name := c.shape, nodeName(j)
	key := base64.StdEncoding.EncodeToString(privateKey(c.Name(), name, epoch).PublicKey().Bytes())
	node := wire.Node{
		Name: name, Cluster: c.Name(), ClusterID: uint32(c.ID()), Source: wire.SourceCustomResource,
		IPAddresses: []wire.NodeAddress{
			{Type: wire.NodeInternalIP, IP: s.outside(c.index, j)},
			{Type: wire.NodeCiliumInternalIP, IP: s.internal(c.index, j)},
		},
		EncryptionKey: wire.WireGuardKey, WireguardPubKey: key,
		Annotations: map[string]string{"network.cilium.io/wg-pub-key": key},
		Labels:      map[string]string{"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": fmt.Sprintf("z%d", j%3)},
		BootID:      "00000000-0000-4000-8000-000000000000",
	}
	node.SetPodCIDRs([]netip.Prefix{s.nodeCIDR(c.index, j)})
	w.put(wire.NodeStateKey(c.Name(), name), wire.Marshal(node))
	export := wire.ExportNode{Name: name, Epoch: epoch}
	export.Lanes[epoch%2] = wire.Lane{PublicKey: key, Port: LanePorts[epoch%2]}
	w.put(wire.ExportNodeKey(name), wire.Marshal(export))
}

func (c *Cluster) putIdentity(w *writer, n identity.Number) {
	k := int(n - c.first)
	labels := identity.NewLabels(
		identity.Label{Source: identity.SourceK8s, Key: identity.KeyCluster, Value: c.Name()},
		identity.Label{Source: identity.SourceK8s, Key: identity.KeyNamespace, Value: Namespace},
		identity.Label{Source: identity.SourceK8s, Key: identity.KeyServiceAccount, Value: "default"},
		identity.Label{Source: identity.SourceK8s, Key: "app", Value: fmt.Sprintf("app-%d", k)},
		identity.Label{Source: identity.SourceK8s, Key: GroupLabel, Value: fmt.Sprintf("g%d", k%groups)},
	)
	w.put(wire.IdentityStateKey(n), []byte(labels.String()))
	c.idents[n] = true
}

func (c *Cluster) addPod(w *writer, a netip.Addr, n identity.Number) {
	if _, there := c.pods[a]; !there {
		c.at[a] = len(c.order)
		c.order = append(c.order, a)
	}
	c.pods[a] = n
	w.put(wire.IPStateKey(a), wire.Marshal(wire.IPIdentityPair{
		IP: a, HostIP: c.hostOf(a), ID: n, Key: wire.WireGuardKey,
		K8sNamespace: Namespace, K8sPodName: "pod-" + a.String(), K8sServiceAccount: "default",
	}))
}

// hostOf returns where the tunnel to the node of a pod ends.
func (c *Cluster) hostOf(a netip.Addr) netip.Addr {
	b, base := a.As4(), c.PodCIDR().Addr().As4()
	offset := int(uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3])) - int(uint32(base[0])<<24|uint32(base[1])<<16|uint32(base[2])<<8|uint32(base[3]))
	return c.shape.outside(c.index, offset/c.shape.perNode())
}

// dropPod removes a pod and, from the slices that list it, its address.
func (c *Cluster) dropPod(w *writer, a netip.Addr) {
	i, last := c.at[a], len(c.order)-1
	c.order[i] = c.order[last]
	c.at[c.order[i]] = i
	c.order = c.order[:last]
	delete(c.at, a)
	delete(c.pods, a)
	c.free = append(c.free, a)
	w.delete(wire.IPStateKey(a))
	for _, at := range slices.Clone(c.in[a]) {
		c.setSlice(w, at, slices.DeleteFunc(slices.Clone(c.slices[at]), func(b netip.Addr) bool { return a == b }))
	}
}

// offer makes endpoints the backends of a service, in the older format and in slices, as
// our own API server exports it.
func (c *Cluster) offer(w *writer, service string, backends []netip.Addr) {
	for n := 0; n*perSlice < len(backends); n++ {
		c.writeSlice(w, sliceAt{service, n}, slices.Clone(backends[n*perSlice:min(len(backends), (n+1)*perSlice)]))
	}
	c.writeService(w, service)
}

// setSlice replaces the endpoints of a slice.
func (c *Cluster) setSlice(w *writer, at sliceAt, backends []netip.Addr) {
	c.writeSlice(w, at, backends)
	c.writeService(w, at.service)
}

func (c *Cluster) writeSlice(w *writer, at sliceAt, backends []netip.Addr) {
	for _, a := range c.slices[at] {
		c.in[a] = slices.DeleteFunc(c.in[a], func(other sliceAt) bool { return other == at })
		if len(c.in[a]) == 0 {
			delete(c.in, a)
		}
	}
	c.slices[at] = backends
	yes, no := true, false
	s := wire.ClusterEndpointSlice{
		Cluster: c.Name(), ClusterID: uint32(c.ID()), Namespace: Namespace, Name: at.name(), AddressType: "IPv4",
		Labels: map[string]string{wire.ServiceNameLabel: at.service, "endpointslice.kubernetes.io/managed-by": wire.ManagedBy},
		Ports:  []wire.SlicePort{{Name: "http", Protocol: "TCP", Port: TargetPort}},
	}
	for _, a := range backends {
		c.in[a] = append(c.in[a], at)
		s.Endpoints = append(s.Endpoints, wire.SliceEndpoint{
			Addresses: []string{a.String()}, NodeName: c.hostOf(a).String(),
			Conditions: wire.Conditions{Ready: &yes, Serving: &yes, Terminating: &no},
		})
	}
	w.put(wire.SliceStateKey(c.Name(), Namespace, at.name()), s.Marshal())
}

// writeService writes a service in the older format, with every backend.
func (c *Cluster) writeService(w *writer, service string) {
	port := map[string]wire.L4Addr{"http": {Protocol: "TCP", Port: Port}}
	target := map[string]wire.L4Addr{"http": {Protocol: "TCP", Port: TargetPort}}
	s := wire.ClusterService{
		Cluster: c.Name(), ClusterID: uint32(c.ID()), Namespace: Namespace, Name: service,
		Frontends: map[netip.Addr]map[string]wire.L4Addr{netip.MustParseAddr("198.18.0.1"): port},
		Backends:  map[netip.Addr]map[string]wire.L4Addr{}, Hostnames: map[netip.Addr]string{}, Zones: map[netip.Addr]wire.BackendZone{},
		Labels: map[string]string{}, Selector: map[string]string{"app": service}, IncludeExternal: true, Shared: true,
	}
	for n := 0; ; n++ {
		backends, there := c.slices[sliceAt{service, n}]
		if !there {
			break
		}
		for _, a := range backends {
			s.Backends[a] = target
		}
	}
	w.put(wire.ServiceStateKey(c.Name(), Namespace, service), wire.Marshal(s))
}

// Pods returns the identity of every pod.
func (c *Cluster) Pods() map[netip.Addr]identity.Number {
	<-c.gate
	defer func() { c.gate <- struct{}{} }()
	return maps.Clone(c.pods)
}

// Has reports whether there is a pod with this address.
func (c *Cluster) Has(a netip.Addr) bool {
	<-c.gate
	defer func() { c.gate <- struct{}{} }()
	_, there := c.pods[a]
	return there
}

// backends is how many endpoints the cluster offers for a service.
func (c *Cluster) backends(service string) (n int) {
	<-c.gate
	defer func() { c.gate <- struct{}{} }()
	for at, backends := range c.slices {
		if at.service == service {
			n += len(backends)
		}
	}
	return n
}
