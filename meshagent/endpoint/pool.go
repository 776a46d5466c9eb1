package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

var (
	// ErrNoAddress means that every address of the node's pod CIDR is in use.
	ErrNoAddress = errors.New("no address left in the node's pod CIDR")
	// ErrResting means that the addresses which are not in use were released too
	// recently. Time cures it.
	ErrResting = errors.New("every free address was released too recently")
	// ErrClaim means that a certain address cannot be given to a pod.
	ErrClaim = errors.New("the pod cannot get the address it should")
)

// Grace is how long an address is given to nobody after its release. Others go by
// the address for who a pod is: a node or peer that has not heard of the change yet
// would grant a newcomer the rights of the pod before it. Longer keeps even those
// safe that are cut off; but a node cannot start more pods in this time than its
// pod CIDR has addresses, 253 in a /24.
const Grace = time.Minute

// Pool gives out addresses and numbers of one node. It is not safe for
// concurrent use.
//
// The first address of the CIDR is the node's own internal one; network and
// broadcast address are left out. Addresses that no pod ever had go first, then
// the one that was released the longest ago.
type Pool struct {
	cidr     netip.Prefix
	used     map[netip.Addr]bool
	released map[netip.Addr]time.Time
	ids      map[uint16]bool
	last     netip.Addr
	lastID   uint16
}

// NewPool makes a pool over cidr in which records already have their place, and
// in which released addresses rest. A release in the future is one of now: the
// clock was put back.
func NewPool(cidr netip.Prefix, records []Record, released map[netip.Addr]time.Time, now time.Time) *Pool {
	p := &Pool{cidr: cidr.Masked(), used: map[netip.Addr]bool{}, released: map[netip.Addr]time.Time{}, ids: map[uint16]bool{}}
	p.last = Internal(cidr)
	for _, r := range records {
		p.used[r.IP], p.ids[r.ID] = true, true
		if p.cidr.Contains(r.IP) && p.last.Less(r.IP) {
			p.last = r.IP
		}
		p.lastID = max(p.lastID, r.ID)
	}
	for ip, at := range released {
		if p.cidr.Contains(ip) && !p.used[ip] {
			if at.After(now) {
				at = now
			}
			p.released[ip] = at
		}
	}
	return p
}

// Internal is the address of the node itself inside its pod CIDR: the first one
// after the network's.
func Internal(cidr netip.Prefix) netip.Addr { return cidr.Masked().Addr().Next() }

// Take gives out an address and a number.
func (p *Pool) Take(now time.Time) (netip.Addr, uint16, error) {
	ip, err := p.address(now)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	id, err := p.number(ip)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	p.last = ip
	return ip, id, nil
}

// Claim gives out this address, and a number.
func (p *Pool) Claim(ip netip.Addr, now time.Time) (uint16, error) {
	switch at, rests := p.released[ip]; {
	case !p.cidr.Contains(ip) || p.broadcast(ip) || !Internal(p.cidr).Less(ip):
		return 0, fmt.Errorf("%w: %v is not an address for pods in %v", ErrClaim, ip, p.cidr)
	case p.used[ip]:
		return 0, fmt.Errorf("%w: %v belongs to another pod", ErrClaim, ip)
	case rests && now.Before(at.Add(Grace)):
		return 0, fmt.Errorf("%w: a pod left %v too recently; try again after %s", ErrClaim, ip, at.Add(Grace).UTC().Format("15:04:05 UTC"))
	}
	return p.number(ip)
}

// number marks an address as used, and gives out a number for it.
func (p *Pool) number(ip netip.Addr) (uint16, error) {
	id := p.lastID
	for range 1 << 16 {
		if id++; id != 0 && !p.ids[id] {
			p.used[ip] = true
			p.ids[id], p.lastID = true, id
			delete(p.released, ip)
			return id, nil
		}
	}
	return 0, errors.New("all 65535 endpoint numbers are in use")
}

// address chooses the next address.
func (p *Pool) address(now time.Time) (netip.Addr, error) {
	first := Internal(p.cidr).Next()
	ip := p.last
	for tried := 0; tried < 1<<min(20, p.cidr.Addr().BitLen()-p.cidr.Bits()); tried++ {
		ip = ip.Next()
		if !p.cidr.Contains(ip) || p.broadcast(ip) {
			ip = first
		}
		if _, had := p.released[ip]; p.cidr.Contains(ip) && !p.broadcast(ip) && !p.used[ip] && !had {
			return ip, nil
		}
	}
	var oldest netip.Addr
	for ip, at := range p.released {
		if was := p.released[oldest]; !oldest.IsValid() || at.Before(was) || at.Equal(was) && ip.Less(oldest) {
			oldest = ip
		}
	}
	if !oldest.IsValid() {
		return netip.Addr{}, fmt.Errorf("%w (%s); give the node a larger one", ErrNoAddress, p.cidr)
	}
	if free := p.released[oldest].Add(Grace); now.Before(free) {
		return netip.Addr{}, fmt.Errorf("%w: %d of %s rest for %v after a pod left them, the next until %s; give the node a larger pod CIDR if this lasts",
			ErrResting, len(p.released), p.cidr, Grace, free.UTC().Format("15:04:05 UTC"))
	}
	return oldest, nil
}

func (p *Pool) broadcast(ip netip.Addr) bool {
	return ip.Is4() && !p.cidr.Contains(ip.Next())
}

// Return takes back what a record was to have, but no pod ever had.
func (p *Pool) Return(r Record) {
	delete(p.used, r.IP)
	delete(p.ids, r.ID)
}

// Release takes back what a pod had. Its address rests from now on, unless it is
// from an earlier CIDR of the node: then it is never given out again.
func (p *Pool) Release(r Record, now time.Time) {
	p.Return(r)
	if p.cidr.Contains(r.IP) {
		p.released[r.IP] = now
	}
}
