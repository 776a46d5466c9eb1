// Package meaning says in words what a node's maps tell packets, so that the maps of two
// agents can be compared.
//
// The numbers that an agent chooses (of nodes, services, policy sets, classes and
// generations) are replaced by what they stand for, and rows that no packet can reach are
// listed as stray. Flows, and what only counts or orders changes, are left out.
package meaning

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/bpf"
)

// Of returns a line for each thing that the maps say, in order.
func Of(m *bpf.Maps) ([]string, error) {
	s, err := read(m)
	if err != nil {
		return nil, err
	}
	s.say("settings: cluster %d, internal addresses %v, %v, trace %d", s.settings.Cluster, s.settings.Internal[0], s.settings.Internal[1], s.settings.Trace)
	s.mesh()
	s.endpointRows()
	s.serviceRows()
	s.policyRows()
	slices.Sort(s.lines)
	return s.lines, nil
}

// state is what the maps hold.
type state struct {
	settings  bpf.Settings
	shares    map[uint32]bpf.Share
	endpoints map[bpf.Addr]bpf.Endpoint
	ips       map[bpf.Addr]bpf.IPInfo
	prefixes  map[bpf.PrefixKey]bpf.IPInfo
	nodes     map[uint32]bpf.Node
	clusters  map[uint32]bpf.Cluster
	services  map[bpf.ServiceKey]bpf.Service
	balancing map[uint32]bpf.Balancing
	maglev    map[bpf.MaglevKey]bpf.MaglevSlots
	backends  map[bpf.SlotKey]bpf.Backend
	members   map[bpf.MemberKey]bpf.Member
	classes   map[bpf.ClassKey]uint32
	ports     map[uint32]uint16
	policy    map[bpf.PolicyKey]bpf.PolicyEntry
	sets      map[bpf.SetKey]bpf.SetInfo

	names map[uint16]string // of nodes
	lines []string
}

func read(m *bpf.Maps) (*state, error) {
	s := &state{names: map[uint16]string{}}
	var err error
	s.settings, _, err = m.Settings.Lookup(0)
	return s, errors.Join(err,
		rows(m.Shares, &s.shares), rows(m.Endpoints, &s.endpoints), rows(m.IPs, &s.ips), rows(m.Prefixes, &s.prefixes),
		rows(m.Nodes, &s.nodes), rows(m.Clusters, &s.clusters), rows(m.Services, &s.services), rows(m.Balancing, &s.balancing), rows(m.Maglev, &s.maglev), rows(m.Backends, &s.backends),
		rows(m.Members, &s.members), rows(m.Classes, &s.classes), rows(m.Ports, &s.ports), rows(m.Policy, &s.policy), rows(m.Sets, &s.sets))
}

func rows[K comparable, V any](t bpf.Table[K, V], into *map[K]V) error {
	all, failed := t.All()
	*into = maps.Collect(all)
	return failed()
}

func (s *state) say(format string, args ...any) {
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

var pathNames = map[bpf.Path]string{bpf.PathDead: "dead", bpf.PathAlive: "alive", bpf.PathSilent: "silent"}

// mesh says who is where, and which paths are alive.
func (s *state) mesh() {
	// A node is known by the first of its prefixes, one without by the first of its addresses.
	behind := map[uint16][]string{}
	for _, k := range slices.SortedFunc(maps.Keys(s.prefixes), func(a, b bpf.PrefixKey) int {
		return cmp.Or(a.Netip().Addr().Compare(b.Netip().Addr()), cmp.Compare(a.Bits, b.Bits))
	}) {
		behind[s.prefixes[k].Node] = append(behind[s.prefixes[k].Node], k.Netip().String())
	}
	for _, a := range slices.SortedFunc(maps.Keys(s.ips), func(a, b bpf.Addr) int { return a.Netip().Compare(b.Netip()) }) {
		behind[s.ips[a].Node] = append(behind[s.ips[a].Node], a.String())
	}
	for number, all := range behind {
		s.names[number] = all[0]
	}
	s.names[0] = "none"
	for number, n := range s.nodes {
		name, ok := s.names[uint16(number)]
		if !ok {
			name = "without an address"
		}
		s.say("node %s: cluster %d, %s, keyed %d", name, n.Cluster, pathNames[n.Path], n.Keyed)
	}
	for id, c := range s.clusters {
		s.say("cluster %d: %s", id, pathNames[c.Path])
	}
	for a, info := range s.ips {
		s.say("ip %v: %s", a, s.place(info))
	}
	for k, info := range s.prefixes {
		s.say("prefix %v: %s", k.Netip(), s.place(info))
	}
}

func (s *state) node(number uint16) string {
	return cmp.Or(s.names[number], "unknown")
}

func (s *state) place(i bpf.IPInfo) string {
	return fmt.Sprintf("identity %d, cluster %d, node %s, flags %s", i.Identity, i.Cluster, s.node(i.Node), cmp.Or(i.Flags.String(), "none"))
}

func (s *state) endpointRows() {
	devices := map[uint32]bool{bpf.SharesNode: true, bpf.SharesCommon: true}
	for a, e := range s.endpoints {
		devices[e.Ifindex] = true
		s.say("endpoint %v: number %d, identity %d, device %d, %x, %x, held %d", a, e.ID, e.Identity, e.Ifindex, e.MAC, e.HostMAC, e.Held)
	}
	for device, share := range s.shares {
		if !devices[device] {
			s.say("stray share of device %d: %d rows", device, share.Used)
		}
	}
}

var protocols = map[uint8]string{0: "any", 1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}

func protocol(p uint8) string { return cmp.Or(protocols[p], fmt.Sprint(p)) }

func (s *state) serviceRows() {
	reached := map[bpf.SlotKey]bool{}
	names := map[uint32]string{}
	for k, row := range s.services {
		name := fmt.Sprintf("%v:%d/%s", k.Addr, k.Port.Number(), protocol(k.Proto))
		names[row.ID] = name
		if k.Scope == bpf.ScopeNode {
			s.say("process %s: behind a service", name)
			continue
		}
		if row.Groups == 0 {
			s.say("service %s: no backends", name)
		}
		for _, g := range row.Group[:row.Groups] {
			var to []string
			for i := range g.Count {
				key := bpf.SlotKey{Service: row.ID, Slot: i, Cluster: g.Cluster}
				b, ok := s.backends[key]
				if !ok {
					to = append(to, "an empty slot")
					continue
				}
				reached[key] = true
				text := fmt.Sprintf("%v:%d on node %s", b.Addr, b.Port.Number(), s.node(b.Node))
				if b.Weight != 0 {
					text += fmt.Sprintf(" weighs %d, rejected %d", b.Weight, b.Reject)
				}
				to = append(to, text)
			}
			slices.Sort(to)
			cluster, part := bpf.ClusterOf(g.Cluster)
			s.say("service %s: cluster %d, part %d, tier %d, weight %d: %s", name, cluster, part, g.Tier, g.Weight, strings.Join(to, ", "))
		}
	}
	s.balancingRows(names, reached)
	for k, b := range s.backends {
		if !reached[k] {
			s.say("stray slot: %v:%d", b.Addr, b.Port.Number())
		}
	}
	for k, member := range s.members {
		if name, ok := names[k.Service]; ok {
			s.say("member of service %s: %v:%d, terminating %d", name, k.Addr, k.Port.Number(), member.Terminating)
		} else {
			s.say("stray member: %v:%d", k.Addr, k.Port.Number())
		}
	}
}

// balancingRows says how services share connections, if not evenly and at random. Of a Maglev
// table it says who has which slots.
func (s *state) balancingRows(names map[uint32]string, reached map[bpf.SlotKey]bool) {
	used := map[uint32]bpf.Balancing{}
	for k, row := range s.services {
		how, ok := s.balancing[row.ID]
		if row.Timeout.Flags()&bpf.ServiceBalanced == 0 {
			continue
		}
		if !ok {
			s.say("service %s: how it is balanced is missing", names[row.ID])
			continue
		}
		used[row.ID] = how
		s.say("service %s: groups weigh %v, %d slots", names[row.ID], how.Weights[:row.Groups], how.Slots)
		tiers := map[uint8]bool{}
		for _, g := range row.Group[:row.Groups] {
			tiers[g.Tier] = true
		}
		for tier := range tiers {
			of := map[string][]uint32{}
			for slot := range how.Slots {
				piece := s.maglev[bpf.MaglevKey{Service: row.ID, Piece: uint16(slot / bpf.Piece), Tier: tier, Generation: how.Generation}]
				key := bpf.SlotKey{Service: row.ID, Slot: uint32(piece.Backend[slot%bpf.Piece])}
				b := s.backends[key]
				who := fmt.Sprintf("%v:%d on node %s", b.Addr, b.Port.Number(), s.node(b.Node))
				of[who], reached[key] = append(of[who], slot), true
			}
			for who, slots := range of {
				s.say("service %v:%d/%s: tier %d: %s has slots %v", k.Addr, k.Port.Number(), protocol(k.Proto), tier, who, slots)
			}
		}
	}
	for id := range s.balancing {
		if _, ok := used[id]; !ok {
			s.say("stray balancing")
		}
	}
	for k := range s.maglev {
		if how := used[k.Service]; k.Generation != how.Generation || uint32(k.Piece)*bpf.Piece >= how.Slots {
			s.say("stray piece %d of a Maglev table of tier %d", k.Piece, k.Tier)
		}
	}
}
