// Package gossip hears quickly, and without a control plane, which members of
// a cluster (LAN) or which clusters' API servers (WAN) have gone silent.
//
// What it says is a hint to look: whether traffic still reaches a node is
// decided in tunnel/probe, and what exists is decided in etcd.
package gossip

import (
	"log/slog"
	"net/netip"
	"time"
)

// Role says what kind of process a member is.
type Role string

const (
	Agent     Role = "agent"
	APIServer Role = "apiserver"
)

// Member is one process of a pool. Its name in the pool is "cluster/role/name".
type Member struct {
	Cluster string
	Name    string
	Role    Role
	Addr    netip.AddrPort
}

// Kind of an Event.
type Kind string

const (
	Alive Kind = "alive" // joined, or was heard again
	Dead  Kind = "dead"  // stopped answering
	Left  Kind = "left"  // said goodbye
)

// Event is one change of one member, as this process noticed it.
type Event struct {
	Kind   Kind
	Member Member
	At     time.Time
}

// Report is what a cluster says about its own nodes, passed on in the WAN pool.
type Report struct {
	Cluster string `json:"cluster"`
	// Reporter is the API server that wrote it; each has its own sequence.
	Reporter string `json:"reporter"`
	// Sequence grows with every report of a reporter, over restarts too: it is
	// the time at which it was made, in ns since 1970.
	Sequence uint64 `json:"sequence"`
	// Dead are the cluster's own nodes that gossip holds for dead, sorted.
	Dead []string `json:"dead"`
	// Signature is the cluster's, over everything else.
	Signature []byte `json:"signature,omitempty"`
}

// Speed trades how soon a death is noticed for packets and false alarms.
type Speed string

const (
	// VeryFast notices in 0.3 to 0.5 s, for up to 50 members less than 50 ms apart.
	VeryFast Speed = "very-fast"
	// Fast notices in 0.8 to 1.6 s, for up to 100 members less than 100 ms apart.
	Fast Speed = "fast"
	// WAN notices in 2 to 4 s, for members up to 300 ms apart.
	WAN Speed = "wan"
	// Steady notices in about 7 s, for pools of thousands.
	Steady Speed = "steady"
)

// MaxSaid is how much fits into the answer to a ping, in bytes.
const MaxSaid = 512

// Config of one pool.
type Config struct {
	// Self is this process. Addr is where it listens, UDP and TCP, and where
	// others reach it.
	Self Member
	// Label keeps pools apart: packets of another label are dropped.
	Label string
	Speed Speed
	// Keys encrypt the pool with AES (16, 24 or 32 bytes each). The first
	// encrypts what we send; all decrypt what we receive. At least one.
	Keys [][]byte
	// Clusters are those whose members are let in, our own included.
	Clusters []string
	// OnEvent is told every change, one at a time, and must not block. May be nil.
	OnEvent func(Event)
	// OnReport is told every newer report of another reporter, one at a time,
	// and must not block. May be nil.
	OnReport func(Report)
	// Sign signs a report of our own cluster, and Verify says whether a cluster
	// signed a text, nil if so: members can claim to be of any cluster. Verify is
	// called with the pool locked and must not call back. Where one is nil, no
	// report is made, or none is believed.
	Sign   func(text []byte) ([]byte, error)
	Verify func(cluster string, text, signature []byte) error
	// Say is what this member tells whoever pings it, MaxSaid bytes at most; it is
	// asked for every ping and must not block. OnSaid is told what a member that we
	// pinged says, every time, and must not block either. Nothing of it is passed
	// on, so it costs no packets. Both may be nil.
	Say    func() []byte
	OnSaid func(Member, []byte)
	Log    *slog.Logger
}
