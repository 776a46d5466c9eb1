// Package export turns a cluster's own state into what its peers may read: Cilium's
// entries under cilium/state/, and what goes beyond them under weft/export/.
//
// The state was checked before it was written. The store decides who may read the
// export, and each peer decides what of it to believe.
package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/apiserver/store"
	"github.com/weft-mesh/weft/wire"
)

// Config of an Exporter.
type Config struct {
	Store   store.Store
	Cluster wire.Cluster
	Log     *slog.Logger
	// Heartbeat is the pause between two heartbeats; 0 means a minute, as Cilium's
	// readers expect.
	Heartbeat time.Duration
}

// Exporter keeps the export equal to the state. Several API servers of a cluster may
// run one: they write the same.
type Exporter struct {
	conf Config
	kept *store.Kept

	mu     sync.Mutex // guards what follows
	status Status
}

// Status is the state of the export.
type Status struct {
	// Synced is when everything was first written after the start; zero until
	// then.
	Synced time.Time
	// Entries counts keys by resource; "weft" stands for those beyond Cilium's.
	Entries map[string]int
	// Problems say why something could not be exported, by key of the state, or of
	// the export if only that key could not be written.
	Problems map[string]string
}

// New makes an Exporter.
func New(c Config) *Exporter {
	if c.Heartbeat == 0 {
		c.Heartbeat = time.Minute
	}
	return &Exporter{conf: c, kept: store.NewKept(c.Store, c.Log)}
}

// Status returns a copy of the current status. Safe for concurrent use.
func (e *Exporter) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.status
	s.Entries, s.Problems = maps.Clone(s.Entries), maps.Clone(s.Problems)
	return s
}

// Run exports until ctx ends, retrying when the store fails; then it returns nil. What
// is exported stays.
func (e *Exporter) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return store.Persist(ctx, e.conf.Log, "heartbeat", e.beat) })
	g.Go(func() error { return store.Persist(ctx, e.conf.Log, "export", e.follow) })
	name := e.conf.Cluster.Name
	g.Go(func() error {
		return e.kept.Run(ctx, wire.CiliumStatePrefix, wire.ExportPrefix, wire.ClusterConfigKey(name), wire.SyncedPrefix(name), wire.HeartbeatKey)
	})
	return g.Wait()
}

// beat writes the heartbeat, which shows readers that the export is kept current.
func (e *Exporter) beat(ctx context.Context) error {
	tick := time.NewTicker(e.conf.Heartbeat)
	defer tick.Stop()
	for {
		if err := e.put(ctx, store.Put(wire.HeartbeatKey, wire.TimeText(time.Now()))); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// put writes keys, and restores them if they vanish.
func (e *Exporter) put(ctx context.Context, ops ...store.Op) error {
	e.kept.Note(ops...)
	return store.Write(ctx, e.conf.Store, ops...)
}

// follow exports the state, and compares with what is exported at each complete batch.
// It deletes nothing before the state is complete, and writes the canaries only after
// everything else.
func (e *Exporter) follow(ctx context.Context) error {
	var have map[string][]byte
	views := newViews(e.conf.Cluster)
	return store.Follow(ctx, e.conf.Store, wire.StatePrefix, func(b store.Batch) error {
		if b.Complete {
			views = newViews(e.conf.Cluster)
			var err error
			if have, err = e.exported(ctx); err != nil {
				return fmt.Errorf("read what is exported: %w", err)
			}
		}
		dirty := views.apply(b.Events)
		var ops []store.Op
		if b.Complete {
			all := views.all()
			e.keep(have, all, views.keeps)
			ops = difference(have, all, views.keeps)
		} else {
			ops = changes(have, views, dirty)
		}
		if err := e.write(ctx, have, ops); err != nil {
			return err
		}
		if b.Complete {
			if err := e.put(ctx, e.canaries()...); err != nil {
				return err
			}
		}
		e.report(have, views, b.Complete)
		return nil
	})
}

// keep marks everything exported to be restored if it vanishes, including what was
// there before.
func (e *Exporter) keep(have, all map[string][]byte, keeps func(key string) bool) {
	for key, value := range all {
		e.kept.Note(store.Put(key, value))
	}
	for key, value := range have {
		if _, made := all[key]; !made && keeps(key) {
			e.kept.Note(store.Put(key, value))
		}
	}
}

// exported reads everything that an Exporter has written, by key.
func (e *Exporter) exported(ctx context.Context) (map[string][]byte, error) {
	have := map[string][]byte{}
	name := e.conf.Cluster.Name
	prefixes := []string{wire.ExportPrefix}
	for _, r := range wire.Resources {
		prefixes = append(prefixes, r.StatePrefix(name))
	}
	for _, p := range prefixes {
		kvs, _, err := e.conf.Store.List(ctx, p)
		if err != nil {
			return nil, err
		}
		for _, kv := range kvs {
			if kv.Key != wire.ExportLineageKey { // written by the API server
				have[kv.Key] = kv.Value
			}
		}
	}
	kv, err := e.conf.Store.Get(ctx, wire.ClusterConfigKey(name))
	if err == nil {
		have[kv.Key] = kv.Value
	} else if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	return have, nil
}

// write makes the writes and remembers them. A value that is too large for the store
// is left out and reported, so that it does not hold up the others.
func (e *Exporter) write(ctx context.Context, have map[string][]byte, ops []store.Op) error {
	err := e.put(ctx, ops...)
	if errors.Is(err, store.ErrTooLarge) {
		err = nil
		kept := ops[:0:0]
		for _, op := range ops {
			switch werr := store.Write(ctx, e.conf.Store, op); {
			case errors.Is(werr, store.ErrTooLarge):
				e.problem(op.Key, fmt.Sprintf("its entry has %d bytes, more than the store accepts", len(op.Value)))
			case werr != nil:
				return werr
			default:
				kept = append(kept, op)
			}
		}
		ops = kept
	}
	if err != nil {
		return err
	}
	for _, op := range ops {
		if op.Delete {
			delete(have, op.Key)
		} else {
			have[op.Key] = op.Value
		}
	}
	return nil
}

func (e *Exporter) canaries() []store.Op {
	now := wire.TimeText(time.Now())
	ops := make([]store.Op, 0, len(wire.Canaries))
	for _, r := range wire.Canaries {
		ops = append(ops, store.Put(r.StateSyncedKey(e.conf.Cluster.Name), now))
	}
	return ops
}

func (e *Exporter) problem(key, sentence string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.status.Problems == nil {
		e.status.Problems = map[string]string{}
	}
	e.status.Problems[key] = sentence
	e.conf.Log.Warn("not exported", "key", key, "problem", sentence)
}

func (e *Exporter) report(have map[string][]byte, v *views, complete bool) {
	counts := map[string]int{}
	for key := range have {
		counts[resourceOf(key)]++
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status.Entries = counts
	if complete && e.status.Synced.IsZero() {
		e.status.Synced = time.Now()
	}
	for key := range e.status.Problems {
		if !strings.HasPrefix(key, wire.StatePrefix) {
			continue // reported by write; it goes once the key is written
		}
		if _, still := v.problems[key]; !still {
			delete(e.status.Problems, key)
		}
	}
	for key := range e.status.Problems {
		if _, written := have[key]; written {
			delete(e.status.Problems, key)
		}
	}
	for key, sentence := range v.problems {
		if e.status.Problems == nil {
			e.status.Problems = map[string]string{}
		}
		if e.status.Problems[key] != sentence {
			e.status.Problems[key] = sentence
			e.conf.Log.Warn("not exported", "key", key, "problem", sentence)
		}
	}
}

func resourceOf(key string) string {
	rest, ok := strings.CutPrefix(key, wire.CiliumStatePrefix)
	if !ok {
		return "weft"
	}
	r, _, _ := strings.Cut(rest, "/")
	return r
}

// difference returns the writes that turn have into want. Puts come before deletions,
// so that a renamed entry is never missing under both names. keeps exempts keys from
// deletion.
func difference(have, want map[string][]byte, keeps func(key string) bool) []store.Op {
	var ops []store.Op
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if old, ok := have[key]; !ok || !bytes.Equal(old, want[key]) {
			ops = append(ops, store.Put(key, want[key]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[key]; !ok && !keeps(key) {
			ops = append(ops, store.Delete(key))
		}
	}
	return ops
}

// changes is difference for the keys of dirty views.
func changes(have map[string][]byte, v *views, dirty map[view]bool) []store.Op {
	touched := map[string][]byte{}
	before := map[string][]byte{}
	for key := range v.refresh(dirty) {
		if value, ok := v.value(key); ok {
			touched[key] = value
		}
		if old, ok := have[key]; ok {
			before[key] = old
		}
	}
	return difference(before, touched, v.keeps)
}
