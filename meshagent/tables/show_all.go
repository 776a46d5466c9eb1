package tables

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cilium/statedb"
)

// Shown is a table as text, with the status of each row.
type Shown struct {
	Columns []string
	Rows    [][]string
}

// Summary counts a table's rows by status.
type Summary struct {
	Name    string `json:"name"`
	Rows    int    `json:"rows"`
	Pending int    `json:"pending"`
	Errors  int    `json:"errors"`
}

// shown says how one table is listed.
type shown struct {
	name string
	// status is set for tables whose rows are written to the kernel.
	status bool
	list   func(txn statedb.ReadTxn, each func(key string, rev statedb.Revision, header, row []string))
}

func showing[P interface {
	statedb.TableWritable
	Key() string
}](name string, status bool, t statedb.Table[P]) shown {
	return shown{name, status, func(txn statedb.ReadTxn, each func(string, statedb.Revision, []string, []string)) {
		for row, rev := range t.All(txn) {
			each(row.Key(), rev, row.TableHeader(), row.TableRow())
		}
	}}
}

func (t *Tables) all() []shown {
	return []shown{
		showing("clusters", true, t.Clusters),
		showing("endpoints", true, t.Endpoints),
		showing("former", true, t.Former),
		showing("identities", true, t.Identities),
		showing("ips", true, t.IPs),
		showing("namespaces", false, t.Namespaces),
		showing("nodes", true, t.Nodes),
		showing("paths", false, t.Paths),
		showing("pods", false, t.Pods),
		showing("policies", true, t.Policies),
		showing("problems", false, t.Problems),
		showing("rejected", false, t.Rejected),
		showing("services", true, t.Services),
		showing("slices", true, t.Slices),
	}
}

// header returns a table's columns, even if the table is empty.
func (t *Tables) header(name string) []string {
	switch name {
	case "clusters":
		return (*Cluster)(nil).TableHeader()
	case "endpoints":
		return (*Endpoint)(nil).TableHeader()
	case "former":
		return (*Former)(nil).TableHeader()
	case "identities":
		return (*Identity)(nil).TableHeader()
	case "ips":
		return (*IP)(nil).TableHeader()
	case "namespaces":
		return (*Namespace)(nil).TableHeader()
	case "nodes":
		return (*Node)(nil).TableHeader()
	case "paths":
		return (*Path)(nil).TableHeader()
	case "pods":
		return (*Pod)(nil).TableHeader()
	case "policies":
		return (*Policy)(nil).TableHeader()
	case "problems":
		return (*Problem)(nil).TableHeader()
	case "rejected":
		return (*Rejected)(nil).TableHeader()
	case "services":
		return (*Service)(nil).TableHeader()
	case "slices":
		return (*Slice)(nil).TableHeader()
	}
	return nil
}

// Names lists all tables that can be shown.
func (t *Tables) Names() []string {
	var names []string
	for _, s := range t.all() {
		names = append(names, s.name)
	}
	slices.Sort(names)
	return names
}

// status returns a function that says whether a row of a table has reached the kernel.
func (t *Tables) status(txn statedb.ReadTxn, table string) func(key string, rev statedb.Revision) string {
	problems := map[string]*Problem{}
	for p := range t.Problems.All(txn) {
		if p.Table == table {
			problems[p.Row] = p
		}
	}
	var done statedb.Revision
	if p := Get(txn, t.Progress, table); p != nil {
		done = p.Revision
	}
	return func(key string, rev statedb.Revision) string {
		switch p := problems[key]; {
		case p != nil:
			return fmt.Sprintf("error: %s (for %v)", p.Error, time.Since(p.Since).Round(time.Second))
		case rev > done:
			return "pending"
		}
		return "done"
	}
}

// Show lists one table, or returns false if there is none of that name.
func (t *Tables) Show(name string) (Shown, bool) {
	txn := t.DB.ReadTxn()
	for _, s := range t.all() {
		if s.name != name {
			continue
		}
		out := Shown{Columns: t.header(name)}
		status := t.status(txn, name)
		if s.status {
			out.Columns = append(slices.Clone(out.Columns), "Status")
		}
		s.list(txn, func(key string, rev statedb.Revision, _, row []string) {
			if s.status {
				row = append(row, status(key, rev))
			}
			out.Rows = append(out.Rows, row)
		})
		return out, true
	}
	return Shown{}, false
}

// Summaries counts the rows of all tables.
func (t *Tables) Summaries() []Summary {
	txn := t.DB.ReadTxn()
	var out []Summary
	for _, s := range t.all() {
		sum := Summary{Name: s.name}
		status := t.status(txn, s.name)
		s.list(txn, func(key string, rev statedb.Revision, _, _ []string) {
			sum.Rows++
			if !s.status {
				return
			}
			switch text := status(key, rev); {
			case text == "pending":
				sum.Pending++
			case strings.HasPrefix(text, "error"):
				sum.Errors++
			}
		})
		out = append(out, sum)
	}
	return out
}
