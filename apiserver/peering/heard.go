package peering

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// When peers were last heard is written every heardTurn, in one write for all of them.
// A peer heard for the first time is written after heardFirst.
const (
	heardTurn  = time.Minute
	heardFirst = 5 * time.Second
)

// recallHeard reads when peers were last heard before this API server started.
func (p *Peering) recallHeard(ctx context.Context) error {
	kv, err := p.conf.Store.Get(ctx, wire.HeardKey)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	heard, err := wire.Unmarshal[wire.Heard](kv.Value)
	if err != nil {
		p.conf.Log.Warn("cannot read when peers were last heard; their data age starts again", "err", err)
		return nil // only the age in the status depends on it
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, at := range heard.Peers {
		if _, known := p.heard[name]; !known {
			p.heard[name] = at
		}
	}
	return nil
}

// rememberHeard saves when peers were last heard, until ctx ends.
func (p *Peering) rememberHeard(ctx context.Context) error {
	return store.Persist(ctx, p.conf.Log, "saving when peers were last heard", func(ctx context.Context) error {
		var wrote map[string]time.Time
		var last time.Time
		tick := time.NewTicker(heardFirst)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			case <-p.halted:
			}
			if wrote == nil {
				wrote = p.recalled()
			}
			heard := p.heardNow()
			if !heardDue(wrote, heard, time.Since(last)) {
				continue
			}
			op := store.Put(wire.HeardKey, wire.Marshal(wire.Heard{Peers: heard}))
			if len(heard) == 0 {
				op = store.Delete(wire.HeardKey)
			}
			if err := store.Write(ctx, p.conf.Store, op); err != nil {
				return err
			}
			wrote, last = heard, time.Now()
		}
	})
}

// recalled returns when peers were last heard according to the store.
func (p *Peering) recalled() map[string]time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.heard)
}

// heardDue reports whether heard has to be written, given what was written last and
// how long ago.
func heardDue(wrote, heard map[string]time.Time, since time.Duration) bool {
	same := func(time.Time, time.Time) bool { return true }
	return !maps.EqualFunc(wrote, heard, same) || since >= heardTurn && !maps.EqualFunc(wrote, heard, time.Time.Equal)
}

// heardNow returns when each peer was last heard.
func (p *Peering) heardNow() map[string]time.Time {
	heard := map[string]time.Time{}
	for _, r := range p.working() {
		if at := r.mirror.Heard(); !at.IsZero() {
			heard[r.mirror.Peer().Name] = at.UTC().Truncate(time.Second)
		}
	}
	return heard
}
