package connectivity

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/connectivity/probe"
	"github.com/weft-mesh/weft/flow"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// site is a cluster in which every request is answered by whom it is for, except what broken
// says.
type site struct {
	name   string
	nodes  int
	peers  []string
	broken func(q probe.Question) bool
	start  error // of the pods

	mu      sync.Mutex
	left    []string
	running map[string]bool // policies
	asked   int
	onAsk   func()
}

func (s *site) Name() string    { return s.name }
func (s *site) Context() string { return s.name }
func (s *site) Leftovers(context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.left), nil
}

// pods of a site, with the last byte of their addresses.
var sitePods = map[string]byte{"client": 2, "stranger": 3, "guest": 4, "server-near": 5, "server-far": 6, "host-near": 7, "host-far": 8, "global-0": 9}

func (s *site) addr(pod string) netip.Addr {
	return netip.AddrFrom4([4]byte{10, s.name[0], 1, sitePods[pod]})
}

func (s *site) Look(context.Context) (*Facts, error) {
	f := &Facts{Name: s.name, Nodes: map[string]string{"near": "n1"}, All: []string{"n1"}, Addresses: map[string][]netip.Addr{}, Services: map[string]Service{}, Slices: map[string][]netip.Addr{}, Peers: s.peers}
	if s.nodes > 1 {
		f.Nodes["far"], f.All = "n2", []string{"n1", "n2"}
	}
	return f, nil
}

func (s *site) Prepare(_ context.Context, f *Facts) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = []string{Namespace, Other}
	for pod := range sitePods {
		f.Addresses[pod] = []netip.Addr{s.addr(pod)}
	}
	return s.start
}

func (s *site) Ask(ctx context.Context, _ string, all []probe.Question) (out []probe.Answer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked++; s.onAsk != nil {
		s.onAsk()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, q := range all {
		t := probe.Try{OK: true}
		at := hostOf(q.To)
		for pod := range sitePods {
			for _, cluster := range []string{"east", "west"} {
				if (&site{name: cluster}).addr(pod).String() == at {
					t.By = podName(cluster, pod)
				}
			}
		}
		if s.broken != nil && s.broken(q) || len(s.running) > 0 && q.Patience == deniedPatience {
			t = probe.Try{Failure: probe.Timeout, Error: "i/o timeout"}
		}
		out = append(out, probe.Answer{Tries: []probe.Try{t}})
	}
	return out, nil
}

func (s *site) Apply(_ context.Context, manifest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		s.running = map[string]bool{}
	}
	s.running[manifest] = true
	return nil
}

func (s *site) Withdraw(_ context.Context, manifest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, manifest)
	return nil
}

func (s *site) Scale(context.Context, int) error { return nil }

func (s *site) Flows(_ context.Context, r flow.Request) ([]flow.Flow, error) {
	f := denial("policy-denied", "weft-test-closed")
	f.Source = flow.Endpoint{Cluster: s.name, Namespace: Namespace, Pod: "client", Address: s.addr("client")}
	f.Destination = flow.Endpoint{Cluster: s.name, Namespace: Namespace, Pod: "server-near", Address: s.addr("server-near")}
	return []flow.Flow{f}, nil
}

func (s *site) Status(context.Context) (*api.Status, error) {
	return &api.Status{Nodes: []api.NodeStatus{{Name: "n1", State: api.NodeReady}}}, nil
}

func (s *site) Weft(context.Context, string, ...string) ([]byte, error) { return []byte("[]"), nil }

func (s *site) Clean(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.running = nil, nil
	return ctx.Err()
}

// trial are a few checks of each kind.
var trial = []Check{
	{Name: "near", Says: "near", Steps: pair("client", "server-near:8080")},
	{Name: "far", Says: "far", Needs: needs(TwoNodes), Steps: pair("client", "server-far:8080")},
	{Name: "six", Says: "six", Needs: needs(IPv6), Steps: pair("client", "server-near:8080")},
	{Name: "denied", Says: "denied", Alone: true, Before: pair("client", "server-near:8080"), Policies: "closed", Steps: steps(asks("client", "server-near:8080").denied("weft-test-closed"))},
	{Name: "mesh", Says: "mesh", Mesh: true, Steps: pair("client", "peer/server-near:8080")},
}

func options(checks ...Check) Options {
	return Options{Checks: checks, Patience: 5 * time.Second, Start: time.Minute, Removal: time.Minute, Parallel: 2, Say: func(string) {}, Done: func(Report) {}}
}

// outcomes are results in short.
func outcomes(results []Report) map[string]Outcome {
	out := map[string]Outcome{}
	for _, r := range results {
		out[strings.Trim(r.Cluster+">"+r.Peer, ">")+" "+r.Check] = r.Outcome
	}
	return out
}

func TestEachCheckIsRunWhereItApplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		east, west := &site{name: "east", nodes: 2, peers: []string{"west"}}, &site{name: "west", nodes: 1, peers: []string{"east"}}
		results, err := Run(t.Context(), []Site{east, west}, options(trial...))
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]Outcome{
			"east near": Passed, "west near": Passed, "east far": Passed, "west far": Skipped, "east six": Skipped, "west six": Skipped,
			"east denied": Passed, "west denied": Passed, "east>west mesh": Passed, "west>east mesh": Passed,
		}
		if got := outcomes(results); !maps.Equal(got, want) {
			t.Errorf("outcomes\n%v, want\n%v", got, want)
		}
		for _, r := range results {
			if (r.Outcome == Skipped) != (r.Reason != "") {
				t.Errorf("%+v", r)
			}
		}
		if len(east.left)+len(west.left)+len(east.running) > 0 {
			t.Error("something is left")
		}
		alone, err := Run(t.Context(), []Site{east}, options(trial[4]))
		if err != nil || len(alone) != 1 || alone[0].Reason != "only one cluster was given" {
			t.Errorf("with one cluster: %+v, %v", alone, err)
		}
		east.peers = nil
		apart, err := Run(t.Context(), []Site{east, west}, options(trial[4]))
		if got := outcomes(apart); err != nil || got["east>west mesh"] != Skipped || got["west>east mesh"] != Passed {
			t.Errorf("without being joined: %+v, %v", apart, err)
		}
	})
}

func TestAFailureSaysWhatHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		east := &site{name: "east", nodes: 2}
		east.broken = func(q probe.Question) bool { return hostOf(q.To) == east.addr("server-near").String() }
		results, err := Run(t.Context(), []Site{east}, options(trial[:2]...))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := outcomes(results), map[string]Outcome{"east near": Failed, "east far": Passed}; !maps.Equal(got, want) {
			t.Fatalf("outcomes %v, want %v", got, want)
		}
		s := Summarize(results, trial)
		text := s.Results[0].Text()
		for _, part := range []string{"failed  east near", "client asks server-near:8080", "answered by server-near", "timeout: i/o timeout", "DROPPED", "policy-denied", "debug trace --from east/weft-test/client --to 10.101.1.5:8080 --proto tcp"} {
			if !strings.Contains(text, part) {
				t.Errorf("%q is missing in\n%s", part, text)
			}
		}
	})
}

func TestPodsAreRemovedWhateverHappens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Interrupted.
		ctx, interrupt := context.WithCancel(t.Context())
		east := &site{name: "east", nodes: 2}
		east.onAsk = interrupt
		results, err := Run(ctx, []Site{east}, options(trial...))
		if !errors.Is(err, context.Canceled) || len(results) > 0 || len(east.left)+len(east.running) > 0 {
			t.Errorf("interrupted: %v, %v; left %v", results, err, east.left)
		}
		// They do not start.
		east = &site{name: "east", nodes: 1, start: errors.New("no image")}
		if _, err := Run(t.Context(), []Site{east}, options(trial...)); err == nil || !strings.Contains(err.Error(), "east: no image") || len(east.left) > 0 {
			t.Errorf("%v; left %v", err, east.left)
		}
		// Unless they are to be kept; then the next test does not begin by itself.
		east = &site{name: "east", nodes: 1}
		o := options(trial[0])
		o.Keep = true
		if _, err := Run(t.Context(), []Site{east}, o); err != nil || len(east.left) != 2 {
			t.Errorf("%v; left %v", err, east.left)
		}
		var left *LeftoversError
		if _, err := Run(t.Context(), []Site{east}, o); !errors.As(err, &left) || len(east.left) != 2 {
			t.Errorf("beside leftovers: %v; left %v", err, east.left)
		}
		o.Replace, o.Keep = true, false
		if _, err := Run(t.Context(), []Site{east}, o); err != nil || len(east.left) > 0 {
			t.Errorf("instead of leftovers: %v; left %v", err, east.left)
		}
	})
}

// The table itself: names are unique, places are understood, and policies are YAML whose names
// nobody else has.
func TestTheTable(t *testing.T) {
	seen := map[string]bool{}
	f := &Facts{Name: "east"}
	for _, c := range Checks() {
		if seen[c.Name] || c.Says == "" || strings.HasSuffix(c.Says, ".") {
			t.Errorf("check %q: its name is taken, or what it says is not a sentence: %q", c.Name, c.Says)
		}
		seen[c.Name] = true
		if len(c.Steps) == 0 && c.Do == nil || c.Bare != (c.Do != nil && strings.HasPrefix(c.Name, "status-")) || c.Policies != "" && (!c.Alone || len(c.Before) == 0) {
			t.Errorf("check %s has nothing to do, or policies beside others", c.Name)
		}
		for _, s := range slices.Concat(c.Before, c.Steps) {
			p, err := parsePlace(s.To)
			if err != nil {
				t.Errorf("check %s: %s: %v", c.Name, s.To, err)
			}
			if _, known := sitePods[strings.TrimPrefix(s.From, "peer/")]; !known && s.From != "here" {
				t.Errorf("check %s: there is no pod %s", c.Name, s.From)
			}
			if (p.peer || strings.HasPrefix(s.From, "peer/")) && !c.Mesh {
				t.Errorf("check %s is not one of the mesh: %s", c.Name, s)
			}
			far := strings.Contains(s.From+s.To, "far") && !p.peer
			if far && !slices.Contains(c.Needs, TwoNodes) {
				t.Errorf("check %s needs two nodes: %s", c.Name, s)
			}
			if _, err := f.resolve(p, false); err == nil {
				t.Errorf("check %s: %s has an address in a cluster without any", c.Name, s.To)
			}
		}
	}
	if len(seen) < 60 {
		t.Errorf("there are %d checks", len(seen))
	}
	names := 0
	for _, text := range policies(Checks()) {
		if !strings.Contains(text, "name: weft-test-") || strings.Contains(text, "{{") {
			t.Errorf("policy without a name of its own, or not filled in: %s", text)
		}
		names++
	}
	if names < 20 {
		t.Errorf("only %d checks have policies", names)
	}
}

func TestPlaces(t *testing.T) {
	f := &Facts{
		Name: "east", Here: []netip.Addr{addr("192.0.2.9")}, HerePort: 4000,
		Addresses: map[string][]netip.Addr{"server-near": {addr("10.1.1.2"), addr("fd00::2")}, "node/near": {addr("172.16.1.1")}},
		Services:  map[string]Service{"web": {IPs: []netip.Addr{addr("10.101.0.1")}, External: []netip.Addr{addr("198.51.100.1")}, NodePorts: map[string]uint16{"80/tcp": 30001, "80/udp": 30002}}},
		Slices:    map[string][]netip.Addr{"headless": {addr("10.1.1.2"), addr("10.1.1.3")}},
	}
	for text, want := range map[string]string{
		"server-near:8080": "tcp 10.1.1.2:8080", "server-near:8080/udp": "udp 10.1.1.2:8080", "server-near/ping": "ping 10.1.1.2",
		"svc/web:80": "tcp 10.101.0.1:80", "svc/web:80/connect": "connect 10.101.0.1:80", "external/web:80": "tcp 198.51.100.1:80",
		"node/near:22": "tcp 172.16.1.1:22", "node-port/web@near:80": "tcp 172.16.1.1:30001", "node-port/web@near:80/udp": "udp 172.16.1.1:30002",
		"slice/headless:1": "tcp 10.1.1.2:1 10.1.1.3:1", "outside": "tcp 192.0.2.9:4000", "outside/udp": "udp 192.0.2.9:4000",
	} {
		p, err := parsePlace(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		addrs, err := f.resolve(p, false)
		if got := p.proto + " " + strings.Join(addrs, " "); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", text, got, err, want)
		}
	}
	if got, err := f.resolve(parse("peer/server-near:1"), true); err != nil || fmt.Sprint(got) != "[[fd00::2]:1]" {
		t.Errorf("over IPv6: %v, %v", got, err)
	}
	for _, text := range []string{"server-far:8080", "svc/other:80", "node-port/web@near:81", "server-near:port"} {
		if got, err := f.resolve(parse(text), false); err == nil {
			t.Errorf("%s is %v", text, got)
		}
	}
	if _, err := parsePlace("pod/x:1"); err == nil {
		t.Error("an unknown kind is accepted")
	}
}

func TestEventsAreThoseOfTheRequest(t *testing.T) {
	east := &Facts{Name: "east", Addresses: map[string][]netip.Addr{"client": {addr("10.1.1.2")}}}
	client := flow.Endpoint{Cluster: "east", Namespace: Namespace, Pod: "client", Address: addr("10.1.1.2")}
	server := flow.Endpoint{Cluster: "east", Namespace: Namespace, Pod: "server-near", Address: addr("10.1.1.5")}
	pods := []netip.Addr{server.Address, client.Address}
	at := flow.Flow{Source: client, Destination: server}
	for name, c := range map[string]struct {
		f       flow.Flow
		to      string
		through bool
		want    bool
	}{
		"to the pod":                        {at, "10.1.1.5:80", false, true},
		"to another":                        {at, "10.1.1.6:80", false, false},
		"of another":                        {flow.Flow{Source: server, Destination: server}, "10.1.1.5:80", false, false},
		"through a service":                 {flow.Flow{Source: client, Destination: server, Service: &flow.Service{Address: addr("10.101.0.1")}}, "10.101.0.1:80", true, true},
		"through a service, at its backend": {at, "10.101.0.1:80", true, true},
		"through another service":           {flow.Flow{Source: client, Destination: server, Service: &flow.Service{Address: addr("10.101.0.2")}}, "10.101.0.1:80", true, false},
		"not at a backend":                  {flow.Flow{Source: client, Destination: flow.Endpoint{Address: addr("192.0.2.1")}}, "10.101.0.1:80", true, false},
	} {
		if got := about(c.f, east, "client", c.to, c.through, pods); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestSelect(t *testing.T) {
	got, err := Select(trial, "^(near|far)$")
	if err != nil || len(got) != 2 || got[1].Name != "far" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Select(trial, "("); err == nil {
		t.Error("a broken expression is accepted")
	}
	if all, _ := Select(trial, ""); len(all) != len(trial) {
		t.Errorf("%d of %d", len(all), len(trial))
	}
}

func TestJUnit(t *testing.T) {
	s := Summarize([]Report{
		{Check: "mesh", Cluster: "east", Peer: "west", Outcome: Passed, Seconds: 1},
		{Check: "far", Cluster: "east", Outcome: Skipped, Reason: "one node"},
		{Check: "near", Cluster: "east", Outcome: Failed, Seconds: 0.5, Says: "near", Happened: "it <ended> & so on", Tried: "asks", Events: []string{"DROPPED"}},
	}, trial)
	var out bytes.Buffer
	if err := s.JUnit(&out); err != nil {
		t.Fatal(err)
	}
	var back junitSuites
	if err := xml.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Suites) != 2 || back.Suites[0].Name != "east" || back.Suites[0].Tests != 2 || back.Suites[0].Failures != 1 || back.Suites[0].Skipped != 1 || back.Suites[1].Name != "east → west" {
		t.Fatalf("%+v", back)
	}
	near := back.Suites[0].Cases[0]
	if near.Name != "near" || near.Failure == nil || near.Failure.Message != "it <ended> & so on" || !strings.Contains(near.Failure.Text, "DROPPED") || near.Time != "0.500" {
		t.Errorf("%+v", near)
	}
	if s.Passed != 1 || s.Failed != 1 || s.Skipped != 1 {
		t.Errorf("%+v", s)
	}
}

func TestStatusChecks(t *testing.T) {
	f := &Facts{All: []string{"n1", "n2", "n3"}}
	s := &api.Status{
		Nodes:    []api.NodeStatus{{Name: "n1", State: api.NodeReady}, {Name: "n2", State: api.NodeSilent}},
		Peers:    []api.PeerStatus{{Name: "west", Control: api.ControlStatus{State: api.LinkDown, Error: "refused"}}, {Name: "north", Control: api.ControlStatus{State: api.LinkUp}, Mirrors: []api.MirrorStatus{{Resource: "ip"}}}},
		Concerns: []api.Concern{{Message: "agent on n2 is silent", Next: "start it"}},
	}
	for want, got := range map[string][]string{
		"node n2 is silent; node n3 of Kubernetes is not in the mesh":              unready(s, f),
		"the link to west is down refused; ip of north have not been read in full": peersDown(s, f),
		"agent on n2 is silent: start it":                                          concerns(s, f),
	} {
		if strings.Join(got, "; ") != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
