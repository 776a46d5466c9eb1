package tables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/google/go-cmp/cmp"
)

// Every field is a table, opened from its description under the field's name.
func TestEveryTableIsDescribed(t *testing.T) {
	all := New()
	var names []string
	fields := reflect.ValueOf(all).Elem()
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Name
		if name == "DB" || !fields.Type().Field(i).IsExported() {
			continue
		}
		table, ok := fields.Field(i).Interface().(statedb.TableMeta)
		if !ok {
			t.Errorf("%s is not opened", name)
			continue
		}
		if names = append(names, table.Name()); table.Name() != strings.ToLower(name) {
			t.Errorf("%s is opened as table %s", name, table.Name())
		}
	}
	slices.Sort(names)
	var opened []string
	for _, o := range all.all {
		if opened = append(opened, o.name); len(o.columns) == 0 {
			t.Errorf("table %s has no columns", o.name)
		}
	}
	if diff := cmp.Diff(names, opened); diff != "" {
		t.Errorf("fields and tables differ:\n%s", diff)
	}
	if shown, ok := all.Show("progress"); ok || slices.Contains(all.Names(), "progress") {
		t.Errorf("the table of progress is shown: %v", shown)
	}
	if _, ok := all.Show("nothing"); ok {
		t.Error("a table that does not exist is shown")
	}
}

// Counting looks only at what is pending or has a problem; showing looks at every row.
func TestRowsAreCountedAsTheyAreShown(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		all := New()
		for range 30 {
			ip := &IP{Cluster: "east", Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.IntN(8))}), 32)}
			txn := all.DB.WriteTxn(all.IPs, all.Problems, all.Progress)
			switch rnd.IntN(5) {
			case 0, 1:
				PutIP(txn, all, ip)
			case 2:
				DropIP(txn, all, ip.Cluster, ip.Prefix)
			case 3:
				problem := &Problem{Table: "ips", Row: ip.Key(), Error: "table is full", Since: time.Now()}
				if rnd.IntN(2) == 0 {
					Put(txn, all.Problems, problem)
				} else {
					Drop(txn, all.Problems, problem)
				}
				Put(txn, all.Problems, &Problem{Table: "nodes", Row: ip.Key(), Error: "of another table"})
			case 4:
				rev, ok := all.WrittenRevision(txn, "ips")
				if !ok {
					t.Fatal("ips has no revision")
				}
				Put(txn, all.Progress, &Progress{Table: "ips", Revision: rev, At: time.Now()})
			}
			txn.Commit()
		}
		want := Summary{Name: "ips"}
		shown, _ := all.Show("ips")
		for _, row := range shown.Rows {
			want.Rows++
			switch status := row[len(row)-1]; {
			case status == "pending":
				want.Pending++
			case strings.HasPrefix(status, "error: table is full (for "):
				want.Errors++
			case status != "done":
				t.Fatalf("status %q", status)
			}
			if len(row) != len(shown.Columns) {
				t.Fatalf("%d cells in %d columns", len(row), len(shown.Columns))
			}
		}
		summaries := all.Summaries()
		got := summaries[slices.IndexFunc(summaries, func(s Summary) bool { return s.Name == "ips" })]
		if got != want {
			t.Fatalf("seed %d: counted %+v, shown %+v", seed, got, want)
		}
	}
}

// What a scrape costs does not grow with rows of which nothing is to be said.
func TestCountingDoesNotGrow(t *testing.T) {
	cost := func(rows int) float64 {
		all := New()
		txn := all.DB.WriteTxn(all.IPs, all.Namespaces, all.Progress)
		for i := range rows {
			PutIP(txn, all, &IP{Cluster: "east", Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)})
			Put(txn, all.Namespaces, &Namespace{Name: fmt.Sprint(i)})
		}
		rev, _ := all.WrittenRevision(txn, "ips")
		Put(txn, all.Progress, &Progress{Table: "ips", Revision: rev})
		txn.Commit()
		return testing.AllocsPerRun(10, func() { all.Summaries() })
	}
	if few, many := cost(10), cost(5000); many > few+10 {
		t.Errorf("%.0f allocations with 10 rows, %.0f with 5,000", few, many)
	}
}
