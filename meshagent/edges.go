package meshagent

import (
	"context"
	"net"
	"net/netip"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// Datapath is what an agent needs of package bpf.
type Datapath interface {
	Maps() *bpf.Maps
	// Attach… put programs on a device, or replace those of an earlier generation in
	// one step.
	AttachPod(ifindex int) error
	AttachTunnel(ifindex, lane int) error
	AttachDevice(ifindex int) error
	Detach(ifindex int) error
	// AttachSockets lets the node's processes in and below a cgroup reach services;
	// DetachSockets ends that.
	AttachSockets(cgroup string) error
	DetachSockets() error
	// Mend restores programs and pins that somebody else removed, and says which,
	// and what it could not restore.
	Mend() (mended []string, failed map[string]error)
	// Events calls f with each event until ctx ends.
	Events(ctx context.Context, f func(bpf.Event)) error
	Counters() ([]bpf.Counter, error)
	// Lost counts events lost because the buffer was full.
	Lost() (uint64, error)
	// JudgedAgain counts packets whose flow was judged again.
	JudgedAgain() (uint64, error)
	// Masqueraded counts connections of pods with the world that come from the node's
	// address.
	Masqueraded() int
	// EndStranded ends sockets of the node's processes whose service's backend is gone or
	// cut off, and says how many, and for how many another look has to tell.
	EndStranded() (ended, doubtful int, err error)
	// Holdings are the rows of the flow table that pods and the node hold.
	Holdings() ([]bpf.Holding, error)
	// Sweep deletes flows that have been silent for their lifetime.
	Sweep(now uint64) (bpf.Swept, error)
}

// Store is what an agent needs of its cluster's etcd.
type Store interface {
	store.Store
	store.Holder
}

// Edges are all the places where an agent meets the outside world, each with an
// in-memory twin for tests.
type Edges struct {
	Store    Store
	Datapath Datapath
	Lanes    tunnel.Lanes
	Host     tunnel.Host
	Plumbing endpoint.Plumbing
	// Device is the index of the node's own device now; nil: it is not watched.
	Device func() (ifindex int, err error)
	// Outside is how the world sees the node now; nil: pods are not masqueraded.
	Outside func() (Outside, error)
	// Cgroup is that of the node's processes, which reach services; nil: they do not.
	Cgroup func() (dir string, err error)
	// HealthCheck listens at a port of the node for load balancers; nil: they are told nothing.
	HealthCheck func(port uint16) (net.Listener, error)
	// Transport opens probes from the node's internal addresses.
	Transport func(sources ...netip.Addr) (probe.Transport, error)
	// Gossip takes part in the cluster's gossip until ctx ends; nil: the agent does not.
	Gossip func(ctx context.Context, cfg gossip.Config, seeds []string) error
	// Reach makes the node use the API servers that the cluster names, also after a restart.
	// It may be nil.
	Reach func(ctx context.Context, named wire.Access) error
	// Diagnose says in a few words why the store cannot be reached, "" if it can be. It
	// may be nil.
	Diagnose func(ctx context.Context) string
	// MTU of lanes and pods, bytes.
	MTU int
	// BootID is the kernel's.
	BootID string
}
