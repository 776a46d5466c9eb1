package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// beside is how many writes a step has at most beside those of the change.
const beside = 3

// settle carries out the committed change, if there is one, and reports whether there
// was.
func (j *Journal) settle(ctx context.Context) (carried bool, err error) {
	err = j.carryOut(ctx, "", func(int) { carried = true })
	if err != nil {
		err = fmt.Errorf("an earlier change is committed and must be carried out first: %w", err)
	}
	return carried, err
}

// carryOut carries out the committed change until there is none, or if id is not empty,
// until it is not id's. After each step that anybody made it calls made with the number
// of writes so far.
func (j *Journal) carryOut(ctx context.Context, id string, made func(int)) error {
	select {
	case j.carrying <- struct{}{}:
		defer func() { <-j.carrying }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var part struct {
		key    string
		writes []wire.Write
	}
	var of wire.Change
	most := j.currentLimit()
	for {
		kv, err := j.conf.Store.Get(ctx, wire.ChangeKey)
		if errors.Is(err, store.ErrNotFound) {
			j.confirm(wire.Change{})
			if of.ID != "" {
				made(of.Writes)
			}
			return nil
		}
		if err != nil {
			return err
		}
		c, err := wire.ParseChange(kv.Value)
		if err != nil {
			return fmt.Errorf("read %s: %w", wire.ChangeKey, err)
		}
		j.confirm(c)
		if id != "" && c.ID != id {
			return nil
		}
		of = c
		made(c.Made)
		if key := wire.ChangePartKey(c.ID, c.Part); part.key != key {
			text, err := j.conf.Store.Get(ctx, key)
			if errors.Is(err, store.ErrNotFound) {
				if moved, err := j.moved(ctx, kv.Modified); moved || err != nil {
					if err != nil {
						return err
					}
					continue
				}
			}
			if err == nil {
				part.writes, err = wire.UnmarshalWrites(text.Value)
			}
			if err != nil {
				return fmt.Errorf("read part %d of the change that %s made at %v: %w", c.Part, c.User, c.At, err)
			}
			part.key = key
		}
		n, err := j.step(ctx, kv, c, part.writes, most)
		switch {
		case errors.Is(err, store.ErrTooLarge) && n > 1:
			j.learn(most.smaller())
			most = j.currentLimit()
			most.Ops = min(most.Ops, n/2+beside)
		case err != nil:
			return err
		}
	}
}

// moved reports whether somebody else has made a step since a revision of the committed
// change.
func (j *Journal) moved(ctx context.Context, since int64) (bool, error) {
	kv, err := j.conf.Store.Get(ctx, wire.ChangeKey)
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	return kv.Modified != since, err
}

// step makes the next writes of the committed change at, which is c, and returns how many
// it tried. If somebody else was faster, it makes none.
func (j *Journal) step(ctx context.Context, at store.KV, c wire.Change, part []wire.Write, most Limit) (int, error) {
	if c.Next >= len(part) {
		return 0, fmt.Errorf("part %d of change %s has %d writes, and the next is number %d", c.Part, c.ID, len(part), c.Next)
	}
	n := fitting(part[c.Next:], Limit{most.Ops - beside, most.Bytes - slack})
	writes := part[c.Next : c.Next+n]
	next := advance(c, n, len(part))
	then := ops(writes)
	if finished := next.Part == next.Parts; finished != (next.Made == next.Writes) {
		return 0, fmt.Errorf("change %s has %d writes in %d parts, but its parts have others", c.ID, c.Writes, c.Parts)
	} else if finished {
		// The turn again, for those who have read objects since the commit.
		then = append(then, store.Delete(wire.ChangeKey), store.DeletePrefix(wire.ChangePartsPrefix(c.ID)), store.Put(wire.ChangeTurnKey, []byte(c.User)))
	} else {
		then = append(then, store.Put(wire.ChangeKey, wire.Marshal(next)))
	}
	_, done, err := j.conf.Store.Commit(ctx, store.Txn{If: []store.Cond{{Key: at.Key, Modified: at.Modified}}, Then: then})
	switch {
	case err == nil && done:
		j.unsure = unsure{}
		j.audit(c.User, writes)
	case err != nil && !errors.Is(err, store.ErrTooLarge) && !errors.Is(err, store.ErrFull):
		j.unsure = unsure{c, writes}
	}
	return n, err
}

// advance returns the change after n more writes of its current part, which has size.
func advance(c wire.Change, n, size int) wire.Change {
	c.Made += n
	if c.Next += n; c.Next == size {
		c.Part, c.Next = c.Part+1, 0
	}
	return c
}
