package tables

import (
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/wire"
)

// IP says who has an address or prefix of a cluster.
type IP struct {
	Cluster  string
	Prefix   netip.Prefix // a single address has all bits
	Identity identity.Number
	// Host is the node behind which it lies, by its tunnel endpoint.
	Host           netip.Addr
	Namespace, Pod string
	NamedPorts     []wire.NamedPort
}

// Key is "cluster/prefix".
func (i *IP) Key() string {
	var b [96]byte // so that only the result is garbage: this is asked for often
	return string(i.Prefix.AppendTo(append(append(b[:0], i.Cluster...), '/')))
}

// IPBlock is a row of table ips: all of a cluster's addresses and prefixes that differ in
// their last bits only. A mesh has more addresses than anything else; as a row, with its
// places in the table's two indexes, each would take five times the memory. While one of them
// is pending, its neighbours are shown so too.
type IPBlock struct {
	cluster string
	first   netip.Addr // the lowest address of the block, whether or not somebody has it
	entries []ipEntry  // in order of address, then of bits
}

// blockSize is how many neighbours share a row. A change writes a row anew, so that four
// times as many would save a few bytes for each and cost some kilobytes of garbage more.
const blockSize = 64

// ipEntry is an IP without what the block says.
type ipEntry struct {
	identity identity.Number
	low      uint8 // of the address, within the block
	bits     uint8
	place    *ipPlace
	pod      string
}

// ipPlace is what neighbours have in common most often. They share one.
type ipPlace struct {
	host      netip.Addr
	namespace string
	ports     []wire.NamedPort
}

func placeOf(ip *IP) ipPlace { return ipPlace{ip.Host, ip.Namespace, ip.NamedPorts} }

func (p *ipPlace) same(as ipPlace) bool {
	return p.host == as.host && p.namespace == as.namespace && slices.Equal(p.ports, as.ports)
}

func (e ipEntry) same(as ipEntry) bool {
	return e.identity == as.identity && e.pod == as.pod && (e.place == as.place || e.place.same(*as.place))
}

// split returns the first address of the block in which an address is, and where in it.
func split(a netip.Addr) (first netip.Addr, low uint8) {
	if a.Is4() {
		b := a.As4()
		low = b[3] % blockSize
		b[3] -= low
		return netip.AddrFrom4(b), low
	}
	b := a.As16()
	low = b[15] % blockSize
	b[15] -= low
	return netip.AddrFrom16(b), low
}

// blockKey is the cluster, a slash and the bytes of the first address: keys have the order
// of addresses.
func blockKey(cluster string, first netip.Addr) string {
	var b [96]byte
	key := append(append(b[:0], cluster...), '/')
	if first.Is4() {
		a := first.As4()
		return string(append(key, a[:]...))
	}
	a := first.As16()
	return string(append(key, a[:]...))
}

// Key is the block's alone; people are shown those of the addresses.
func (b *IPBlock) Key() string { return blockKey(b.cluster, b.first) }

func (b *IPBlock) find(low, bits uint8) (int, bool) {
	return slices.BinarySearchFunc(b.entries, uint(low)<<8|uint(bits), func(e ipEntry, at uint) int {
		return int(uint(e.low)<<8|uint(e.bits)) - int(at)
	})
}

// within is the address so far behind the first one of a block.
func within(first netip.Addr, low uint8) netip.Addr {
	if first.Is4() {
		b := first.As4()
		b[3] += low
		return netip.AddrFrom4(b)
	}
	b := first.As16()
	b[15] += low
	return netip.AddrFrom16(b)
}

func (b *IPBlock) ip(e ipEntry) IP {
	return IP{
		Cluster: b.cluster, Prefix: netip.PrefixFrom(within(b.first, e.low), int(e.bits)), Identity: e.identity,
		Host: e.place.host, Namespace: e.place.namespace, Pod: e.pod, NamedPorts: e.place.ports,
	}
}

// IPs yields the addresses and prefixes of the block, in order.
func (b *IPBlock) IPs(yield func(IP) bool) {
	for _, e := range b.entries {
		if !yield(b.ip(e)) {
			return
		}
	}
}

// has says whether the block has this very entry.
func (b *IPBlock) has(e ipEntry) (there, same bool) {
	if b == nil {
		return false, false
	}
	i, there := b.find(e.low, e.bits)
	return there, there && b.entries[i].same(e)
}

// Since yields what differs from an earlier state of the block: what is gone, as it was, and
// what is new. Nil is a block without addresses.
func (b *IPBlock) Since(before *IPBlock) iter.Seq2[IP, bool] {
	return func(yield func(ip IP, gone bool) bool) {
		if before != nil {
			for _, e := range before.entries {
				if there, _ := b.has(e); !there && !yield(before.ip(e), true) {
					return
				}
			}
		}
		if b != nil {
			for _, e := range b.entries {
				if _, same := before.has(e); !same && !yield(b.ip(e), false) {
					return
				}
			}
		}
	}
}

// at returns the entry of an address or prefix; nil if there is none.
func (b *IPBlock) at(p netip.Prefix) *IP {
	if b == nil {
		return nil
	}
	_, low := split(p.Addr())
	i, ok := b.find(low, uint8(p.Bits()))
	if !ok {
		return nil
	}
	ip := b.ip(b.entries[i])
	return &ip
}

// IPAt returns who of a cluster has exactly this address or prefix; nil if nobody.
func (t *Tables) IPAt(txn statedb.ReadTxn, cluster string, p netip.Prefix) *IP {
	first, _ := split(p.Addr())
	return Get(txn, t.IPs, blockKey(cluster, first)).at(p)
}

// EachIP yields all addresses and prefixes, in order of cluster.
func (t *Tables) EachIP(txn statedb.ReadTxn) iter.Seq[IP] { return t.IPsOf(txn, "") }

// IPsOf yields the addresses and prefixes of a cluster, in order; of all clusters for "".
func (t *Tables) IPsOf(txn statedb.ReadTxn, cluster string) iter.Seq[IP] {
	prefix := ""
	if cluster != "" {
		prefix = cluster + "/"
	}
	return func(yield func(IP) bool) {
		for b := range prefixed(txn, t.IPs, prefix) {
			for ip := range b.IPs {
				if !yield(ip) {
					return
				}
			}
		}
	}
}

// CountIPs counts all addresses and prefixes, as of the last write.
func (t *Tables) CountIPs() int { return int(t.counted.Load()) }

// IPWriter changes table ips in one transaction. Flush writes the changes, each block once.
type IPWriter struct {
	t       *Tables
	txn     statedb.WriteTxn
	changed map[string]*IPBlock // not in the table yet
}

// WriteIPs begins to change table ips, which the transaction has locked. It must be
// committed.
func (t *Tables) WriteIPs(txn statedb.WriteTxn) *IPWriter {
	return &IPWriter{t: t, txn: txn, changed: map[string]*IPBlock{}}
}

// Get returns who of a cluster has exactly this address or prefix; nil if nobody.
func (w *IPWriter) Get(cluster string, p netip.Prefix) *IP {
	first, _ := split(p.Addr())
	if b := w.changed[blockKey(cluster, first)]; b != nil {
		return b.at(p)
	}
	return w.t.IPAt(w.txn, cluster, p)
}

// block returns the block of an address, which may be changed.
func (w *IPWriter) block(cluster string, first netip.Addr) *IPBlock {
	key := blockKey(cluster, first)
	b := w.changed[key]
	if b == nil {
		b = &IPBlock{cluster: cluster, first: first}
		if old := Get(w.txn, w.t.IPs, key); old != nil {
			b.entries = append(make([]ipEntry, 0, len(old.entries)+1), old.entries...)
		}
		w.changed[key] = b
	}
	return b
}

// Put writes who has an address or prefix.
func (w *IPWriter) Put(ip *IP) {
	first, low := split(ip.Prefix.Addr())
	b := w.block(ip.Cluster, first)
	e := ipEntry{identity: ip.Identity, low: low, bits: uint8(ip.Prefix.Bits()), pod: ip.Pod}
	place := placeOf(ip)
	if i := slices.IndexFunc(b.entries, func(e ipEntry) bool { return e.place.same(place) }); i >= 0 {
		e.place = b.entries[i].place
	} else {
		e.place = &place
	}
	i, there := b.find(e.low, e.bits)
	if there {
		b.entries[i] = e
		return
	}
	b.entries = slices.Insert(b.entries, i, e)
	w.t.counted.Add(1)
}

// Drop says that nobody has an address or prefix.
func (w *IPWriter) Drop(cluster string, p netip.Prefix) {
	if w.Get(cluster, p) == nil {
		return
	}
	first, low := split(p.Addr())
	b := w.block(cluster, first)
	i, _ := b.find(low, uint8(p.Bits()))
	b.entries = slices.Delete(b.entries, i, i+1)
	w.t.counted.Add(-1)
}

// Flush writes what has been changed since the last call.
func (w *IPWriter) Flush() {
	for _, b := range w.changed {
		if len(b.entries) == 0 {
			Drop(w.txn, w.t.IPs, b)
			continue
		}
		if cap(b.entries) > len(b.entries)+1 {
			b.entries = slices.Clone(b.entries) // without the room to grow
		}
		Put(w.txn, w.t.IPs, b)
	}
	clear(w.changed)
}

// PutIP writes who has an address or prefix.
func PutIP(txn statedb.WriteTxn, t *Tables, ip *IP) {
	w := t.WriteIPs(txn)
	w.Put(ip)
	w.Flush()
}

// DropIP says that nobody has an address or prefix.
func DropIP(txn statedb.WriteTxn, t *Tables, cluster string, p netip.Prefix) {
	w := t.WriteIPs(txn)
	w.Drop(cluster, p)
	w.Flush()
}

var ips = table[*IPBlock]{
	name: "ips", imported: true, written: true,
	columns: []string{"Cluster", "Address", "Identity", "Host", "Pod"},
	several: &several[*IPBlock]{
		each: func(b *IPBlock) iter.Seq[shownRow] {
			return func(yield func(shownRow) bool) {
				for i := range b.IPs {
					cells := func() []string {
						return []string{i.Cluster, show(i.Prefix), i.Identity.String(), addr(i.Host), pod(i.Namespace, i.Pod)}
					}
					if !yield(shownRow{i.Key(), cells}) {
						return
					}
				}
			}
		},
		has: func(t *Tables, txn statedb.ReadTxn, key string) bool {
			cluster, prefix, _ := strings.Cut(key, "/")
			p, err := netip.ParsePrefix(prefix)
			return err == nil && t.IPAt(txn, cluster, p) != nil
		},
		count: (*Tables).CountIPs,
	},
}
