package connectivity

import (
	"strings"
	"testing"

	"github.com/weft-mesh/weft/connectivity/probe"
	"github.com/weft-mesh/weft/flow"
)

func answered(by ...string) (a probe.Answer) {
	for _, name := range by {
		a.Tries = append(a.Tries, probe.Try{OK: true, By: name, Seen: "10.1.1.2:4000"})
	}
	return a
}

func failed(how string) probe.Answer {
	return probe.Answer{Tries: []probe.Try{{Failure: how, Error: how + "!"}}}
}

func denial(reason, policy string) flow.Flow {
	return flow.Flow{Verdict: flow.Dropped, Reason: reason, Policies: []flow.Policy{{Kind: "NetworkPolicy", Namespace: Namespace, Name: policy}}}
}

func TestJudge(t *testing.T) {
	names := map[string]string{"near": "east/weft-test/near", "far": "east/weft-test/far"}
	near, far := names["near"], names["far"]
	both := Want{Result: Answered, By: []string{"near", "far"}}
	all, one, sees := both, both, both
	all.AllOf, one.OneOf = true, true
	sees.Seen = "client"
	closed := Want{Result: Denied, Reason: "policy-denied", Policy: "closed"}
	for name, c := range map[string]struct {
		want   Want
		answer probe.Answer
		flows  []flow.Flow
		wrong  string // a part of what is wrong
	}{
		"answered":                   {want: both, answer: answered(near, far)},
		"by one of two":              {want: both, answer: answered(near, near)},
		"by somebody else":           {want: both, answer: answered(near, "west/weft-test/near"), wrong: "somebody else answered: east/weft-test/near 1 times, west/weft-test/near 1 times"},
		"by all":                     {want: all, answer: answered(near, far)},
		"by one instead of all":      {want: all, answer: answered(near, near), wrong: "far never answered"},
		"always by one":              {want: one, answer: answered(far, far)},
		"by several":                 {want: one, answer: answered(far, near), wrong: "several answered"},
		"nothing asked":              {want: both, wrong: "nothing was asked"},
		"timeout":                    {want: both, answer: failed(probe.Timeout), wrong: "1 of 1 failed: timeout: timeout!"},
		"one of two fails":           {want: both, answer: probe.Answer{Tries: append(answered(near).Tries, failed(probe.Reset).Tries...)}, wrong: "1 of 2 failed: reset"},
		"seen":                       {want: sees, answer: answered(near)},
		"ping":                       {want: Want{Result: Answered}, answer: answered("")},
		"denied":                     {want: closed, answer: failed(probe.Timeout), flows: []flow.Flow{denial("policy-denied", "closed")}},
		"denied, but answered":       {want: closed, answer: answered(near), flows: []flow.Flow{denial("policy-denied", "closed")}, wrong: "1 of 1 were answered"},
		"denied without event":       {want: closed, answer: failed(probe.Timeout), wrong: "there is no event of it"},
		"denied by another policy":   {want: closed, answer: failed(probe.Timeout), flows: []flow.Flow{denial("policy-denied", "other")}, wrong: "only of another policy"},
		"dropped for another reason": {want: closed, answer: failed(probe.Timeout), flows: []flow.Flow{denial("no-tunnel", "")}, wrong: "only of no-tunnel"},
		"refused":                    {want: Want{Result: Refused}, answer: failed(probe.Refused)},
		"unreachable":                {want: Want{Result: Refused}, answer: failed(probe.Unreachable)},
		"not refused but swallowed":  {want: Want{Result: Refused}, answer: failed(probe.Timeout), wrong: "it ended with timeout, not at once"},
		"refused without event":      {want: Want{Result: Refused, Reason: "no-backend"}, answer: failed(probe.Refused), wrong: "no event"},
	} {
		o := observed{flows: c.flows, names: names, addresses: []string{"10.1.1.2"}}
		if got := judge(c.want, c.answer, o); (got == "") != (c.wrong == "") || !strings.Contains(got, c.wrong) {
			t.Errorf("%s: %q, want %q", name, got, c.wrong)
		}
	}
	if got := judge(sees, answered(near), observed{names: names, addresses: []string{"10.1.1.9"}}); got != "the server saw 10.1.1.2, not 10.1.1.9" {
		t.Errorf("another address is seen: %q", got)
	}
}

func TestCounters(t *testing.T) {
	peers := []tunnelPeer{
		{Allowed: []string{"10.1.2.0/24", "172.16.1.2/32"}, Received: 10, Sent: 20},
		{Allowed: []string{"10.1.2.0/24"}, Received: 1, Sent: 2},
		{Allowed: []string{"10.2.1.0/24"}, Received: 100, Sent: 200},
	}
	if r, s, ok := counted(peers, addr("10.1.2.7")); r != 11 || s != 22 || !ok {
		t.Errorf("%d %d %v", r, s, ok)
	}
	if _, _, ok := counted(peers, addr("10.1.3.7")); ok {
		t.Error("an address without a tunnel has one")
	}
	before, after := [4]int64{1, 2, 3, 4}, [4]int64{1, 2, 3, 4}
	for i := range after {
		after[i] += sealedBytes
	}
	if what := carried(before, after); what != "" {
		t.Error(what)
	}
	after[3]--
	if what := carried(before, after); what == "" {
		t.Error("a byte in the clear is not noticed")
	}
}
