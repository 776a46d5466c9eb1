package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Stand says, for people, where one endpoint of a service is used, and where it is left
// out and why.
type Stand struct {
	Addr netip.Addr
	Node string
	// Weight is how large a share of new connections it gets, if any, beside others of its
	// cluster.
	Weight uint16
	// Why says for each port of the service, in order, why no new connection to the port
	// reaches the endpoint; "" if connections do.
	Why []string
	// Misfit is true for the ports that the endpoint does not serve, ready or not.
	Misfit []bool
}

// Stands returns the state of every endpoint of one cluster, each address once, sorted by
// address. own is true for the service's own cluster. It agrees with Frontends on which
// endpoints take new connections.
func Stands(svc *Service, cluster string, from []Slice, own bool) []Stand {
	all := map[netip.Addr]*Stand{}
	for i := range from {
		for _, e := range from[i].Endpoints {
			s := all[e.Addr]
			if s == nil {
				s = &Stand{Addr: e.Addr, Why: make([]string, len(svc.Ports)), Misfit: make([]bool, len(svc.Ports))}
				all[e.Addr] = s
			}
			s.Node = cmp.Or(s.Node, e.Node)
			if !e.Draining {
				s.Weight = max(s.Weight, from[i].Weighs())
			}
		}
	}
	for i, port := range svc.Ports {
		used := map[netip.Addr]bool{}
		for _, v4 := range []bool{true, false} {
			s := sortOut(port, v4, from, sight{})
			for _, b := range s.together() {
				used[b.Addr] = true
			}
		}
		for _, s := range all {
			switch {
			case svc.LeftAlone:
				s.Why[i] = "a label of the service leaves it to another proxy"
			case !svc.has(s.Addr):
				s.Why[i] = fmt.Sprintf("the service has no %s here", FamilyOf(s.Addr))
			case !used[s.Addr]:
				s.Why[i], s.Misfit[i] = left(port, s.Addr, from, own)
			case svc.ClusterWeights.Of(cluster) == 0:
				s.Why[i] = "the service gives its cluster weight 0"
			}
		}
	}
	out := make([]Stand, 0, len(all))
	for _, s := range all {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Stand) int { return a.Addr.Compare(b.Addr) })
	return out
}

// left says why an address takes no new connections to a port, and whether that is
// because it does not have the port.
func left(port Port, addr netip.Addr, from []Slice, own bool) (why string, misfit bool) {
	var names []string
	served, why := false, "not ready"
	for i := range from {
		for _, e := range from[i].Endpoints {
			if e.Addr != addr {
				continue
			}
			if _, ok := match(port, from[i].Ports); !ok {
				for _, p := range from[i].Ports {
					names = append(names, p.label())
				}
				continue
			}
			served = true
			switch {
			case e.Draining:
				why = "in maintenance"
			case e.Terminating:
				why = "terminating"
			}
		}
	}
	if served {
		return why, false
	}
	if own && port.TargetName != "" {
		return fmt.Sprintf("no container port named %s", port.TargetName), true
	}
	slices.Sort(names)
	names = slices.Compact(names)
	what := SlicePort{port.Name, port.Protocol, port.Port}.label()
	if len(names) == 0 {
		return fmt.Sprintf("no port %s", what), true
	}
	return fmt.Sprintf("no port %s, only %s", what, strings.Join(names, ", ")), true
}

// label returns a port's name, or else its number, with the protocol unless it is TCP.
func (p SlicePort) label() string {
	name := cmp.Or(p.Name, fmt.Sprint(p.Port))
	if p.Protocol != TCP {
		name += "/" + string(p.Protocol)
	}
	return name
}

// Label returns the port's name, or else its number, for people.
func (p Port) Label() string { return SlicePort{p.Name, p.Protocol, p.Port}.label() }
