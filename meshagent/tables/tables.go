// Package tables holds what the agent knows, one table per kind of thing: rows with
// revisions and watches, and how far each table has been written to the kernel.
//
// Package intake fills the imported tables, package program writes them to the kernel;
// nothing here talks to either.
package tables

import (
	"iter"
	"net/netip"
	"time"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// Tables are all tables of an agent. Rows are never changed in place: copy, then
// insert. They are safe for concurrent use.
type Tables struct {
	DB *statedb.DB

	// Imported: facts from our own cluster and its peers.
	Clusters   statedb.RWTable[*Cluster]
	Former     statedb.RWTable[*Former]
	Nodes      statedb.RWTable[*Node]
	IPs        statedb.RWTable[*IP]
	Identities statedb.RWTable[*Identity]
	Services   statedb.RWTable[*Service]
	Slices     statedb.RWTable[*Slice]
	Namespaces statedb.RWTable[*Namespace]
	Pods       statedb.RWTable[*Pod]
	Policies   statedb.RWTable[*Policy]
	// Rejected are values that could not be read, by key.
	Rejected statedb.RWTable[*Rejected]

	// Known only here.
	Endpoints statedb.RWTable[*Endpoint]
	Paths     statedb.RWTable[*Path]
	// Problems are rows that did not reach the kernel.
	Problems statedb.RWTable[*Problem]
	// Progress says up to which revision a table has been written to the kernel.
	Progress statedb.RWTable[*Progress]
}

// New returns empty tables.
func New() *Tables {
	db := statedb.New()
	t := &Tables{DB: db}
	t.Clusters = table(db, "clusters", (*Cluster).Key)
	t.Former = table(db, "former", (*Former).Key)
	t.Nodes = table(db, "nodes", (*Node).Key)
	t.IPs = table(db, "ips", (*IP).Key)
	t.Identities = table(db, "identities", (*Identity).Key)
	t.Services = table(db, "services", (*Service).Key, servicesByID, servicesByFrontend)
	t.Slices = table(db, "slices", (*Slice).Key, slicesByService)
	t.Namespaces = table(db, "namespaces", (*Namespace).Key)
	t.Pods = table(db, "pods", (*Pod).Key)
	t.Policies = table(db, "policies", (*Policy).Key)
	t.Rejected = table(db, "rejected", (*Rejected).Key)
	t.Endpoints = table(db, "endpoints", (*Endpoint).Key)
	t.Paths = table(db, "paths", (*Path).Key)
	t.Problems = table(db, "problems", (*Problem).Key)
	t.Progress = table(db, "progress", (*Progress).Key)
	return t
}

// table makes a table indexed by one textual key and by others.
func table[T statedb.TableWritable](db *statedb.DB, name string, key func(T) string, others ...statedb.Indexer[T]) statedb.RWTable[T] {
	return statedb.MustNewTable(db, name, byKey(key), others...)
}

// servicesByID finds one service's rows, one per cluster; slicesByService finds its
// slices in all clusters.
var (
	servicesByID    = secondary("id", (*Service).ID)
	slicesByService = secondary("service", (*Slice).ServiceID)
)

// servicesByFrontend finds services by one of their addresses and ports.
var servicesByFrontend = statedb.Index[*Service, netip.AddrPort]{
	Name: "frontend",
	FromObject: func(s *Service) index.KeySet {
		var keys []string
		for _, a := range s.Addresses {
			for _, p := range s.Ports {
				keys = append(keys, netip.AddrPortFrom(a, p.Port).String())
			}
		}
		return index.StringSlice(keys)
	},
	FromKey: index.Stringer[netip.AddrPort],
}

func secondary[T any](name string, key func(T) string) statedb.Index[T, string] {
	i := byKey(key)
	i.Name, i.Unique = name, false
	return i
}

// ServicesOf lists a service's rows, in order of cluster.
func (t *Tables) ServicesOf(txn statedb.ReadTxn, id string) []*Service {
	return statedb.Collect(t.Services.List(txn, servicesByID.Query(id)))
}

// SlicesOf lists a service's slices, in order of cluster and name.
func (t *Tables) SlicesOf(txn statedb.ReadTxn, id string) []*Slice {
	return statedb.Collect(t.Slices.List(txn, slicesByService.Query(id)))
}

// ServiceAt returns the cluster's service that has an address and port, the first by
// name if several do; nil if none does.
func (t *Tables) ServiceAt(txn statedb.ReadTxn, cluster string, at netip.AddrPort) *Service {
	for s := range t.Services.List(txn, servicesByFrontend.Query(at)) {
		if s.Cluster == cluster {
			return s
		}
	}
	return nil
}

func byKey[T any](key func(T) string) statedb.Index[T, string] {
	return statedb.Index[T, string]{
		Name:       "key",
		FromObject: func(row T) index.KeySet { return index.NewKeySet(index.String(key(row))) },
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     true,
	}
}

// row is implemented by the rows of every table.
type row[T any] interface {
	*T
	statedb.TableWritable
	Key() string
}

// Get returns the row with this key, or nil if there is none.
func Get[T any, P row[T]](txn statedb.ReadTxn, t statedb.Table[P], key string) P {
	got, _, ok := t.Get(txn, byKey(P.Key).Query(key))
	if !ok {
		return nil
	}
	return got
}

// ProblemsOf yields the problems of a table.
func ProblemsOf(txn statedb.ReadTxn, t *Tables, table string) iter.Seq[*Problem] {
	return prefixed(txn, t.Problems, (&Problem{Table: table}).Key())
}

// OfCluster yields the rows of a table whose keys begin with a cluster's name.
func OfCluster[T any, P row[T]](txn statedb.ReadTxn, t statedb.Table[P], cluster string) iter.Seq[P] {
	return prefixed(txn, t, cluster+"/")
}

// prefixed yields the rows whose keys begin with this.
func prefixed[T any, P row[T]](txn statedb.ReadTxn, t statedb.Table[P], prefix string) iter.Seq[P] {
	return func(yield func(P) bool) {
		for got := range t.Prefix(txn, byKey(P.Key).Query(prefix)) {
			if !yield(got) {
				return
			}
		}
	}
}

// Change lets f edit a copy of the row with blank's key, or blank if there is none,
// and writes the result. If f returns false, nothing of the row is left and it is
// deleted.
func Change[T any, P row[T]](txn statedb.WriteTxn, t statedb.RWTable[P], blank P, f func(P) (keep bool)) {
	next := *blank
	if old := Get(txn, t, blank.Key()); old != nil {
		next = *old
	}
	// Neither can fail in a transaction that has locked the table.
	if f(&next) {
		_, _, _ = t.Insert(txn, &next)
	} else {
		_, _, _ = t.Delete(txn, &next)
	}
}

// Edit is Change for a row that somebody else creates and deletes: if there is no row with
// this key, none is made.
func Edit[T any, P row[T]](txn statedb.WriteTxn, t statedb.RWTable[P], key string, f func(P)) {
	old := Get(txn, t, key)
	if old == nil {
		return
	}
	next := *old
	f(&next)
	_, _, _ = t.Insert(txn, &next)
}

// Put writes one row.
func Put[P any](txn statedb.WriteTxn, t statedb.RWTable[P], row P) { _, _, _ = t.Insert(txn, row) }

// Drop deletes the row with this row's key, if there is one.
func Drop[P any](txn statedb.WriteTxn, t statedb.RWTable[P], row P) { _, _, _ = t.Delete(txn, row) }

// All returns a table's rows, ordered by key.
func All[P any](txn statedb.ReadTxn, t statedb.Table[P]) []P {
	return statedb.Collect(t.All(txn))
}

// Problem is a row that was refused by the kernel or by something else it needs.
type Problem struct {
	Table, Row string
	Error      string
	// Since is when it first failed, Attempts how many times.
	Since    time.Time
	Attempts int
}

// Key is "table row".
func (p *Problem) Key() string { return p.Table + " " + p.Row }

// Progress says how far a table has been written to the kernel: rows up to Revision
// are there, except those with a Problem.
type Progress struct {
	Table    string
	Revision statedb.Revision
	At       time.Time
}

// Key is the table's name.
func (p *Progress) Key() string { return p.Table }

// Rejected is an imported value that cannot be read or must not be believed.
type Rejected struct {
	StoreKey string
	Cluster  string
	Error    string
	Since    time.Time
}

// Key is the value's key in the store.
func (r *Rejected) Key() string { return r.StoreKey }
