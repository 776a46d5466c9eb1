package tunnel

import (
	"context"
	"net/netip"
	"time"
)

// Peer is one other node of the mesh, wanted on both lanes.
type Peer struct {
	Cluster string
	Node    string
	// Endpoint is where the node listens, per lane. Invalid: it is not dialled,
	// but may dial us.
	Endpoint [LaneCount]netip.AddrPort
	// Keys are the node's public keys, per lane; zero: not configured there.
	Keys [LaneCount]Key
	// Allowed are the inner addresses that this node alone may send from and
	// that are encrypted for it: its pod CIDRs and its internal address.
	Allowed []netip.Prefix
}

// Name is "cluster/node", as listings and errors show it.
func (p Peer) Name() string { return p.Cluster + "/" + p.Node }

// Lanes are this node's two WireGuard devices. Its methods may be called from
// several goroutines and repeated at any time.
type Lanes interface {
	// Ensure makes devices and keys exist and returns what to publish. Sessions
	// of a device that already has the right key stay as they are.
	Ensure(ctx context.Context) (Own, error)
	// Set makes both devices hold the wanted peers. Unchanged peers are not
	// touched; peers that are not wanted are removed only if complete, that is,
	// if want is the whole truth and not the beginning of it. Wanted peers that
	// contradict one another are refused and returned, the others configured.
	Set(ctx context.Context, want []Peer, complete bool) ([]Refusal, error)
	// Status reads the devices.
	Status(ctx context.Context) (Status, error)
	// Rotate gives lane to%2 a new key and makes to this node's epoch. Ask
	// MayRotate before: this method checks only that the step is odd.
	Rotate(ctx context.Context, to uint64) (Own, error)
}

// Own is what a node publishes of itself.
type Own struct {
	// Epoch of the newest key, which is on lane Epoch%2. Starts at 0.
	Epoch uint64
	// Since is when this epoch began.
	Since time.Time
	Lanes [LaneCount]OwnLane
}

// OwnLane is one device of this node.
type OwnLane struct {
	Device    string
	Ifindex   int
	PublicKey Key
	Port      uint16
	// Kind says who encrypts.
	Kind Kind
}

// Kind is an implementation of WireGuard.
type Kind string

const (
	// Kernel WireGuard is a link of type wireguard.
	Kernel Kind = "kernel"
	// Userspace WireGuard is a TUN device served by `weft tunnel`.
	Userspace Kind = "userspace"
)

// Refusal is a wanted peer that was not configured, and why.
type Refusal struct {
	Cluster, Node string
	Reason        string
}

// Status is what the devices say.
type Status struct {
	Own Own
	// Quiet is how long each lane has received no data (keepalives and
	// handshakes do not count), as far as was watched: it starts at zero with
	// this process and advances only when Status is called, so call it every
	// second or oftener.
	Quiet [LaneCount]time.Duration
	Peers []PeerStatus
}

// PeerStatus is one wanted peer as the devices see it.
type PeerStatus struct {
	Cluster, Node string
	Lanes         [LaneCount]PeerLane
}

// PeerLane is one peer on one lane. Counters are since the peer was added.
type PeerLane struct {
	// Key is the one configured; zero: not on this lane.
	Key Key
	// Handshake is the time of the last one completed under Key; zero: none yet.
	Handshake time.Time
	Endpoint  netip.AddrPort
	RxBytes   int64
	TxBytes   int64
}

// Handshaken says on which lanes the peer has completed a handshake under the
// key it has now, as Choose wants it.
func (p PeerStatus) Handshaken() [LaneCount]bool {
	var done [LaneCount]bool
	for i, lane := range p.Lanes {
		done[i] = !lane.Handshake.IsZero()
	}
	return done
}

// Network is what the node's own stack needs to use the lanes.
type Network struct {
	// Internal is this node's address inside the mesh, put on the lanes as a /32;
	// the zero Addr leaves them as they are.
	Internal netip.Addr
	// MTU of both lanes; see MTU.
	MTU int
	// Members are all clusters' pod CIDRs, our own included: reached through
	// the lanes, or not at all.
	Members []netip.Prefix
	// Former are the pod CIDRs of peers that were removed: unreachable, so that
	// what was inside tunnels does not leave by another route.
	Former []netip.Prefix
	// Local are this node's own pod CIDRs: an address in them without a pod is
	// unreachable and not sent through a lane.
	Local []netip.Prefix
}

// Host carries a Network into the kernel.
type Host interface {
	// Set makes addresses, MTU and routes as wanted. Routes that are not wanted
	// are removed only if complete.
	Set(ctx context.Context, want Network, complete bool) error
}
