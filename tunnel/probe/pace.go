package probe

import (
	"context"
	"math/rand/v2"
	"time"
)

// doubtful reports whether a path may be in another state than it is said to be.
func (path *path) doubtful() bool {
	switch path.seen.State {
	case Up:
		return path.seen.Misses > 0
	case Down:
		return path.seen.Answers > 0
	}
	return true
}

// pauseOf is how long after this probe of a path the next one is due.
func (p *Prober) pauseOf(path *path) time.Duration {
	if path.seen.Target.Busy || path.doubtful() {
		return p.cfg.Interval
	}
	return p.spread(p.cfg.Interval)
}

// spread is a pause that is longer where the budget asks for it, and then never the same,
// so that targets that were set together are not all probed at once for ever.
func (p *Prober) spread(pause time.Duration) time.Duration {
	full := float64(p.cfg.Budget) * p.cfg.Interval.Seconds() // targets that have the whole pace
	if n := float64(len(p.paths)); n > full {
		pause = time.Duration(float64(pause) * n / full)
		return pause*3/4 + rand.N(pause/2)
	}
	return pause
}

// A turn looks at every target, and thousands of answers may arrive in a second: turns take
// at most restShare of the time, but rest for mostRest at most. Answers tell when they
// arrived, however late they are read.
const (
	restShare = 20
	mostRest  = 5 * time.Millisecond
)

// rest waits after a turn that took so long.
func (p *Prober) rest(ctx context.Context, took time.Duration) error {
	if took == 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(min(restShare*took, mostRest))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}
