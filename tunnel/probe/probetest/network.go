// Package probetest is the in-memory twin of the network that probes cross:
// paths with a round-trip time that can be cut, and listeners that can be held.
//
// It has no clock of its own; in a testing/synctest bubble it is exact.
package probetest

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/weft-mesh/weft/tunnel/probe"
)

// Network answers probes. Its zero value answers none; see Answer.
type Network struct {
	mu      sync.Mutex
	rtt     map[netip.Addr]time.Duration // guarded by mu: who answers, and how fast
	limit   map[netip.Addr]int           // guarded by mu: the largest packet that passes, if set
	answers []probe.Answer               // guarded by mu: on their way, in no order
	sent    int                          // guarded by mu
	last    map[netip.Addr]probe.Request // guarded by mu
	held    time.Time                    // guarded by mu: nothing of ours runs before
}

var _ probe.Transport = (*Network)(nil)

// Answer makes an address answer after rtt from now on.
func (n *Network) Answer(addr netip.Addr, rtt time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rtt == nil {
		n.rtt = map[netip.Addr]time.Duration{}
	}
	n.rtt[addr] = rtt
}

// Cut makes an address stop answering. Answers already on their way arrive.
func (n *Network) Cut(addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.rtt, addr)
}

// Limit sets the largest packet, in bytes, that passes to an address and back; 0:
// everything passes.
func (n *Network) Limit(addr netip.Addr, bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.limit == nil {
		n.limit = map[netip.Addr]int{}
	}
	n.limit[addr] = bytes
}

// Hold keeps the prober from running for a while, like a busy machine.
func (n *Network) Hold(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = time.Now().Add(d)
}

// Sent is the number of requests so far.
func (n *Network) Sent() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent
}

// Last is the last small request to an address.
func (n *Network) Last(addr netip.Addr) probe.Request {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last[addr]
}

// Send implements probe.Transport.
func (n *Network) Send(requests []probe.Request) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last == nil {
		n.last = map[netip.Addr]probe.Request{}
	}
	for _, r := range requests {
		if n.sent++; r.Size == 0 {
			n.last[r.Addr] = r
		}
		if n.limit[r.Addr] > 0 && r.Size > n.limit[r.Addr] {
			continue
		}
		if rtt, answers := n.rtt[r.Addr]; answers {
			n.answers = append(n.answers, probe.Answer{From: r.Addr, Number: r.Number, At: time.Now().Add(rtt)})
		}
	}
	return nil
}

// Receive implements probe.Transport.
func (n *Network) Receive() ([]probe.Answer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var arrived, later []probe.Answer
	for _, a := range n.answers {
		if a.At.After(time.Now()) {
			later = append(later, a)
			continue
		}
		arrived = append(arrived, a)
	}
	n.answers = later
	return arrived, nil
}

// Arrival implements probe.Transport.
func (n *Network) Arrival(ctx context.Context) {
	n.mu.Lock()
	next := time.Hour
	for _, a := range n.answers {
		next = min(next, time.Until(a.At))
	}
	n.mu.Unlock()
	if next > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(next):
		}
	}
	n.mu.Lock()
	held := time.Until(n.held)
	n.mu.Unlock()
	time.Sleep(held)
}
