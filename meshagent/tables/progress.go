package tables

import (
	"fmt"
	"time"

	"github.com/cilium/statedb"
)

// Progress says how far a table has been written to the kernel: rows up to Revision
// are there, except those with a Problem.
type Progress struct {
	Table    string
	Revision statedb.Revision
	At       time.Time
}

// Key is the table's name.
func (p *Progress) Key() string { return p.Table }

var progress = table[*Progress]{
	name: "progress", hidden: true,
	columns: []string{"Table", "Revision", "At"},
	cells: func(p *Progress) []string {
		return []string{p.Table, fmt.Sprint(p.Revision), stamp(p.At)}
	},
}
