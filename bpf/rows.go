package bpf

import (
	"fmt"
	"strconv"
	"strings"
)

// The rows mirror the structs of lib/types.h byte by byte; a test compares every
// offset with the types in the compiled object. Padding is named Pad and must be
// zero. lib/types.h says more about what the fields mean.

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

// Settings is a single row that every program reads. Write it last: the rows that
// it refers to must exist before.
type Settings struct {
	Revision      uint32    // raised when any verdict may have changed; 0: nothing passes
	PolicyGen     uint32    // generation of classes, ports, policy and sets in force
	TunnelIfindex [2]uint32 // by lane; 0: no device
	Internal      [2]Addr   // this node's internal address: IPv4, IPv6; zero: none
	Cluster       uint16    // own cluster's ID
	Trace         uint8     // 1: an event for every new allowed flow
	Pad           uint8
	Exposed       [2]Addr // an address at which this node has node ports: IPv4, IPv6; zero: none
}

// FlowKey is a connection as one local pod sees it. Remote is the address the pod
// talks to: the service's, not the backend's. For ICMP, Lport is the identifier and
// Rport the type of the request, plus 256 if the other side sent it.
type FlowKey struct {
	Local  Addr
	Remote Addr
	Lport  Port
	Rport  Port
	Proto  uint8
	Beside uint8 // 1: of a flow beside another's answers, whose row has the key without it
	Pad    [2]uint8
}

// FlowFlags are the state of a flow.
type FlowFlags uint32

const (
	FlowRemoteInitiated FlowFlags = 1 << 0 // judged as ingress; otherwise as egress
	FlowReplied         FlowFlags = 1 << 1 // both sides have sent something
	FlowFinLocal        FlowFlags = 1 << 2
	FlowFinRemote       FlowFlags = 1 << 3
	FlowReset           FlowFlags = 1 << 4
	FlowService         FlowFlags = 1 << 5 // Backend, Bport and Service are set
	FlowLoop            FlowFlags = 1 << 6 // a pod reaching itself through a service
	FlowWaits           FlowFlags = 1 << 7 // its node has been unknown since Seen
	// Not a flow: the second row of one that is translated, under the key that its answers
	// have. Backend and Bport are then the address and port that the pod talks to.
	FlowAnswers FlowFlags = 1 << 8
	FlowDirect  FlowFlags = 1 << 9  // has another source port; Backend and Bport are the address itself
	FlowBeside  FlowFlags = 1 << 10 // of a row for answers: the flow's key has Beside
	FlowShared  FlowFlags = 1 << 11 // likewise: there is a flow beside it
	// The pod's socket was given the backend, which Remote is: Service is set, Backend and Bport
	// are its address and port, unless the flow is translated as well.
	FlowMember FlowFlags = 1 << 12

	// FlowTranslated are the flags of flows that have a second row.
	FlowTranslated = FlowService | FlowDirect

	// The upper half is a port: see Other.
	flowPort = 16
)

// Other is the source port by which the other side knows the flow, if that is not the pod's.
// In a row for answers, and in that of the server of a pod that reaches itself, it is the
// client's own then. 0: there is none.
func (f FlowFlags) Other() Port { return Port{byte(f >> flowPort), byte(f >> (flowPort + 8))} }

// withOther are the flags with another port.
func (f FlowFlags) withOther(p Port) FlowFlags {
	return f.Alone() | FlowFlags(p[0])<<flowPort | FlowFlags(p[1])<<(flowPort+8)
}

// Alone are the flags without the port.
func (f FlowFlags) Alone() FlowFlags { return f & (1<<flowPort - 1) }

func (f FlowFlags) String() string {
	if other := f.Other(); other != (Port{}) {
		return fmt.Sprintf("%d:%d", uint32(f.Alone()), other.Number())
	}
	return strconv.FormatUint(uint64(f), 10)
}

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

// Flow is what the datapath knows of a connection. Only the datapath writes these
// rows.
type Flow struct {
	Seen     uint64 // time of the last packet, see Now
	Revision uint32 // sum of the revisions that the verdict rests on
	Identity uint32 // of the other side
	Rule     uint32 // cookie of the rule that allowed it; 0: no policy
	Service  uint32
	Backend  Addr
	Bport    Port
	Node     uint16 // of the other side; 0: not behind a tunnel
	Cluster  uint16 // of the other side; 0: none
	Via      Via
	Pad      uint8
	Flags    FlowFlags
	Ifindex  uint32  // of the local pod
	Owner    uint32  // whose share it takes: the device of the opener if that is a pod of this node, otherwise of the receiver; 0: the node itself
	Again    uint32  // sequence number of a SYN within the connection; 0: none
	Said     [2]Said // TCP, by Direction
}

// Said are the last sequence numbers noted from one side of a TCP connection.
type Said struct{ Seq, Ack uint32 }

// Masquerade is one of the two rows of a connection between a pod and the world, which sees
// the node's address instead of the pod's. Only the datapath writes these rows. The key's
// Local is on this node's side: the pod's address, and then the row has what the world sees;
// or the node's, and then it has the pod that gets the answers.
type Masquerade struct {
	Addr   Addr
	Port   Port
	Answer uint8 // 1: of what the world answers
	Kind   MasqueradeKind
	Other  Port // of a node port: the client's port in the other row's key, if it is another
	Pad    [2]uint8
}

// otherOfPair is the key of the other row of the pair.
func (row Masquerade) otherOfPair(k FlowKey) FlowKey {
	k.Local, k.Lport = row.Addr, row.Port
	if row.Other != (Port{}) {
		k.Rport = row.Other
	}
	return k
}

// MasqueradeKind says whose connection it is.
type MasqueradeKind uint8

const (
	MasqueradePod     MasqueradeKind = iota // a pod's with the world
	MasqueradeExposed                       // the world's with a node port: the key has its backend in place of a pod
	MasqueradeClient                        // likewise, and the backend is elsewhere: it sees the node's ingress address instead of the client
)

func (k MasqueradeKind) String() string {
	switch k {
	case MasqueradePod:
		return "pod"
	case MasqueradeExposed:
		return "node-port"
	case MasqueradeClient:
		return "client"
	}
	return "unknown"
}

// Masquerading is what pods' packets get on the way out of the mesh.
type Masquerading struct {
	Addr        [2]Addr // of the node, for IPv4 and IPv6; zero: pods keep their own
	First, Last uint16  // the range of ports
}

// newest is the number of flows that an account remembers, NEWEST in C.
const newest = 8

// Share is how much of the shared tables an owner holds. The owner is a pod, by its
// device, or the node itself (SharesNode); SharesCommon counts what all owners hold
// beyond their shares.
type Share struct {
	Used       int64  // flows
	Opened     uint64 // flows ever opened
	Refused    uint64 // new flows that found no room
	Evicted    uint64 // unanswered flows given up for newer ones
	Suppressed uint64 // events not sent
	Unsaid     uint32 // of those, since the last one sent
	Second     uint32 // the second that Told counts
	Told       uint32 // events sent in it
	Next       uint32 // slot of Newest to write next
	Newest     [newest]FlowKey
}

// Budget divides the flow table, in flows.
type Budget struct {
	Each   uint32 // guaranteed to each pod
	Node   uint32 // guaranteed to the node
	Common uint32 // guaranteed to nobody
	Pad    uint32
}

// Endpoint is a pod of this node, by address.
type Endpoint struct {
	Ifindex  uint32 // host side of its veth
	Identity uint32
	Set      uint32 // policy set; 0: no policy selects the pod
	ID       uint16
	MAC      [6]uint8 // of the pod's device
	HostMAC  [6]uint8 // of the host side
	Held     uint8    // 1: not programmed yet; receives and sends nothing
	Pad      uint8
}

// Namespace is the network namespace of a pod of this node, by cookie: sockets there are given
// the backends of services.
type Namespace struct {
	Addr [2]Addr // of the pod: IPv4, IPv6; zero: none
}

// IPFlags say what kind of address it is.
type IPFlags uint8

const (
	IPMember IPFlags = 1 << 0 // in a member cluster's CIDR (own or remote): encrypted or not at all
	IPLocal  IPFlags = 1 << 1 // in this node's own pod CIDR
	// In a cluster's service CIDR: only services have addresses there.
	IPService IPFlags = 1 << 2
	// With IPMember: in the CIDR of a removed peer. Blocked until an operator says
	// otherwise.
	IPFormer IPFlags = 1 << 3
	// Another node's own address: pods do not send to it in the clear. If the row has a node, it is
	// one of the cluster's own, whose tunnel leads there.
	IPNode IPFlags = 1 << 4
)

// String lists the names of the flags; "" if there are none.
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
	Identity uint32  // 0: not known; with IPMember it counts as the identity "unknown member"
	Node     uint16  // index in nodes; 0: none or not known
	Cluster  uint16  // 0: not in a member cluster
	Flags    IPFlags // on rows of ips as well as of prefixes
	Bits     uint8   // of prefixes: the length of a node's pod CIDR, of 128; its first address is the node's ingress address
	Pad      [2]uint8
}

// Path is the state of the path through the tunnel to a node or a cluster.
type Path uint8

const (
	PathDead   Path = iota // open connections are reset, other flows use another path if they can
	PathAlive              // carries packets
	PathSilent             // stopped answering a moment ago: new flows use another path if they can, nothing is reset
)

// Node is one node of any cluster, by the agent's own index from 1.
type Node struct {
	Path    Path  // by probes
	Lane    uint8 // tunnel device that carries it
	Keyed   uint8 // 0: its key is not known and nothing is sent
	Pad     uint8
	Cluster uint16
	Pad2    uint16
}

// Cluster is a cluster, by ID. The programs never read the own cluster's row.
type Cluster struct {
	Path   Path  // the best among its nodes
	Member uint8 // 1, so that the row of a dead cluster differs from an unused one
	Pad    [2]uint8
}

// ClassKey is an identity in a generation of policy; the value is its class.
type ClassKey struct {
	Gen      uint32
	Identity uint32
}

// AnyClass in a PolicyKey matches every class.
const AnyClass = 0xffffffff

// PolicyKey is one entry of a policy set.
type PolicyKey struct {
	Gen   uint32
	Set   uint32
	Class uint32
	Port  uint16 // port class; 0: any
	Proto uint8  // IP protocol; 0: any
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

// SetInfo says what happens when no entry of the set matches, and which entries are worth a
// look-up.
type SetInfo struct {
	Enforced [2]uint8  // by Direction; 1: default deny
	Shapes   [2]Shapes // by Direction
}

// Shapes are the kinds of entries that a policy set may have in one direction. The
// datapath looks no others up, so one that is missing here does not exist for it. Zero:
// not known, every kind may occur.
type Shapes uint8

// shapesKnown distinguishes a set without entries from one of which nothing is known.
const shapesKnown Shapes = 0x80

// NoShapes are those of a set without entries.
const NoShapes = shapesKnown

// Shape is the kind of one entry.
func (k PolicyKey) Shape() Shapes {
	s := Shapes(4) // neither protocol nor port
	switch {
	case k.Port != 0:
		s = 1
	case k.Proto != 0:
		s = 2
	}
	if k.Class == AnyClass {
		s <<= 3
	}
	return s | shapesKnown
}

// Have reports whether entries of the kind of k are looked up.
func (s Shapes) Have(k PolicyKey) bool { return s&shapesKnown == 0 || s&k.Shape() == k.Shape() }

// EventType is what an Event reports.
type EventType uint8

const (
	EventDrop    EventType = 1
	EventNewFlow EventType = 2 // allowed; only with Settings.Trace
	EventReset   EventType = 3 // an open connection of the pod was reset
	EventRefused EventType = 4 // dropped, and the pod got a reset or an ICMP error
)

// Event is what the datapath reports of one packet.
type Event struct {
	Time        uint64 // ns of CLOCK_BOOTTIME
	Src         Addr
	Dst         Addr // after translation
	Service     Addr // the address the pod used; zero: no service
	SrcIdentity uint32
	DstIdentity uint32
	Rule        uint32 // cookie; 0 with policy-denied: default deny
	Set         uint32 // policy set that was asked
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
	Suppressed  uint32 // events of the same pod that were not sent before this one
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

// PortIndex is the row of table ports with the class of a port (for ICMP, of a type)
// in a generation. Two generations fit: clear what an older one left before writing
// a new one. False for protocols without ports.
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
	case 58:
		p, port = portsICMP, port|0x100
	default:
		return 0, false
	}
	return ((gen&1)*portProto+p)<<16 | uint32(port), true
}
