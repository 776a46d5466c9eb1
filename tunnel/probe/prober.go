package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Transport sends echo requests and receives answers. Only the prober calls it, from
// one goroutine.
type Transport interface {
	// Send asks each target for an echo of its number. An error about a single
	// target (no route, no device) is not returned: its answer will be missing.
	Send(requests []Request) error
	// Receive returns the answers that have arrived, at most a few hundred at a time.
	// It does not wait.
	Receive() ([]Answer, error)
	// Arrival waits until there may be something to receive, or until ctx ends.
	Arrival(ctx context.Context)
}

// Request is one echo request.
type Request struct {
	Addr   netip.Addr
	Device int // ifindex to send on; 0: the routes decide
	Number uint32
	// Size of the whole IP packet in bytes; 0: as small as possible. It must not be
	// fragmented on the way.
	Size int
}

// Answer is one echo reply.
type Answer struct {
	From   netip.Addr
	Number uint32
	// At is when it arrived at this machine, not when it was read.
	At time.Time
}

// Config of a Prober.
type Config struct {
	// Interval is the pause between two probes of one target. A target that
	// falls silent is down after Interval × Thresholds.Down + Patience: 600 ms
	// with the defaults. t targets that are busy or in doubt cost t / Interval packets a
	// second each way; all others share Budget.
	Interval time.Duration
	// Budget is how many probes a second go to targets that are neither busy nor in doubt,
	// together, so that a larger mesh costs no more. n of them are probed every
	// n / Budget, 0.75 s with 250 clusters and the defaults, and are found dead that much
	// later. Up to Budget × Interval targets, 100 with the defaults, it changes nothing.
	Budget int
	// Patience is the least time that an answer may take. Slower paths get twice
	// their smoothed round trip on top, up to MaxPatience.
	Patience    time.Duration
	MaxPatience time.Duration
	// SizeInterval is the pause between two full-size probes of a target. Once one
	// is lost, the largest size that passes is found within about 40 probes at
	// Interval; t targets cost t / SizeInterval large packets a second each way, and
	// beyond Budget no more than that.
	SizeInterval time.Duration
	// Stall is how late the prober's own loop may be. If it is later, it concludes
	// nothing from that time, because it was not listening itself.
	Stall      time.Duration
	Thresholds Thresholds
	// OnChange is called with each change of state or limit, one at a time. It must
	// not block. May be nil.
	OnChange func(Observation)
	Log      *slog.Logger
}

// Defaults find a dead path that is in use in about 600 ms, with evidence in about 400.
func Defaults() Config {
	return Config{
		Interval:     100 * time.Millisecond,
		Budget:       1000,
		Patience:     100 * time.Millisecond,
		MaxPatience:  time.Second,
		SizeInterval: 2 * time.Second,
		Stall:        200 * time.Millisecond,
		Thresholds:   Thresholds{Down: 5, DownWithEvidence: 3, Up: 2},
	}
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"interval", c.Interval}, {"patience", c.Patience}, {"size interval", c.SizeInterval}, {"stall", c.Stall}} {
		if d.value <= 0 {
			errs = append(errs, fmt.Errorf("%s is %v: it must be above zero", d.name, d.value))
		}
	}
	if c.Budget < 1 {
		errs = append(errs, fmt.Errorf("budget is %d probes a second: it must be above zero", c.Budget))
	}
	if c.MaxPatience < c.Patience {
		errs = append(errs, fmt.Errorf("longest patience %v is shorter than the shortest, %v", c.MaxPatience, c.Patience))
	}
	t := c.Thresholds
	if t.Up < 1 || t.Down < 1 || t.DownWithEvidence < 1 || t.DownWithEvidence > t.Down {
		errs = append(errs, fmt.Errorf("thresholds %+v: each must be at least 1, and DownWithEvidence at most Down", t))
	}
	return errors.Join(errs...)
}

// Prober probes its targets while Run runs. Several goroutines may call its other
// methods, before and during Run.
type Prober struct {
	cfg       Config
	transport Transport

	mu       sync.Mutex
	paths    map[string]*path    // guarded by mu, by target name
	order    []*path             // guarded by mu: the same, in order of name
	awaited  map[uint32]*probe   // guarded by mu, by number
	evidence map[string]Evidence // guarded by mu, by target name
	next     uint32              // guarded by mu: number of the next probe
	beat     time.Time           // guarded by mu: the loop's last turn
	hurry    chan struct{}       // has one element when a target should be probed now
}

// path is what is known of one target.
type path struct {
	seen    Observation
	history []Outcome // newest last, at most historyLength
	due     time.Time // of the next probe
	waiting []*probe  // not answered yet, oldest first, for MaxPatience each

	sizing Sizing
	sized  *probe    // the probe of the size that sizing tries; nil: none in flight
	resize time.Time // when the next one is due
}

// probe is one request that may still be answered.
type probe struct {
	number uint32
	path   *path
	sent   time.Time
	// deadline for the answer. The probe is missed if the receive queue, drained
	// after that, did not contain the answer.
	deadline time.Time
	judged   bool
	answered time.Time // zero: not yet
}

// historyLength is enough for all sensible Thresholds.
const historyLength = 64

// New returns a Prober without targets.
func New(cfg Config, transport Transport) (*Prober, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("prober: %w", err)
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	return &Prober{
		cfg: cfg, transport: transport,
		paths: map[string]*path{}, awaited: map[uint32]*probe{}, evidence: map[string]Evidence{},
		hurry: make(chan struct{}, 1),
	}, nil
}

// Set sets the targets. A target that stays keeps what is known of it, unless its
// address changed; a new device is used from now on.
func (p *Prober) Set(targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := make(map[string]bool, len(targets))
	now := time.Now()
	for _, t := range targets {
		t.Addr = t.Addr.Unmap()
		wanted[t.Name()] = true
		if known, there := p.paths[t.Name()]; there {
			if known.seen.Target.Addr != t.Addr {
				p.forgetLocked(known)
			}
			if known.seen.Target.Size != t.Size {
				p.forgetSizeLocked(known)
				known.sizing = Sizing{Want: t.Size}
			}
			if t.Busy && !known.seen.Target.Busy {
				known.due = now
			}
			known.seen.Target = t
			continue
		}
		p.paths[t.Name()] = &path{
			seen:   Observation{Target: t, State: Unknown, Since: now, Evidence: p.evidence[t.Name()]},
			due:    now,
			sizing: Sizing{Want: t.Size},
			resize: now,
		}
	}
	for name, known := range p.paths {
		if !wanted[name] {
			p.forgetLocked(known)
			delete(p.paths, name)
		}
	}
	p.order = slices.AppendSeq(p.order[:0], maps.Values(p.paths))
	slices.SortFunc(p.order, func(a, b *path) int { return cmp.Compare(a.seen.Target.Name(), b.seen.Target.Name()) })
	p.hurryUp()
}

// SetEvidence sets what else is known of targets, by name; those not named have none. A
// target whose evidence changed is probed at once.
func (p *Prober) SetEvidence(evidence map[string]Evidence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for name, path := range p.paths {
		if evidence[name] != path.seen.Evidence {
			path.seen.Evidence = evidence[name]
			path.due = now
		}
	}
	p.evidence = maps.Clone(evidence)
	p.hurryUp()
}

// Observations returns those of all targets, in order of name.
func (p *Prober) Observations() []Observation {
	p.mu.Lock()
	defer p.mu.Unlock()
	rows := make([]Observation, 0, len(p.paths))
	for _, path := range p.order {
		rows = append(rows, path.seen)
	}
	return rows
}

func (p *Prober) hurryUp() {
	select {
	case p.hurry <- struct{}{}:
	default:
	}
}

// Run probes until ctx ends or the transport fails.
//
// The order within each turn of the loop matters: note the time, drain the receive
// queue, judge what was due at the noted time, send. An answer that waited in the
// queue is found before its absence is judged.
func (p *Prober) Run(ctx context.Context) error {
	for {
		begun := time.Now()
		changes, wait, err := p.turn(begun)
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		for _, o := range changes {
			p.cfg.Log.Info("path changed", "peer", o.Target.Cluster+"/"+o.Target.Node, "state", o.State, "reason", o.Reason, "limit", o.Limit)
			if p.cfg.OnChange != nil {
				p.cfg.OnChange(o)
			}
		}
		if err := p.rest(ctx, time.Since(begun)); err != nil {
			return nil
		}
		if err := p.pause(ctx, wait); err != nil {
			return nil
		}
	}
}

// pause waits until something is due, arrives, or is requested.
func (p *Prober) pause(ctx context.Context, wait time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-p.hurry:
			cancel()
		case <-waiting.Done():
		}
	}()
	p.transport.Arrival(waiting)
	cancel()
	<-done
	return ctx.Err()
}

// turn is one turn of the loop. It returns the changes and how long until something is
// due.
func (p *Prober) turn(now time.Time) ([]Observation, time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stalled := !p.beat.IsZero() && now.Sub(p.beat) > p.cfg.Interval+p.cfg.Stall
	p.beat = now
	if err := p.drainLocked(); err != nil {
		return nil, 0, fmt.Errorf("receive: %w", err)
	}
	changes := p.judgeLocked(now, stalled)
	if err := p.sendLocked(now); err != nil {
		return nil, 0, fmt.Errorf("send: %w", err)
	}
	return changes, p.idleLocked(now), nil
}

func (p *Prober) drainLocked() error {
	for {
		answers, err := p.transport.Receive()
		if err != nil {
			return err
		}
		if len(answers) == 0 {
			return nil
		}
		for _, a := range answers {
			probe, awaited := p.awaited[a.Number]
			if !awaited || probe.path.seen.Target.Addr != a.From {
				continue
			}
			delete(p.awaited, a.Number)
			probe.answered = a.At
			if probe.answered.Before(probe.sent) {
				probe.answered = probe.sent
			}
		}
	}
}

// judgeLocked turns probes into outcomes and outcomes into states. A path's probes are
// judged in the order in which they were sent.
func (p *Prober) judgeLocked(now time.Time, stalled bool) []Observation {
	var changes []Observation
	for _, path := range p.order {
		if len(path.waiting) == 0 && path.sized == nil {
			continue // nothing is new
		}
		open := false // an earlier probe may still be answered
		path.waiting = slices.DeleteFunc(path.waiting, func(q *probe) bool {
			if open = open || !path.judge(q, now, stalled); open {
				return false
			}
			over := !q.answered.IsZero() || !now.Before(q.sent.Add(p.cfg.MaxPatience))
			if over {
				delete(p.awaited, q.number)
			}
			return over
		})
		before := path.seen
		p.judgeSizeLocked(path, now, stalled)
		state, reason := Decide(path.seen.State, path.history, path.seen.Evidence, p.cfg.Thresholds)
		if state != path.seen.State {
			path.seen.State, path.seen.Reason, path.seen.Since = state, reason, now
		}
		if path.doubtful() && path.due.After(now.Add(p.cfg.Interval)) {
			path.due = now
		}
		if before.State != path.seen.State || before.Limit != path.seen.Limit {
			changes = append(changes, path.seen)
		}
	}
	return changes
}

// judgeSizeLocked takes the search for a path's size one step further. A lost large
// packet means something only if small ones are answered.
func (p *Prober) judgeSizeLocked(path *path, now time.Time, stalled bool) {
	q := path.sized
	if q == nil || q.answered.IsZero() && now.Before(q.deadline) {
		return
	}
	outcome := Missed
	switch {
	case !q.answered.IsZero():
		outcome = Answered
	case stalled || path.seen.State != Up || path.seen.Misses > 0:
		outcome = Void
	}
	path.sizing = path.sizing.After(outcome)
	p.forgetSizeLocked(path)
	path.resize = now.Add(p.spread(p.cfg.SizeInterval))
	if path.sizing.Searching() {
		path.resize = now.Add(p.cfg.Interval)
	}
	switch limit := path.sizing.Limit(); {
	case limit == 0 && path.sizing.Searching():
		// The last result stands until there is another one.
	case limit != path.seen.Limit:
		path.seen.Limit, path.seen.LimitSince = limit, now
	}
}

// judge adds the outcome of a probe to the history, once, and reports whether it has
// one.
func (path *path) judge(q *probe, now time.Time, stalled bool) bool {
	switch {
	case !q.answered.IsZero():
		// Also if it was judged missed: however late, the answer shows that the path
		// works, and later probes get the time that this one took.
		path.answer(q)
	case q.judged:
	case now.Before(q.deadline):
		return false
	case stalled:
		// If we did not get to run, we may not have sent in time, and neither may the
		// tunnel on this machine.
		path.add(Void)
	default:
		path.add(Missed)
	}
	q.judged = true
	return true
}

func (path *path) add(outcome Outcome) {
	path.history = append(path.history, outcome)
	if over := len(path.history) - historyLength; over > 0 {
		path.history = slices.Delete(path.history, 0, over)
	}
	path.seen.Misses, path.seen.Answers = Row(path.history)
}

func (path *path) answer(q *probe) {
	path.add(Answered)
	path.seen.Answered = q.answered
	rtt := max(q.answered.Sub(q.sent), 1)
	if path.seen.RTT == 0 || q.judged {
		path.seen.RTT = rtt
	}
	path.seen.RTT += (rtt - path.seen.RTT) / 8
}

func (p *Prober) sendLocked(now time.Time) error {
	var batch []Request
	for _, path := range p.order {
		if size := path.sizing.Next(); size > 0 && path.sized == nil && path.seen.State == Up && !path.resize.After(now) {
			p.next++
			path.sized = &probe{number: p.next, path: path, sent: now, deadline: now.Add(2 * p.patience(path))}
			p.awaited[p.next] = path.sized
			batch = append(batch, Request{Addr: path.seen.Target.Addr, Device: path.seen.Target.Device, Number: p.next, Size: size})
		}
		if path.due.After(now) {
			continue
		}
		// At fixed intervals, however late this turn is; an interval that was missed
		// altogether is skipped.
		pause := p.pauseOf(path)
		path.due = path.due.Add(pause)
		if !path.due.After(now) {
			path.due = now.Add(pause)
		}
		p.next++
		probe := &probe{number: p.next, path: path, sent: now, deadline: now.Add(p.patience(path))}
		path.waiting = append(path.waiting, probe)
		p.awaited[probe.number] = probe
		batch = append(batch, Request{Addr: path.seen.Target.Addr, Device: path.seen.Target.Device, Number: probe.number})
	}
	if len(batch) == 0 {
		return nil
	}
	return p.transport.Send(batch)
}

// patience is how long the next answer may take.
func (p *Prober) patience(path *path) time.Duration {
	return min(p.cfg.Patience+2*path.seen.RTT, p.cfg.MaxPatience)
}

// idleLocked is the time until a probe or a judgement is due.
func (p *Prober) idleLocked(now time.Time) time.Duration {
	idle := p.cfg.Interval
	for _, path := range p.order {
		idle = min(idle, path.due.Sub(now))
		switch {
		case path.sized != nil:
			idle = min(idle, path.sized.deadline.Sub(now))
		case path.seen.State == Up && path.sizing.Next() > 0:
			idle = min(idle, path.resize.Sub(now))
		}
		for _, q := range path.waiting {
			if !q.judged {
				idle = min(idle, q.deadline.Sub(now))
				break
			}
		}
	}
	return max(idle, time.Millisecond)
}

func (p *Prober) forgetLocked(path *path) {
	for _, probe := range path.waiting {
		delete(p.awaited, probe.number)
	}
	p.forgetSizeLocked(path)
	path.waiting, path.history, path.sizing = nil, nil, Sizing{Want: path.sizing.Want}
	path.seen.State, path.seen.Misses, path.seen.Answers, path.seen.RTT = Unknown, 0, 0, 0
	path.seen.Limit, path.seen.LimitSince = 0, time.Time{}
}

// forgetSizeLocked gives up a path's size probe in flight.
func (p *Prober) forgetSizeLocked(path *path) {
	if path.sized != nil {
		delete(p.awaited, path.sized.number)
		path.sized = nil
	}
}
