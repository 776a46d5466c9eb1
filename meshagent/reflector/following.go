package reflector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// following is a reflector that runs.
//
// A restored store has old copies of what peers export, until its API server has read the
// peers again. They lack what came since and still have what went, and nobody withdrew or
// added any of it. So whatever a list says about a peer whose copy is not complete, what is
// known stays, and everything is listed again once the copy is complete.
type following struct {
	*Reflector
	known *known
	// current is up to which revision known was read. While peers are doubted, it does not go
	// back: what is kept of them is from before.
	current int64
	// doubted are the peers whose copies were not complete when they were listed.
	doubted map[string]bool
	// due is set once one of them is complete.
	due           bool
	listed, asked time.Time
}

// errCompleted: the store now has a complete copy of a peer that was doubted.
var errCompleted = errors.New("the copy of a peer is complete; reading all of it again")

const (
	// askPause is the least time between two looks at whether copies are complete.
	askPause = time.Second
	// relistPause is the least time between two lists while peers are still doubted:
	// they may become complete one by one.
	relistPause = 10 * time.Second
)

// take applies a batch, and brings known up to it. It returns errCompleted when it is time
// to list again.
func (f *following) take(ctx context.Context, b store.Batch) error {
	if errors.Is(b.Cause, store.ErrWentBack) {
		f.cfg.Log.Warn("the store was restored from an older copy; read all of it again", "prefix", f.cfg.Prefix, "error", b.Cause)
	}
	if err := f.waitForOthers(ctx, b.Events); err != nil {
		return err
	}
	events := b.Events
	if b.Complete {
		if err := f.doubt(ctx, f.known.peers(), b.Revision); err != nil {
			return err
		}
		f.listed, f.due = time.Now(), false
		events = f.known.sweep(b.Events, f.keeps)
	} else {
		for _, e := range events {
			if e.Deleted {
				f.known.drop(e.Key)
			} else {
				f.known.put(e.Key, versionOf(e.KV))
			}
		}
	}
	if len(events) > 0 {
		f.cfg.Apply(events)
	}
	if len(f.doubted) > 0 {
		f.current = max(f.current, b.Revision)
	} else {
		f.current = b.Revision
	}
	f.update(func(s *State) {
		s.Synced, s.Connected, s.Error, s.Heard, s.Revision, s.Keys = true, true, "", time.Now(), b.Revision, f.known.count
		s.Denied = false
	})
	f.once.Do(func() { close(f.synced) })
	return f.lookAgain(ctx, b)
}

// waitForOthers waits until what was written before these events is applied by those who
// come before.
func (f *following) waitForOthers(ctx context.Context, events []store.Event) error {
	if len(f.cfg.After) == 0 || len(events) == 0 {
		return nil
	}
	last := slices.MaxFunc(events, func(a, b store.Event) int { return cmp.Compare(a.Modified, b.Modified) }).Modified
	for _, r := range f.cfg.After {
		if err := r.reach(ctx, last-1); err != nil {
			return err
		}
	}
	return nil
}

// doubt finds out whose copies are not complete as of a revision.
func (f *following) doubt(ctx context.Context, peers []string, revision int64) error {
	var some []string
	if f.cfg.Incomplete != nil && len(peers) > 0 {
		var err error
		if some, err = f.cfg.Incomplete(ctx, peers, revision); err != nil {
			return fmt.Errorf("find out whether the copies of peers are complete: %w", err)
		}
	}
	f.asked, f.doubted = time.Now(), make(map[string]bool, len(some))
	for _, peer := range some {
		f.doubted[peer] = true
	}
	return nil
}

// keeps reports whether what is known of a key stays although a list has it as of another
// revision, or with 0, lacks it. What was written after all that is known is news, whether
// the store went back or not.
func (f *following) keeps(key string, revision int64) bool {
	return len(f.doubted) > 0 && revision <= f.current && f.doubted[wire.CopiedFrom(key)]
}

// lookAgain returns errCompleted if copies that were doubted are complete now. It looks
// whenever the store has said something, at the latest when it gives a sign of life.
func (f *following) lookAgain(ctx context.Context, b store.Batch) error {
	before := len(f.doubted)
	if b.Complete || before == 0 || time.Since(f.asked) < askPause {
		return nil
	}
	if err := f.doubt(ctx, slices.Sorted(maps.Keys(f.doubted)), b.Revision); err != nil {
		return err
	}
	f.due = f.due || len(f.doubted) < before
	if f.due && (len(f.doubted) == 0 || time.Since(f.listed) >= relistPause) {
		return errCompleted
	}
	return nil
}
