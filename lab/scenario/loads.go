package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/traffic"
)

// load is a steady load that is, or was, running on a node or in a pod.
type load struct {
	name, from, target string
	task               *lab.Task
	begun              time.Time
	keep               int           // connections
	read               chan struct{} // closed when all samples are in

	mu      sync.Mutex
	samples []traffic.Sample // guarded by mu; in the order in which they ended
	known   time.Time        // guarded by mu; all requests that began before it have a sample
	stopped bool
}

// gather reads samples until the load ends.
func (l *load) gather(r *os.File) {
	defer close(l.read)
	defer r.Close()
	for dec := json.NewDecoder(r); ; {
		var line traffic.Line
		if dec.Decode(&line) != nil {
			return
		}
		l.mu.Lock()
		if line.Oldest != 0 {
			l.known = time.UnixMicro(line.Oldest)
		} else {
			l.samples = append(l.samples, line.Sample)
		}
		l.mu.Unlock()
	}
}

// all returns the samples of requests that ended at or after a moment.
func (l *load) all(since time.Time) []traffic.Sample {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Samples end nearly in order: look back until well before the moment.
	i := len(l.samples)
	for i > 0 && l.samples[i-1].End().After(since.Add(-time.Second)) {
		i--
	}
	return slices.DeleteFunc(slices.Clone(l.samples[i:]), func(s traffic.Sample) bool { return s.End().Before(since) })
}

// complete is the moment up to which every request that began has a sample.
func (l *load) complete() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known
}

// connections counts the kept connections that have ever been answered.
func (l *load) connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	answered := map[int]bool{}
	for i := 0; i < len(l.samples) && len(answered) < l.keep; i++ {
		if s := l.samples[i]; s.Error == "" {
			answered[s.Conn] = true
		}
	}
	return len(answered)
}

func (l *load) stop() error {
	err := l.task.Stop()
	<-l.read
	return err
}

// loadOptions are the options of all load verbs.
type loadOptions struct {
	rate                             float64
	keep                             int
	timeout, within, patience, quiet time.Duration
	since, through, only             string
	maxFailed, maxAnswered           int
	maxResent, min                   int
	slowest                          time.Duration
}

// loadFlags are the flags of each load verb.
var loadFlags = map[string][]string{
	"start":     {"rate", "keep", "timeout"},
	"stop":      {},
	"steady":    {"within"},
	"blocked":   {"within"},
	"answers":   {"within", "since"},
	"check":     {"since", "through", "max-failed", "max-answered", "max-resent", "min", "only", "slowest"},
	"recovered": {"patience", "steady"},
	"reset":     {"min"},
}

// define declares the flags of one load verb; all options have their defaults.
func (o *loadOptions) define(verb string, set *flag.FlagSet) {
	f := flag.NewFlagSet("", flag.ContinueOnError)
	f.Float64Var(&o.rate, "rate", 50, "")
	f.IntVar(&o.keep, "keep", 0, "")
	f.DurationVar(&o.timeout, "timeout", time.Second, "")
	f.DurationVar(&o.within, "within", time.Second, "")
	f.DurationVar(&o.patience, "patience", 500*time.Millisecond, "")
	f.DurationVar(&o.quiet, "steady", 500*time.Millisecond, "")
	f.StringVar(&o.since, "since", "", "")
	f.StringVar(&o.through, "through", "", "")
	f.StringVar(&o.only, "only", "", "")
	f.IntVar(&o.maxFailed, "max-failed", -1, "")
	f.IntVar(&o.maxAnswered, "max-answered", -1, "")
	f.IntVar(&o.maxResent, "max-resent", -1, "")
	f.IntVar(&o.min, "min", 1, "")
	f.DurationVar(&o.slowest, "slowest", 0, "")
	f.VisitAll(func(one *flag.Flag) {
		if slices.Contains(loadFlags[verb], one.Name) {
			set.Var(one.Value, one.Name, "")
		}
	})
}

// loadWords are the fewest and the most words of each load verb beside its flags
// and the load's name.
var loadWords = map[string][2]int{
	"start": {2, 2}, "answers": {1, math.MaxInt}, "recovered": {1, 1}, "reset": {1, 1},
}

// loadManual describes the load verbs.
var loadManual = []Verb{
	{"load start", "NAME [--rate N] [--keep N] [--timeout D] NODE|POD TARGET", "makes requests at a steady rate, 50/s by default: each on a new connection, or all on N that are kept"},
	{"load stop", "NAME", "stops a load; sets the figures NAME_requests and NAME_failed"},
	{"load steady", "NAME [--within D]", "all requests of the last D (1s) succeeded, and every kept connection has been answered"},
	{"load blocked", "NAME [--within D]", "every request of the last D (1s) failed"},
	{"load answers", "NAME [--within D | --since MARK] CLUSTER|CLUSTER/POD...", "the answers of the last D (1s), or to requests made since the mark, come from exactly these"},
	{"load check", "NAME [--since MARK] [--through MARK] [--max-failed N] [--max-answered N] [--max-resent N] [--min N] [--only REASON,...] [--slowest D]",
		"the load's counts are within limits; --through: wait for requests made before that mark"},
	{"load recovered", "NAME SERIES [--patience D] [--steady D]", "requests have succeeded within patience (500ms) for a while (500ms); samples how long the last fault was felt"},
	{"load reset", "NAME SERIES [--min N]", "the last fault broke at least N (1) kept connections, each by a reset; samples how long that took"},
}

// loadUsage is the manual of one load verb, or of all if there is no such verb.
func loadUsage(verb string) error {
	var lines []string
	for _, m := range loadManual {
		if m.Name == "load "+verb {
			return misuse("usage: %s %s", m.Name, m.Usage)
		}
		lines = append(lines, m.Name+" "+m.Usage)
	}
	return misuse("usage: %s", strings.Join(lines, "\n       "))
}

func (v *Live) load(ctx context.Context, args []string) error {
	var o loadOptions
	if len(args) == 0 {
		return loadUsage("")
	}
	if len(args) == 1 || loadFlags[args[0]] == nil {
		return loadUsage(args[0])
	}
	rest, err := flags(args[2:], func(f *flag.FlagSet) { o.define(args[0], f) })
	if err != nil {
		return misuse("%w\n%w", err, loadUsage(args[0]))
	}
	if words := loadWords[args[0]]; len(rest) < words[0] || len(rest) > words[1] {
		return loadUsage(args[0])
	}
	if args[0] == "start" {
		return v.startLoad(args[1], rest[0], rest[1], o)
	}
	l := v.loads[args[1]]
	if l == nil {
		return misuse("there is no load %q", args[1])
	}
	if args[0] != "stop" && !l.stopped && !l.task.Running() {
		return l.died()
	}
	switch args[0] {
	case "stop":
		return v.stopLoad(l)
	case "steady":
		return l.steady(o)
	case "blocked":
		return l.blocked(o)
	case "answers":
		return v.answers(l, o, rest)
	case "check":
		return v.checkLoad(l, o)
	case "reset":
		return v.loadReset(l, rest[0], o)
	case "recovered":
		return v.loadRecovered(l, rest[0], o)
	}
	panic("load " + args[0] + " is in loadFlags and does nothing")
}

// died says why a load that should be running is not.
func (l *load) died() error {
	<-l.read
	return fmt.Errorf("load %s ended by itself%s", l.name, l.task.Log())
}

func (v *Live) startLoad(name, from, target string, o loadOptions) error {
	if old := v.loads[name]; old != nil && old.task.Running() {
		return misuse("load %s is already running", name)
	}
	place, err := v.Lab.Place(from)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	task, err := v.Lab.StartAt(place, "load-"+name, w, "weft", "lab", "load",
		"--rate", fmt.Sprint(o.rate), "--keep", fmt.Sprint(o.keep), "--timeout", o.timeout.String(), target)
	if err != nil {
		r.Close()
		return err
	}
	l := &load{name: name, from: from, target: target, task: task, begun: time.Now(), keep: o.keep, read: make(chan struct{})}
	v.mu.Lock()
	v.loads[name] = l
	v.mu.Unlock()
	go l.gather(r)
	return nil
}

func (v *Live) stopLoad(l *load) error {
	if err := l.stop(); err != nil {
		return err
	}
	l.stopped = true
	t := traffic.Count(l.all(time.Time{}))
	v.Figures.Add(l.name+"_requests", float64(t.Requests))
	v.Figures.Add(l.name+"_failed", float64(t.Failed))
	return nil
}

// steady looks at requests that ended recently. The load must have run for that long,
// every connection that it keeps must have been answered, and no request may have been
// pending for half that time: one that is about to fail would otherwise count against
// whatever the script does next.
func (l *load) steady(o loadOptions) error {
	if ran := time.Since(l.begun); ran < o.within {
		return fmt.Errorf("it has run for only %v", ran.Round(time.Millisecond))
	}
	if hanging := time.Since(l.complete()); hanging > o.within/2 {
		return fmt.Errorf("a request has been pending for %v", hanging.Round(time.Millisecond))
	}
	if answered := l.connections(); answered < l.keep {
		return fmt.Errorf("of %d kept connections only %d have ever been answered", l.keep, answered)
	}
	t := traffic.Count(l.all(time.Now().Add(-o.within)))
	if t.Requests == 0 || t.Failed > 0 {
		return fmt.Errorf("of %d requests in the last %v, %d failed%s; answers came from %s", t.Requests, o.within, t.Failed, reasons(t), counts(t.ByPod))
	}
	return nil
}

func (l *load) blocked(o loadOptions) error {
	t := traffic.Count(l.all(time.Now().Add(-o.within)))
	if t.Requests == 0 || t.Failed < t.Requests {
		return fmt.Errorf("of %d requests in the last %v, %d were answered", t.Requests, o.within, t.Requests-t.Failed)
	}
	return nil
}

func reasons(t traffic.Tally) string {
	if t.Failed == 0 {
		return ""
	}
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(t.Errors)) {
		parts = append(parts, fmt.Sprintf("%d %s", t.Errors[reason], reason))
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

func (v *Live) answers(l *load, o loadOptions, want []string) error {
	since, span := time.Now().Add(-o.within), o.within
	if o.since != "" {
		var err error
		if since, err = v.since(o.since); err != nil {
			return err
		}
		span = time.Since(since).Round(time.Millisecond)
	}
	samples := l.all(since)
	if o.since != "" {
		// Requests made before may end after.
		samples = slices.DeleteFunc(samples, func(s traffic.Sample) bool { return s.Begin().Before(since) })
	}
	t := traffic.Count(samples)
	got := t.ByCluster
	if len(want) > 0 && strings.Contains(want[0], "/") {
		got = t.ByPod
	}
	slices.Sort(want)
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) {
		return fmt.Errorf("answers of the last %v came from %s; %d requests failed%s", span, counts(got), t.Failed, reasons(t))
	}
	return nil
}

func counts(by map[string]int) string {
	if len(by) == 0 {
		return "nobody"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, by[name]))
	}
	return strings.Join(parts, ", ")
}

func (v *Live) checkLoad(l *load, o loadOptions) error {
	var since time.Time
	if o.since != "" {
		var err error
		if since, err = v.since(o.since); err != nil {
			return err
		}
	}
	if o.through != "" {
		through, err := v.since(o.through)
		if err != nil {
			return err
		}
		if known := l.complete(); !l.stopped && known.Before(through) {
			return fmt.Errorf("a request that began %v before %s is still pending", through.Sub(known).Round(time.Millisecond), o.through)
		}
	}
	samples := l.all(since)
	t := traffic.Count(samples)
	var failed []error
	if t.Requests < o.min {
		failed = append(failed, fmt.Errorf("only %d requests", t.Requests))
	}
	if o.maxFailed >= 0 && t.Failed > o.maxFailed {
		failed = append(failed, fmt.Errorf("%d of %d requests failed%s%s", t.Failed, t.Requests, reasons(t), v.examples(samples)))
	}
	if answered := t.Requests - t.Failed; o.maxAnswered >= 0 && answered > o.maxAnswered {
		failed = append(failed, fmt.Errorf("%d of %d requests were answered, by %s", answered, t.Requests, counts(t.ByPod)))
	}
	if o.maxResent >= 0 && t.Resent > o.maxResent {
		failed = append(failed, fmt.Errorf("%d TCP segments were lost", t.Resent))
	}
	if o.slowest > 0 && t.Slowest > o.slowest {
		failed = append(failed, fmt.Errorf("the slowest answer took %v", t.Slowest))
	}
	if o.only != "" {
		for reason, n := range t.Errors {
			if !slices.Contains(strings.Split(o.only, ","), reason) {
				failed = append(failed, fmt.Errorf("%d failed by %s%s", n, reason, v.examples(samples)))
			}
		}
	}
	return errors.Join(failed...)
}

// examples lists the first few failures with their times since the last fault, and
// the history of each kept connection that failed.
func (v *Live) examples(samples []traffic.Sample) string {
	sort.Slice(samples, func(i, j int) bool { return samples[i].At < samples[j].At })
	when := func(s traffic.Sample) string {
		at := s.Begin().Format("15:04:05.000")
		if fault, ok := v.marks["fault"]; ok {
			at += fmt.Sprintf(" (fault%+.3fs)", s.Begin().Sub(fault).Seconds())
		}
		return at
	}
	type history struct {
		failed         int
		first, last    string // failures
		before, answer string // who answered last before the first failure, and after it
	}
	var b strings.Builder
	conns := map[int]*history{}
	n := 0
	for _, s := range samples {
		h := conns[s.Conn]
		if h == nil {
			h = &history{before: "nobody", answer: "nobody"}
			conns[s.Conn] = h
		}
		switch who := s.Cluster + "/" + s.Pod; {
		case s.Error == "" && h.failed == 0:
			h.before = who
		case s.Error == "":
			h.answer = who + " at " + when(s)
		default:
			if h.last = when(s); h.failed == 0 {
				h.first = h.last
			}
			h.failed++
			if n++; n <= 5 {
				fmt.Fprintf(&b, "\n    %s, after %v: %s", when(s), time.Duration(s.Took)*time.Microsecond, s.Detail)
			}
		}
	}
	for _, number := range slices.Sorted(maps.Keys(conns)) {
		if h := conns[number]; number > 0 && h.failed > 0 {
			fmt.Fprintf(&b, "\n    connection %d: %d from %s to %s; answered before by %s, last by %s", number, h.failed, h.first, h.last, h.before, h.answer)
		}
	}
	return b.String()
}

// loadRecovered samples how long new requests felt the last fault.
func (v *Live) loadRecovered(l *load, series string, o loadOptions) error {
	fault, err := v.since("fault")
	if err != nil {
		return err
	}
	known := l.complete() // asked before the samples
	samples := l.all(fault)
	d, ok := traffic.Recovery(samples, fault, known, o.patience, o.quiet)
	t := traffic.Count(samples)
	if !ok {
		return fmt.Errorf("since the fault %v ago %d of %d requests failed%s, some of them in the last %v, or too few were made",
			time.Since(fault).Round(time.Millisecond), t.Failed, t.Requests, reasons(t), o.quiet)
	}
	v.Figures.Sample(series, d.Seconds())
	v.Figures.Add(series+"_failed", float64(t.Failed))
	return nil
}

// loadReset samples, for each kept connection that the last fault broke, how long
// after the fault it was reset. A connection that was left hanging is an error.
func (v *Live) loadReset(l *load, series string, o loadOptions) error {
	fault, err := v.since("fault")
	if err != nil {
		return err
	}
	samples := l.all(fault)
	sort.SliceStable(samples, func(i, j int) bool { return samples[i].At < samples[j].At })
	broken := map[int]traffic.Sample{}
	for _, s := range samples {
		if _, seen := broken[s.Conn]; !seen && s.Error != "" {
			broken[s.Conn] = s
		}
	}
	if len(broken) < o.min {
		return fmt.Errorf("the fault broke only %d kept connections, not %d", len(broken), o.min)
	}
	for conn, s := range broken {
		if s.Error != "reset" || s.Renewed {
			return fmt.Errorf("kept connection %d was not reset: it ended with %s after %v: %s", conn, s.Error, time.Duration(s.Took)*time.Microsecond, s.Detail)
		}
	}
	for _, s := range broken {
		v.Figures.Sample(series, s.End().Sub(fault).Seconds())
	}
	return nil
}
