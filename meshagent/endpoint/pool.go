package endpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
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

// places is how many addresses of a CIDR pods can have at most: those after the network's,
// up to as many as there are numbers. A released address is remembered, so that an IPv6
// CIDR must not be used up.
const places = 1 << 16

// Pool gives out addresses and numbers of one node. It is not safe for
// concurrent use.
//
// The first address of each CIDR is the node's own internal one; network and
// broadcast address are left out. Addresses that no pod ever had go first, then
// the one that was released the longest ago. A pod has the same place in the CIDRs
// of both families, as 10.1.1.7 and fd00:10:1:1::7, so that its second address is
// used, rests and is free with the first.
type Pool struct {
	cidrs    []netip.Prefix     // one, or one of each family
	size     uint64             // places in the smaller CIDR
	used     map[netip.Addr]int // by first address; more than once only after the CIDRs changed
	released map[netip.Addr]time.Time
	ids      map[uint16]bool
	last     netip.Addr
	lastID   uint16
}

// NewPool makes a pool over the node's CIDRs, one or one of each family, in which
// records already have their place, and in which released addresses rest. A release in
// the future is one of now: the clock was put back.
func NewPool(cidrs []netip.Prefix, records []Record, released map[netip.Addr]time.Time, now time.Time) *Pool {
	p := &Pool{size: places, used: map[netip.Addr]int{}, released: map[netip.Addr]time.Time{}, ids: map[uint16]bool{}}
	for _, cidr := range cidrs {
		p.cidrs = append(p.cidrs, cidr.Masked())
		if bits := cidr.Addr().BitLen() - cidr.Bits(); bits < 16 {
			size := uint64(1) << bits
			if cidr.Addr().Is4() {
				size-- // broadcast
			}
			p.size = min(p.size, size)
		}
	}
	p.last = Internal(p.cidrs[0])
	for _, r := range records {
		p.ids[r.ID] = true
		for _, ip := range p.firsts(r) {
			p.used[ip]++
			if p.last.Less(ip) {
				p.last = ip
			}
		}
		p.lastID = max(p.lastID, r.ID)
	}
	for ip, at := range released {
		if first, ok := p.first(ip); ok && p.used[first] == 0 {
			if at.After(now) {
				at = now
			}
			p.released[first] = at
		}
	}
	return p
}

// Internal is the address of the node itself inside its pod CIDR: the first one
// after the network's.
func Internal(cidr netip.Prefix) netip.Addr { return cidr.Masked().Addr().Next() }

// first is the first address of a pod that has this one; false if pods do not get it.
func (p *Pool) first(ip netip.Addr) (netip.Addr, bool) {
	for _, cidr := range p.cidrs {
		if place, ok := placeIn(cidr, ip); ok && place > 1 && place < p.size {
			return atPlace(p.cidrs[0], place), true
		}
	}
	return netip.Addr{}, false
}

// firsts are the places that a record takes: one, unless the node's CIDRs have changed.
func (p *Pool) firsts(r Record) (out []netip.Addr) {
	for _, ip := range r.IPs() {
		if first, ok := p.first(ip); ok && !slices.Contains(out, first) {
			out = append(out, first)
		}
	}
	return out
}

// placeIn is how far an address is from the first one of a CIDR.
func placeIn(cidr netip.Prefix, ip netip.Addr) (uint64, bool) {
	if !cidr.Contains(ip) {
		return 0, false
	}
	base, a := cidr.Addr().As16(), ip.As16()
	if [8]byte(base[:8]) != [8]byte(a[:8]) {
		return 0, false
	}
	return binary.BigEndian.Uint64(a[8:]) - binary.BigEndian.Uint64(base[8:]), true
}

// atPlace is the address at a place in a CIDR that has it.
func atPlace(cidr netip.Prefix, place uint64) netip.Addr {
	b := cidr.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+place)
	ip := netip.AddrFrom16(b)
	if cidr.Addr().Is4() {
		ip = ip.Unmap()
	}
	return ip
}

// record is that of a pod without a name.
func (p *Pool) record(ip netip.Addr, id uint16) Record {
	r := Record{IP: ip, ID: id}
	if place, ok := placeIn(p.cidrs[0], ip); ok && len(p.cidrs) > 1 {
		r.Second = atPlace(p.cidrs[1], place)
	}
	return r
}

// Take gives out addresses and a number.
func (p *Pool) Take(now time.Time) (Record, error) {
	ip, err := p.address(now)
	if err != nil {
		return Record{}, err
	}
	id, err := p.number(ip)
	if err != nil {
		return Record{}, err
	}
	p.last = ip
	return p.record(ip, id), nil
}

// Claim gives out these addresses, at most one of each family, and a number. A family that
// is not named gets the address at the same place.
func (p *Pool) Claim(ips []netip.Addr, now time.Time) (Record, error) {
	var first netip.Addr
	for _, ip := range ips {
		of, ok := p.first(ip)
		switch at, rests := p.released[of]; {
		case !ok:
			return Record{}, fmt.Errorf("%w: %v is not an address for pods in %s", ErrClaim, ip, join(p.cidrs))
		case first.IsValid() && of != first:
			return Record{}, fmt.Errorf("%w: %v and %v have different places in %s", ErrClaim, ips[0], ip, join(p.cidrs))
		case p.used[of] > 0:
			return Record{}, fmt.Errorf("%w: %v belongs to another pod", ErrClaim, ip)
		case rests && now.Before(at.Add(Grace)):
			return Record{}, fmt.Errorf("%w: a pod left %v too recently; try again after %s", ErrClaim, ip, at.Add(Grace).UTC().Format("15:04:05 UTC"))
		}
		first = of
	}
	id, err := p.number(first)
	if err != nil {
		return Record{}, err
	}
	return p.record(first, id), nil
}

// number marks an address as used, and gives out a number for it.
func (p *Pool) number(ip netip.Addr) (uint16, error) {
	id := p.lastID
	for range 1 << 16 {
		if id++; id != 0 && !p.ids[id] {
			p.used[ip]++
			p.ids[id], p.lastID = true, id
			delete(p.released, ip)
			return id, nil
		}
	}
	return 0, errors.New("all 65535 endpoint numbers are in use")
}

// address chooses the next address.
func (p *Pool) address(now time.Time) (netip.Addr, error) {
	ip := p.last
	for range p.size {
		if place, ok := placeIn(p.cidrs[0], ip); !ok || place+1 >= p.size {
			ip = Internal(p.cidrs[0])
		}
		ip = ip.Next()
		if _, had := p.released[ip]; p.used[ip] == 0 && !had {
			if _, ok := p.first(ip); ok {
				return ip, nil
			}
		}
	}
	var oldest netip.Addr
	for ip, at := range p.released {
		if was := p.released[oldest]; !oldest.IsValid() || at.Before(was) || at.Equal(was) && ip.Less(oldest) {
			oldest = ip
		}
	}
	if !oldest.IsValid() {
		return netip.Addr{}, fmt.Errorf("%w (%s); give the node a larger one", ErrNoAddress, join(p.cidrs))
	}
	if free := p.released[oldest].Add(Grace); now.Before(free) {
		return netip.Addr{}, fmt.Errorf("%w: %d of %s rest for %v after a pod left them, the next until %s; give the node a larger pod CIDR if this lasts",
			ErrResting, len(p.released), join(p.cidrs), Grace, free.UTC().Format("15:04:05 UTC"))
	}
	return oldest, nil
}

// Return takes back what a record was to have, but no pod ever had.
func (p *Pool) Return(r Record) {
	for _, ip := range p.firsts(r) {
		if p.used[ip]--; p.used[ip] <= 0 {
			delete(p.used, ip)
		}
	}
	delete(p.ids, r.ID)
}

// Release takes back what a pod had. Its address rests from now on, unless it is
// from an earlier CIDR of the node: then it is never given out again.
func (p *Pool) Release(r Record, now time.Time) {
	p.Return(r)
	for _, ip := range p.firsts(r) {
		if p.used[ip] == 0 {
			p.released[ip] = now
		}
	}
}

func join(cidrs []netip.Prefix) string {
	var texts []string
	for _, p := range cidrs {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, " and ")
}
