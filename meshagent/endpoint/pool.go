package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrNoAddress means that every address of the node's pod CIDR is in use.
var ErrNoAddress = errors.New("no address left in the node's pod CIDR")

// Pool gives out addresses and numbers of one node. It is not safe for
// concurrent use.
//
// The first address of the CIDR is the node's own internal one; network and
// broadcast address are left out. An address that was returned is given out
// again as late as possible, because connections may still remember it.
type Pool struct {
	cidr   netip.Prefix
	used   map[netip.Addr]bool
	ids    map[uint16]bool
	last   netip.Addr
	lastID uint16
}

// NewPool makes a pool over cidr in which records already have their place.
func NewPool(cidr netip.Prefix, records []Record) *Pool {
	p := &Pool{cidr: cidr.Masked(), used: map[netip.Addr]bool{}, ids: map[uint16]bool{}}
	p.last = Internal(cidr)
	for _, r := range records {
		p.used[r.IP], p.ids[r.ID] = true, true
		if p.cidr.Contains(r.IP) && p.last.Less(r.IP) {
			p.last = r.IP
		}
		p.lastID = max(p.lastID, r.ID)
	}
	return p
}

// Internal is the address of the node itself inside its pod CIDR: the first one
// after the network's.
func Internal(cidr netip.Prefix) netip.Addr { return cidr.Masked().Addr().Next() }

// Take gives out an address and a number.
func (p *Pool) Take() (netip.Addr, uint16, error) {
	ip, err := p.address()
	if err != nil {
		return netip.Addr{}, 0, err
	}
	id := p.lastID
	for range 1 << 16 {
		if id++; id != 0 && !p.ids[id] {
			p.used[ip], p.last = true, ip
			p.ids[id], p.lastID = true, id
			return ip, id, nil
		}
	}
	return netip.Addr{}, 0, errors.New("all 65535 endpoint numbers are in use")
}

func (p *Pool) address() (netip.Addr, error) {
	first := Internal(p.cidr).Next()
	ip := p.last
	for tried := 0; tried < 1<<min(20, p.cidr.Addr().BitLen()-p.cidr.Bits()); tried++ {
		ip = ip.Next()
		if !p.cidr.Contains(ip) || p.broadcast(ip) {
			ip = first
		}
		if p.cidr.Contains(ip) && !p.broadcast(ip) && !p.used[ip] {
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w (%s); give the node a larger one", ErrNoAddress, p.cidr)
}

func (p *Pool) broadcast(ip netip.Addr) bool {
	return ip.Is4() && !p.cidr.Contains(ip.Next())
}

// Return takes back what a record holds.
func (p *Pool) Return(r Record) {
	delete(p.used, r.IP)
	delete(p.ids, r.ID)
}
