// Package watch follows what changes under a prefix of an etcd, and notices when
// the etcd falls silent or goes back in time.
//
// What a key means, and how the keys of a prefix are listed, is the caller's
// business.
package watch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/wire"
)

// Why a watch ended although its store is there. The caller lists again.
var (
	// ErrSilent: there was no sign of life; the connection may be gone, or the
	// store stuck.
	ErrSilent = errors.New("no sign of life from the store")
	// ErrWentBack: what was seen is no longer part of the store's history. It was
	// restored from an older copy, and what came after that copy is gone.
	ErrWentBack = errors.New("the store went back in time")
	// ErrReconnected: the connection was made again, and the store does not say
	// whether it is still what it was.
	ErrReconnected = errors.New("reconnected to a store that does not say whether it was restored")
)

const (
	// unansweredLimit is how many requests for a sign of life may stay unanswered.
	unansweredLimit = 3
	// lineageAttempts bounds how often the lineage is read, or a list made, while
	// connections come and go.
	lineageAttempts = 10
)

// Client is what is needed of an etcd client.
type Client interface {
	Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error)
	// Watch opens a watch that lasts until ctx ends.
	Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan
	// RequestProgress asks for an empty response on every watch of ctx's kind.
	RequestProgress(ctx context.Context) error
}

// Point is a place in the history of a store: a revision, and in which of its
// histories it was seen.
type Point struct {
	Revision int64
	// Start is the last start of the store by then, "" if it does not say.
	Start string
	// Connection counts those of the client.
	Connection uint64
}

// Store is an etcd to follow.
type Store struct {
	Client Client
	// Link counts Client's connections.
	Link *Link
	// Lineage is the key of the store's wire.Lineage. A store that has none, or
	// does not let us read it, is listed again after each new connection.
	Lineage string
	// Interval is the pause between two requests for a sign of life.
	Interval time.Duration
}

// List has list read something, and says as of which point; list returns the
// revision. It is repeated if the connection changes meanwhile: pages of two
// histories do not fit together.
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

// Watch calls each, in order, with what changed under prefix after a point, and
// with the revision that this is current to; without events it is a sign of life.
// What arrives while each is busy comes in one call: whoever falls behind in a
// burst catches up in one go. It returns nil if the client closed the watch, and
// otherwise why it ended: ctx, each, the store, ErrWentBack or ErrReconnected, or
// ErrSilent, which takes four to eight times the interval.
//
// The client resumes a watch by itself, on a new connection and at the revision
// that it expects next. In a store that was restored from an older copy, what
// happens before that revision would be missed, and what the copy lacks never
// told. So what comes after a new connection was made is dropped, and once it is
// clear that the store still holds what was handed on, the watch begins again there.
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

// errMoved: a connection was made since the watch began.
var errMoved = errors.New("connected again")

// follow is Watch until there is a new connection, and returns the point that it
// came to.
//
// A broken connection is otherwise indistinguishable from a quiet store, so at
// every interval it asks for a sign of life. etcd gives none to a watch that
// begins in the future: it begins at the revision itself, and what the caller has
// already is dropped.
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
			// A watch that catches up is behind the revision that it names.
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

// gather passes responses on until in or ctx ends, and puts those together that
// arrive before the reader takes them.
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

// still is the same point as of the present connection, if the store still holds
// it.
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

// lineage is that of the store on the present connections, whose count it
// returns. It is read once for each of them.
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
			// Nothing is known of it.
		case errors.Is(err, rpctypes.ErrAuthOldRevision):
			continue // users were changed meanwhile; it was not answered
		case err != nil:
			return lineage, 0, fmt.Errorf("read %s: %w", s.Lineage, err)
		case len(resp.Kvs) > 0:
			// What cannot be read says nothing either.
			lineage, _ = wire.Unmarshal[wire.Lineage](resp.Kvs[0].Value)
		}
		if s.Link.keep(lineage, count) {
			return lineage, count, nil
		}
	}
	return wire.Lineage{}, 0, ErrReconnected
}

// ask requests a sign of life. While its connection is away, the client keeps
// who asks waiting: that is no answer, and no error either.
func (s *Store) ask(ctx context.Context) error {
	asking, enough := context.WithTimeout(ctx, s.Interval)
	defer enough()
	err := s.Client.RequestProgress(asking)
	if asking.Err() != nil {
		return ctx.Err()
	}
	return err
}

// since drops events up to a revision, which are at the beginning.
func since(events []*clientv3.Event, after int64) []*clientv3.Event {
	for len(events) > 0 && events[0].Kv.ModRevision <= after {
		events = events[1:]
	}
	return events
}
