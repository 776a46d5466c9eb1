package tables

import (
	"time"

	"github.com/weft-mesh/weft/wire"
)

// Former is a removed peer: its CIDRs stay blocked until an operator forgets it.
type Former struct{ wire.Former }

// Key is the former peer's name.
func (f *Former) Key() string { return f.Name }

var former = table[*Former]{
	name: "former", imported: true, written: true,
	columns: []string{"Peer", "PodCIDRs", "Removed", "Blocked"},
	cells: func(f *Former) []string {
		return []string{f.Name, prefixes(f.PodCIDRs), f.Removed.UTC().Format(time.RFC3339), yes(f.Forgotten.IsZero())}
	},
}
