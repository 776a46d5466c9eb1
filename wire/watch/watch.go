// Package watch follows what changes under a prefix of an etcd, and notices
// when the etcd falls silent.
//
// What a key means, and listing before and after, is the caller's business.
package watch

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrSilent: there was no sign of life; the connection may be gone, or the
// store stuck. The caller lists again.
var ErrSilent = errors.New("no sign of life from the store")

// unansweredLimit is how many requests for a sign of life may stay unanswered.
const unansweredLimit = 3

// Watcher is what is needed of an etcd client.
type Watcher interface {
	// Watch opens a watch that lasts until ctx ends.
	Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan
	// RequestProgress asks for an empty response on every watch of ctx's kind.
	RequestProgress(ctx context.Context) error
}

// Prefix calls each, in order, with what changed under prefix after a revision,
// and with the revision that this is current to; without events it is a sign of
// life. What arrives while each is busy comes in one call: whoever falls behind
// in a burst catches up in one go. It returns nil if the client closed the watch, and otherwise why it ended:
// ctx, each, the store, or ErrSilent, which takes four to eight times the
// interval.
//
// A broken connection is otherwise indistinguishable from a quiet store, so at
// every interval it asks for a sign of life. etcd gives none to a watch that
// begins in the future: it begins at the revision itself, and what the caller has
// already is dropped.
func Prefix(ctx context.Context, w Watcher, prefix string, after int64, interval time.Duration, each func(revision int64, events []*clientv3.Event) error) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	changes := make(chan clientv3.WatchResponse)
	gathered := make(chan struct{})
	defer func() { cancel(); <-gathered }()
	go func() {
		defer close(gathered)
		gather(ctx, w.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(after), clientv3.WithProgressNotify()), changes)
	}()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	unanswered := 0
	for {
		select {
		case resp, open := <-changes:
			if !open {
				return ctx.Err()
			}
			if err := resp.Err(); err != nil {
				return err
			}
			unanswered = 0
			if err := each(resp.Header.Revision, since(resp.Events, after)); err != nil {
				return err
			}
		case <-tick.C:
			if unanswered++; unanswered > unansweredLimit {
				return ErrSilent
			}
			if err := ask(ctx, w, interval); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
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

// ask requests a sign of life. While its connection is away, the client keeps
// who asks waiting: that is no answer, and no error either.
func ask(ctx context.Context, w Watcher, patience time.Duration) error {
	asking, enough := context.WithTimeout(ctx, patience)
	defer enough()
	err := w.RequestProgress(asking)
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
