package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
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
	InUse func(ctx context.Context) (map[Number]bool, error)
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
	seen  map[Number]sighting
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
	return &Collector{alloc: a, cfg: cfg, seen: map[Number]sighting{}}
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
	id, value, mark Row
	owned           bool
}

// Collect does one round: it marks unused numbers and frees those that have been
// marked for Grace. It returns the freed numbers.
func (c *Collector) Collect(ctx context.Context) (freed []Number, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("collect unused identities: %w", err)
		}
	}()
	rows, err := c.alloc.store.List(ctx, Prefix)
	if err != nil {
		return nil, err
	}
	inUse := map[Number]bool{}
	if c.cfg.InUse != nil {
		if inUse, err = c.cfg.InUse(ctx); err != nil {
			return nil, err
		}
	}
	now, seen := time.Now(), map[Number]sighting{}
	for n, h := range c.holdings(rows) {
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

// holdings groups the rows by number.
func (c *Collector) holdings(rows []Row) map[Number]holding {
	out := map[Number]holding{}
	edit := func(n Number, err error, f func(*holding)) {
		if err != nil || !c.alloc.inRange(n) {
			return
		}
		h := out[n]
		f(&h)
		out[n] = h
	}
	owned := map[string]bool{} // by labels
	for _, row := range rows {
		switch text, _, isRef := splitReference(row.Key); {
		case isRef:
			owned[text] = true
		case text != "":
			n, err := parseDecimal(string(row.Value), "")
			edit(n, err, func(h *holding) { h.value = row })
		case strings.HasPrefix(row.Key, prefixID):
			n, err := parseDecimal(row.Key, prefixID)
			edit(n, err, func(h *holding) { h.id = row })
		case strings.HasPrefix(row.Key, prefixUnused):
			n, err := parseDecimal(row.Key, prefixUnused)
			edit(n, err, func(h *holding) { h.mark = row })
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
	return strings.TrimPrefix(h.value.Key, prefixValue)
}

// judge moves one number at most one step.
func (c *Collector) judge(ctx context.Context, n Number, h holding, inUse bool, now time.Time, seen map[Number]sighting) (freed bool, err error) {
	commit := func(txn Txn) (bool, error) { return c.alloc.store.Commit(ctx, txn) }
	unchanged := []Condition{
		{Key: IDKey(n), Revision: h.id.Revision},
		{Key: unusedKey(n), Revision: h.mark.Revision},
	}
	text := h.labels()
	if text == "" || h.owned || inUse {
		var then []Change
		if h.mark.Key != "" {
			then = append(then, Change{Key: unusedKey(n), Delete: true})
		}
		if text != "" && h.id.Key == "" { // someone deleted it by hand
			then = append(then, Change{Key: IDKey(n), Value: []byte(text)})
		}
		if len(then) > 0 {
			_, err = commit(Txn{If: unchanged, Then: then})
		}
		return false, err
	}
	unchanged = append(unchanged, Condition{Key: referencePrefix(text), Prefix: true})
	if h.mark.Key == "" {
		_, err = commit(Txn{If: unchanged, Then: []Change{{Key: unusedKey(n), Value: []byte(text)}}})
		return false, err
	}
	first := c.seen[n]
	if first.revision != h.mark.Revision {
		first = sighting{revision: h.mark.Revision, since: now}
	}
	seen[n] = first
	if now.Sub(first.since) < c.cfg.Grace {
		return false, nil
	}
	then := []Change{{Key: IDKey(n), Delete: true}, {Key: unusedKey(n), Delete: true}}
	if h.value.Key == valueKey(text) { // else these labels have another number
		unchanged = append(unchanged, Condition{Key: h.value.Key, Revision: h.value.Revision})
		then = append(then, Change{Key: h.value.Key, Delete: true})
	}
	return commit(Txn{If: unchanged, Then: then})
}
