package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
)

// Config is what Load needs.
type Config struct {
	// PinDir is a directory on a BPF file system where maps and links outlive
	// the process. It is created if absent.
	PinDir string

	// Limits are the sizes of the maps.
	Limits Limits

	// EventBytes is the size of the event buffer, a power of two and a multiple
	// of the page size. An event takes 112 bytes: the default holds 9,300.
	EventBytes uint32

	// Unreachable is how a pod's packet that cannot reach its destination is
	// handled.
	Unreachable Unreachable

	// Log receives what Load adopts, resizes and attaches. Nil discards it.
	Log *slog.Logger
}

// Unreachable is how a pod's packet that cannot reach its destination is handled:
// one to a service without backends, for example, or over a dead path.
type Unreachable string

const (
	UnreachableReset Unreachable = "reset" // the pod gets a TCP reset, or an ICMP error for other protocols
	UnreachableDrop  Unreachable = "drop"  // the packet is dropped silently, and the pod runs into its timeout
)

// Limits are rows per map. A row takes its memory when it is used, except for Flows, which
// packets write: there it is reserved up front, two rows of 168 bytes for each, and a new
// connection costs half as much. Also reserved are 16 bytes for each possible row, 8 in
// Nodes. That makes 270 MB with the defaults, of which half the Flows would save 113 MB.
type Limits struct {
	// Flows bounds the connections of all pods of the node. Each has a second row if
	// it goes through a service, so the map is twice as large. A new flow is refused
	// if it exceeds both the pod's share and what is left of the common part.
	Flows uint32
	// Native bounds the CIDRs that pods reach with their own addresses.
	Native uint32
	// Endpoints bounds the pods of the node.
	Endpoints uint32
	// IPs bounds the pods of the whole mesh, Prefixes its CIDRs and those in rules.
	IPs, Prefixes uint32
	// Nodes bounds the nodes of the whole mesh; at most 65,536.
	Nodes uint32
	// Services bounds frontends, Backends and Members the backends of all of them.
	Services, Backends, Members uint32
	// Maglev bounds the pieces of 64 slots of services' Maglev tables. Each takes 192 bytes when
	// it is used: a service of four backends has eight, and a large one 2,048.
	Maglev uint32
	// Affinities bounds the clients that services with session affinity remember.
	Affinities uint32
	// Sources bounds the prefixes of clients that services at load balancer addresses are
	// for.
	Sources uint32
	// Classes, Policy and Sets hold two generations of policy.
	Classes, Policy, Sets uint32
	// Fragments bounds fragmented datagrams; the oldest is evicted first.
	Fragments uint32
}

// Defaults is a configuration for a node of a mesh with a million pods.
func Defaults() Config {
	return Config{
		PinDir:      "/sys/fs/bpf/weft",
		Limits:      defaultLimits(),
		EventBytes:  1 << 20,
		Unreachable: UnreachableReset,
	}
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.PinDir) {
		errs = append(errs, fmt.Errorf("pin directory %q: give an absolute path on a BPF file system", c.PinDir))
	}
	for _, d := range described {
		if d.limit != nil && *d.limit(&c.Limits) == 0 {
			errs = append(errs, fmt.Errorf("limit %s is 0: start from bpf.Defaults", d.name))
		}
	}
	if c.Limits.Nodes > 1<<16 {
		errs = append(errs, fmt.Errorf("limit nodes is %d: at most 65536", c.Limits.Nodes))
	}
	if c.Unreachable != UnreachableReset && c.Unreachable != UnreachableDrop {
		errs = append(errs, fmt.Errorf("unreachable is %q: choose %s or %s", c.Unreachable, UnreachableReset, UnreachableDrop))
	}
	if c.EventBytes < 4096 || c.EventBytes&(c.EventBytes-1) != 0 {
		errs = append(errs, fmt.Errorf("event buffer is %d bytes: give a power of two, 4096 or more", c.EventBytes))
	}
	return errors.Join(errs...)
}
