package program

import (
	"fmt"
	"iter"

	"github.com/cilium/statedb"

	"github.com/weft-mesh/weft/meshagent/tables"
)

// feed returns what has changed in a table since the last call. It is not safe for
// concurrent use.
type feed[P any] struct{ changes statedb.ChangeIterator[P] }

// follow opens a feed that starts with all existing rows.
func follow[P any](db *statedb.DB, t statedb.RWTable[P]) (feed[P], error) {
	txn := db.WriteTxn(t)
	defer txn.Commit()
	changes, err := t.Changes(txn)
	if err != nil {
		return feed[P]{}, fmt.Errorf("follow table %s: %w", t.Name(), err)
	}
	return feed[P]{changes}, nil
}

// take returns the rows written or deleted up to a snapshot, each once and in its
// state in that snapshot.
func (f feed[P]) take(txn statedb.ReadTxn) []statedb.Change[P] {
	var out []statedb.Change[P]
	seq, _ := f.changes.Next(txn)
	for c := range seq {
		out = append(out, c)
	}
	return out
}

// skip discards the changes up to a snapshot that was read in full.
func (f feed[P]) skip(txn statedb.ReadTxn) {
	seq, _ := f.changes.Next(txn)
	for range seq {
	}
}

// close lets the table release the rows deleted from it.
func (f feed[P]) close() { f.changes.Close() }

// ipFeed returns which addresses have changed in table ips since the last call. It is not
// safe for concurrent use.
type ipFeed struct {
	feed[*tables.IPBlock]
	seen map[string]*tables.IPBlock // as of the last call, by key
}

func followIPs(t *tables.Tables) (*ipFeed, error) {
	blocks, err := follow(t.DB, t.IPs)
	return &ipFeed{blocks, map[string]*tables.IPBlock{}}, err
}

// take yields who has an address, or no longer has it, each once and as of a snapshot. Take
// them all. It returns false if nothing was written; of what was, nothing may differ.
func (f *ipFeed) take(txn statedb.ReadTxn) (changes iter.Seq2[tables.IP, bool], some bool) {
	blocks := f.feed.take(txn)
	return func(yield func(ip tables.IP, gone bool) bool) {
		for _, c := range blocks {
			before, now := f.see(c)
			for ip, gone := range now.Since(before) {
				if !yield(ip, gone) {
					return
				}
			}
		}
	}, len(blocks) > 0
}

// see replaces what was seen of a block, nil if it has no addresses.
func (f *ipFeed) see(c statedb.Change[*tables.IPBlock]) (before, now *tables.IPBlock) {
	key := c.Object.Key()
	before = f.seen[key]
	if c.Deleted {
		delete(f.seen, key)
		return before, nil
	}
	f.seen[key] = c.Object
	return before, c.Object
}

// skip discards the changes up to a snapshot that was read in full.
func (f *ipFeed) skip(txn statedb.ReadTxn) {
	for _, c := range f.feed.take(txn) {
		f.see(c)
	}
}

// judgeRows applies the policies and identities that have changed, the identities of
// these clusters, and this node's pods. It looks at no other identity.
func (p *Program) judgeRows(v *view, clusters map[string]bool, r *report) (changed int) {
	p.learnSubjects(v)
	if !p.revise(v, r) {
		return p.judge(v, r)
	}
	failed := false // then the rest is left to the next pass, which looks at all
	one := func(row *tables.Identity, deleted bool) {
		if failed {
			return
		}
		n, err := 0, error(nil)
		r.row("identities", row.Key())
		switch {
		case !deleted && v.vouchedFor(row):
			n, err = p.policies.know(row.Number, row.Labels)
		case v.nobodys(row.Number):
			n, err = p.policies.unlearn(row.Number)
		}
		if err == nil && n > 0 {
			err = p.relabel(row.Number)
		}
		if err != nil {
			failed = true
			r.fail("identities", row.Key(), err)
		}
		changed += n
	}
	for _, c := range p.identities.take(v.txn) {
		one(c.Object, c.Deleted)
	}
	for name := range clusters {
		for row := range tables.OfCluster(v.txn, v.tables.Identities, name) {
			one(row, false)
		}
	}
	if !failed && p.unplaced(v) {
		return changed + p.judge(v, r)
	}
	return changed
}
