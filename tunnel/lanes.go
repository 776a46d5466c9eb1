package tunnel

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// Peer is one other node of the mesh, wanted on both lanes.
type Peer struct {
	Cluster string
	Node    string
	// Endpoint is where the node listens, per lane. Invalid: we do not dial it, but
	// it may dial us.
	Endpoint [LaneCount]netip.AddrPort
	// Keys are the node's public keys, per lane; zero: not configured there.
	Keys [LaneCount]Key
	// Allowed are the inner addresses that only this node may send from, and that
	// are encrypted for it: its pod CIDRs and its internal address, and of a node of our own
	// cluster those outside the mesh, for pods alone.
	Allowed []netip.Prefix
	// Silent is set while nothing comes back from the node. A session with it that never
	// carried anything is begun anew.
	Silent bool `json:"-"`
}

// Name is "cluster/node", as listings and errors show it.
func (p Peer) Name() string { return p.Cluster + "/" + p.Node }

// Lanes are this node's two WireGuard devices. Several goroutines may call its
// methods, and repeat them at any time.
type Lanes interface {
	// Ensure makes devices and keys exist and returns what to publish. Sessions
	// of a device that already has the right key stay as they are.
	Ensure(ctx context.Context) (Own, error)
	// Set gives both devices the wanted peers. Unchanged peers are not touched.
	// Peers that are not wanted are removed only if complete is set, which says
	// that want lists all peers. Wanted peers that contradict each other are
	// refused and returned; the others are configured. It reads the devices, once if
	// nothing has to be changed, and returns what they have then.
	Set(ctx context.Context, want []Peer, complete bool) (Status, error)
	// Change is Set for a few: all others stay as Set was told, and no device is read,
	// so that it costs what the change is. Peers that are gone are removed only if
	// complete is set. It returns the verdict on each wanted peer that the change
	// concerns: also on those that contradict, or contradicted, one of them.
	Change(ctx context.Context, changed []Peer, gone []string, complete bool) (Verdicts, error)
	// Status reads the devices.
	Status(ctx context.Context) (Status, error)
	// Rotate gives lane to%2 a new key and makes to this node's epoch. Call
	// MayRotate first: this method checks only that the step is odd and upwards.
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

// Verdicts say, by name, why a peer was not configured; "" if it was.
type Verdicts map[string]string

// Status is what the devices say.
type Status struct {
	Own Own
	// Quiet is how long each lane has received no data; keepalives and handshakes
	// do not count. It starts at zero with this process and is measured only when
	// Status is called: data between two calls counts as received at the second.
	Quiet [LaneCount]time.Duration
	Peers []PeerStatus
	// Refused are those that Set did not configure.
	Refused []Refusal
}

// PeerStatus is one wanted peer as the devices see it.
type PeerStatus struct {
	Cluster, Node string
	Lanes         [LaneCount]PeerLane
}

// PeerLane is one peer on one lane. Counters start when the peer is added.
type PeerLane struct {
	// Key is the configured key; zero: the peer is not on this lane.
	Key Key
	// Handshake is when the last handshake with Key was completed; zero: none yet.
	Handshake time.Time
	Endpoint  netip.AddrPort
	RxBytes   int64
	TxBytes   int64
}

// Settle is how old a handshake must be before traffic moves to its lane. The other node may
// have begun the session anew in the same moment, because it had not heard of the handshake;
// by then it has called again.
const Settle = 400 * time.Millisecond

// Settled reports on which lanes the peer's last handshake with its current key has settled at
// now, as Choose expects it.
func (p PeerStatus) Settled(now time.Time) [LaneCount]bool {
	done := p.Handshaken()
	for i, lane := range p.Lanes {
		done[i] = done[i] && now.Sub(lane.Handshake) >= Settle
	}
	return done
}

// Handshaken reports on which lanes the peer has completed a handshake with its
// current key.
func (p PeerStatus) Handshaken() [LaneCount]bool {
	var done [LaneCount]bool
	for i, lane := range p.Lanes {
		done[i] = !lane.Handshake.IsZero()
	}
	return done
}

// Network is what the node's own stack needs to use the lanes.
type Network struct {
	// Internal is this node's address inside the mesh, set on the lanes as a /32 or
	// /128; the zero Addr leaves their addresses alone. Second is that of the other IP
	// family, if it has one.
	Internal, Second netip.Addr
	// MTU of both lanes; see MTU.
	MTU int
	// Members are all clusters' pod CIDRs, our own included: they are reached
	// through the lanes or not at all.
	Members []netip.Prefix
	// Former are the pod CIDRs of removed peers: unreachable, so that traffic that
	// was inside tunnels does not leave by another route.
	Former []netip.Prefix
	// Local are this node's own pod CIDRs: addresses in them that no pod has are
	// unreachable and not sent through a lane. The lanes speak IPv6 if one of these is
	// of IPv6.
	Local []netip.Prefix
}

// speaksIPv6 reports whether the node has addresses of IPv6 inside the mesh.
func (n Network) speaksIPv6() bool {
	return slices.ContainsFunc(n.Local, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// source is the node's address inside the mesh of the family of p, or the zero Addr.
func (n Network) source(p netip.Prefix) netip.Addr {
	for _, a := range []netip.Addr{n.Internal, n.Second} {
		if a.BitLen() == p.Addr().BitLen() {
			return a
		}
	}
	return netip.Addr{}
}

// Host carries a Network into the kernel.
type Host interface {
	// Set sets addresses, MTU and routes. Routes and addresses that are not wanted
	// are removed only if complete is set.
	Set(ctx context.Context, want Network, complete bool) error
}
