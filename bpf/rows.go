package bpf

import "strings"

// The rows mirror the structs of lib/types.h byte by byte; a test compares
// every offset with the types inside the compiled object. Padding is named Pad
// and stays zero. What a field means is said in types.h where the C needs it,
// and here where only the agent does.

// Direction is seen from the local pod.
type Direction uint8

const (
	Egress  Direction = 0 // leaves the pod
	Ingress Direction = 1 // enters the pod
)

func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// Settings is the one row every program reads. It is written last: whatever it
// points to must be in the other tables before.
type Settings struct {
	Revision      uint32    // raised when a verdict may have changed or a backend went; 0: nothing passes
	PolicyGen     uint32    // generation of classes, ports, policy and sets in force
	TunnelIfindex [2]uint32 // by lane; 0: no device
	Internal      Addr      // this node's internal address
	Cluster       uint16    // own cluster's ID
	Trace         uint8     // 1: an event for every new allowed flow
	Pad           uint8
}

// FlowKey names a connection as one local pod sees it. Remote is the address
// the pod talks to: the service's, not the backend's. For ICMP echo Lport is
// the identifier, and Rport 1 when the other side asks.
type FlowKey struct {
	Local  Addr
	Remote Addr
	Lport  Port
	Rport  Port
	Proto  uint8
	Pad    [3]uint8
}

// FlowFlags tell how far a flow has come.
type FlowFlags uint32

const (
	FlowRemoteInitiated FlowFlags = 1 << 0 // judged as ingress; otherwise as egress
	FlowReplied         FlowFlags = 1 << 1 // both sides have spoken
	FlowFinLocal        FlowFlags = 1 << 2
	FlowFinRemote       FlowFlags = 1 << 3
	FlowReset           FlowFlags = 1 << 4
	FlowService         FlowFlags = 1 << 5 // Backend, Bport and Service are set
	FlowLoop            FlowFlags = 1 << 6 // a pod that reached itself through a service
)

// Via is where the other side of a flow is.
type Via uint8

const (
	ViaStack  Via = 1 // the world, or this node itself
	ViaPod    Via = 2 // a pod of this node
	ViaTunnel Via = 3
)

func (v Via) String() string {
	switch v {
	case ViaStack:
		return "stack"
	case ViaPod:
		return "pod"
	case ViaTunnel:
		return "tunnel"
	}
	return "unknown"
}

// Flow is what the datapath knows of a connection. It writes the rows itself.
type Flow struct {
	Seen     uint64 // last packet, see Now
	Revision uint32 // Settings.Revision of the verdict
	Identity uint32 // of the other side
	Rule     uint32 // cookie that allowed it, 0: no policy
	Service  uint32
	Backend  Addr
	Bport    Port
	Node     uint16 // of the other side, 0: not behind a tunnel
	Cluster  uint16 // of the other side, 0: none
	Via      Via
	Pad      uint8
	Flags    FlowFlags
	Ifindex  uint32  // of the local pod
	Owner    uint32  // whose share it takes: the opener's device if that is a pod of this node, else that of the receiver; 0: the node itself
	Again    uint32  // number of a SYN amid the connection, 0: none
	Said     [2]Said // by Direction; of TCP
}

// Said is what one side of a TCP connection said last, as far as it was noted.
type Said struct{ Seq, Ack uint32 }

// ReplyKey finds the flow of a backend's answer.
type ReplyKey struct {
	Local   Addr
	Backend Addr
	Lport   Port
	Bport   Port
	Proto   uint8
	Pad     [3]uint8
}

// Reply is the address the pod used.
type Reply struct {
	Remote Addr
	Rport  Port
	Pad    uint16
}

// newest is how many of its last flows an owner's account names.
const newest = 8

// Share is what an owner holds of the tables that all pods use: the pod behind a
// device, the node itself (SharesNode), or all beyond their shares (SharesCommon).
type Share struct {
	Used       int64  // rows of flows
	Opened     uint64 // rows ever taken
	Refused    uint64 // new flows that found no room
	Evicted    uint64 // unanswered flows given up for newer ones
	Suppressed uint64 // events not told
	Unsaid     uint32 // of those since the last that was told
	Second     uint32 // that Told counts
	Told       uint32 // events
	Next       uint32 // slot of Newest to write
	Newest     [newest]FlowKey
}

// Budget is how many rows of flows are whose.
type Budget struct {
	Each   uint32 // what a pod is sure of
	Node   uint32 // what the node is sure of
	Common uint32 // what nobody is
	Pad    uint32
}

// Endpoint is a pod of this node, by address.
type Endpoint struct {
	Ifindex  uint32 // host side of its veth
	Identity uint32
	Set      uint32 // policy set, 0: no policy selects it
	ID       uint16
	MAC      [6]uint8 // of the pod's device
	HostMAC  [6]uint8 // of the host side
	Held     uint8    // 1: not programmed yet, receives and sends nothing
	Pad      uint8
}

// IPFlags say where an address lies.
type IPFlags uint8

const (
	IPMember IPFlags = 1 << 0 // in a member cluster's CIDR (own or remote): encrypted or not at all
	IPLocal  IPFlags = 1 << 1 // in this node's own pod CIDR
	// In a cluster's service CIDR: nobody is there but by a service.
	IPService IPFlags = 1 << 2
	// With IPMember: in the CIDR of a peer that was removed. Blocked until an
	// operator says otherwise.
	IPFormer IPFlags = 1 << 3
	// Another node's own address: pods do not speak to it in the clear.
	IPNode IPFlags = 1 << 4
)

// String names the flags, "" if there are none.
func (f IPFlags) String() string {
	var names []string
	for i, name := range []string{"member", "local", "service", "former", "node"} {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// IPInfo says who has an address and behind which tunnel it lies.
type IPInfo struct {
	Identity uint32  // 0: not known; with IPMember that is the identity "unknown member"
	Node     uint16  // index in nodes, 0: none or not known
	Cluster  uint16  // 0: of no member cluster
	Flags    IPFlags // on rows of ips as well as of prefixes
	Pad      [3]uint8
}

// Path is what is known of the way through the tunnel to a node or a cluster.
type Path uint8

const (
	PathDead   Path = iota // what is open over it is ended, what has a choice goes elsewhere
	PathAlive              // it carries
	PathSilent             // went down a moment ago: services use others if there are any, nothing is ended
)

// Node is one node of any cluster, by the agent's own index from 1.
type Node struct {
	Path    Path  // by probes
	Lane    uint8 // which tunnel device carries it
	Keyed   uint8 // 0: its key is not known, nothing is sent
	Pad     uint8
	Cluster uint16
	Pad2    uint16
}

// Cluster is a row by cluster ID. The own cluster's row is never asked.
type Cluster struct {
	Path   Path  // the best of its nodes'
	Member uint8 // 1: a dead cluster's row is not all zero, as if there were none
	Pad    [2]uint8
}

// MaxGroups is how many groups (clusters) a service can have.
const MaxGroups = 32

// ServiceKey is a frontend.
type ServiceKey struct {
	Addr  Addr
	Port  Port
	Proto uint8
	Pad   uint8
}

// Group is the backends of a service in one cluster.
type Group struct {
	Count   uint32 // slots 0 … Count-1 exist
	Cluster uint16
	Tier    uint8 // lower is preferred
	Weight  uint8 // multiplies Count in the choice; 0: takes no new connections
}

// Service is a frontend's groups; the first Groups of Group count.
type Service struct {
	ID     uint32
	Groups uint8
	Pad    [3]uint8
	Group  [MaxGroups]Group
}

// SlotKey is a slot of a group.
type SlotKey struct {
	Service uint32
	Slot    uint32
	Cluster uint16
	Pad     uint16
}

// Backend is what a slot holds.
type Backend struct {
	Addr Addr
	Port Port
	Node uint16 // 0: on this node or not behind a tunnel
	Pad  uint32
}

// MemberKey asks whether an address is still a backend of a service. It is
// asked of existing flows when Settings.Revision has moved on.
type MemberKey struct {
	Addr    Addr
	Service uint32
	Port    Port
	Pad     uint16
}

// Member is the answer. A terminating backend keeps its flows.
type Member struct {
	Terminating uint8
	Pad         [3]uint8
}

// ClassKey asks for an identity's class in a generation of policy.
type ClassKey struct {
	Gen      uint32
	Identity uint32
}

// AnyClass in a PolicyKey matches whoever.
const AnyClass = 0xffffffff

// PolicyKey is a line of a policy set.
type PolicyKey struct {
	Gen   uint32
	Set   uint32
	Class uint32
	Port  uint16 // port class, 0: any
	Proto uint8  // IP protocol, 0: any
	Dir   Direction
}

// PolicyEntry is its verdict.
type PolicyEntry struct {
	Rule uint32 // cookie
	Deny uint8
	Pad  [3]uint8
}

// SetKey is a policy set in a generation.
type SetKey struct {
	Gen uint32
	Set uint32
}

// SetInfo says what happens when no line of the set matches.
type SetInfo struct {
	Enforced [2]uint8 // by Direction, 1: default deny
	Pad      [2]uint8
}

// EventType tells what an Event reports.
type EventType uint8

const (
	EventDrop    EventType = 1
	EventNewFlow EventType = 2 // allowed; only with Settings.Trace
	EventReset   EventType = 3 // the pod was answered with a reset: path down
	EventRefused EventType = 4 // dropped, and the pod was told by a reset or an ICMP error
)

// Event is what the datapath reports of one packet.
type Event struct {
	Time        uint64 // ns of CLOCK_BOOTTIME
	Src         Addr
	Dst         Addr // after translation
	Service     Addr // what the pod addressed, zero: no service
	SrcIdentity uint32
	DstIdentity uint32
	Rule        uint32 // cookie; 0 with policy-denied: default deny
	Set         uint32 // policy set that decided
	PolicyGen   uint32
	Ifindex     uint32
	Sport       Port // ICMP: type, code
	Dport       Port
	ServicePort Port
	Bytes       uint16
	Type        EventType
	Reason      Reason
	Dir         Direction
	Proto       uint8
	TCPFlags    uint8
	Pad         [3]uint8
	Suppressed  uint32 // events of the same pod before this one that were not told: it makes too many
	Pad2        uint32
}

// ports is an array: index by generation, protocol and port.
const (
	portsTCP  = 0
	portsUDP  = 1
	portsSCTP = 2
	portsICMP = 3
	portProto = 4
)

// PortIndex is the row of table ports that holds the class of a port (for
// ICMP: type) in a generation. Two generations fit; clear what an older one
// left before use. It is false for protocols without ports.
func PortIndex(gen uint32, proto uint8, port uint16) (uint32, bool) {
	var p uint32
	switch proto {
	case 6:
		p = portsTCP
	case 17:
		p = portsUDP
	case 132:
		p = portsSCTP
	case 1:
		p = portsICMP
	default:
		return 0, false
	}
	return ((gen&1)*portProto+p)<<16 | uint32(port), true
}
