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

	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Config of an Exporter.
type Config struct {
	// State is what is exported, Store where it is written.
	State   *state.Cache
	Store   store.Store
	Cluster wire.Cluster
	Log     *slog.Logger
	// Heartbeat is the pause between two heartbeats; 0 means a minute, as Cilium's
	// readers expect.
	Heartbeat time.Duration
}

// Exporter keeps the export equal to the state. Run it once only.
type Exporter struct {
	conf    Config
	kept    *store.Kept
	changed chan struct{} // has one element when problems may have changed

	mu      sync.Mutex // guards what follows
	synced  time.Time
	entries map[string]int
	// problems are those of keys of the state, tooLarge those of keys of the export.
	problems, tooLarge map[string]string
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
	return &Exporter{conf: c, kept: store.NewKept(c.Store, c.Log), changed: make(chan struct{}, 1), problems: map[string]string{}, tooLarge: map[string]string{}}
}

// Status returns a copy of the current status. Safe for concurrent use.
func (e *Exporter) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := Status{Synced: e.synced, Entries: maps.Clone(e.entries), Problems: maps.Clone(e.problems)}
	maps.Copy(s.Problems, e.tooLarge)
	return s
}

// Changed implements problems.Source.
func (e *Exporter) Changed() <-chan struct{} { return e.changed }

// Problems implements problems.Source.
func (e *Exporter) Problems() (problems.Rows, bool) {
	s := e.Status()
	rows := problems.Rows{}
	for key, problem := range s.Problems {
		rows[wire.NotExportedKey(key)] = []byte(problem)
	}
	return rows, !s.Synced.IsZero()
}

// Run exports until ctx ends, retrying when the store fails; then it returns nil. What
// is exported stays.
func (e *Exporter) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return store.Persist(ctx, e.conf.Log, "heartbeat", e.beat) })
	g.Go(func() error { return store.Persist(ctx, e.conf.Log, "export", e.export) })
	g.Go(func() error {
		return e.kept.Run(ctx, wire.CiliumStatePrefix, wire.ExportPrefix, wire.ClusterConfigKey(e.conf.Cluster.Name), wire.HeartbeatKey)
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

// export runs follow, and again whenever a canary is gone: a restored store may lack more
// than that.
func (e *Exporter) export(ctx context.Context) error {
	for {
		err := e.untilLowered(ctx)
		if !errors.Is(err, errLowered) {
			return err
		}
		e.conf.Log.Warn("canaries were missing from the store; comparing the whole export again")
	}
}

// untilLowered runs follow until a canary that it has raised is gone; then it returns
// errLowered.
func (e *Exporter) untilLowered(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	raised := make(chan struct{})
	g.Go(func() error { return e.follow(ctx, sync.OnceFunc(func() { close(raised) })) })
	g.Go(func() error {
		select {
		case <-raised:
			return e.watchCanaries(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return g.Wait()
}

// errLowered: a canary that was raised is gone.
var errLowered = errors.New("a canary is gone")

// watchCanaries returns errLowered once a canary is gone. Unlike other keys it is not
// restored alone, because it says that all of them are there.
func (e *Exporter) watchCanaries(ctx context.Context) error {
	return store.Follow(ctx, e.conf.Store, wire.SyncedPrefix(e.conf.Cluster.Name), func(b store.Batch) error {
		there := map[string]bool{}
		for _, ev := range b.Events {
			there[ev.Key] = !ev.Deleted
		}
		for _, r := range wire.Resources {
			if is, named := there[r.StateSyncedKey(e.conf.Cluster.Name)]; !is && (named || b.Complete) {
				return errLowered
			}
		}
		return nil
	})
}

// follow exports the state, and compares with what is exported at each complete batch.
// It calls raised each time the canaries are written.
func (e *Exporter) follow(ctx context.Context, raised func()) error {
	g, ctx := errgroup.WithContext(ctx)
	batches := make(chan state.Batch)
	g.Go(func() error {
		return e.conf.State.Follow(ctx, func(b state.Batch) error {
			select {
			case batches <- b:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	g.Go(func() error {
		var have content
		var views *views
		var pace pace
		for {
			var err error
			select {
			case <-ctx.Done():
				return ctx.Err()
			case b := <-batches:
				if !b.Complete {
					err = e.refresh(ctx, have, views, pace, pace.hold(views.apply(b.Events), time.Now()))
					break
				}
				views, pace = newViews(e.conf.Cluster), newPace()
				views.apply(b.Events)
				have, err = e.compare(ctx, views, raised)
			case <-pace.next():
				err = e.refresh(ctx, have, views, pace, pace.due(time.Now()))
			}
			if err != nil {
				return err
			}
		}
	})
	return g.Wait()
}

// compare makes the export equal to the views, whatever it was. It deletes nothing before
// the state is complete, and writes the canaries only after everything else.
func (e *Exporter) compare(ctx context.Context, views *views, raised func()) (content, error) {
	have, err := e.exported(ctx)
	if err != nil {
		return have, fmt.Errorf("read what is exported: %w", err)
	}
	all := views.all()
	e.keep(have.values, all, views.keeps)
	tooLarge, err := e.write(ctx, have, difference(have.values, all, views.keeps))
	if err != nil {
		return have, err
	}
	if err := store.Write(ctx, e.conf.Store, e.canaries()...); err != nil {
		return have, err
	}
	raised()
	e.reportAll(have, views, tooLarge)
	return have, nil
}

// refresh rebuilds dirty views and writes what changes by that.
func (e *Exporter) refresh(ctx context.Context, have content, views *views, pace pace, d dirty) error {
	touched := views.refresh(d)
	tooLarge, err := e.write(ctx, have, changes(have.values, views, touched))
	if err != nil {
		return err
	}
	for of := range d {
		if of.kind == ofService {
			pace.written(of, len(views.made[of][wire.ServiceStateKey(e.conf.Cluster.Name, of.ns, of.name)]), time.Now())
		}
	}
	e.report(have, views.takeChanged(), touched, views.problems, tooLarge)
	return nil
}

// content is what is exported, with the number of its keys by resource.
type content struct {
	values map[string][]byte
	counts map[string]int
}

func (c content) put(key string, value []byte) {
	if _, there := c.values[key]; !there {
		c.counts[resourceOf(key)]++
	}
	c.values[key] = value
}

func (c content) delete(key string) {
	if _, there := c.values[key]; !there {
		return
	}
	delete(c.values, key)
	if r := resourceOf(key); c.counts[r] == 1 {
		delete(c.counts, r)
	} else {
		c.counts[r]--
	}
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

// exported reads everything that an Exporter has written.
func (e *Exporter) exported(ctx context.Context) (content, error) {
	have := content{map[string][]byte{}, map[string]int{}}
	name := e.conf.Cluster.Name
	prefixes := []string{wire.ExportPrefix}
	for _, r := range wire.Resources {
		prefixes = append(prefixes, r.StatePrefix(name))
	}
	for _, p := range prefixes {
		kvs, _, err := e.conf.Store.List(ctx, p)
		if err != nil {
			return have, err
		}
		for _, kv := range kvs {
			if kv.Key != wire.ExportLineageKey { // written by the API server
				have.put(kv.Key, kv.Value)
			}
		}
	}
	kv, err := e.conf.Store.Get(ctx, wire.ClusterConfigKey(name))
	if err == nil {
		have.put(kv.Key, kv.Value)
	} else if !errors.Is(err, store.ErrNotFound) {
		return have, err
	}
	return have, nil
}

// write makes the writes and remembers them. A value that is too large for the store
// is left out and returned as a problem, so that it does not hold up the others.
func (e *Exporter) write(ctx context.Context, have content, ops []store.Op) (tooLarge map[string]string, err error) {
	e.kept.Note(ops...)
	left, err := store.WriteFitting(ctx, e.conf.Store, ops...)
	if err != nil {
		return nil, err
	}
	tooLarge = map[string]string{}
	for _, op := range left {
		tooLarge[op.Key] = fmt.Sprintf("its entry has %d bytes, more than the store accepts", len(op.Value))
	}
	for _, op := range ops {
		switch {
		case tooLarge[op.Key] != "":
		case op.Delete:
			have.delete(op.Key)
		default:
			have.put(op.Key, op.Value)
		}
	}
	return tooLarge, nil
}

func (e *Exporter) canaries() []store.Op {
	now := wire.TimeText(time.Now())
	ops := make([]store.Op, 0, len(wire.Resources))
	for _, r := range wire.Resources {
		ops = append(ops, store.Put(r.StateSyncedKey(e.conf.Cluster.Name), now))
	}
	return ops
}

// report updates the status after a change: changed are the keys of the state whose
// problems may have changed, and touched the keys of the export that were looked at.
func (e *Exporter) report(have content, changed, touched map[string]bool, problems, tooLarge map[string]string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.entries = maps.Clone(have.counts)
	for key := range changed {
		e.noteLocked(e.problems, key, problems[key])
	}
	for key := range touched {
		e.noteLocked(e.tooLarge, key, tooLarge[key])
	}
}

// reportAll sets the whole status after everything was derived again.
func (e *Exporter) reportAll(have content, v *views, tooLarge map[string]string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.entries = maps.Clone(have.counts)
	if e.synced.IsZero() {
		e.synced = time.Now()
	}
	v.takeChanged()
	for of, now := range map[*map[string]string]map[string]string{&e.problems: v.problems, &e.tooLarge: tooLarge} {
		for key, sentence := range now {
			e.noteLocked(*of, key, sentence)
		}
		maps.DeleteFunc(*of, func(key, _ string) bool { return now[key] == "" })
	}
	e.tell()
}

func (e *Exporter) tell() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// noteLocked records a problem, and logs it if it is new; "" means that there is none.
func (e *Exporter) noteLocked(in map[string]string, key, sentence string) {
	if in[key] == sentence {
		return
	}
	e.tell()
	if sentence == "" {
		delete(in, key)
		return
	}
	in[key] = sentence
	e.conf.Log.Warn("not exported", "key", key, "problem", sentence)
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

// changes is difference for the keys that were touched.
func changes(have map[string][]byte, v *views, touched map[string]bool) []store.Op {
	before, after := map[string][]byte{}, map[string][]byte{}
	for key := range touched {
		if value, ok := v.value(key); ok {
			after[key] = value
		}
		if old, ok := have[key]; ok {
			before[key] = old
		}
	}
	return difference(before, after, v.keeps)
}
