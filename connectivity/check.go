// Package connectivity checks a running mesh from within: pods of its own ask each other over
// every way that Weft is responsible for, and what becomes of it is compared with what
// should.
//
// Checks are a table. Here it is decided which apply, what is asked, and whether the answers
// are right; package probe asks and answers, and Kubernetes runs the pods.
package connectivity

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/connectivity/probe"
	"github.com/weft-mesh/weft/flow"
)

// Check is one thing that has to be so. It is run once in each cluster, or if Mesh once in each
// direction between two.
type Check struct {
	Name string
	Says string // what has to be so, as a sentence without a full stop
	// Needs are what it cannot do without. Where one is missing, the check is skipped.
	Needs []Need
	// Mesh checks involve another cluster, whose parts begin with "peer/".
	Mesh bool
	// Alone checks change something that others rely on.
	Alone bool
	// Policies are applied in the cluster while the check runs, as YAML; text such as
	// {{.PeerName}} is filled in.
	Policies string
	// Before has to be so before the policies are applied, and again when they are gone.
	Before []Step
	Steps  []Step
	// Do is for what steps cannot say; it runs after them.
	Do func(ctx context.Context, a *attempt) Finding
	// Bare checks need no pods.
	Bare bool
}

// Need is something that a cluster, or a pair of them, may lack.
type Need string

const (
	TwoNodes Need = "two nodes"
	IPv6     Need = "IPv6"
	IPv4     Need = "IPv4"
	// Outside is this machine, where the command runs, as somebody outside of the mesh whom
	// pods' nodes reach; Inbound is that it reaches the nodes.
	Outside Need = "outside"
	Inbound Need = "inbound"
	Peer    Need = "a peer"
	// External is a service with an external address.
	External Need = "an external address"
)

// Step asks a question from one place, and says what should come of it.
type Step struct {
	From string // a pod, or "here"
	// To is a place and a port: "server-near:8080", "svc/server:80/udp", "node/near:8478",
	// "node-port/node-port@near", "external/external:80", "slice/headless:8080", "outside", with "/ping" or
	// "/connect" at its end for those.
	To    string
	Tries int
	Size  int
	Whole bool // as large as possible, not fragmented
	Want  Want
}

// Want is what should come of a question.
type Want struct {
	Result Result
	// By are the only pods that may answer; AllOf says that each of them has to, and OneOf
	// that it has to be the same one each time. Pods of the peer begin with "peer/".
	By    []string
	AllOf bool
	OneOf bool
	// Seen is the place whose address the server has to see: a pod, or "node/near".
	Seen string
	// Reason is that of the event, and Policy the policy that it names.
	Reason string
	Policy string
}

// Result is how a request ends.
type Result string

const (
	Answered Result = "answered"
	Denied   Result = "denied"  // swallowed or refused, but not answered
	Refused  Result = "refused" // at once
)

func asks(from, to string) Step {
	s := Step{From: from, To: to, Tries: 1, Want: Want{Result: Answered}}
	if pod, _, ok := strings.Cut(to, ":"); ok && !strings.Contains(strings.TrimPrefix(pod, "peer/"), "/") && !strings.HasSuffix(to, "/ping") {
		s.Want.By = []string{pod}
	}
	return s
}

func (s Step) by(pods ...string) Step     { s.Want.By = pods; return s }
func (s Step) allOf(pods ...string) Step  { s.Want.By, s.Want.AllOf = pods, true; return s }
func (s Step) oneOf(pods ...string) Step  { s.Want.By, s.Want.OneOf = pods, true; return s }
func (s Step) seen(place string) Step     { s.Want.Seen = place; return s }
func (s Step) times(n int) Step           { s.Tries = n; return s }
func (s Step) bytes(n int) Step           { s.Size = n; return s }
func (s Step) whole() Step                { s.Whole = true; return s }
func (s Step) refused(reason string) Step { s.Want = Want{Result: Refused, Reason: reason}; return s }
func (s Step) dropped(reason string) Step { s.Want = Want{Result: Denied, Reason: reason}; return s }
func (s Step) denied(policy ...string) Step {
	s.Want = Want{Result: Denied, Reason: "policy-denied"}
	if len(policy) > 0 {
		s.Want.Policy = policy[0]
	}
	return s
}

// String is the question as people read it.
func (s Step) String() string {
	text := s.From + " asks " + s.To
	if s.Tries > 1 {
		text += fmt.Sprintf(", %d times", s.Tries)
	}
	switch {
	case s.Whole:
		text += ", in the largest packet that its device sends"
	case s.Size > 0:
		text += fmt.Sprintf(", %d bytes each way", s.Size)
	}
	return text
}

// String is the wish as people read it.
func (w Want) String() string {
	text := string(w.Result)
	switch {
	case w.AllOf:
		text += " by each of " + strings.Join(w.By, ", ")
	case w.OneOf:
		text += " always by the same one of " + strings.Join(w.By, ", ")
	case len(w.By) > 0:
		text += " by " + strings.Join(w.By, " or ")
	}
	if w.Seen != "" {
		text += ", who sees the address of " + w.Seen
	}
	if w.Reason != "" {
		text += ", with an event that says " + w.Reason
	}
	if w.Policy != "" {
		text += " by " + w.Policy
	}
	return text
}

// Finding is what a step, or a check, found; OK says that it is as expected.
type Finding struct {
	OK                        bool
	Tried, Expected, Happened string
	// From and To are the ends, as `weft debug trace` takes them, if there are two.
	From, To string
	Protocol string
	Through  bool // a service
}

// observed is what is known of the events of a question.
type observed struct {
	flows []flow.Flow
	// names and addresses are what By and Seen of Want stand for.
	names     map[string]string
	addresses []string
}

// judge compares what came of a question with what should. It returns what is wrong, or "".
func judge(w Want, a probe.Answer, o observed) string {
	if len(a.Tries) == 0 {
		return "nothing was asked"
	}
	var failed []probe.Try
	by := map[string]int{}
	for _, t := range a.Tries {
		if t.OK {
			by[t.By]++
		} else {
			failed = append(failed, t)
		}
	}
	answered := len(a.Tries) - len(failed)
	if w.Result != Answered {
		if answered > 0 {
			return fmt.Sprintf("%d of %d were answered%s", answered, len(a.Tries), who(by))
		}
		if i := slices.IndexFunc(failed, func(t probe.Try) bool { return t.Failure != probe.Refused && t.Failure != probe.Unreachable }); w.Result == Refused && i >= 0 {
			return fmt.Sprintf("it ended with %s, not at once: %s", failed[i].Failure, failed[i].Error)
		}
		return missingEvent(w, o.flows)
	}
	if len(failed) > 0 {
		return fmt.Sprintf("%d of %d failed: %s: %s", len(failed), len(a.Tries), failed[0].Failure, failed[0].Error)
	}
	if len(w.By) > 0 {
		for _, name := range slices.Sorted(maps.Keys(by)) {
			if !slices.ContainsFunc(w.By, func(pod string) bool { return o.names[pod] == name }) {
				return "somebody else answered:" + who(by)
			}
		}
		for _, pod := range w.By {
			if w.AllOf && by[o.names[pod]] == 0 {
				return pod + " never answered:" + who(by)
			}
		}
		if w.OneOf && len(by) > 1 {
			return "several answered:" + who(by)
		}
	}
	if w.Seen != "" {
		for _, t := range a.Tries {
			if seen := hostOf(t.Seen); !slices.Contains(o.addresses, seen) {
				return fmt.Sprintf("the server saw %s, not %s", seen, strings.Join(o.addresses, " or "))
			}
		}
	}
	return ""
}

// who says how often each server answered.
func who(by map[string]int) string {
	var words []string
	for name, n := range by {
		if name == "" {
			name = "an unnamed server"
		}
		words = append(words, fmt.Sprintf(" %s %d times", name, n))
	}
	slices.Sort(words)
	return strings.Join(words, ",")
}

// missingEvent says which event is missing, or "".
func missingEvent(w Want, flows []flow.Flow) string {
	if w.Reason == "" {
		return ""
	}
	var others []string
	for _, f := range flows {
		if f.Reason != w.Reason {
			others = append(others, f.Reason)
			continue
		}
		if w.Policy == "" || slices.ContainsFunc(f.Policies, func(p flow.Policy) bool { return p.Name == w.Policy }) {
			return ""
		}
		others = append(others, "another policy")
	}
	slices.Sort(others)
	text := "there is no event of it"
	if others = slices.Compact(others); len(others) > 0 {
		text += ", only of " + strings.Join(slices.DeleteFunc(others, func(s string) bool { return s == "" }), ", ")
	}
	return text
}

// Select returns the checks whose names match a regular expression; "" is all.
func Select(all []Check, expr string) ([]Check, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(all), func(c Check) bool { return !re.MatchString(c.Name) }), nil
}
