package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// Maps are the tables, in the order in which a packet meets them.
type Maps struct {
	Settings     Table[uint32, Settings] // one row, key 0
	Revisions    Table[uint32, uint32]   // by RevisionOf and RevisionOfIdentity
	Flows        Table[FlowKey, Flow]
	Masquerades  Table[FlowKey, Masquerade]
	Masquerading Table[uint32, Masquerading] // one row, key 0
	Native       Table[PrefixKey, uint32]    // pods keep their addresses towards them; the value means nothing
	Shares       Table[uint32, Share]        // by device
	Budgets      Table[uint32, Budget]       // one row, key 0
	Endpoints    Table[Addr, Endpoint]
	Namespaces   Table[uint64, Namespace] // by cookie
	IPs          Table[Addr, IPInfo]
	Prefixes     Table[PrefixKey, IPInfo]
	Nodes        Table[uint32, Node]    // by node index, from 1
	Clusters     Table[uint32, Cluster] // by cluster ID
	Services     Table[ServiceKey, Service]
	Balancing    Table[uint32, Balancing] // by service number
	Backends     Table[SlotKey, Backend]
	Maglev       Table[MaglevKey, MaglevSlots]
	Members      Table[MemberKey, Member]
	Affinities   Table[AffinityKey, Affinity]
	Sources      Table[RangeKey, uint32]      // the value means nothing
	Visitors     Table[AffinityKey, Affinity] // affinities of clients outside
	Classes      Table[ClassKey, uint32]
	Ports        Table[uint32, uint16] // by PortIndex
	Policy       Table[PolicyKey, PolicyEntry]
	Sets         Table[SetKey, SetInfo]
}

// described are all maps that outlive a process. What is said of a map is said here, beside
// its declaration in lib/maps.h and the form of its rows; whatever sizes, pins, opens,
// copies or mends maps, and the agent's settings, go by it.
var described = []description{
	of("settings", 3, func(m *Maps) *Table[uint32, Settings] { return &m.Settings }),
	of("revisions", 1, func(m *Maps) *Table[uint32, uint32] { return &m.Revisions }),
	of("flows", 4, func(m *Maps) *Table[FlowKey, Flow] { return &m.Flows }).
		sized(func(l *Limits) *uint32 { return &l.Flows }, 1<<19, "connections of all pods of this node; each pod has a guaranteed share").
		derived(func(c Config) uint32 { return rowsPerFlow * c.Limits.Flows }).
		inheriting(), // see catchUp
	of("masquerades", 2, func(m *Maps) *Table[FlowKey, Masquerade] { return &m.Masquerades }).
		derived(func(c Config) uint32 { return 4 * c.Limits.Flows }). // two, or four through a node port, so a share of flows is a share of these
		inheriting(),
	of("masquerading", 1, func(m *Maps) *Table[uint32, Masquerading] { return &m.Masquerading }),
	of("native", 1, func(m *Maps) *Table[PrefixKey, uint32] { return &m.Native }).
		sized(func(l *Limits) *uint32 { return &l.Native }, 1<<10, "rows of the table of CIDRs that pods reach with their own addresses"),
	of("shares", 1, func(m *Maps) *Table[uint32, Share] { return &m.Shares }).
		derived(func(c Config) uint32 { return 2*c.Limits.Endpoints + 3 }), // pods that are gone keep theirs until their flows are gone too
	of("budgets", 1, func(m *Maps) *Table[uint32, Budget] { return &m.Budgets }),
	of("endpoints", 1, func(m *Maps) *Table[Addr, Endpoint] { return &m.Endpoints }).
		sized(func(l *Limits) *uint32 { return &l.Endpoints }, 1<<12, "rows of the table of this node's pods"),
	of("namespaces", 1, func(m *Maps) *Table[uint64, Namespace] { return &m.Namespaces }).
		derived(func(c Config) uint32 { return c.Limits.Endpoints }),
	of("ips", 1, func(m *Maps) *Table[Addr, IPInfo] { return &m.IPs }).
		sized(func(l *Limits) *uint32 { return &l.IPs }, 1<<20, "rows of the table of all pods of the mesh"),
	of("prefixes", 1, func(m *Maps) *Table[PrefixKey, IPInfo] { return &m.Prefixes }).
		sized(func(l *Limits) *uint32 { return &l.Prefixes }, 1<<17, "rows of the table of CIDRs"),
	of("nodes", 1, func(m *Maps) *Table[uint32, Node] { return &m.Nodes }).
		sized(func(l *Limits) *uint32 { return &l.Nodes }, 1<<16, "rows of the table of all nodes of the mesh"),
	of("clusters", 1, func(m *Maps) *Table[uint32, Cluster] { return &m.Clusters }),
	of("services", 1, func(m *Maps) *Table[ServiceKey, Service] { return &m.Services }).
		sized(func(l *Limits) *uint32 { return &l.Services }, 1<<16, "rows of the table of services"),
	of("balancing", 1, func(m *Maps) *Table[uint32, Balancing] { return &m.Balancing }).
		derived(func(c Config) uint32 { return c.Limits.Services }),
	of("maglev", 1, func(m *Maps) *Table[MaglevKey, MaglevSlots] { return &m.Maglev }).
		sized(func(l *Limits) *uint32 { return &l.Maglev }, 1<<17, "pieces of 64 slots of the tables of services that use Maglev"),
	of("backends", 1, func(m *Maps) *Table[SlotKey, Backend] { return &m.Backends }).
		sized(func(l *Limits) *uint32 { return &l.Backends }, 1<<18, "rows of the table of backends"),
	of("members", 1, func(m *Maps) *Table[MemberKey, Member] { return &m.Members }).
		sized(func(l *Limits) *uint32 { return &l.Members }, 1<<18, "rows of the table of current backends"),
	of("affinities", 1, func(m *Maps) *Table[AffinityKey, Affinity] { return &m.Affinities }).
		sized(func(l *Limits) *uint32 { return &l.Affinities }, 1<<14, "clients that are remembered by services with session affinity, and as many outside of the mesh; the longest absent is forgotten first"),
	of("visitors", 1, func(m *Maps) *Table[AffinityKey, Affinity] { return &m.Visitors }).
		derived(func(c Config) uint32 { return c.Limits.Affinities }),
	of("sources", 1, func(m *Maps) *Table[RangeKey, uint32] { return &m.Sources }).
		sized(func(l *Limits) *uint32 { return &l.Sources }, 1<<16, "prefixes of clients in the loadBalancerSourceRanges of all services"),
	of("classes", 1, func(m *Maps) *Table[ClassKey, uint32] { return &m.Classes }).
		sized(func(l *Limits) *uint32 { return &l.Classes }, 1<<18, "rows of the table of identity classes"),
	of("ports", 1, func(m *Maps) *Table[uint32, uint16] { return &m.Ports }),
	of("policy", 1, func(m *Maps) *Table[PolicyKey, PolicyEntry] { return &m.Policy }).
		sized(func(l *Limits) *uint32 { return &l.Policy }, 1<<17, "rows of the policy table"),
	of("sets", 1, func(m *Maps) *Table[SetKey, SetInfo] { return &m.Sets }).
		sized(func(l *Limits) *uint32 { return &l.Sets }, 1<<13, "rows of the table of policy sets"),

	// What only the datapath and its counters use.
	inner("fragments", 4).
		sized(func(l *Limits) *uint32 { return &l.Fragments }, 1<<13, "number of fragmented datagrams tracked"),
	inner("events", 2).derived(func(c Config) uint32 { return c.EventBytes }),
	inner("counters", 1),
	inner("lost", 1),
	inner("errors_sent", 1),
	inner("judged_again", 1),
	inner("sockets", 1),
}

// rowsPerFlow is how many rows a flow may have: one, and another for the answers if it goes
// through a service.
const rowsPerFlow = 2

// MaxFlows is how many flows the table has room for.
func (m *Maps) MaxFlows() int { return m.Flows.MaxEntries() / rowsPerFlow }

// description describes a map.
type description struct {
	name string
	// version is that of the rows' layout, part of the pin's name. Raise it when key or
	// value changes shape or meaning: the next start then creates an empty map beside the
	// old one instead of misreading it.
	version int
	// open makes the map a field of Maps; nil if it is not one.
	open func(*Maps, *ebpf.Map)
	// limit is its size in Limits, with rows by default; nil if operators do not choose it.
	// about tells them what it limits.
	limit func(*Limits) *uint32
	rows  uint32
	about string
	// size is how many rows the map gets; nil if the program says.
	size func(Config) uint32
	// inherits says that the rows of the version before are taken over: the row has only
	// grown at its end since.
	inherits bool
}

// of describes a map that is a field of Maps.
func of[K, V comparable](name string, version int, field func(*Maps) *Table[K, V]) description {
	return description{name: name, version: version, open: func(all *Maps, m *ebpf.Map) {
		*field(all) = &table[K, V]{name: name, m: m}
	}}
}

// inner describes a map that is not.
func inner(name string, version int) description { return description{name: name, version: version} }

// sized lets operators choose the size of a map.
func (d description) sized(limit func(*Limits) *uint32, rows uint32, about string) description {
	d.limit, d.rows, d.about = limit, rows, about
	return d.derived(func(c Config) uint32 { return *limit(&c.Limits) })
}

// derived lets the size of a map follow from something else.
func (d description) derived(size func(Config) uint32) description {
	d.size = size
	return d
}

// inheriting takes over the rows of the version before.
func (d description) inheriting() description {
	d.inherits = true
	return d
}

// former opens the map of the version before if its rows are taken over; nil if there is
// none.
func (d description) former(dir string) (*ebpf.Map, error) {
	if !d.inherits {
		return nil, nil
	}
	d.version--
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, d.pin()), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return m, err
}

// pin is the name under which the map outlives a process.
func (d description) pin() string { return fmt.Sprintf("weft_%s_v%d", d.name, d.version) }

// volatile maps start empty when their size changes: nobody misses their contents.
func (d description) volatile() bool { return d.open == nil }

// tables wraps the kernel's maps as tables.
func tables(maps map[string]*ebpf.Map) *Maps {
	all := &Maps{}
	for _, d := range described {
		if d.open != nil {
			d.open(all, maps[d.name])
		}
	}
	return all
}

// defaultLimits are for a node of a mesh with a million pods.
func defaultLimits() (l Limits) {
	for _, d := range described {
		if d.limit != nil {
			*d.limit(&l) = d.rows
		}
	}
	return l
}

// AboutLimits says what each of Limits limits, by the name of its map.
func AboutLimits() map[string]string {
	about := map[string]string{}
	for _, d := range described {
		if d.limit != nil {
			about[d.name] = d.about
		}
	}
	return about
}
