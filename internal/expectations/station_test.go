package expectations

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/model"
	"github.com/weft-mesh/weft/internal/meshtest"
)

// station is a node whose packets the model carries, by what the node's agent has written.
type station struct {
	*model.Node
	t     *testing.T
	of    *meshtest.Node
	began time.Time
	// public are the addresses at which the world knows the node, cidrs those of its pods.
	public []netip.Addr
	cidrs  []netip.Prefix
	// wish is where the lot of the next choice falls.
	wish netip.AddrPort
	// left counts the connections of pods with the world.
	left uint16
	// What verdicts rest on, as it was last read: see bpf/lib/revision.h.
	revision  uint32
	revisions map[uint32]uint32
	addrs     map[netip.Addr]bool
	persons   map[uint32]bool
}

// lanes are the devices of its tunnels, device that towards the world.
var lanes = [2]int{201, 202}

const device = 203

func newStation(t *testing.T, n *meshtest.Node, public []netip.Addr, cidrs []netip.Prefix) *station {
	s := &station{Node: model.New(), t: t, of: n, public: public, cidrs: cidrs, began: time.Now(), addrs: map[netip.Addr]bool{}, persons: map[uint32]bool{}}
	s.Witness = s
	return s
}

// Backend implements model.Witness.
func (s *station) Backend(model.Key) (netip.AddrPort, bool) { return s.wish, s.wish.IsValid() }

// Port implements model.Witness: each client has a port of its own here, so no other is drawn.
func (s *station) Port(model.Key) (uint16, bool) { return 0, false }

// Mask implements model.Witness: each connection with the world leaves with the next port.
func (s *station) Mask(model.Key) (uint16, bool) {
	s.left++
	return s.First + s.left, true
}

// Client implements model.Witness.
func (s *station) Client(model.Key) (uint16, bool) { return 0, false }

// Session implements model.Witness: the model keeps sessions itself.
func (s *station) Session(model.Client) (netip.AddrPort, bool) { return netip.AddrPort{}, false }

// Reason implements model.Witness: no kernel has told one.
func (s *station) Reason() bpf.Reason { return 0 }

// sound ends the test if the model saw what cannot be, and tells whether the lot fell on a
// backend that may be chosen.
func (s *station) sound() (chosen bool) {
	chosen = true
	for _, c := range s.Complaints() {
		if !strings.HasPrefix(c, "chose backend") {
			s.t.Fatal(c)
		}
		chosen = false
	}
	return chosen
}

// look reads the maps again.
func (s *station) look() {
	s.t.Helper()
	s.Now = time.Since(s.began)
	m := s.of.Maps()
	settings, _, err := m.Settings.Lookup(0)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Cluster, s.Lanes, s.Ready = settings.Cluster, lanes, settings.Revision != 0
	for i, a := range settings.Internal {
		s.Internal[i], s.Exposed[i] = a.Netip(), settings.Exposed[i].Netip()
	}
	mask, _, _ := m.Masquerading.Lookup(0)
	for i, a := range mask.Addr {
		s.Outside[i] = a.Netip()
	}
	s.First, s.Last = mask.First, mask.Last
	s.where()
	s.services()
	s.changed(settings.Revision)
}

func ownerOf(i bpf.IPInfo) model.Owner {
	return model.Owner{Identity: i.Identity, Node: i.Node, Cluster: i.Cluster, Flags: i.Flags, Bits: int(i.Bits)}
}

// where reads who is where.
func (s *station) where() {
	s.t.Helper()
	m := s.of.Maps()
	clear(s.Pods)
	for a, row := range meshtest.Rows(s.of, m.Endpoints) {
		if row.Set != 0 {
			s.t.Fatalf("pod %v has policies, which no expectation is about", a)
		}
		s.Pods[a.Netip()] = &model.Pod{Device: int(row.Ifindex), Identity: row.Identity, ID: row.ID, MAC: row.MAC, Host: row.HostMAC, Held: row.Held != 0}
	}
	clear(s.Hosts)
	for a, row := range meshtest.Rows(s.of, m.IPs) {
		s.Hosts[a.Netip()] = ownerOf(row)
	}
	clear(s.Prefixes)
	for k, row := range meshtest.Rows(s.of, m.Prefixes) {
		s.Prefixes[k.Netip()] = ownerOf(row)
	}
	clear(s.Peers)
	for i, row := range meshtest.Rows(s.of, m.Nodes) {
		s.Peers[uint16(i)] = model.Peer{Path: row.Path, Lane: int(row.Lane), Keyed: row.Keyed != 0}
	}
	clear(s.Clusters)
	for i, row := range meshtest.Rows(s.of, m.Clusters) {
		s.Clusters[uint16(i)] = row.Path
	}
	s.Native = nil
	for k := range meshtest.Rows(s.of, m.Native) {
		s.Native = append(s.Native, k.Netip())
	}
}

// services reads what is behind which address.
func (s *station) services() {
	s.t.Helper()
	m := s.of.Maps()
	clear(s.Services)
	clear(s.Offered)
	slots := meshtest.Rows(s.of, m.Backends)
	for k, row := range meshtest.Rows(s.of, m.Services) {
		if k.Scope == bpf.ScopeNode {
			s.Offered[model.Front{At: netip.AddrPortFrom(k.Addr.Netip(), k.Port.Number()), Proto: k.Proto}] = true
			continue
		}
		if row.Timeout.Flags()&bpf.ServiceBalanced != 0 {
			s.t.Fatalf("%v:%d is weighed, which no expectation is about", k.Addr, k.Port.Number())
		}
		svc := &model.Service{ID: row.ID, Timeout: row.Timeout.Duration(), Split: row.Timeout.Flags()&bpf.ServiceSplit != 0, Ranged: row.Timeout.Flags()&bpf.ServiceRanged != 0}
		for _, g := range row.Group[:row.Groups] {
			cluster, _ := bpf.ClusterOf(g.Cluster)
			group := model.Group{Cluster: cluster, Tier: g.Tier, Weight: g.Weight}
			for i := range g.Count {
				b, ok := slots[bpf.SlotKey{Service: row.ID, Slot: i, Cluster: g.Cluster}]
				if !ok {
					s.t.Fatalf("%v:%d has no slot %d", k.Addr, k.Port.Number(), i)
				}
				group.Backends = append(group.Backends, model.Backend{At: netip.AddrPortFrom(b.Addr.Netip(), b.Port.Number()), Node: b.Node})
			}
			svc.Groups = append(svc.Groups, group)
		}
		s.Services[model.Front{At: netip.AddrPortFrom(k.Addr.Netip(), k.Port.Number()), Proto: k.Proto, Outside: k.Scope == bpf.ScopeOutside, Process: k.Scope == bpf.ScopeProcess}] = svc
	}
	clear(s.Members)
	for k, row := range meshtest.Rows(s.of, m.Members) {
		s.Members[model.Member{Service: k.Service, At: netip.AddrPortFrom(k.Addr.Netip(), k.Port.Number())}] = row.Terminating != 0
	}
	clear(s.Sources)
	for k := range meshtest.Rows(s.of, m.Sources) {
		s.Sources[k.Service] = append(s.Sources[k.Service], k.Netip())
	}
}

// changed has the model judge again what the agent has raised a revision for, and nothing else.
func (s *station) changed(revision uint32) {
	s.t.Helper()
	was, now := s.revisions, meshtest.Rows(s.of, s.of.Maps().Revisions)
	if revision != s.revision {
		s.Node.Changed(nil)
	}
	for a, o := range s.Hosts {
		s.addrs[a], s.persons[o.Identity] = true, true
	}
	for a, p := range s.Pods {
		s.addrs[a], s.persons[p.Identity] = true, true
	}
	for at := range s.Members {
		s.addrs[at.At.Addr()] = true
	}
	for a := range s.addrs {
		if i := bpf.RevisionOf(bpf.AddrOf(a)); was[i] != now[i] {
			s.Node.Changed(a)
		}
	}
	for who := range s.persons {
		if i := bpf.RevisionOfIdentity(who); was[i] != now[i] {
			s.Node.Changed(who)
		}
	}
	s.revision, s.revisions = revision, now
}

// behind are the backends that the node has for a front, sorted.
func (s *station) behind(at netip.AddrPort, proto uint8) (out []netip.AddrPort) {
	for _, outside := range []bool{false, true} {
		svc := s.Services[model.Front{At: at, Proto: proto, Outside: outside}]
		if svc == nil {
			continue
		}
		for _, g := range svc.Groups {
			for _, b := range g.Backends {
				out = append(out, b.At)
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}
