package program

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// hosted finds the addresses and prefixes behind a tunnel endpoint. It may find some
// that have moved away since. There is one entry for each address in the mesh, so it
// is not an index of the table, which would take thirty times the memory.
type hosted struct {
	behind map[host]*held
	count  int
}

// held is what one tunnel endpoint has behind it: single IPv4 addresses, in order, and
// everything else.
type held struct {
	v4   []uint32
	rest map[bpf.PrefixKey]struct{}
}

// plain is a single IPv4 address as a number.
func plain(k bpf.PrefixKey) (uint32, bool) {
	prefix := k.Netip()
	if !prefix.Addr().Is4() || !prefix.IsSingleIP() {
		return 0, false
	}
	b := prefix.Addr().As4()
	return binary.BigEndian.Uint32(b[:]), true
}

func (h *hosted) put(ip *tables.IP) {
	if !ip.Host.IsValid() {
		return
	}
	at := host{ip.Cluster, ip.Host}
	in := h.behind[at]
	if in == nil {
		in = &held{}
		h.behind[at] = in
	}
	before, key := in.count(), bpf.PrefixOf(ip.Prefix)
	if n, ok := plain(key); ok {
		if i, there := slices.BinarySearch(in.v4, n); !there {
			in.v4 = slices.Insert(in.v4, i, n)
		}
	} else {
		if in.rest == nil {
			in.rest = map[bpf.PrefixKey]struct{}{}
		}
		in.rest[key] = struct{}{}
	}
	h.count += in.count() - before
}

func (h *hosted) drop(ip *tables.IP) {
	at := host{ip.Cluster, ip.Host}
	in := h.behind[at]
	if in == nil {
		return
	}
	before, key := in.count(), bpf.PrefixOf(ip.Prefix)
	if n, ok := plain(key); ok {
		if i, there := slices.BinarySearch(in.v4, n); there {
			in.v4 = slices.Delete(in.v4, i, i+1)
		}
	} else {
		delete(in.rest, key)
	}
	if h.count += in.count() - before; in.count() == 0 {
		delete(h.behind, at)
	}
}

func (in *held) count() int { return len(in.v4) + len(in.rest) }

// at yields what is behind a tunnel endpoint.
func (h *hosted) at(of host) iter.Seq[bpf.PrefixKey] {
	return func(yield func(bpf.PrefixKey) bool) {
		in := h.behind[of]
		if in == nil {
			return
		}
		for _, n := range in.v4 {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], n)
			if !yield(bpf.PrefixOf(whole(netip.AddrFrom4(b)))) {
				return
			}
		}
		for key := range in.rest {
			if !yield(key) {
				return
			}
		}
	}
}

// learnHosts makes the index again from the table, without those that have moved away.
func (p *Program) learnHosts(v *view) {
	p.hosted = hosted{behind: map[host]*held{}}
	for ip := range v.tables.IPs.All(v.txn) {
		p.hosted.put(ip)
	}
}

// crowded says whether most of the index has moved away.
func (p *Program) crowded(v *view) bool {
	return p.hosted.count > 1000+2*v.tables.IPs.NumObjects(v.txn)
}
