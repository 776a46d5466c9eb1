package program

import (
	"fmt"

	"github.com/weft-mesh/weft/bpf"
)

// revisions notes what has changed in the kernel and then raises its revisions, so that
// exactly the flows whose verdicts rest on it are judged again. See bpf.RevisionOf.
type revisions struct {
	table bpf.Table[uint32, uint32]
	// have is at least what the kernel holds: a failed write may have raised some rows.
	have map[uint32]uint32
	// due are the rows to raise. all says that every flow has to be judged again
	// instead, by Settings.Revision.
	due map[uint32]bool
	all bool
}

// newRevisions begins with everything due: an earlier agent may have ended between
// changing a row and raising its revision.
func newRevisions(table bpf.Table[uint32, uint32]) (*revisions, error) {
	r := &revisions{table: table, have: map[uint32]uint32{}, due: map[uint32]bool{}, all: true}
	rows, failed := table.All()
	for i, n := range rows {
		r.have[i] = n
	}
	if err := failed(); err != nil {
		return nil, fmt.Errorf("read map %s: %w", table.Name(), err)
	}
	return r, nil
}

// address notes that who has an address, where it is, or what it is a backend of has
// changed.
func (r *revisions) address(a bpf.Addr) { r.due[bpf.RevisionOf(a)] = true }

// prefix notes that the row of a prefix has changed.
func (r *revisions) prefix(k bpf.PrefixKey) {
	rows, ok := bpf.RevisionsOf(k)
	if !ok {
		r.all = true
		return
	}
	for i := range rows {
		r.due[i] = true
	}
}

// identity notes that the class of an identity has changed.
func (r *revisions) identity(n uint32) { r.due[bpf.RevisionOfIdentity(n)] = true }

func (r *revisions) pending() bool { return r.all || len(r.due) > 0 }

// raise raises what is due, after the rows themselves have been written.
func (r *revisions) raise() error {
	if len(r.due) == 0 {
		return nil
	}
	rows := make(map[uint32]uint32, len(r.due))
	for i := range r.due {
		r.have[i]++
		rows[i] = r.have[i]
	}
	if err := r.table.UpdateBatch(rows); err != nil {
		return err
	}
	r.due = map[uint32]bool{} // a map that has been large stays so
	return nil
}

// raise makes the flows that rest on what has changed be judged again.
func (p *Program) raise() error {
	if !p.revisions.all {
		return p.revisions.raise()
	}
	want := p.settings
	want.Revision = nextRevision(want.Revision)
	if err := p.cfg.Maps.Settings.Update(0, want); err != nil {
		return err
	}
	p.settings, p.revisions.all = want, false
	p.revisions.due = map[uint32]bool{}
	return nil
}

// nextRevision skips 0, which means that nothing has been written yet.
func nextRevision(n uint32) uint32 {
	if n++; n == 0 {
		n = 1
	}
	return n
}
