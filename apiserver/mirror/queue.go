package mirror

import (
	"sync"
	"time"

	"github.com/weft-mesh/weft/store"
)

// queue holds the peer's changes that have not been copied yet, one per key: a later
// change replaces an earlier one. Safe for concurrent use.
type queue struct {
	wake chan struct{} // has one element after something was put in

	mu      sync.Mutex // guards what follows
	order   []queued
	changes map[queued]*waiting
	bytes   int // of keys and values
	places  map[string]*place
}

// place is how far a folder was copied.
type place struct {
	open   int   // changes that wait or are being copied
	put    int64 // the revision up to which changes were put in
	copied int64 // the revision up to which all of them were copied
}

type queued struct{ folder, key string }

type waiting struct {
	folder folder
	event  store.Event
	since  time.Time
}

func newQueue() *queue {
	return &queue{wake: make(chan struct{}, 1), changes: map[queued]*waiting{}, places: map[string]*place{}}
}

func size(e store.Event) int { return len(e.Key) + len(e.Value) }

// put adds all changes of a folder up to a revision and returns how much waits now.
func (q *queue) put(f folder, events []store.Event, revision int64, now time.Time) (entries, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	at := q.places[f.name]
	if at == nil {
		at = &place{}
		q.places[f.name] = at
	}
	at.put = max(at.put, revision)
	defer at.settle()
	for _, e := range events {
		k := queued{f.name, e.Key}
		if w, there := q.changes[k]; there {
			q.bytes += size(e) - size(w.event)
			w.event = e
			continue
		}
		at.open++
		q.order = append(q.order, k)
		q.changes[k] = &waiting{f, e, now}
		q.bytes += size(e)
	}
	if len(q.order) > 0 {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	return len(q.order), q.bytes
}

func (p *place) settle() {
	if p.open == 0 {
		p.copied = p.put
	}
}

// done says that n changes of a folder were copied after they were taken.
func (q *queue) done(f folder, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	at := q.places[f.name]
	at.open -= n
	at.settle()
}

// copied returns the revision up to which all changes of a folder were copied; 0 if there
// is none.
func (q *queue) copied(f folder) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if at := q.places[f.name]; at != nil {
		return at.copied
	}
	return 0
}

// heard reports whether anything was put in, be it only that there are no changes.
func (q *queue) heard() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.places) > 0
}

// take removes and returns the oldest changes: of one folder only, at most most of
// them, and beyond the first at most mostBytes. It returns none if the queue is empty.
func (q *queue) take(most, mostBytes int) (f folder, events []store.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	bytes := 0
	for len(q.order) > 0 && len(events) < most {
		w := q.changes[q.order[0]]
		if len(events) > 0 && (w.folder.name != f.name || bytes+size(w.event) > mostBytes) {
			break
		}
		f, events, bytes = w.folder, append(events, w.event), bytes+size(w.event)
		delete(q.changes, q.order[0])
		q.order = q.order[1:]
	}
	q.bytes -= bytes
	return f, events
}

// oldest returns how many changes wait, and since when the oldest has waited.
func (q *queue) oldest() (n int, since time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.order) == 0 {
		return 0, time.Time{}
	}
	return len(q.order), q.changes[q.order[0]].since
}
