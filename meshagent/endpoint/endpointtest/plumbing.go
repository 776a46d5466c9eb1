// Package endpointtest is the in-memory twin of the kernel's part in package endpoint: links
// to pods that carry nothing.
//
// What may pass a link is up to the datapath, whose twin is bpftest.
package endpointtest

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/endpoint"
)

// Plumbing is a machine's links to its pods. The zero value has none. It outlives the
// agent, as the kernel does. Safe for concurrent use.
type Plumbing struct {
	mu    sync.Mutex // guards what follows
	next  int
	links map[string]endpoint.Link
	ended map[string][]bpf.FlowKey
}

var _ endpoint.Plumbing = (*Plumbing)(nil)

// Reboot removes every link.
func (p *Plumbing) Reboot() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.links)
}

// Links returns how many links there are.
func (p *Plumbing) Links() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Create implements endpoint.Plumbing.
func (p *Plumbing) Create(r endpoint.Record) (endpoint.Link, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.links[r.Key()]
	if !ok {
		p.next++
		l = endpoint.Link{Ifindex: 1000 + p.next, Host: endpoint.HostDevice(r), MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(p.next)}, HostMAC: net.HardwareAddr{2, 0, 0, 0, 1, byte(p.next)}, Netns: uint64(5000 + p.next)}
		if p.links == nil {
			p.links = map[string]endpoint.Link{}
		}
		p.links[r.Key()] = l
	}
	return l, nil
}

// Find implements endpoint.Plumbing.
func (p *Plumbing) Find(r endpoint.Record) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.links[r.Key()]
	return l.Ifindex, ok
}

// Netns implements endpoint.Plumbing.
func (p *Plumbing) Netns(r endpoint.Record) string { return cmp.Or(r.Netns, "/run/netns/"+r.Name()) }

// Look implements endpoint.Plumbing.
func (p *Plumbing) Look(r endpoint.Record) (endpoint.Link, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.links[r.Key()]
	if !ok {
		return l, fmt.Errorf("device %s is gone", endpoint.HostDevice(r))
	}
	return l, nil
}

// Up implements endpoint.Plumbing.
func (p *Plumbing) Up(endpoint.Link, endpoint.Record) error { return nil }

// End implements endpoint.Plumbing. Every connection has a socket.
func (p *Plumbing) End(r endpoint.Record, connections []bpf.FlowKey, still func(bpf.FlowKey) (bool, error)) (ended int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended == nil {
		p.ended = map[string][]bpf.FlowKey{}
	}
	for _, key := range connections {
		ok, err := still(key)
		if err != nil {
			return ended, err
		}
		if ok {
			p.ended[r.Key()] = append(p.ended[r.Key()], key)
			ended++
		}
	}
	return ended, nil
}

// Ended returns the connections of a pod that were ended.
func (p *Plumbing) Ended(pod string) []bpf.FlowKey {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.ended[pod])
}

// Remove implements endpoint.Plumbing.
func (p *Plumbing) Remove(r endpoint.Record) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, r.Key())
	return nil
}
