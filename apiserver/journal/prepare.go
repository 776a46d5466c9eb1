package journal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

const (
	// commits is how often a commit is tried while others keep changing objects.
	commits = 64
	// decision is how long a commit that was not confirmed is looked into, and how long
	// its server keeps trying to carry it out while no write is made.
	decision = 20 * time.Second
	dropping = 5 * time.Second
)

// draft is a change that is being prepared.
type draft struct {
	wire.Change
	modified int64 // revision of its key
}

// dropped is the value of a draft's key when the change will not be committed.
var dropped = []byte("dropped")

// makeLarge makes a change that takes more than one transaction.
func (j *Journal) makeLarge(ctx context.Context, c Change) (bool, error) {
	d, err := j.prepare(ctx, c)
	if err != nil {
		return false, &NotMade{err}
	}
	done, err := j.commit(ctx, d, c)
	if err != nil || !done {
		return false, err
	}
	made, since := 0, time.Now()
	for {
		err := j.carryOut(ctx, d.ID, func(n int) {
			if n > made {
				since = time.Now()
			}
			made = n
			if c.Progress != nil {
				c.Progress(n, d.Writes)
			}
		})
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, store.ErrUnavailable) || time.Since(since) > decision || pause(ctx, time.Second) != nil {
			return true, &Unfinished{Made: made, Writes: d.Writes, Err: err}
		}
	}
}

// prepare stores the writes in parts. After an error nothing is left, or a draft without
// an owner, which is swept.
//
// Each part is stored together with the draft's key, which makes the request at least as
// large as the step that later makes these writes: what is committed is never too large
// to be carried out.
func (j *Journal) prepare(ctx context.Context, c Change) (*draft, error) {
	id := make([]byte, 16)
	rand.Read(id) // does not fail
	d := &draft{Change: wire.Change{
		Format: wire.ChangeFormat, ID: hex.EncodeToString(id), User: c.User, At: time.Now().UTC().Truncate(time.Second), Writes: len(c.Then),
	}}
	most := j.currentLimit().Bytes
	for rest := c.Then; len(rest) > 0; {
		n := fitting(rest, Limit{len(rest), most - slack})
		part := wire.ChangePartKey(d.ID, d.Parts)
		d.Parts++
		revision, done, err := j.conf.Store.Commit(ctx, store.Txn{
			If:   []store.Cond{{Key: wire.ChangeDraftKey(d.ID), Modified: d.modified}},
			Then: []store.Op{store.Put(part, wire.MarshalWrites(rest[:n])), store.Put(wire.ChangeDraftKey(d.ID), wire.Marshal(d.Change))},
		})
		switch {
		case errors.Is(err, store.ErrTooLarge) && n > 1:
			d.Parts--
			j.learn(Limit{j.currentLimit().Ops, Limit{usual.Ops, most}.smaller().Bytes})
			most = min(j.currentLimit().Bytes, size(rest[:n])/2)
			continue
		case errors.Is(err, store.ErrTooLarge):
			err = tooLarge(rest[0].Key, err)
		case err == nil && !done:
			err = errors.New("what was prepared is gone; preparing it took too long")
		}
		if err != nil {
			j.drop(ctx, d)
			return nil, err
		}
		d.modified = revision
		rest = rest[n:]
	}
	return d, nil
}

// fitting returns how many of the first writes fit into one transaction; at least one.
func fitting(writes []wire.Write, l Limit) int {
	total := 0
	for i := range writes {
		if total += size(writes[i : i+1]); i > 0 && (i+1 > l.Ops || total > l.Bytes) {
			return i
		}
	}
	return len(writes)
}

func size(writes []wire.Write) (n int) {
	for i := range writes {
		n += overhead + writes[i].Size()
	}
	return n
}

// commit decides whether the change is made. If it is not, nothing is left of it.
func (j *Journal) commit(ctx context.Context, d *draft, c Change) (done bool, err error) {
	key, turn := wire.ChangeDraftKey(d.ID), c.Since
	for try := range commits {
		if try > 0 || !turn.known() {
			var holds bool
			if turn, holds, err = j.again(ctx, c); err != nil {
				j.drop(ctx, d)
				return false, &NotMade{err}
			}
			if !holds {
				break
			}
		}
		_, done, err := j.conf.Store.Commit(ctx, store.Txn{
			If:   append(Turn{{Key: key, Modified: d.modified}, {Key: wire.ChangeKey}}, turn...),
			Then: []store.Op{store.Put(wire.ChangeKey, wire.Marshal(d.Change)), store.Put(wire.ChangeTurnKey, []byte(c.User)), store.Delete(key)},
		})
		if err != nil {
			return j.decide(ctx, d, err)
		}
		if done {
			return true, nil
		}
	}
	j.drop(ctx, d)
	return false, nil
}

// again looks up whether the change's conditions hold after a turn, which it returns. A
// change that is committed comes first.
func (j *Journal) again(ctx context.Context, c Change) (turn Turn, holds bool, err error) {
	if _, err := j.settle(ctx); err != nil {
		return nil, false, err
	}
	if turn, err = j.Turn(ctx); err != nil {
		return nil, false, err
	}
	holds, err = j.holds(ctx, c.If)
	return turn, holds, err
}

// holds looks up whether all conditions hold now.
func (j *Journal) holds(ctx context.Context, conds []store.Cond) (bool, error) {
	keys := make([]string, len(conds))
	for i, c := range conds {
		keys[i] = c.Key
	}
	kvs, err := j.conf.Store.GetMany(ctx, keys...)
	if err != nil {
		return false, err
	}
	for i, c := range conds {
		if kvs[i].Modified != c.Modified {
			return false, nil
		}
	}
	return true, nil
}

// drop removes a draft that nobody will commit.
func (j *Journal) drop(ctx context.Context, d *draft) {
	// Also after the caller's patience. If it fails, the draft is swept.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropping)
	defer cancel()
	_, _, _ = j.conf.Store.Commit(ctx, store.Txn{Then: forget(d.ID)})
}

// forget returns the writes that remove a draft.
func forget(id string) []store.Op {
	return []store.Op{store.DeletePrefix(wire.ChangePartsPrefix(id)), store.Delete(wire.ChangeDraftKey(id))}
}

// decide finds out whether a commit was made whose answer got lost. To be sure that it is
// not made later, it spoils the draft: only one of the two transactions can succeed.
func (j *Journal) decide(ctx context.Context, d *draft, lost error) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, decision)
	defer cancel()
	key := wire.ChangeDraftKey(d.ID)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		_, spoilt, err := j.conf.Store.Commit(ctx, store.Txn{
			If:   []store.Cond{{Key: key, Modified: d.modified}},
			Then: []store.Op{store.Put(key, dropped), store.DeletePrefix(wire.ChangePartsPrefix(d.ID))},
		})
		if err == nil && !spoilt {
			// Somebody else's success: the commit's, or an earlier attempt's here whose
			// answer got lost as well.
			var kv store.KV
			if kv, err = j.conf.Store.Get(ctx, key); errors.Is(err, store.ErrNotFound) {
				return true, nil
			}
			spoilt = err == nil && string(kv.Value) == string(dropped)
		}
		if err == nil && spoilt {
			j.drop(ctx, d)
			return false, &NotMade{lost}
		}
		if pause(ctx, wait) != nil {
			return false, fmt.Errorf("commit a change: %w", lost)
		}
	}
}
