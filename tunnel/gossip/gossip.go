// Package gossip finds out quickly, without a control plane, which members of a cluster
// (LAN) or which clusters' API servers (WAN) have gone silent.
//
// Its findings are hints: whether traffic still reaches a node is decided in
// tunnel/probe, and what exists is decided in etcd.
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
	Alive Kind = "alive" // joined, or answers again
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
	// Sequence grows with every report of a reporter, also across restarts: it is the
	// time when the report was made, in ns since 1970.
	Sequence uint64 `json:"sequence"`
	// Dead are the cluster's own nodes that its gossip considers dead, sorted.
	Dead []string `json:"dead"`
	// Signature is the cluster's signature of everything else.
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

// MaxSaid is the size limit of the answer to a ping, in bytes.
const MaxSaid = 512

// Config of one pool.
type Config struct {
	// Self is this process. Addr is where it listens, UDP and TCP, and where
	// others reach it.
	Self Member
	// Label separates pools: packets with another label are dropped.
	Label string
	Speed Speed
	// Keys encrypt the pool with AES (16, 24 or 32 bytes each). The first
	// encrypts what we send; all decrypt what we receive. At least one.
	Keys [][]byte
	// Clusters are those whose members are let in, our own included.
	Clusters []string
	// OnEvent is called with every change, one at a time, and must not block. May be
	// nil.
	OnEvent func(Event)
	// OnReport is called with every newer report of another reporter, one at a time,
	// and must not block. May be nil.
	OnReport func(Report)
	// Sign signs a report of our own cluster. Verify returns nil if the cluster has
	// signed the text: members can claim to be from any cluster. It is called with
	// the pool locked and must not call back. If Sign is nil, no reports are made; if
	// Verify is nil, none are believed.
	Sign   func(text []byte) ([]byte, error)
	Verify func(cluster string, text, signature []byte) error
	// Say returns what this member answers to pings besides, at most MaxSaid bytes; it
	// is called for every ping and must not block. OnSaid is called with the answer
	// of every member that we ping, every time, and must not block either. Answers
	// are not passed on and cost no extra packets. Both may be nil.
	Say    func() []byte
	OnSaid func(Member, []byte)
	Log    *slog.Logger
}
