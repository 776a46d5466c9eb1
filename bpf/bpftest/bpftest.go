// Package bpftest is package bpf without a kernel: tables in memory and a datapath
// that only remembers what was attached, for tests without root.
//
// It forwards no packets; package bpf's own tests do that with the real programs.
package bpftest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/weft-mesh/weft/bpf"
)

// Table is a bpf.Table in memory. Fail makes writes fail on purpose.
type Table[K comparable, V comparable] struct {
	name  string
	max   int
	array bool

	mu   sync.Mutex // guards what follows
	rows map[K]V
	fail func(op string, k K) error
}

// NewTable returns an empty table of at most max rows.
func NewTable[K comparable, V comparable](name string, max int) *Table[K, V] {
	return &Table[K, V]{name: name, max: max, rows: map[K]V{}}
}

func newArray[K comparable, V comparable](name string, max int) *Table[K, V] {
	t := NewTable[K, V](name, max)
	t.array = true
	return t
}

// Fail calls f before every "update" and "delete". If f returns an error, the
// operation returns it and leaves the row alone. A nil f ends this.
func (t *Table[K, V]) Fail(f func(op string, k K) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fail = f
}

func (t *Table[K, V]) Name() string    { return t.name }
func (t *Table[K, V]) MaxEntries() int { return t.max }

func (t *Table[K, V]) Update(k K, v V) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.updateLocked(k, v)
}

func (t *Table[K, V]) updateLocked(k K, v V) error {
	if t.fail != nil {
		if err := t.fail("update", k); err != nil {
			return fmt.Errorf("update %s: %w", t.name, err)
		}
	}
	if i, ok := any(k).(uint32); t.array && ok && int(i) >= t.max {
		return fmt.Errorf("update %s: %w", t.name, &bpf.FullError{Table: t.name, Limit: t.max})
	}
	var zero V
	if t.array && v == zero {
		delete(t.rows, k)
		return nil
	}
	if _, ok := t.rows[k]; !ok && len(t.rows) >= t.max {
		return fmt.Errorf("update %s: %w", t.name, &bpf.FullError{Table: t.name, Limit: t.max})
	}
	t.rows[k] = v
	return nil
}

func (t *Table[K, V]) UpdateBatch(rows map[K]V) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, v := range rows {
		if err := t.updateLocked(k, v); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table[K, V]) Delete(k K) error { return t.DeleteBatch([]K{k}) }

func (t *Table[K, V]) DeleteBatch(keys []K) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		if t.fail != nil {
			if err := t.fail("delete", k); err != nil {
				return fmt.Errorf("delete from %s: %w", t.name, err)
			}
		}
		delete(t.rows, k)
	}
	return nil
}

func (t *Table[K, V]) Lookup(k K) (V, bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.rows[k]
	return v, ok, nil
}

func (t *Table[K, V]) Match(k K) (v V, ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v, ok = t.rows[k]; ok {
		return v, true, nil
	}
	longest := uint32(0)
	for key, row := range t.rows {
		if bits, covers := covers(key, k); covers && (!ok || bits > longest) {
			longest, v, ok = bits, row, true
		}
	}
	return v, ok, nil
}

// covers says whether the row of a prefix is found with another key, and how long it is.
func covers(row, key any) (bits uint32, ok bool) {
	switch row := row.(type) {
	case bpf.PrefixKey:
		key := key.(bpf.PrefixKey)
		return row.Bits, row.Bits <= key.Bits && within(key.Addr, row.Addr, row.Bits)
	case bpf.RangeKey:
		key := key.(bpf.RangeKey)
		return row.Bits, row.Service == key.Service && row.Bits <= key.Bits && within(key.Addr, row.Addr, row.Bits-32)
	}
	return 0, false
}

// within takes addresses of IPv4 as the maps do, for some of IPv6.
func within(a, prefix bpf.Addr, bits uint32) bool {
	return netip.PrefixFrom(netip.AddrFrom16(prefix), int(bits)).Contains(netip.AddrFrom16(a))
}

// All yields the rows as they are when it is called.
func (t *Table[K, V]) All() (iter.Seq2[K, V], func() error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.All(maps.Clone(t.rows)), func() error { return nil }
}

func (t *Table[K, V]) Len() (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.rows), nil
}

// New returns empty tables with the default limits.
func New() *bpf.Maps {
	l := bpf.Defaults().Limits
	return &bpf.Maps{
		Settings:     newArray[uint32, bpf.Settings]("settings", 1),
		Revisions:    newArray[uint32, uint32]("revisions", bpf.RevisionRows),
		Flows:        NewTable[bpf.FlowKey, bpf.Flow]("flows", 2*int(l.Flows)), // some have two rows
		Shares:       NewTable[uint32, bpf.Share]("shares", 2*int(l.Endpoints)),
		Masquerades:  NewTable[bpf.FlowKey, bpf.Masquerade]("masquerades", 2*int(l.Flows)),
		Masquerading: newArray[uint32, bpf.Masquerading]("masquerading", 1),
		Native:       NewTable[bpf.PrefixKey, uint32]("native", int(l.Native)),
		Budgets:      newArray[uint32, bpf.Budget]("budgets", 1),
		Endpoints:    NewTable[bpf.Addr, bpf.Endpoint]("endpoints", int(l.Endpoints)),
		Namespaces:   NewTable[uint64, bpf.Namespace]("namespaces", int(l.Endpoints)),
		IPs:          NewTable[bpf.Addr, bpf.IPInfo]("ips", int(l.IPs)),
		Prefixes:     NewTable[bpf.PrefixKey, bpf.IPInfo]("prefixes", int(l.Prefixes)),
		Nodes:        newArray[uint32, bpf.Node]("nodes", int(l.Nodes)),
		Clusters:     newArray[uint32, bpf.Cluster]("clusters", bpf.MaxClusters),
		Services:     NewTable[bpf.ServiceKey, bpf.Service]("services", int(l.Services)),
		Balancing:    NewTable[uint32, bpf.Balancing]("balancing", int(l.Services)),
		Maglev:       NewTable[bpf.MaglevKey, bpf.MaglevSlots]("maglev", int(l.Maglev)),
		Backends:     NewTable[bpf.SlotKey, bpf.Backend]("backends", int(l.Backends)),
		Members:      NewTable[bpf.MemberKey, bpf.Member]("members", int(l.Members)),
		Affinities:   NewTable[bpf.AffinityKey, bpf.Affinity]("affinities", int(l.Affinities)),
		Sources:      NewTable[bpf.RangeKey, uint32]("sources", int(l.Sources)),
		Visitors:     NewTable[bpf.AffinityKey, bpf.Affinity]("visitors", int(l.Affinities)),
		Classes:      NewTable[bpf.ClassKey, uint32]("classes", int(l.Classes)),
		Ports:        newArray[uint32, uint16]("ports", bpf.PortRows),
		Policy:       NewTable[bpf.PolicyKey, bpf.PolicyEntry]("policy", int(l.Policy)),
		Sets:         NewTable[bpf.SetKey, bpf.SetInfo]("sets", int(l.Sets)),
	}
}

// Datapath has the methods of bpf.Datapath and remembers their calls. Several
// goroutines may use it.
type Datapath struct {
	maps   *bpf.Maps
	events chan bpf.Event

	mu       sync.Mutex // guards what follows
	attached map[bpf.Attachment]bool
	taken    map[bpf.Attachment]bool // by Take
	cgroup   string                  // by AttachSockets
	refuse   error                   // why Mend fails
	counters []bpf.Counter
	holdings []bpf.Holding
	closed   bool
	removed  bool
}

// NewDatapath returns a Datapath with empty tables and nothing attached.
func NewDatapath() *Datapath {
	return &Datapath{
		maps:     New(),
		events:   make(chan bpf.Event, 1024),
		attached: map[bpf.Attachment]bool{},
		taken:    map[bpf.Attachment]bool{},
	}
}

func (d *Datapath) Maps() *bpf.Maps { return d.maps }

func (d *Datapath) attach(a bpf.Attachment) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attached[a] = true
	return nil
}

func (d *Datapath) AttachPod(ifindex int) error {
	return d.attach(bpf.Attachment{Role: bpf.RolePod, Ifindex: ifindex})
}

func (d *Datapath) AttachTunnel(ifindex, lane int) error {
	return d.attach(bpf.Attachment{Role: bpf.RoleTunnel, Ifindex: ifindex, Lane: lane})
}

func (d *Datapath) AttachDevice(ifindex int) error {
	return d.attach(bpf.Attachment{Role: bpf.RoleDevice, Ifindex: ifindex})
}

func (d *Datapath) Detach(ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, of := range []map[bpf.Attachment]bool{d.attached, d.taken} {
		maps.DeleteFunc(of, func(a bpf.Attachment, _ bool) bool { return a.Ifindex == ifindex })
	}
	return nil
}

// AttachSockets remembers the cgroup.
func (d *Datapath) AttachSockets(cgroup string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cgroup = cgroup
	return nil
}

func (d *Datapath) DetachSockets() error { return d.AttachSockets("") }

// Sockets is the cgroup that was given to AttachSockets; empty: none.
func (d *Datapath) Sockets() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cgroup
}

// Mend attaches again what Take took away.
func (d *Datapath) Mend() (mended []string, failed map[string]error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for a := range d.taken {
		if d.refuse != nil {
			if failed == nil {
				failed = map[string]error{}
			}
			failed[fmt.Sprintf("%s device %d", a.Role, a.Ifindex)] = d.refuse
			continue
		}
		delete(d.taken, a)
		d.attached[a] = true
		mended = append(mended, fmt.Sprintf("programs of %s device %d", a.Role, a.Ifindex))
	}
	return mended, failed
}

// Take takes the programs from all devices, as somebody else may; until Take is
// called with nil, Mend fails with this error.
func (d *Datapath) Take(refuse error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for a := range d.attached {
		d.taken[a] = true
	}
	clear(d.attached)
	d.refuse = refuse
}

// Attached lists what is attached, sorted.
func (d *Datapath) Attached() ([]bpf.Attachment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.SortedFunc(maps.Keys(d.attached), bpf.Attachment.Compare), nil
}

// Emit passes e to the function given to Events. It blocks while 1024 events are
// waiting.
func (d *Datapath) Emit(e bpf.Event) { d.events <- e }

func (d *Datapath) Events(ctx context.Context, f func(bpf.Event)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-d.events:
			f(e)
		}
	}
}

// SetCounters sets what Counters returns from now on.
func (d *Datapath) SetCounters(c []bpf.Counter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counters = slices.Clone(c)
}

func (d *Datapath) Counters() ([]bpf.Counter, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.counters), nil
}

func (d *Datapath) Lost() (uint64, error) { return 0, nil }

func (d *Datapath) JudgedAgain() (uint64, error) { return 0, nil }

func (d *Datapath) Masqueraded() int { return 0 }

// EndStranded finds none: the twin has no sockets.
func (d *Datapath) EndStranded() (ended, doubtful int, err error) { return 0, 0, nil }

// SetHoldings sets what Holdings returns from now on.
func (d *Datapath) SetHoldings(h ...bpf.Holding) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.holdings = slices.Clone(h)
}

func (d *Datapath) Holdings() ([]bpf.Holding, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.holdings), nil
}

func (d *Datapath) Sweep(now uint64) (bpf.Swept, error) {
	return bpf.SweepMaps(d.maps, now, Forget(d.maps))
}

// disclaim gives the key of a row for answers to the flow beside it, or to nobody.
func disclaim(m *bpf.Maps, at bpf.FlowKey, row bpf.Flow) error {
	beside := at
	beside.Beside = 1
	f, ok, err := m.Flows.Lookup(beside)
	if err != nil || row.Flags&bpf.FlowShared == 0 || !ok {
		return errors.Join(err, m.Flows.Delete(at))
	}
	own, _ := f.Answers(beside)
	answers, ok, err := m.Flows.Lookup(own)
	if answers.Flags &^= bpf.FlowBeside; ok {
		err = errors.Join(err, m.Flows.Update(own, answers))
	}
	return errors.Join(err, m.Flows.Update(at, f), m.Flows.Delete(beside))
}

// Forget is the in-memory twin of program sweep.
func Forget(m *bpf.Maps) bpf.Forget {
	return func(dead []bpf.FlowKey, now uint64) (gone int, err error) {
		for _, k := range dead {
			f, ok, err := m.Flows.Lookup(k)
			if err != nil {
				return gone, err
			}
			device := func(a bpf.Addr) uint32 {
				ep, _, _ := m.Endpoints.Lookup(a)
				return ep.Ifindex
			}
			if !ok || f.Flags&bpf.FlowAnswers != 0 || !f.Expired(k.Proto, now) && !f.PodGone(k, device) {
				continue
			}
			if answers, ok := f.Answers(k); ok {
				// Another flow may have claimed this row since this one ended.
				if row, ok, err := m.Flows.Lookup(answers); err != nil {
					return gone, err
				} else if ok && row.Answered(answers, k) {
					if err := disclaim(m, answers, row); err != nil {
						return gone, err
					}
				}
			}
			if err := m.Flows.Delete(k); err != nil {
				return gone, err
			}
			gone++
		}
		return gone, nil
	}
}

func (d *Datapath) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}

func (d *Datapath) Remove() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.removed = true
	clear(d.attached)
	return nil
}

// Closed and Removed report whether Close and Remove were called.
func (d *Datapath) Closed() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.closed }
func (d *Datapath) Removed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.removed
}
