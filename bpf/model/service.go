package model

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weft-mesh/weft/bpf"
)

// session is a client of a service; those outside of the mesh are counted apart.
type session struct {
	client  netip.Addr
	service uint32
	outside bool
}

type lasting struct {
	seen    time.Duration
	backend netip.AddrPort
}

// reach is the state of the way to a backend.
func (n *Node) reach(b Backend, cluster uint16) bpf.Path {
	whole := bpf.PathAlive // a lost cluster is out, wherever its backends are
	if cluster != n.Cluster {
		whole = n.Clusters[cluster]
	}
	node := b.Node
	if node == 0 {
		at, why := n.locateBackend(b.At.Addr())
		if why != 0 {
			return bpf.PathDead
		}
		if node = at.node; node == 0 {
			return whole
		}
	}
	if n.lane(node) == 0 || whole == bpf.PathDead {
		return bpf.PathDead
	}
	return n.path(node, cluster)
}

// eligible are the backends that a new connection may get: those of the lowest tier in which
// one is alive, or, if none is anywhere, those of the lowest tier in which one is silent.
func (n *Node) eligible(s *Service, states ...bpf.Path) []netip.AddrPort {
	for _, state := range states {
		tier, found := 256, []netip.AddrPort(nil)
		for _, g := range s.Groups {
			if g.Weight == 0 || int(g.Tier) > tier {
				continue
			}
			for _, b := range g.Backends {
				if n.reach(b, g.Cluster) != state {
					continue
				}
				if int(g.Tier) < tier {
					tier, found = int(g.Tier), nil
				}
				found = append(found, b.At)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// choose finds a backend for a client's new connection. Flow is how the witness knows it.
func (n *Node) choose(s *Service, client netip.Addr, outside bool, flow Key) (netip.AddrPort, bpf.Reason) {
	if s.Ranged && !slices.ContainsFunc(n.Sources[s.ID], func(p netip.Prefix) bool { return p.Contains(client) }) {
		return netip.AddrPort{}, bpf.ReasonSourceRange
	}
	key := session{client, s.ID, outside}
	if last := n.sessions[key]; last != nil && s.Timeout > 0 && n.Now-last.seen <= s.Timeout && n.takes(s.ID, last.backend) {
		last.seen = n.Now
		return last.backend, 0
	}
	hat := n.eligible(s, bpf.PathAlive, bpf.PathSilent)
	if len(hat) == 0 {
		return netip.AddrPort{}, bpf.ReasonNoBackend
	}
	slices.SortFunc(hat, netip.AddrPort.Compare)
	hat = slices.Compact(hat)
	drawn := hat[0]
	if len(hat) > 1 {
		var ok bool
		drawn, ok = n.Witness.Backend(flow)
		if !slices.Contains(hat, drawn) && s.Timeout > 0 {
			drawn, ok = n.Witness.Session(Client{client, s.ID, outside})
		}
		if !slices.Contains(hat, drawn) { // it was refused, and only the reason tells which it was
			drawn = n.refusable(hat, client, outside)
		}
		if !slices.Contains(hat, drawn) {
			n.complain("chose backend %v (known: %v), not one of %v", drawn, ok, hat)
			drawn = hat[0]
		}
	}
	if s.Timeout > 0 {
		n.sessions[key] = &lasting{n.Now, drawn}
	}
	return drawn, 0
}

// refusable is the backend that a connection can have got if it was refused after the choice:
// the client itself, or for clients outside one that cannot be reached, for the reason that was
// told.
func (n *Node) refusable(hat []netip.AddrPort, client netip.Addr, outside bool) (none netip.AddrPort) {
	for _, b := range hat {
		at, why := n.locate(b.Addr())
		if why == 0 && at.via == bpf.ViaStack {
			why = bpf.ReasonNotSupported
		}
		if outside && why != 0 && why == n.Witness.Reason() || !outside && b.Addr() == client {
			return b
		}
	}
	return none
}

// takes tells whether a client may stay with its backend: that takes connections, and its path
// is alive.
func (n *Node) takes(service uint32, backend netip.AddrPort) bool {
	going, ok := n.Members[Member{service, backend}]
	if !ok || going {
		return false
	}
	at, why := n.locateBackend(backend.Addr())
	if why != 0 {
		return false
	}
	return at.node == 0 || n.lane(at.node) != 0 && n.path(at.node, at.cluster) == bpf.PathAlive
}

// serviceAt is the service that pods and processes reach there. Node ports of the cluster's other
// nodes lead where this node's do.
func (n *Node) serviceAt(front Front) *Service {
	s, owner := n.Services[front], n.Hosts[front.At.Addr()]
	if port := front.At.Port(); s == nil && owner.Flags&bpf.IPNode != 0 && owner.Node != 0 && 30000 <= port && port <= 32767 {
		s = n.Services[Front{At: netip.AddrPortFrom(n.Exposed[family(front.At.Addr())], port), Proto: front.Proto}]
	}
	return s
}

// aliveElsewhere tells whether a service has a backend whose path is alive, or is not there.
func (n *Node) aliveElsewhere(k Key) bool {
	s := n.serviceAt(Front{At: netip.AddrPortFrom(k.Peer, k.PeerPort), Proto: k.Proto})
	return s == nil || len(n.eligible(s, bpf.PathAlive)) > 0
}

// Client is who has a session with a service.
type Client struct {
	Client  netip.Addr
	Service uint32
	Outside bool
}

// Sessions are when clients of services with affinity last opened a connection.
func (n *Node) Sessions() map[Client]time.Duration {
	all := map[Client]time.Duration{}
	for k, s := range n.sessions {
		all[Client{k.client, k.service, k.outside}] = s.seen
	}
	return all
}
