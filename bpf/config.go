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

	// Limits are the sizes of the tables.
	Limits Limits

	// EventBytes is the size of the event buffer, a power of two and a multiple
	// of the page size. An event takes 112 bytes: the default holds 9,300.
	EventBytes uint32

	// Unreachable says what happens to a packet of a pod that is known to be
	// hopeless.
	Unreachable Unreachable

	// Log receives what Load adopts, resizes and attaches. Nil: nobody.
	Log *slog.Logger
}

// Unreachable says what happens to a packet of a pod that is known to be hopeless:
// to a service without backends, or over a dead path.
type Unreachable string

const (
	UnreachableReset Unreachable = "reset" // the pod is told: a TCP reset, an ICMP error for the rest
	UnreachableDrop  Unreachable = "drop"  // the packet is dropped, and the pod runs into its timeout
)

// Limits are rows per table. A row takes its memory when it is used; at once go
// 16 bytes for each possible one, and 8 in Nodes: 55 MB with the defaults.
type Limits struct {
	// Flows bounds connections of all pods of the node; Replies those through
	// services, and may not be less: who has a share of the one has it of the
	// other. A new flow beyond a pod's share and what is left of the common rest
	// is refused. About 200 bytes each.
	Flows, Replies uint32
	// Endpoints bounds pods of the node.
	Endpoints uint32
	// IPs bounds pods of the whole mesh, Prefixes CIDRs and CIDR rules.
	IPs, Prefixes uint32
	// Nodes bounds nodes of the whole mesh; at most 65,536.
	Nodes uint32
	// Services bounds frontends, Backends and Members slots of all of them.
	Services, Backends, Members uint32
	// Classes, Policy and Sets hold two generations of policy.
	Classes, Policy, Sets uint32
	// Fragments bounds datagrams in pieces; the oldest is forgotten first.
	Fragments uint32
}

// Defaults suits a node of a mesh with a million pods.
func Defaults() Config {
	return Config{
		PinDir: "/sys/fs/bpf/weft",
		Limits: Limits{
			Flows:     1 << 19,
			Replies:   1 << 19,
			Endpoints: 1 << 12,
			IPs:       1 << 20,
			Prefixes:  1 << 17,
			Nodes:     1 << 16,
			Services:  1 << 16,
			Backends:  1 << 18,
			Members:   1 << 18,
			Classes:   1 << 18,
			Policy:    1 << 17,
			Sets:      1 << 13,
			Fragments: 1 << 13,
		},
		EventBytes:  1 << 20,
		Unreachable: UnreachableReset,
	}
}

func (l Limits) all() map[string]uint32 {
	return map[string]uint32{
		"flows": l.Flows, "replies": l.Replies, "endpoints": l.Endpoints, "ips": l.IPs,
		"prefixes": l.Prefixes, "nodes": l.Nodes, "services": l.Services, "backends": l.Backends,
		"members": l.Members, "classes": l.Classes, "policy": l.Policy, "sets": l.Sets,
		"fragments": l.Fragments,
	}
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.PinDir) {
		errs = append(errs, fmt.Errorf("pin directory %q: give an absolute path on a BPF file system", c.PinDir))
	}
	for name, n := range c.Limits.all() {
		if n == 0 {
			errs = append(errs, fmt.Errorf("limit %s is 0: start from bpf.Defaults", name))
		}
	}
	if c.Limits.Replies < c.Limits.Flows {
		errs = append(errs, fmt.Errorf("limit replies is %d, limit flows %d: a flow through a service has a row in each, give replies at least as many", c.Limits.Replies, c.Limits.Flows))
	}
	if c.Limits.Nodes > 1<<16 {
		errs = append(errs, fmt.Errorf("limit nodes is %d: at most 65536", c.Limits.Nodes))
	}
	if c.Unreachable != UnreachableReset && c.Unreachable != UnreachableDrop {
		errs = append(errs, fmt.Errorf("unreachable is %q: choose %s or %s", c.Unreachable, UnreachableReset, UnreachableDrop))
	}
	if c.EventBytes < 4096 || c.EventBytes&(c.EventBytes-1) != 0 {
		errs = append(errs, fmt.Errorf("event buffer of %d bytes: give a power of two from 4096", c.EventBytes))
	}
	return errors.Join(errs...)
}
