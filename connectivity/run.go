package connectivity

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/connectivity/probe"
)

// Options say how to run.
type Options struct {
	Checks []Check
	// Patience is how long something may take to be as expected.
	Patience time.Duration
	// Start bounds the start of the pods, and Removal their removal.
	Start, Removal time.Duration
	// Parallel is how many checks of a cluster run at the same time, where they may.
	Parallel int
	// Keep leaves the pods, and Replace removes those of another test first.
	Keep, Replace bool
	// Here answers on this machine, at HerePort; nil: nobody does.
	HereAddr func(s Site) ([]netip.Addr, error)
	HerePort uint16
	// Say is called with each step, and Done with each result. They are not called at the
	// same time.
	Say  func(text string)
	Done func(r Report)
}

// Outcome of a check.
type Outcome string

const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Report is what became of a check in a cluster.
type Report struct {
	Check   string  `json:"check"`
	Says    string  `json:"says"`
	Cluster string  `json:"cluster"`
	Peer    string  `json:"peer,omitempty"`
	Outcome Outcome `json:"outcome"`
	Seconds float64 `json:"seconds"`
	// Reason is why it was skipped.
	Reason string `json:"reason,omitempty"`
	// Of one that failed: what was tried, what should have come of it and what did, what
	// agents reported of it, and what to look at next.
	Tried    string   `json:"tried,omitempty"`
	Expected string   `json:"expected,omitempty"`
	Happened string   `json:"happened,omitempty"`
	Events   []string `json:"events,omitempty"`
	Next     string   `json:"next,omitempty"`
}

// run is one run.
type run struct {
	Options
	sites []Site
	facts map[string]*Facts // by cluster

	mu      sync.Mutex // guards results, and Say and Done
	results []Report
}

// LeftoversError says that there are pods of another test.
type LeftoversError struct{ Found []string }

func (e *LeftoversError) Error() string {
	return "another connectivity test runs or was not cleaned up: " + strings.Join(e.Found, ", ")
}

// Run runs the checks in all clusters, and removes what it made whatever happens. Results are
// there also if there is an error.
func Run(ctx context.Context, sites []Site, o Options) (results []Report, err error) {
	r := &run{Options: o, sites: sites, facts: map[string]*Facts{}}
	bare := !slices.ContainsFunc(o.Checks, func(c Check) bool { return !c.Bare })
	if !bare {
		if err := r.begin(ctx); err != nil {
			return nil, err
		}
		if !o.Keep {
			defer func() { err = errors.Join(err, r.end(context.WithoutCancel(ctx))) }()
		}
	}
	if err := r.prepare(ctx, bare); err != nil {
		return nil, err
	}
	r.all(ctx)
	if err := context.Cause(ctx); err != nil {
		return r.results, fmt.Errorf("interrupted after %d results: %w", len(r.results), err)
	}
	return r.results, nil
}

func (r *run) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Say(fmt.Sprintf(format, args...))
}

// begin makes sure that nobody else tests.
func (r *run) begin(ctx context.Context) error {
	var found []string
	for _, s := range r.sites {
		left, err := s.Leftovers(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Context(), err)
		}
		for _, name := range left {
			found = append(found, "namespace "+name+" of "+s.Context())
		}
	}
	if len(found) == 0 {
		return nil
	}
	if !r.Replace {
		return &LeftoversError{found}
	}
	return r.end(ctx)
}

// end removes everything, within its own time.
func (r *run) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.Removal)
	defer cancel()
	r.say("removing the namespaces %s and %s", Namespace, Other)
	return r.inAll(func(s Site) error { return s.Clean(ctx) })
}

// inAll does something in all clusters at the same time.
func (r *run) inAll(what func(s Site) error) error {
	failed := make([]error, len(r.sites))
	var doing sync.WaitGroup
	for i, s := range r.sites {
		doing.Go(func() {
			if err := what(s); err != nil {
				failed[i] = fmt.Errorf("%s: %w", s.Context(), err)
			}
		})
	}
	doing.Wait()
	return errors.Join(failed...)
}

// prepare starts the pods, and finds out what there is.
func (r *run) prepare(ctx context.Context, bare bool) error {
	ctx, cancel := context.WithTimeout(ctx, r.Start)
	defer cancel()
	var mu sync.Mutex // guards facts
	return r.inAll(func(s Site) error {
		f, err := s.Look(ctx)
		if err != nil {
			return err
		}
		mu.Lock()
		r.facts[s.Name()] = f
		mu.Unlock()
		if bare {
			return nil
		}
		r.say("starting pods in %s, on %s", s.Name(), strings.Join(usedNodes(f), " and "))
		if err := s.Prepare(ctx, f); err != nil {
			return err
		}
		r.lookOutside(ctx, s, f)
		return nil
	})
}

func usedNodes(f *Facts) (names []string) {
	for _, place := range []string{"near", "far"} {
		if f.Nodes[place] != "" {
			names = append(names, f.Nodes[place])
		}
	}
	return names
}

// outsidePatience is how long it is tried to reach this machine from a cluster, and a cluster
// from this machine.
const outsidePatience = 2 * time.Second

// lookOutside finds out whether this machine and the nodes reach each other, by ways that are
// not Weft's.
func (r *run) lookOutside(ctx context.Context, s Site, f *Facts) {
	f.Outside = "nothing answers on this machine"
	f.Inbound = f.Outside
	if r.HereAddr == nil {
		return
	}
	here, err := r.HereAddr(s)
	if err != nil {
		f.Outside = fmt.Sprintf("this machine's address is not known: %v", err)
		f.Inbound = f.Outside
		return
	}
	f.Here, f.HerePort = here, r.HerePort
	for _, node := range []string{"node/near", "node/far"} {
		if slices.ContainsFunc(f.Addresses[node], func(a netip.Addr) bool { return slices.Contains(here, a) }) {
			f.Outside = "this machine is a node of cluster " + f.Name
			f.Inbound = f.Outside
			return
		}
	}
	f.Outside, f.Inbound = "", ""
	for _, place := range usedPlaces(f) {
		at := netip.AddrPortFrom(here[0], r.HerePort)
		answers, err := s.Ask(ctx, "host-"+place, []probe.Question{{Protocol: probe.TCP, To: at.String(), Patience: outsidePatience}})
		if err != nil || !answers[0].Tries[0].OK {
			f.Outside = fmt.Sprintf("node %s does not reach this machine at %v", f.Nodes[place], at)
		}
		to, err := f.resolve(parse("node/"+place+":"+fmt.Sprint(processPort)), !here[0].Is4())
		if err != nil {
			f.Inbound = err.Error()
			continue
		}
		answers, err = probe.All(ctx, []probe.Question{{Protocol: probe.TCP, To: to[0], Patience: outsidePatience}})
		if err != nil || !answers[0].Tries[0].OK {
			f.Inbound = fmt.Sprintf("this machine does not reach node %s at %s", f.Nodes[place], to[0])
		}
	}
}

func usedPlaces(f *Facts) (places []string) {
	for _, place := range []string{"near", "far"} {
		if f.Nodes[place] != "" {
			places = append(places, place)
		}
	}
	return places
}

// task is a check in a cluster, or between two.
type task struct {
	check      Check
	site, peer Site
}

// plan orders tasks: first those that disturb nobody, then in each cluster those that must be
// alone there, then those that must be alone in two clusters.
func plan(checks []Check, sites []Site) (shared []task, alone map[string][]task, last []task) {
	alone = map[string][]task{}
	for _, c := range checks {
		for i, s := range sites {
			t := task{check: c, site: s}
			if !c.Mesh {
				if c.Alone {
					alone[s.Name()] = append(alone[s.Name()], t)
				} else {
					shared = append(shared, t)
				}
				continue
			}
			// With one cluster, it says why it is skipped.
			for j, p := range sites {
				if i != j {
					t.peer = p
				} else if len(sites) > 1 {
					continue
				}
				if c.Alone {
					last = append(last, t)
				} else {
					shared = append(shared, t)
				}
			}
		}
	}
	return shared, alone, last
}

func (r *run) all(ctx context.Context) {
	shared, alone, last := plan(r.Checks, r.sites)
	var g errgroup.Group
	g.SetLimit(max(1, r.Parallel) * len(r.sites))
	for _, t := range shared {
		g.Go(func() error { r.one(ctx, t); return nil })
	}
	g.Wait()
	var each sync.WaitGroup
	for _, s := range r.sites {
		each.Go(func() {
			for _, t := range alone[s.Name()] {
				r.one(ctx, t)
			}
		})
	}
	each.Wait()
	for _, t := range last {
		r.one(ctx, t)
	}
}

// one runs one check, unless the run was interrupted.
func (r *run) one(ctx context.Context, t task) {
	if ctx.Err() != nil {
		return
	}
	begin := time.Now()
	res := Report{Check: t.check.Name, Says: t.check.Says, Cluster: t.site.Name()}
	a := &attempt{run: r, task: t, facts: r.facts[t.site.Name()], begin: begin}
	why := ""
	if t.peer != nil {
		res.Peer, a.peer = t.peer.Name(), r.facts[t.peer.Name()]
	}
	if t.check.Mesh {
		switch {
		case t.peer == nil:
			why = "only one cluster was given"
		case !slices.Contains(a.facts.Peers, t.peer.Name()):
			why = fmt.Sprintf("%s is not joined with %s, or the link is down", t.site.Name(), t.peer.Name())
		}
	}
	needs := t.check.Needs
	if t.check.Mesh {
		needs = append([]Need{Peer}, needs...)
	}
	for _, n := range needs {
		if reason := n.missing(a.facts, a.peer, why); reason != "" {
			res.Outcome, res.Reason = Skipped, reason
			r.done(res)
			return
		}
	}
	found := a.judged(ctx)
	if ctx.Err() != nil {
		return // what was interrupted says nothing
	}
	res.Seconds, res.Outcome = time.Since(begin).Seconds(), Passed
	if !found.OK {
		res.Outcome, res.Tried, res.Expected, res.Happened = Failed, found.Tried, found.Expected, found.Happened
		res.Events, res.Next = a.evidence(ctx, found)
	}
	r.done(res)
}

func (r *run) done(res Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, res)
	r.Done(res)
}
