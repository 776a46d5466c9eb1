// Package tables holds what the agent knows, one table per kind of thing: rows with
// revisions and watches, and how far each table has been written to the kernel.
//
// Package intake fills the imported tables, package program writes them to the kernel;
// nothing here talks to either.
package tables

import (
	"iter"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// Tables are all tables of an agent; each is described beside its rows, in a file of its
// own. Rows are never changed in place: copy, then
// insert. They are safe for concurrent use.
type Tables struct {
	DB *statedb.DB

	// Imported: facts from our own cluster and its peers.
	Clusters   statedb.RWTable[*Cluster]
	Former     statedb.RWTable[*Former]
	Nodes      statedb.RWTable[*Node]
	IPs        statedb.RWTable[*IPBlock] // see IPAt, IPsOf and IPWriter
	Identities statedb.RWTable[*Identity]
	Services   statedb.RWTable[*Service]
	Slices     statedb.RWTable[*Slice]
	Imports    statedb.RWTable[*Import]
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

	counted atomic.Int64 // addresses and prefixes in IPs
	all     []opened     // in order of name
}

// New returns empty tables.
func New() *Tables {
	t := &Tables{DB: statedb.New()}
	t.Clusters = clusters.in(t)
	t.Former = former.in(t)
	t.Nodes = nodes.in(t)
	t.IPs = ips.in(t)
	t.Identities = identities.in(t)
	t.Services = services.in(t)
	t.Slices = sliceTable.in(t)
	t.Imports = imports.in(t)
	t.Namespaces = namespaces.in(t)
	t.Pods = pods.in(t)
	t.Policies = policies.in(t)
	t.Rejected = rejected.in(t)
	t.Endpoints = endpoints.in(t)
	t.Paths = paths.in(t)
	t.Problems = problems.in(t)
	t.Progress = progress.in(t)
	slices.SortFunc(t.all, func(a, b opened) int { return strings.Compare(a.name, b.name) })
	return t
}

func secondary[T any](name string, key func(T) string) statedb.Index[T, string] {
	i := byKey(key)
	i.Name, i.Unique = name, false
	return i
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

// Watch is Get; the channel is closed when that row changes.
func Watch[T any, P row[T]](txn statedb.ReadTxn, t statedb.Table[P], key string) (P, <-chan struct{}) {
	got, _, changed, ok := t.GetWatch(txn, byKey(P.Key).Query(key))
	if !ok {
		return nil, changed
	}
	return got, changed
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
