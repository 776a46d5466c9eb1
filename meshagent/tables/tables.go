// Package tables holds what the agent knows, one table per kind of thing: rows
// with revision and watch, and how far each has come into the kernel.
//
// Package intake fills the imported ones, package program carries them into the
// kernel; nothing here talks to either.
package tables

import (
	"time"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// Tables are all tables of an agent. Rows are never changed in place: copy, then
// insert. Any goroutine may use them.
type Tables struct {
	DB *statedb.DB

	// Imported: facts, own cluster's and peers' alike.
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

	// Known here alone.
	Endpoints statedb.RWTable[*Endpoint]
	Paths     statedb.RWTable[*Path]
	// Problems are rows that did not reach the kernel.
	Problems statedb.RWTable[*Problem]
	// Progress says up to which revision a table is in the kernel.
	Progress statedb.RWTable[*Progress]
}

// New makes empty tables.
func New() *Tables {
	db := statedb.New()
	t := &Tables{DB: db}
	t.Clusters = table(db, "clusters", (*Cluster).Key)
	t.Former = table(db, "former", (*Former).Key)
	t.Nodes = table(db, "nodes", (*Node).Key)
	t.IPs = table(db, "ips", (*IP).Key)
	t.Identities = table(db, "identities", (*Identity).Key)
	t.Services = table(db, "services", (*Service).Key)
	t.Slices = table(db, "slices", (*Slice).Key)
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

// table makes a table whose rows are found by one textual key.
func table[T statedb.TableWritable](db *statedb.DB, name string, key func(T) string) statedb.RWTable[T] {
	return statedb.MustNewTable(db, name, byKey(key))
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

// row is what every table's rows are.
type row[T any] interface {
	*T
	statedb.TableWritable
	Key() string
}

// Get returns the row under key, nil if there is none.
func Get[T any, P row[T]](txn statedb.ReadTxn, t statedb.Table[P], key string) P {
	got, _, ok := t.Get(txn, byKey(P.Key).Query(key))
	if !ok {
		return nil
	}
	return got
}

// Change writes what f makes of the row with blank's key: a copy of what is
// there, or blank. If f returns false there is nothing left of the row, and it
// is deleted.
func Change[T any, P row[T]](txn statedb.WriteTxn, t statedb.RWTable[P], blank P, f func(P) (keep bool)) {
	next := *blank
	if old := Get(txn, t, blank.Key()); old != nil {
		next = *old
	}
	// A transaction that holds the table can neither be closed nor lack it.
	if f(&next) {
		_, _, _ = t.Insert(txn, &next)
	} else {
		_, _, _ = t.Delete(txn, &next)
	}
}

// Put writes one row.
func Put[P any](txn statedb.WriteTxn, t statedb.RWTable[P], row P) { _, _, _ = t.Insert(txn, row) }

// Drop deletes the row with this row's key, if it is there.
func Drop[P any](txn statedb.WriteTxn, t statedb.RWTable[P], row P) { _, _, _ = t.Delete(txn, row) }

// All lists a table in order of key.
func All[P any](txn statedb.ReadTxn, t statedb.Table[P]) []P {
	return statedb.Collect(t.All(txn))
}

// Problem is a row that the kernel, or somebody else it needs, refused.
type Problem struct {
	Table, Row string
	Error      string
	// Since is when it first failed, Attempts how often.
	Since    time.Time
	Attempts int
}

// Key of a problem.
func (p *Problem) Key() string { return p.Table + " " + p.Row }

// Progress says how far a table has come into the kernel: rows up to Revision
// are there, but for those with a Problem.
type Progress struct {
	Table    string
	Revision statedb.Revision
	At       time.Time
}

// Key of a progress.
func (p *Progress) Key() string { return p.Table }

// Rejected is an imported value that cannot be read or may not be believed.
type Rejected struct {
	StoreKey string
	Cluster  string
	Error    string
	Since    time.Time
}

// Key of a rejected value.
func (r *Rejected) Key() string { return r.StoreKey }
