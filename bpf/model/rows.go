package model

import (
	"net/netip"
	"time"

	"github.com/weft-mesh/weft/bpf"
)

// Node is one node: what its agent told it, and what its datapath remembers.
type Node struct {
	Cluster  uint16
	Lanes    [2]int // tunnel devices
	Internal [2]netip.Addr
	Exposed  [2]netip.Addr // where it has node ports
	Ready    bool          // the settings were written

	Pods     map[netip.Addr]*Pod
	Hosts    map[netip.Addr]Owner   // single addresses
	Prefixes map[netip.Prefix]Owner // asked when Hosts has no row
	Peers    map[uint16]Peer        // other nodes, by index
	Clusters map[uint16]bpf.Path

	Services map[Front]*Service
	Offered  map[Front]bool  // processes of nodes that are behind services
	Members  map[Member]bool // whether it is about to go
	Sources  map[uint32][]netip.Prefix

	Sets  map[uint32]*Set
	Class map[uint32]uint32 // of identities; 0: none

	Outside     [2]netip.Addr // the node as the world sees it; invalid: pods keep their addresses
	First, Last uint16        // ports for masquerading
	Native      []netip.Prefix

	Now     time.Duration
	Witness Witness

	flows     table
	datagrams map[datagram]ports
	sessions  map[session]*lasting
	masks     masks
	changes   map[any]uint64 // by netip.Addr, identity (uint32) or everything (nil)

	complaints []string
}

// Witness tells what the kernel drew for the packet that it has just worked on.
type Witness interface {
	// Backend is the one that was chosen for a flow, from a pod or a client outside.
	Backend(flow Key) (netip.AddrPort, bool)
	// Port is the source port that a flow was given.
	Port(flow Key) (uint16, bool)
	// Mask is the port that the connection leaves the node with.
	Mask(inside Key) (uint16, bool)
	// Client is the port that a client has towards a backend, if it could not keep its own.
	Client(front Key) (uint16, bool)
	// Session is the backend that a client stays with.
	Session(Client) (netip.AddrPort, bool)
	// Reason is what became of the packet.
	Reason() bpf.Reason
}

// Pod is a pod of this node.
type Pod struct {
	Device    int
	Identity  uint32
	Set       uint32 // policies; 0: none select it
	ID        uint16
	MAC, Host [6]byte
	Held      bool
}

// Owner is who has an address, and where.
type Owner struct {
	Identity      uint32
	Node, Cluster uint16
	Flags         bpf.IPFlags
	Bits          int // of a node's pod CIDR, as in bpf.IPInfo
}

// Peer is another node.
type Peer struct {
	Path  bpf.Path
	Lane  int
	Keyed bool
}

// Front is an address at which a service is reached. Outside is a row for clients outside
// alone.
type Front struct {
	At      netip.AddrPort
	Proto   uint8
	Outside bool
	Process bool // for processes of the node alone
}

// Service has groups of backends.
type Service struct {
	ID            uint32
	Timeout       time.Duration
	Split, Ranged bool
	Groups        []Group
}

// Group is backends of one cluster, or of a part of it.
type Group struct {
	Cluster  uint16
	Tier     uint8
	Weight   uint8
	Backends []Backend
}

// Backend is one of a group. Node is 0 if it is here, outside of the mesh or not known.
type Backend struct {
	At   netip.AddrPort
	Node uint16
}

// Member is a backend that a service still has.
type Member struct {
	Service uint32
	At      netip.AddrPort
}

// Set is the policies of a pod.
type Set struct {
	Enforced [2]bool // by bpf.Direction
	Rules    []Rule
}

// Rule lets a class of identities do something, or forbids it.
type Rule struct {
	Dir   bpf.Direction
	Class uint32 // bpf.AnyClass: everybody
	Proto uint8  // 0: any
	Ports []uint16
	Deny  bool
	ID    uint32
}

// New is a node that knows nothing yet.
func New() *Node {
	return &Node{
		Pods: map[netip.Addr]*Pod{}, Hosts: map[netip.Addr]Owner{}, Prefixes: map[netip.Prefix]Owner{},
		Peers: map[uint16]Peer{}, Clusters: map[uint16]bpf.Path{}, Services: map[Front]*Service{}, Offered: map[Front]bool{}, Members: map[Member]bool{},
		Sources: map[uint32][]netip.Prefix{}, Sets: map[uint32]*Set{}, Class: map[uint32]uint32{},
		flows: newTable(), datagrams: map[datagram]ports{}, sessions: map[session]*lasting{},
		masks: newMasks(), changes: map[any]uint64{},
	}
}

// Changed notes that what is known of an address, an identity or, with nil, of everything is
// no longer what it was. Verdicts that rest on it are made again.
func (n *Node) Changed(what any) { n.changes[what]++ }

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
