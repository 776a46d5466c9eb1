package service

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Client is where clients of a service run: on a node.
type Client struct {
	Cluster ClusterID
	Node    string
	Zone    string // of the node; "" if it has none
}

// Distribution is a service's spec.trafficDistribution: which backends are preferred as
// long as one of them is alive.
type Distribution uint8

// The distributions. SameNode prefers the client's node, then its zone.
const (
	Anywhere Distribution = iota
	SameZone
	SameNode
)

// DistributionOf reads Kubernetes' names of distributions; false for any other text.
func DistributionOf(text string) (d Distribution, ok bool) {
	switch text {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		return SameZone, true
	case corev1.ServiceTrafficDistributionPreferSameNode:
		return SameNode, true
	}
	return Anywhere, false
}

// Hints are those of an endpoint in an endpoint slice: the nodes and zones whose clients
// should use it. Names of nodes mean nothing outside the endpoint's cluster.
type Hints struct{ Nodes, Zones []string }

func hintsOf(h *discoveryv1.EndpointHints) *Hints {
	if h == nil || len(h.ForNodes)+len(h.ForZones) == 0 {
		return nil
	}
	out := &Hints{}
	for _, n := range h.ForNodes {
		out.Nodes = append(out.Nodes, n.Name)
	}
	for _, z := range h.ForZones {
		out.Zones = append(out.Zones, z.Name)
	}
	return out
}

// Near says which hints of a backend name the client: a set of bits.
type Near uint8

// The bits of Near, one for each kind of hints, and how many values it has.
const (
	NearNode Near = 1 << iota
	NearZone
	kinds = iota
	Nears = 1 << kinds
)

// sight tells how near the endpoints of one cluster are to a client.
type sight struct {
	node, zone string // "" is near nothing
	as         Distribution
	foreign    bool // another cluster's endpoints
	drains     bool // their cluster has weight 0
}

// sees is how a client sees the endpoints that a cluster has for a service.
func (c Client) sees(svc *Service, cluster ClusterID) sight {
	drains := svc.Split.Of(cluster) == 0
	if svc.NodeLocal {
		return sight{drains: drains} // all that it may use are on its node
	}
	s := sight{node: c.Node, zone: c.Zone, as: svc.Distribution, foreign: cluster != c.Cluster, drains: drains}
	if s.foreign {
		s.node = ""
	}
	return s
}

// roles are an endpoint's: ready takes connections, last if none is ready, draining none.
func (s sight) roles(e *Endpoint) (ready, last, draining bool) {
	if last = e.Serving && e.Terminating && !e.Draining; !s.drains {
		return e.Ready, last, e.Draining
	}
	return false, false, e.Draining || e.Ready || last
}

// of says which hints of an endpoint that is ready name the client, and which kinds of
// hints it lacks. One without any has those that Kubernetes' controller would give it for
// the service's distribution.
func (s sight) of(e *Endpoint) (near, lacks Near) {
	var onNode, inZone bool
	toNode, toZone := s.as == SameNode && e.Node != "", s.as != Anywhere && e.Zone != ""
	if h := e.Hints; h != nil {
		toNode, toZone = len(h.Nodes) > 0, len(h.Zones) > 0
		onNode, inZone = slices.Contains(h.Nodes, s.node), slices.Contains(h.Zones, s.zone)
	} else {
		onNode, inZone = toNode && e.Node == s.node, toZone && e.Zone == s.zone
	}
	if onNode && s.node != "" {
		near |= NearNode
	}
	if inZone && s.zone != "" {
		near |= NearZone
	}
	if !toNode || s.foreign {
		lacks |= NearNode
	}
	if !toZone {
		lacks |= NearZone
	}
	return near, lacks
}

// Steps of a tier: how far backends are.
const (
	stepNode = iota
	stepZone
	stepFar
	steps
)

// step is that of backends of which some hints name the client, in a cluster whose ready
// endpoints do not all have each kind of hints. As in kube-proxy, hints of a kind count
// only if all have some: otherwise they are just being written or removed.
func step(near, lacks Near) uint8 {
	switch near &^= lacks; {
	case near&NearNode != 0:
		return stepNode
	case near&NearZone != 0:
		return stepZone
	}
	return stepFar
}
