package identities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// CollectorConfig says how patient a Collector is.
type CollectorConfig struct {
	// Grace is how long a number must have been seen unused before it is
	// freed. It must exceed the time for which anything, such as a peer's last
	// known state, may still use the number. The collector keeps the time in
	// memory, so a restart starts it again.
	Grace time.Duration
	// Every is the pause between two collections of Run. A number is freed
	// Grace to Grace + 2 × Every after its last use.
	Every time.Duration
	// InUse returns numbers that must stay although no owner is recorded, as a
	// second opinion. If it fails, nothing is freed. May be nil.
	InUse func(ctx context.Context) (map[identity.Number]bool, error)
	Log   *slog.Logger // nil: silent
}

// DefaultCollectorConfig looks every minute and frees a number 15 minutes after its
// last use.
func DefaultCollectorConfig() CollectorConfig {
	return CollectorConfig{Grace: 15 * time.Minute, Every: time.Minute}
}

// Collector frees numbers that no one uses.
//
//	taken ──no owner──► marked ──Grace, still marked──► freed
//	  ▲                   │
//	  └──── an owner ─────┘
//
// Both steps are transactions that fail if an owner has appeared in the meantime:
// Acquire removes the mark and adds the owner in one transaction. Several collectors
// may work on one store; a single one is not safe for concurrent use.
type Collector struct {
	alloc *Allocator
	cfg   CollectorConfig
	seen  map[identity.Number]sighting
}

// sighting is when this collector first saw a mark.
type sighting struct {
	revision int64
	since    time.Time
}

// NewCollector returns a collector that frees numbers of the allocator's range only.
func NewCollector(a *Allocator, cfg CollectorConfig) *Collector {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Collector{alloc: a, cfg: cfg, seen: map[identity.Number]sighting{}}
}

// Run collects until ctx ends. A collection that fails is logged and tried again
// next time.
func (c *Collector) Run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Every)
	defer tick.Stop()
	for {
		freed, err := c.Collect(ctx)
		switch {
		case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		case err != nil:
			c.cfg.Log.Warn("cannot collect unused identities; will try again", "in", c.cfg.Every, "error", err)
		case len(freed) > 0:
			c.cfg.Log.Info("freed unused identities", "count", len(freed))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// holding is what the store says about one number.
type holding struct {
	id, value, mark store.KV
	owned           bool
}

// Collect does one round: it marks unused numbers and frees those that have been
// marked for Grace. It returns the freed numbers.
func (c *Collector) Collect(ctx context.Context) (freed []identity.Number, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("collect unused identities: %w", err)
		}
	}()
	kvs, _, err := c.alloc.store.List(ctx, wire.IdentitiesPrefix)
	if err != nil {
		return nil, err
	}
	inUse := map[identity.Number]bool{}
	if c.cfg.InUse != nil {
		if inUse, err = c.cfg.InUse(ctx); err != nil {
			return nil, err
		}
	}
	now, seen := time.Now(), map[identity.Number]sighting{}
	for n, h := range c.holdings(kvs) {
		done, err := c.judge(ctx, n, h, inUse[n], now, seen)
		if err != nil {
			return freed, fmt.Errorf("identity %d: %w", n, err)
		}
		if done {
			freed = append(freed, n)
		}
	}
	c.seen = seen
	return freed, nil
}

// holdings groups the keys by number.
func (c *Collector) holdings(kvs []store.KV) map[identity.Number]holding {
	out := map[identity.Number]holding{}
	edit := func(n identity.Number, ok bool, f func(*holding)) {
		if !ok || !c.alloc.inRange(n) {
			return
		}
		h := out[n]
		f(&h)
		out[n] = h
	}
	owned := map[string]bool{} // by labels
	for _, kv := range kvs {
		if text, owner, ok := wire.ParseIdentityTextKey(kv.Key); ok {
			if owner != "" {
				owned[text] = true
				continue
			}
			n, err := wire.ParseNumberText(kv.Value)
			edit(n, err == nil, func(h *holding) { h.value = kv })
		} else if n, ok := wire.ParseIdentityIDKey(kv.Key); ok {
			edit(n, true, func(h *holding) { h.id = kv })
		} else {
			n, ok := wire.ParseIdentityUnusedKey(kv.Key)
			edit(n, ok, func(h *holding) { h.mark = kv })
		}
	}
	for n, h := range out {
		h.owned = owned[h.labels()]
		out[n] = h
	}
	return out
}

// labels returns the labels in text form, from whichever half of the pair exists.
func (h holding) labels() string {
	if h.id.Key != "" {
		return string(h.id.Value)
	}
	text, _, _ := wire.ParseIdentityTextKey(h.value.Key)
	return text
}

// judge moves one number at most one step.
func (c *Collector) judge(ctx context.Context, n identity.Number, h holding, inUse bool, now time.Time, seen map[identity.Number]sighting) (freed bool, err error) {
	commit := func(txn store.Txn) (done bool, err error) {
		_, done, err = c.alloc.store.Commit(ctx, txn)
		return done, err
	}
	unchanged := []store.Cond{
		{Key: wire.IdentityIDKey(n), Modified: h.id.Modified},
		{Key: wire.IdentityUnusedKey(n), Modified: h.mark.Modified},
	}
	text := h.labels()
	if text == "" || h.owned || inUse {
		var then []store.Op
		if h.mark.Key != "" {
			then = append(then, store.Delete(wire.IdentityUnusedKey(n)))
		}
		if text != "" && h.id.Key == "" { // someone deleted it by hand
			then = append(then, store.Put(wire.IdentityIDKey(n), []byte(text)))
		}
		if len(then) > 0 {
			_, err = commit(store.Txn{If: unchanged, Then: then})
		}
		return false, err
	}
	unchanged = append(unchanged, store.Cond{Key: wire.IdentityOwnersPrefix(text), Prefix: true})
	if h.mark.Key == "" {
		_, err = commit(store.Txn{If: unchanged, Then: []store.Op{store.Put(wire.IdentityUnusedKey(n), []byte(text))}})
		return false, err
	}
	first := c.seen[n]
	if first.revision != h.mark.Modified {
		first = sighting{revision: h.mark.Modified, since: now}
	}
	seen[n] = first
	if now.Sub(first.since) < c.cfg.Grace {
		return false, nil
	}
	then := []store.Op{store.Delete(wire.IdentityIDKey(n)), store.Delete(wire.IdentityUnusedKey(n))}
	if h.value.Key == wire.IdentityTextKey(text) { // else these labels have another number
		unchanged = append(unchanged, store.Cond{Key: h.value.Key, Modified: h.value.Modified})
		then = append(then, store.Delete(h.value.Key))
	}
	return commit(store.Txn{If: unchanged, Then: then})
}
