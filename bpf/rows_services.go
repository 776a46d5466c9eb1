package bpf

// The rows of services: see rows.go.

import (
	"net/netip"
	"time"
)

// MaxGroups is how many groups a service can have: at least one for each cluster.
const MaxGroups = 32

// ServiceKey is a frontend.
type ServiceKey struct {
	Addr  Addr
	Port  Port
	Proto uint8
	Scope Scope
}

// Scope says for whom a frontend is.
type Scope uint8

const (
	ScopeAny Scope = iota
	// ScopeOutside is for clients outside of the mesh, if the other row has ServiceSplit.
	ScopeOutside
	// ScopeNode is no frontend: a process at this address of one of the cluster's own nodes is
	// behind a service, and the cluster's pods may speak to it.
	ScopeNode
	// ScopeProcess is for processes of this node alone: a host port at loopback.
	ScopeProcess
)

func (s Scope) String() string {
	switch s {
	case ScopeOutside:
		return "outside"
	case ScopeNode:
		return "node"
	case ScopeProcess:
		return "process"
	}
	return "any"
}

// PartOf numbers a part of a cluster's backends; part 0 has the cluster's own number.
func PartOf(cluster uint16, part uint8) uint16 { return cluster | uint16(part)<<clusterBits }

// ClusterOf undoes PartOf.
func ClusterOf(number uint16) (cluster uint16, part uint8) {
	return number & (1<<clusterBits - 1), uint8(number >> clusterBits)
}

// clusterBits are those of the highest cluster ID, 511.
const clusterBits = 9

// Group is the backends of a service in one cluster, or a part of them.
type Group struct {
	Count   uint32 // slots 0 … Count-1 exist
	Cluster uint16 // see PartOf
	Tier    uint8  // lowest first
	Weight  uint8  // of each backend in the choice; 0: takes no new connections
}

// Service is a frontend's groups: the first Groups of Group.
type Service struct {
	ID      uint32
	Groups  uint8
	Timeout Seconds // for how long a client stays with its backend; zero: it does not
	Group   [MaxGroups]Group
}

// Seconds are less than 2^20 seconds, the lowest byte first, and in the upper bits of the last
// one ServiceFlags.
type Seconds [3]uint8

// ServiceFlags say more about a service.
type ServiceFlags uint8

const (
	ServiceSplit  ServiceFlags = 0x80 // clients outside have a row of their own: ScopeOutside
	ServiceRanged ServiceFlags = 0x40 // only for clients in its source ranges
	// ServiceBalanced has a row in Balancing.
	ServiceBalanced ServiceFlags = 0x20
	serviceFlags    ServiceFlags = 0xf0
)

// With adds flags.
func (s Seconds) With(f ServiceFlags) Seconds {
	s[2] |= uint8(f)
	return s
}

// Without takes flags away.
func (s Seconds) Without(f ServiceFlags) Seconds {
	s[2] &^= uint8(f)
	return s
}

// Flags are those that With added.
func (s Seconds) Flags() ServiceFlags { return ServiceFlags(s[2]) & serviceFlags }

// RangeKey is a prefix of clients that a service with ServiceRanged is for.
type RangeKey struct {
	Bits    uint32 // 32 for the service, and those of PrefixKey
	Service uint32
	Addr    Addr
}

// RangeOf is the key of a prefix, for any service.
func RangeOf(p netip.Prefix) RangeKey {
	k := PrefixOf(p)
	return RangeKey{Bits: 32 + k.Bits, Addr: k.Addr}
}

// Netip returns the prefix.
func (k RangeKey) Netip() netip.Prefix { return PrefixKey{Bits: k.Bits - 32, Addr: k.Addr}.Netip() }

// SecondsOf drops what is less than a second, and what there is no room for.
func SecondsOf(d time.Duration) Seconds {
	s := uint32(min(d/time.Second, 1<<20-1))
	return Seconds{uint8(s), uint8(s >> 8), uint8(s >> 16)}
}

// Duration is the time without the flags.
func (s Seconds) Duration() time.Duration {
	return time.Duration(uint32(s[0])|uint32(s[1])<<8|uint32(s[2]&^uint8(serviceFlags))<<16) * time.Second
}

func (s Seconds) String() string {
	text := s.Duration().String()
	if s.Flags()&ServiceSplit != 0 {
		text += ",split"
	}
	if s.Flags()&ServiceRanged != 0 {
		text += ",ranged"
	}
	if s.Flags()&ServiceBalanced != 0 {
		text += ",balanced"
	}
	return text
}

// AffinityKey is a client of a service: the address of a pod, or the node's internal one for
// its own processes; of Visitors, that of a client outside.
type AffinityKey struct {
	Client  Addr
	Service uint32
}

// Affinity is the backend that a client was last given. Only the datapath writes these rows.
type Affinity struct {
	Seen    uint64 // its last new connection, see Now
	Backend Addr
	Port    Port
	Pad     [6]uint8
}

// SlotKey is a slot of a group.
type SlotKey struct {
	Service uint32
	Slot    uint32
	Cluster uint16 // the group's
	Pad     uint16
}

// Backend is the content of a slot.
type Backend struct {
	Addr Addr
	Port Port
	Node uint16 // 0: on this node or not behind a tunnel
	// Reject is how often, out of 65536 times, it is not taken when it is drawn at random.
	Reject uint16
	Weight uint16 // 0: the default
}

// Balancing is how the backends of a service with ServiceBalanced share its connections.
type Balancing struct {
	Weights    [MaxGroups]uint32 // of the groups: take the place of Group.Weight, unless that is 0
	Slots      uint32            // of the Maglev table of each tier; 0: chosen at random
	Generation uint8             // of the tables
	Pad        [3]uint8
}

// MaglevKey is a piece of a Maglev table.
type MaglevKey struct {
	Service    uint32
	Piece      uint16
	Tier       uint8
	Generation uint8
}

// Piece is how many slots a piece has.
const Piece = 64

// MaglevSlots says which backends have these slots: each number is that of a slot of the group
// with Cluster 0; 0 is nobody.
type MaglevSlots struct{ Backend [Piece]uint16 }

// MemberKey is a backend of a service. It is looked up when a flow is judged again.
type MemberKey struct {
	Addr    Addr
	Service uint32
	Port    Port
	Pad     uint16
}

// Member says that the backend still exists. A terminating backend keeps its flows.
type Member struct {
	Terminating uint8
	Pad         [3]uint8
}
