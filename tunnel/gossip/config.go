package gossip

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	if err := c.Self.validate(); err != nil {
		errs = append(errs, err)
	}
	if !c.Self.Addr.IsValid() || c.Self.Addr.Addr().IsUnspecified() || c.Self.Addr.Port() == 0 {
		errs = append(errs, fmt.Errorf("address %v: give the address and port at which others can reach us", c.Self.Addr))
	}
	if len(c.Keys) == 0 {
		errs = append(errs, errors.New("no key: gossip must be encrypted"))
	}
	for i, key := range c.Keys {
		if err := memberlist.ValidateKey(key); err != nil {
			errs = append(errs, fmt.Errorf("key %d has %d bytes: AES needs 16, 24 or 32", i, len(key)))
		}
	}
	if !slices.Contains(c.Clusters, c.Self.Cluster) {
		errs = append(errs, fmt.Errorf("own cluster %q is not in the list of clusters", c.Self.Cluster))
	}
	if _, ok := speeds[c.Speed]; !ok {
		errs = append(errs, fmt.Errorf("speed %q: choose %s, %s, %s or %s", c.Speed, VeryFast, Fast, WAN, Steady))
	}
	return errors.Join(errs...)
}

// maxName bounds each part of a member's name, in bytes.
const maxName = 128

func (m Member) validate() error {
	for _, part := range []string{m.Cluster, m.Name, string(m.Role)} {
		if part == "" || strings.ContainsAny(part, "/\n") || len(part) > maxName {
			return fmt.Errorf("member %q: cluster, role and name have 1 to 128 characters and no slash", m.String())
		}
	}
	return nil
}

// pace is how often a pool probes, and how long it waits.
type pace struct {
	probe, timeout, gossip, pushPull, stream time.Duration
	suspicion, suspicionMax, fanout          int
}

// speeds are the settings of each Speed, whose detection times were measured with
// memberlist. Suspicion lasts suspicion × log10(members) × probe, at most suspicionMax
// times that.
var speeds = map[Speed]pace{
	VeryFast: {probe: 100 * time.Millisecond, timeout: 50 * time.Millisecond, gossip: 20 * time.Millisecond, fanout: 5, suspicion: 1, suspicionMax: 2, pushPull: 10 * time.Second, stream: 2 * time.Second},
	Fast:     {probe: 200 * time.Millisecond, timeout: 100 * time.Millisecond, gossip: 50 * time.Millisecond, fanout: 4, suspicion: 2, suspicionMax: 3, pushPull: 10 * time.Second, stream: 2 * time.Second},
	WAN:      {probe: 500 * time.Millisecond, timeout: 300 * time.Millisecond, gossip: 100 * time.Millisecond, fanout: 4, suspicion: 3, suspicionMax: 3, pushPull: 15 * time.Second, stream: 5 * time.Second},
	Steady:   {probe: time.Second, timeout: 500 * time.Millisecond, gossip: 200 * time.Millisecond, fanout: 3, suspicion: 4, suspicionMax: 6, pushPull: 30 * time.Second, stream: 10 * time.Second},
}

func (p pace) apply(to *memberlist.Config) {
	to.ProbeInterval, to.ProbeTimeout = p.probe, p.timeout
	to.GossipInterval, to.GossipNodes = p.gossip, p.fanout
	to.SuspicionMult, to.SuspicionMaxTimeoutMult = p.suspicion, p.suspicionMax
	to.PushPullInterval, to.TCPTimeout = p.pushPull, p.stream
	// A member that restarts elsewhere under the same name is let in as soon as its
	// former self is known to be dead. Zero would mean never, and any longer time a
	// wait for the next exchange of full state.
	to.DeadNodeReclaimTime = time.Nanosecond
}
