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
}

type queued struct{ folder, key string }

type waiting struct {
	folder folder
	event  store.Event
	since  time.Time
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1), changes: map[queued]*waiting{}} }

func size(e store.Event) int { return len(e.Key) + len(e.Value) }

// put adds changes and returns how much waits now.
func (q *queue) put(f folder, events []store.Event, now time.Time) (entries, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range events {
		k := queued{f.name, e.Key}
		if w, there := q.changes[k]; there {
			q.bytes += size(e) - size(w.event)
			w.event = e
			continue
		}
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
