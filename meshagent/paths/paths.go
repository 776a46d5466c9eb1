// Package paths owns the way to each other node and cluster: its index, the tunnel that
// leads there and whether it is alive. It alone writes their rows in the kernel and the
// table of paths.
//
// Which nodes and clusters are believed is decided in package program, which asks for an
// index before it writes who is behind a node. Devices and keys are package tunnel's;
// what probes mean, package probe's.
//
//	program ──index──► Rows ──► maps nodes, clusters; table paths
//	Tunnels ──lane, keyed─┤
//	Liveness ──seen───────┘
package paths

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/tunnel/probe"
)

// Config is what Tunnels and Liveness need.
type Config struct {
	// Cluster and Node are our own names.
	Cluster, Node string
	// Addresses are this node's own, one or one of each IP family. Tunnels to it end at the
	// first.
	Addresses []netip.Addr
	// CIDRs are this node's, Members those of the mesh as far as they are known before the
	// store has been read.
	CIDRs   []netip.Prefix
	Members []netip.Prefix
	// Internal is this node's address inside the mesh, from which it probes; Second that of
	// the other IP family, if it has one.
	Internal, Second netip.Addr
	// MTU of tunnels and pods, bytes.
	MTU    int
	Tables *tables.Tables
	Rows   *Rows
	Lanes  tunnel.Lanes
	Host   tunnel.Host
	// Attach puts the programs on a tunnel device.
	Attach func(ifindex, lane int) error
	// Transport opens probes from the node's internal addresses.
	Transport func(sources ...netip.Addr) (probe.Transport, error)
	// Start is closed once rows in the kernel may be changed; Open once this node may
	// answer probes, until when it has no internal address.
	Start, Open <-chan struct{}
	// Devices is told the tunnel devices whenever they have been looked at.
	Devices func(ifindex [tunnel.LaneCount]uint32)
	// Unwritten is told whether probe results reach the kernel; nil if they do.
	Unwritten func(error)
	// Lasting is how long a path must have been down or limited to be reported.
	Lasting time.Duration
	Log     *slog.Logger
}

func (c Config) self() string { return c.Cluster + "/" + c.Node }

// internals are the node's addresses inside the mesh.
func (c Config) internals() []netip.Addr {
	if c.Second.IsValid() {
		return []netip.Addr{c.Internal, c.Second}
	}
	return []netip.Addr{c.Internal}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
