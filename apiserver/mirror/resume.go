package mirror

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// When only the link broke, the next session goes on where the last one left off, so that
// it costs what changed meanwhile and not all that the peer exports. The peer's lineage
// says whether its store still has that place in its history; if not, or if anything else
// is in doubt, everything is listed again.

// followed is a folder that is followed, and the place after which.
type followed struct {
	folder folder
	at     store.Point
}

// leftOff returns from where a session can go on; nil if it has to list everything.
func (m *Mirror) leftOff(config wire.ClusterConfig) []followed {
	m.mu.Lock()
	defer m.mu.Unlock()
	from := m.reached
	m.reached = nil
	if !m.known || string(wire.Marshal(config)) != m.agreed {
		return nil
	}
	return from
}

// leave notes from where the next session can go on, given why this one has ended. One that
// went on itself and heard nothing is followed by one that lists: watches may be what fails.
func (m *Mirror) leave(config wire.ClusterConfig, all []followed, resumed bool, q *queue, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrSilent),
		!m.known, len(m.held) > 0, resumed && !q.heard():
		return
	case m.conf.Peer.Cilium:
		return // its entries expire with their writer and come back; only a list tells the two apart from one
	}
	from := make([]followed, len(all))
	for i, f := range all {
		if f.at.Start == "" {
			return // nothing proves what its history is
		}
		f.at.Revision = max(f.at.Revision, q.copied(f.folder))
		f.at = f.at.Elsewhere()
		from[i] = f
	}
	m.reached, m.agreed = from, string(wire.Marshal(config))
}

// Revival tells the mirrors of an API server that a link which had been up is back:
// whatever broke it has probably broken theirs too, so they try again at once. Otherwise
// each would wait out its own pause, and all of them together the longest. The zero value
// is ready for use; safe for concurrent use.
type Revival struct {
	mu   sync.Mutex // guards what follows
	last time.Time
	next chan struct{} // closed at the next revival; nil: nobody waits
}

const (
	// revivalTurn is the least time between two revivals.
	revivalTurn = 5 * time.Second
	// revivalSpread is the time over which mirrors spread their attempts after one.
	revivalSpread = 100 * time.Millisecond
	// revivalAge is the age from which an unanswered attempt is given up for another one.
	// The kernel repeats what is younger within a second itself.
	revivalAge = time.Second
)

// errRevived: another link is back, so this attempt was given up for the next.
var errRevived = errors.New("another peer's link is back")

// tell announces a revival, unless there has just been one.
func (r *Revival) tell(now time.Time) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.last) < revivalTurn {
		return
	}
	if r.last = now; r.next != nil {
		close(r.next)
		r.next = nil
	}
}

// wait returns a channel that is closed at the next revival.
func (r *Revival) wait() <-chan struct{} {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		r.next = make(chan struct{})
	}
	return r.next
}

// orRevival calls attempt, whose context ends at a revival if the attempt is old by then;
// in that case it returns errRevived.
func (r *Revival) orRevival(ctx context.Context, attempt func(context.Context) error) error {
	began, revived := time.Now(), r.wait()
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-revived:
			if time.Since(began) >= revivalAge {
				cancel(errRevived)
			}
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(nil); <-ended }()
	err := attempt(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errRevived) {
		return errRevived
	}
	return err
}

// rest waits before the next attempt, until a revival at most; then it returns true.
func (r *Revival) rest(ctx context.Context, pause time.Duration) (revived bool) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-r.wait():
		_ = sleep(ctx, rand.N(revivalSpread)) // whoever calls looks at ctx
		return true
	}
	return false
}
