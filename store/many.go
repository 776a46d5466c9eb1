package store

import (
	"context"
	"errors"
	"slices"
)

// By default etcd refuses transactions of more than 128 conditions or operations, or
// over 1.5 MiB. What is combined here stays below that.
const (
	mostOps   = 100
	mostBytes = 1 << 20
)

// Write makes writes unconditionally, in as many transactions as needed. It is for
// writes that may be repeated, not for those that must be atomic.
func Write(ctx context.Context, s Store, ops ...Op) error {
	for len(ops) > 0 {
		n := fitting(ops)
		if _, _, err := s.Commit(ctx, Txn{Then: ops[:n]}); err != nil {
			return err
		}
		ops = ops[n:]
	}
	return nil
}

// WriteFitting is Write, but leaves out what is too large for the store on its own and
// returns it. Finding one such write among n costs about 2 log n transactions.
func WriteFitting(ctx context.Context, s Store, ops ...Op) (tooLarge []Op, err error) {
	for len(ops) > 0 {
		n := fitting(ops)
		left, err := writeHalves(ctx, s, ops[:n])
		if tooLarge = append(tooLarge, left...); err != nil {
			return tooLarge, err
		}
		ops = ops[n:]
	}
	return tooLarge, nil
}

// writeHalves writes in one transaction, and what is too large for that in two halves.
func writeHalves(ctx context.Context, s Store, ops []Op) (tooLarge []Op, err error) {
	_, _, err = s.Commit(ctx, Txn{Then: ops})
	switch {
	case !errors.Is(err, ErrTooLarge):
		return nil, err
	case len(ops) == 1:
		return ops, nil
	}
	first, err := writeHalves(ctx, s, ops[:len(ops)/2])
	if err != nil {
		return first, err
	}
	second, err := writeHalves(ctx, s, ops[len(ops)/2:])
	return slices.Concat(first, second), err
}

// fitting returns how many of the first writes fit into one transaction; at least one.
func fitting(ops []Op) int {
	n, size := min(len(ops), mostOps), 0
	for i := range n {
		if size += ops[i].size(); size > mostBytes && i > 0 {
			return i
		}
	}
	return n
}

func (op *Op) size() int { return len(op.Key) + len(op.Value) }

// Outcome is the result of one transaction of CommitEach: committed at Revision; not
// committed because a condition does not hold (Revision 0); or unknown, if Err is set.
type Outcome struct {
	Revision int64
	Err      error
}

// CommitEach commits each transaction whole or not at all, and as many at once as etcd
// accepts, because each commit costs a write to its disk. A transaction that fails
// does not hold up the others. Those that share a commit have their conditions checked
// together, before any of their writes; two of them may make the same write. If the
// store itself fails, the rest is not tried and gets the same error.
func CommitEach(ctx context.Context, s Store, txns []Txn) []Outcome {
	out := make([]Outcome, len(txns))
	for _, g := range groups(txns) {
		if err := g.commit(ctx, s, txns, out); err != nil {
			for i := range out {
				if out[i].Revision == 0 && out[i].Err == nil && i >= g.members[0] {
					out[i].Err = err
				}
			}
			return out
		}
	}
	return out
}

// group is a set of transactions that are committed together.
type group struct {
	members []int
	whole   Txn
	size    int
	conds   map[string]Cond
	ops     map[string]Op
}

// groups combines neighbours as long as they fit.
func groups(txns []Txn) (all []*group) {
	var g *group
	for i, txn := range txns {
		if g == nil || !g.takes(txn) {
			g = &group{conds: map[string]Cond{}, ops: map[string]Op{}}
			all = append(all, g)
		}
		g.add(i, txn)
	}
	return all
}

// takes reports whether a transaction fits into the group: it is small enough and does
// not contradict the others.
func (g *group) takes(txn Txn) bool {
	conds, ops, size := len(g.whole.If), len(g.whole.Then), g.size
	for _, c := range txn.If {
		if c.Prefix {
			return false
		}
		had, ok := g.conds[c.Key]
		if ok && had != c {
			return false
		}
		if !ok {
			conds, size = conds+1, size+len(c.Key)
		}
	}
	for _, op := range txn.Then {
		if op.Prefix {
			return false
		}
		had, ok := g.ops[op.Key]
		if ok && !had.equal(op) {
			return false
		}
		if !ok {
			ops, size = ops+1, size+op.size()
		}
	}
	return conds <= mostOps && ops <= mostOps && size <= mostBytes && !g.whole.alone()
}

// alone reports whether a transaction concerns a prefix, so that it must be committed
// alone.
func (t *Txn) alone() bool {
	return slices.ContainsFunc(t.If, func(c Cond) bool { return c.Prefix }) || slices.ContainsFunc(t.Then, func(o Op) bool { return o.Prefix })
}

func (op *Op) equal(other Op) bool {
	return op.Key == other.Key && string(op.Value) == string(other.Value) && op.Lease == other.Lease && op.Delete == other.Delete && op.Prefix == other.Prefix
}

func (g *group) add(i int, txn Txn) {
	g.members = append(g.members, i)
	for _, c := range txn.If {
		if _, ok := g.conds[c.Key]; !ok {
			g.conds[c.Key] = c
			g.whole.If = append(g.whole.If, c)
			g.size += len(c.Key)
		}
	}
	for _, op := range txn.Then {
		if _, ok := g.ops[op.Key]; !ok {
			g.ops[op.Key] = op
			g.whole.Then = append(g.whole.Then, op)
			g.size += op.size()
		}
	}
}

// commit commits the group. If a condition fails, it looks up which members' conditions
// do not hold and commits the others without them. It returns only errors of the store
// itself.
func (g *group) commit(ctx context.Context, s Store, txns []Txn, out []Outcome) error {
	revision, done, err := s.Commit(ctx, g.whole)
	switch {
	case err == nil && done:
		for _, i := range g.members {
			out[i].Revision = revision
		}
		return nil
	case err == nil && len(g.members) == 1:
		return nil
	case err == nil:
		return g.without(ctx, s, txns, out)
	case !errors.Is(err, ErrTooLarge):
		return err
	case len(g.members) == 1:
		out[g.members[0]].Err = err
		return nil
	}
	return single(ctx, s, txns, g.members, out)
}

// without commits the members of a group whose conditions hold.
func (g *group) without(ctx context.Context, s Store, txns []Txn, out []Outcome) error {
	rest := &group{conds: map[string]Cond{}, ops: map[string]Op{}}
	seen := map[string]int64{}
	for _, i := range g.members {
		holds, err := holds(ctx, s, txns[i].If, seen)
		if err != nil {
			return err
		}
		if holds {
			rest.add(i, txns[i])
		}
	}
	switch len(rest.members) {
	case 0:
		return nil
	case len(g.members): // the keys changed back in between
		return single(ctx, s, txns, g.members, out)
	}
	return rest.commit(ctx, s, txns, out)
}

// single commits the members one by one.
func single(ctx context.Context, s Store, txns []Txn, members []int, out []Outcome) error {
	for _, i := range members {
		g := &group{conds: map[string]Cond{}, ops: map[string]Op{}}
		g.add(i, txns[i])
		if err := g.commit(ctx, s, txns, out); err != nil {
			return err
		}
	}
	return nil
}

// holds looks up whether conditions on single keys hold now. seen caches the revisions
// of the keys looked up so far.
func holds(ctx context.Context, s Store, conds []Cond, seen map[string]int64) (bool, error) {
	for _, c := range conds {
		modified, ok := seen[c.Key]
		if !ok {
			kv, err := s.Get(ctx, c.Key)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return false, err
			}
			modified = kv.Modified
			seen[c.Key] = modified
		}
		if modified != c.Modified {
			return false, nil
		}
	}
	return true, nil
}
