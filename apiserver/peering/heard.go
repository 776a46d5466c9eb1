package peering

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/weft-mesh/weft/apiserver/store"
	"github.com/weft-mesh/weft/wire"
)

// heardTurn is how exactly it is remembered when peers were heard: one write for
// all of them. A peer that was never heard before is remembered after heardFirst.
const (
	heardTurn  = time.Minute
	heardFirst = 5 * time.Second
)

// recallHeard reads when peers were heard before this API server started.
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
		p.conf.Log.Warn("it is not known when peers were last heard", "err", err)
		return nil // only an age depends on it
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

// rememberHeard writes down when peers were heard, until ctx ends.
func (p *Peering) rememberHeard(ctx context.Context) error {
	return store.Persist(ctx, p.conf.Log, "remembering when peers were heard", func(ctx context.Context) error {
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

// recalled is when peers were heard, as the store has it.
func (p *Peering) recalled() map[string]time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.heard)
}

// heardDue says whether when peers were heard is to be written again.
func heardDue(wrote, heard map[string]time.Time, since time.Duration) bool {
	same := func(time.Time, time.Time) bool { return true }
	return !maps.EqualFunc(wrote, heard, same) || since >= heardTurn && !maps.EqualFunc(wrote, heard, time.Time.Equal)
}

// heardNow is when each peer was last heard.
func (p *Peering) heardNow() map[string]time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	heard := map[string]time.Time{}
	for name, r := range p.mirrors {
		if at := r.mirror.Heard(); !at.IsZero() {
			heard[name] = at.UTC().Truncate(time.Second)
		}
	}
	return heard
}
