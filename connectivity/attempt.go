package connectivity

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"text/template"
	"time"

	"github.com/weft-mesh/weft/connectivity/probe"
	"github.com/weft-mesh/weft/flow"
)

// attempt is a check that runs.
type attempt struct {
	*run
	task
	facts, peer *Facts
	begin       time.Time
}

// judged runs a check.
func (a *attempt) judged(ctx context.Context) Finding {
	if f := a.steps(ctx, a.check.Before); !f.OK {
		return f
	}
	if a.check.Policies != "" {
		text, err := a.fill(a.check.Policies)
		if err == nil {
			defer a.site.Withdraw(context.WithoutCancel(ctx), text) //nolint:errcheck // Clean does it again
			err = a.site.Apply(ctx, text)
		}
		if err != nil {
			return problem("apply the policies", "they are accepted", err)
		}
	}
	if f := a.steps(ctx, a.check.Steps); !f.OK {
		return f
	}
	if a.check.Do != nil {
		if f := a.check.Do(ctx, a); !f.OK {
			return f
		}
	}
	if a.check.Policies == "" {
		return Finding{OK: true}
	}
	text, err := a.fill(a.check.Policies)
	if err == nil {
		err = a.site.Withdraw(ctx, text)
	}
	if err != nil {
		return problem("withdraw the policies", "they are gone", err)
	}
	f := a.steps(ctx, a.check.Before)
	if !f.OK {
		f.Tried += ", after the policies were withdrawn"
	}
	return f
}

func problem(tried, expected string, err error) Finding {
	return Finding{Tried: tried, Expected: expected, Happened: err.Error()}
}

// known is what policies may name.
type known struct {
	Cluster, Peer, Namespace, Other string
	// Here is this machine's address, Bits how many bits it has, and All every address.
	Here, All string
	Bits      int
}

// at returns what is known with this machine's address.
func (k known) at(here netip.Addr) known {
	k.Namespace, k.Other = Namespace, Other
	k.Here, k.Bits, k.All = here.String(), here.BitLen(), "0.0.0.0/0"
	if here.Is6() {
		k.All = "::/0"
	}
	return k
}

// nowhere is for documentation.
var nowhere = netip.MustParseAddr("192.0.2.1")

func fill(text string, k known) (string, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = t.Execute(&out, k)
	return out.String(), err
}

func (a *attempt) fill(text string) (string, error) {
	k, here := known{Cluster: a.facts.Name}, nowhere
	if a.peer != nil {
		k.Peer = a.peer.Name
	}
	if len(a.facts.Here) > 0 {
		here = a.facts.Here[0]
	}
	return fill(text, k.at(here))
}

// policies are those of all checks, to remove them: only their names count.
func policies(all []Check) (out []string) {
	for _, c := range all {
		if text, err := fill(c.Policies, known{Cluster: "c", Peer: "p"}.at(nowhere)); err == nil && text != "" {
			out = append(out, text)
		}
	}
	return out
}

// asked is a question that was put.
type asked struct {
	step Step
	q    probe.Question
	from string // the pod's own name
	to   place
}

// tryPatience bounds a request. One that should not be answered is given up sooner.
const (
	tryPatience    = 3 * time.Second
	deniedPatience = 700 * time.Millisecond
)

// steps asks all questions until all answers are as expected at the same time, or patience
// has run out; the finding is then about the first that is not.
func (a *attempt) steps(ctx context.Context, all []Step) Finding {
	if len(all) == 0 {
		return Finding{OK: true}
	}
	deadline := time.Now().Add(a.Patience)
	for {
		round := time.Now()
		f := a.round(ctx, all, round)
		if f.OK || ctx.Err() != nil || time.Now().After(deadline) {
			return f
		}
		if pause(ctx, again) != nil {
			return f
		}
	}
}

func (a *attempt) round(ctx context.Context, all []Step, since time.Time) Finding {
	byPod := map[string][]asked{}
	six := slices.Contains(a.check.Needs, IPv6) || !a.facts.has(false)
	for _, s := range all {
		q, err := a.question(s, six)
		if err != nil {
			return problem(s.String(), s.Want.String(), err)
		}
		byPod[s.From] = append(byPod[s.From], q...)
	}
	var mu sync.Mutex // guards findings
	findings := map[string]Finding{}
	var asking sync.WaitGroup
	for from, questions := range byPod {
		asking.Go(func() {
			f := a.ask(ctx, from, questions, since)
			mu.Lock()
			defer mu.Unlock()
			findings[from] = f
		})
	}
	asking.Wait()
	for _, s := range all {
		if f := findings[s.From]; !f.OK {
			return f
		}
	}
	return Finding{OK: true}
}

// question turns a step into questions: a place may have several addresses.
func (a *attempt) question(s Step, six bool) (out []asked, err error) {
	to := parse(s.To)
	facts := a.facts
	if to.peer {
		facts = a.peer
	}
	addrs, err := facts.resolve(to, six)
	if err != nil {
		return nil, err
	}
	limit := tryPatience
	if s.Want.Result != Answered {
		limit = deniedPatience
	}
	for _, at := range addrs {
		out = append(out, asked{step: s, to: to, q: probe.Question{Protocol: to.proto, To: at, Tries: s.Tries, Patience: limit, Size: s.Size, Largest: s.Whole}})
	}
	return out, nil
}

// parse is parsePlace of a place of the table, which its test reads.
func parse(text string) place {
	p, err := parsePlace(text)
	if err != nil {
		panic(err)
	}
	return p
}

// ask asks questions of one pod, and judges the answers.
func (a *attempt) ask(ctx context.Context, from string, all []asked, since time.Time) Finding {
	var questions []probe.Question
	for _, q := range all {
		questions = append(questions, q.q)
	}
	pod, peer := strings.CutPrefix(from, "peer/")
	site, cluster := a.site, a.facts
	if peer {
		site, cluster = a.task.peer, a.peer
	}
	var answers []probe.Answer
	var err error
	if from == "here" {
		answers, err = probe.All(ctx, questions)
	} else {
		answers, err = site.Ask(ctx, pod, questions)
	}
	if err != nil {
		return problem(all[0].step.String(), all[0].step.Want.String(), err)
	}
	for i, q := range all {
		o := observed{names: map[string]string{}}
		for _, by := range q.step.Want.By {
			o.names[by] = a.nameOf(by)
		}
		if seen := q.step.Want.Seen; seen != "" {
			o.addresses = a.addressesOf(seen)
		}
		if q.step.Want.Reason != "" && from != "here" {
			o.flows = a.eventsOf(ctx, q, cluster, pod, since)
		}
		if what := judge(q.step.Want, answers[i], o); what != "" {
			return Finding{
				Tried: fmt.Sprintf("%s (%s)", q.step, q.q.To), Expected: q.step.Want.String(), Happened: what,
				From: podName(cluster.Name, pod), To: q.q.To, Through: q.to.through(), Protocol: traceProtocol(q.q.Protocol),
			}
		}
	}
	return Finding{OK: true}
}

// traceProtocol is a protocol as `weft debug trace` calls it.
func traceProtocol(proto string) string {
	switch proto {
	case probe.UDP:
		return "udp"
	case probe.Ping:
		return "icmp"
	}
	return "tcp"
}

// nameOf is the full name of a pod.
func (a *attempt) nameOf(pod string) string {
	if name, ok := strings.CutPrefix(pod, "peer/"); ok {
		return podName(a.peer.Name, name)
	}
	if pod == "outside" {
		return "here"
	}
	return podName(a.facts.Name, pod)
}

// addressesOf are the addresses of a place, as text.
func (a *attempt) addressesOf(what string) (out []string) {
	facts := a.facts
	if name, ok := strings.CutPrefix(what, "peer/"); ok {
		facts, what = a.peer, name
	}
	addrs := facts.Addresses[what]
	if what == "here" {
		addrs = facts.Here
	}
	for _, addr := range addrs {
		out = append(out, addr.String())
	}
	return out
}

// eventsPatience is how long events take from the kernel to who asks.
const eventsPatience = 3 * time.Second

// eventsOf are the events of a denied request, from wherever it was denied. They arrive a
// moment later.
func (a *attempt) eventsOf(ctx context.Context, q asked, cluster *Facts, pod string, since time.Time) (out []flow.Flow) {
	r := flow.Request{Last: 50, Filter: flow.Filter{Verdicts: []flow.Verdict{flow.Dropped, flow.Refused, flow.Reset}}}
	// Clocks of machines differ a little.
	r.Filter.Since = since.Add(-time.Second)
	servers := a.servers()
	for deadline := time.Now().Add(eventsPatience); ; {
		out = nil
		for _, s := range a.sites {
			flows, err := s.Flows(ctx, r)
			if err != nil {
				continue // another cluster may know
			}
			for _, f := range flows {
				if about(f, cluster, pod, q.q.To, q.to.through(), servers) {
					out = append(out, f)
				}
			}
		}
		if missingEvent(q.step.Want, out) == "" || time.Now().After(deadline) || pause(ctx, again) != nil {
			return out
		}
	}
}

// about says whether a flow is that of a pod to an address. Where the backend of a service is, nobody
// knows any more which service it was: then any pod of the test is one.
func about(f flow.Flow, cluster *Facts, pod, to string, through bool, pods []netip.Addr) bool {
	if f.Source.Name() != podName(cluster.Name, pod) && !slices.Contains(cluster.Addresses[pod], f.Source.Address) {
		return false
	}
	host := hostOf(to)
	return f.Destination.Address.String() == host || f.Service != nil && f.Service.Address.String() == host ||
		through && f.Service == nil && slices.Contains(pods, f.Destination.Address)
}

// servers are the addresses of all pods of the test.
func (a *attempt) servers() (out []netip.Addr) {
	for _, f := range []*Facts{a.facts, a.peer} {
		if f != nil {
			for _, addrs := range f.Addresses {
				out = append(out, addrs...)
			}
		}
	}
	return out
}

// through says whether a place is a service.
func (p place) through() bool { return p.kind != "" && p.kind != "node" && p.kind != "slice" }

// maxEvidence is how many events a failure shows.
const maxEvidence = 5

// evidence is what agents know about a failure, and what to look at next.
func (a *attempt) evidence(ctx context.Context, f Finding) (events []string, next string) {
	if f.From == "" || f.To == "" {
		return nil, fmt.Sprintf("weft -c %s status", a.site.Context())
	}
	r := flow.Request{Last: 200, Filter: flow.Filter{Since: a.begin.Add(-time.Second), Verdicts: []flow.Verdict{flow.Dropped, flow.Refused, flow.Reset}}}
	pod := f.From[strings.LastIndex(f.From, "/")+1:]
	cluster := a.facts
	if a.peer != nil && strings.HasPrefix(f.From, a.peer.Name+"/") {
		cluster = a.peer
	}
	servers := a.servers()
	for _, s := range a.sites {
		flows, err := s.Flows(ctx, r)
		if err != nil {
			events = append(events, fmt.Sprintf("the events of %s are missing: %v", s.Name(), err))
			continue
		}
		for _, fl := range slices.Backward(flows) {
			if len(events) < maxEvidence && about(fl, cluster, pod, f.To, f.Through, servers) {
				events = append(events, fl.Line())
			}
		}
	}
	contexts := []string{a.site.Context()}
	if a.task.peer != nil {
		contexts = append(contexts, a.task.peer.Context())
	}
	if pod == "here" || strings.HasPrefix(pod, "host-") {
		return events, fmt.Sprintf("weft -c %s status", strings.Join(contexts, ","))
	}
	return events, fmt.Sprintf("weft -c %s debug trace --from %s --to %s --proto %s (with --keep, while the pods run)", strings.Join(contexts, ","), f.From, f.To, f.Protocol)
}
