// Package service decides what is behind a service: which backends of which clusters, in
// which tiers, and how the rows of a kernel map follow from that.
//
// It knows neither etcd nor maps: callers supply Kubernetes objects and what peers
// exported, and write the result into the kernel.
package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Protocol is TCP, UDP or SCTP, in Kubernetes' spelling.
type Protocol string

// The protocols that services have.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// Number returns the IP protocol number, or 0 for an unknown protocol.
func (p Protocol) Number() uint8 {
	switch p {
	case TCP:
		return 6
	case UDP:
		return 17
	case SCTP:
		return 132
	}
	return 0
}

// Affinity says which backends of a global service come first.
type Affinity string

// The affinities. AffinityNone treats the backends of all clusters alike; the other two
// use the rest only while none of the preferred backends is healthy.
const (
	AffinityNone   Affinity = "none"
	AffinityLocal  Affinity = "local"
	AffinityRemote Affinity = "remote"
)

// Algorithm says how a new connection's backend is chosen.
type Algorithm string

// The algorithms. Random, the default, gives every connection any backend. Maglev gives the
// same backend to connections from the same address and port, whichever node they reach.
const (
	Random Algorithm = "random"
	Maglev Algorithm = "maglev"
)

// Service is a service as its own cluster declares it.
type Service struct {
	Namespace, Name string
	// Addresses are the service's own. A headless service has none, and so no
	// frontends.
	Addresses []netip.Addr
	// Families are the IP families in which pods are its endpoints, the main one first;
	// none means any.
	Families []corev1.IPFamily
	Ports    []Port
	Selector map[string]string
	// Global merges the backends of all clusters' services of this name.
	Global bool
	// Shared offers this cluster's backends to other clusters. False unless Global.
	Shared bool
	// Affinity is AffinityNone unless Global.
	Affinity Affinity
	// ClusterWeights are nil unless Global. Split is what follows from them, for whoever knows
	// the numbers of clusters.
	ClusterWeights ClusterWeights
	Split          *Split
	// Algorithm chooses among backends. TableSize is that of a Maglev table; 0: it follows
	// from the number of backends.
	Algorithm Algorithm
	TableSize uint32
	// NodeLocal gives clients the backends on their own node alone. ExternalLocal gives
	// clients outside of the mesh those on the node that they reach.
	NodeLocal, ExternalLocal bool
	// External are addresses outside of the mesh at which every node offers the service, at
	// its own ports: spec.externalIPs. Balanced are those of a load balancer that nodes stand
	// in for (ipMode VIP), and Ranges the clients that may use them; Ranged says that it is
	// not for all.
	External, Balanced []netip.Addr
	Ranges             []netip.Prefix
	Ranged             bool
	// HealthPort is where each node tells a load balancer how many backends it has itself; 0:
	// nowhere.
	HealthPort uint16
	// Distribution says which backends are preferred by how near they are. It has no
	// effect if NodeLocal.
	Distribution Distribution
	// Session is for how long a client stays with the backend of its last connection; 0:
	// each connection may go to another one.
	Session time.Duration
	// PublishNotReady treats backends that are not ready as ready.
	PublishNotReady bool
	// LeftAlone says that its addresses are another proxy's to serve: it has no frontends.
	LeftAlone bool
}

// Exported reports whether peers may learn of the service.
func (s *Service) Exported() bool { return s.Global && s.Shared }

// Port is a port of a service.
type Port struct {
	Name     string // may be "" if it is the only one
	Protocol Protocol
	Port     uint16
	// NodePort is where nodes offer it to clients outside of the mesh; 0: nowhere.
	NodePort uint16
	// Target is where backends listen: a number, or if 0 the container port
	// called TargetName.
	Target     uint16
	TargetName string
}

// Slice is a part of a service's backends: endpoints with the same ports.
type Slice struct {
	Namespace, Name string
	Service         string
	Ports           []SlicePort
	Endpoints       []Endpoint
	// Weight is that of each endpoint; 0 means DefaultWeight. See Drain for a weight of 0.
	Weight uint16
}

// Weighs is the weight of each of the slice's endpoints.
func (s *Slice) Weighs() uint16 { return cmp.Or(s.Weight, DefaultWeight) }

// Drain keeps new connections from the slice's endpoints.
func (s *Slice) Drain() {
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.Draining = e.Ready || e.Serving && e.Terminating
		e.Ready = false
	}
}

// SlicePort is a port of every endpoint of a slice, under the service's name for it.
type SlicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Endpoint is a backend before ports are applied.
type Endpoint struct {
	Addr netip.Addr
	Node string
	// Hostname is its name below that of a headless service; "" for none.
	Hostname string
	// Zone is where it runs.
	Zone string
	// Hints say which clients it is meant for; nil: its service decides.
	Hints *Hints
	// Ready takes new connections. Serving answers, ready or not. Terminating is
	// about to go. Draining keeps its connections and takes no new ones, even if no
	// other endpoint would.
	Ready, Serving, Terminating, Draining bool
}

// String is as in Kubernetes' listings: "80/TCP", or "80:30080/TCP" with a node port.
func (p Port) String() string {
	if p.NodePort != 0 {
		return fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
	}
	return fmt.Sprintf("%d/%s", p.Port, p.Protocol)
}
