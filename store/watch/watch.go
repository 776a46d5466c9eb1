// Package watch follows the changes under a prefix of an etcd, and notices when the
// etcd falls silent or goes back in time.
//
// What a key means, and how the keys of a prefix are listed, is up to the caller.
package watch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/wire"
)

// Reasons for which a watch ends without an error from the store. The caller has to
// list again.
var (
	// ErrSilent: there was no sign of life. The connection may be gone or the
	// store stuck.
	ErrSilent = errors.New("the store does not answer")
	// ErrWentBack: what was seen is no longer part of the store's history. The
	// store was restored from an older copy and lost everything after it.
	ErrWentBack = errors.New("the store went back in time")
	// ErrReconnected: there is a new connection, and the store does not say
	// whether it still has the same history.
	ErrReconnected = errors.New("reconnected to a store that does not say whether it was restored")
)

const (
	// unansweredLimit is how many requests for a sign of life may go unanswered.
	unansweredLimit = 3
	// lineageAttempts bounds how often the lineage is read, or a list repeated,
	// while connections come and go.
	lineageAttempts = 10
)

// Client is the part of an etcd client that is needed here.
type Client interface {
	Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error)
	// Watch opens a watch that lasts until ctx ends.
	Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan
	// RequestProgress asks for an empty response on every watch that was opened
	// with the same outgoing metadata as ctx.
	RequestProgress(ctx context.Context) error
}

// Point is a place in the history of a store.
type Point struct {
	Revision int64
	// Start is the ID of the store's start during which Revision was seen, or ""
	// if the store does not say.
	Start string
	// Connection is how many connections the client had made by then.
	Connection uint64
}

// Elsewhere returns the point for another client of the same store. A watch there first
// makes sure that the store still has it in its history.
func (p Point) Elsewhere() Point {
	p.Connection = 0
	return p
}

// Store is an etcd to follow.
type Store struct {
	Client Client
	// Link counts Client's connections.
	Link *Link
	// Lineage is the key of the store's wire.Lineage. If it is absent or may not
	// be read, every new connection ends the watch with ErrReconnected.
	Lineage string
	// Interval is the pause between two requests for a sign of life.
	Interval time.Duration

	mu    sync.Mutex // guards asked
	asked time.Time  // when a sign of life was last requested
}

// List calls list to read something and returns the point at which it was read; list
// returns the revision. It calls list again if the client reconnects in the meantime,
// because pages from two histories do not fit together.
func (s *Store) List(ctx context.Context, list func() (revision int64, err error)) (Point, error) {
	for attempt := 1; ; attempt++ {
		lineage, count, err := s.lineage(ctx)
		if err != nil {
			return Point{}, err
		}
		revision, err := list()
		now, _ := s.Link.now()
		switch {
		case now != count && attempt < lineageAttempts && ctx.Err() == nil:
			continue
		case err != nil:
			return Point{}, err
		case now != count:
			return Point{}, ErrReconnected
		}
		return Point{Revision: revision, Start: lineage.Last(), Connection: count}, nil
	}
}

// Watch calls each, in order, with the changes under prefix after a point and the
// revision up to which they are complete; a call without events is a sign of life.
// Changes that arrive while each is busy are combined into one call, so a slow reader
// catches up after a burst. Watch returns nil if the client closed the watch, and
// otherwise why it ended: the error of ctx, of each or of the store, ErrWentBack,
// ErrReconnected, or ErrSilent, which takes four to eight times Interval.
//
// The client resumes a watch by itself, on a new connection, from the revision it
// expects next. If the store was restored from an older copy, changes before that
// revision would be missed, and nothing would say what the copy lacks. So responses on
// a new connection are dropped, and the watch starts again from what was handed on,
// once it is clear that the store still has that in its history.
func (s *Store) Watch(ctx context.Context, prefix string, after Point, each func(revision int64, events []*clientv3.Event) error) error {
	for {
		at, err := s.still(ctx, after)
		if err != nil {
			return err
		}
		if after, err = s.follow(ctx, prefix, at, each); !errors.Is(err, errMoved) {
			return err
		}
	}
}

// errMoved: the client has reconnected since the watch began.
var errMoved = errors.New("reconnected")

// follow is Watch until the next new connection; it returns the point it reached.
//
// A broken connection looks like a quiet store, so it asks for a sign of life at
// every interval. etcd gives none to a watch that begins at a future revision, so the
// watch begins at the revision of at itself, and events the caller already has are
// dropped.
func (s *Store) follow(ctx context.Context, prefix string, at Point, each func(revision int64, events []*clientv3.Event) error) (Point, error) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	begin := at.Revision
	changes, gathered := make(chan clientv3.WatchResponse), make(chan struct{})
	defer func() { cancel(); <-gathered }()
	go func() {
		defer close(gathered)
		gather(ctx, s.Client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(begin), clientv3.WithProgressNotify()), changes)
	}()
	tick := time.NewTicker(s.Interval)
	defer tick.Stop()
	unanswered, heard := 0, begin
	for {
		now, moved := s.Link.now()
		if now != at.Connection {
			return at, errMoved
		}
		select {
		case resp, open := <-changes:
			if now, _ := s.Link.now(); now != at.Connection {
				return at, errMoved
			}
			if !open {
				return at, ctx.Err()
			}
			if err := resp.Err(); err != nil {
				return at, err
			}
			revision := resp.Header.Revision
			if revision < heard {
				return at, fmt.Errorf("%w: from revision %d to %d", ErrWentBack, heard, revision)
			}
			unanswered, heard = 0, revision
			events := since(resp.Events, begin)
			if err := each(revision, events); err != nil {
				return at, err
			}
			// While a watch is catching up, its header names a later revision
			// than its events.
			if n := len(resp.Events); n > 0 {
				revision = resp.Events[n-1].Kv.ModRevision
			}
			at.Revision = max(at.Revision, revision)
		case <-moved:
			return at, errMoved
		case <-tick.C:
			if unanswered++; unanswered > unansweredLimit {
				return at, ErrSilent
			}
			if err := s.ask(ctx); err != nil {
				return at, err
			}
		case <-ctx.Done():
			return at, ctx.Err()
		}
	}
}

// gather forwards responses until in or ctx ends, and combines those that arrive
// before the reader takes them.
func gather(ctx context.Context, in clientv3.WatchChan, out chan<- clientv3.WatchResponse) {
	defer close(out)
	var waiting []clientv3.WatchResponse
	for {
		var next clientv3.WatchResponse
		var ready chan<- clientv3.WatchResponse
		if len(waiting) > 0 {
			next, ready = waiting[0], out
		} else if in == nil {
			return
		}
		select {
		case resp, open := <-in:
			if !open {
				in = nil
				continue
			}
			last := len(waiting) - 1
			if last < 0 || waiting[last].Err() != nil || resp.Err() != nil {
				waiting = append(waiting, resp)
				continue
			}
			waiting[last].Header = resp.Header
			waiting[last].Events = append(waiting[last].Events, resp.Events...)
		case ready <- next:
			waiting = waiting[1:]
		case <-ctx.Done():
			return
		}
	}
}

// still returns the same point for the current connection, or an error if the store
// no longer has it in its history.
func (s *Store) still(ctx context.Context, at Point) (Point, error) {
	if now, _ := s.Link.now(); now == at.Connection {
		return at, nil
	}
	lineage, count, err := s.lineage(ctx)
	switch {
	case err != nil:
		return at, err
	case at.Start == "" || lineage.Last() == "":
		return at, ErrReconnected
	case !lineage.Holds(at.Start, at.Revision):
		return at, fmt.Errorf("%w: revision %d is no longer part of it", ErrWentBack, at.Revision)
	}
	at.Start, at.Connection = lineage.Last(), count
	return at, nil
}

// lineage returns the store's lineage and the count of connections for which it
// holds. It is read once per connection.
func (s *Store) lineage(ctx context.Context) (wire.Lineage, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, unansweredLimit*s.Interval)
	defer cancel()
	for range lineageAttempts {
		lineage, count, ok := s.Link.known()
		if ok {
			return lineage, count, nil
		}
		resp, err := s.Client.Get(ctx, s.Lineage)
		lineage = wire.Lineage{}
		switch {
		case errors.Is(err, rpctypes.ErrPermissionDenied):
			// The store does not say.
		case errors.Is(err, rpctypes.ErrAuthOldRevision):
			continue // users changed in between, so the request was refused
		case err != nil:
			return lineage, 0, fmt.Errorf("read %s: %w", s.Lineage, err)
		case len(resp.Kvs) > 0:
			// A lineage that cannot be parsed counts as none.
			lineage, _ = wire.Unmarshal[wire.Lineage](resp.Kvs[0].Value)
		}
		if s.Link.keep(lineage, count) {
			return lineage, count, nil
		}
	}
	return wire.Lineage{}, 0, ErrReconnected
}

// ask requests a sign of life, unless another watch has just done so: the client passes
// each answer to all watches, so if all of them asked, their cost would grow with the
// square of their number. The client blocks while it has no connection; that counts as
// unanswered, not as an error.
func (s *Store) ask(ctx context.Context) error {
	if !s.myTurn(time.Now()) {
		return nil
	}
	asking, enough := context.WithTimeout(ctx, s.Interval)
	defer enough()
	err := s.Client.RequestProgress(asking)
	if asking.Err() != nil {
		return ctx.Err()
	}
	return err
}

// myTurn reports whether to ask now. The ticks of a lone watch are an Interval apart, unless
// one came late.
func (s *Store) myTurn(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.asked) < s.Interval*3/4 {
		return false
	}
	s.asked = now
	return true
}

// since drops the leading events up to a revision.
func since(events []*clientv3.Event, after int64) []*clientv3.Event {
	for len(events) > 0 && events[0].Kv.ModRevision <= after {
		events = events[1:]
	}
	return events
}
