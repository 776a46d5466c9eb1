package gossip

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

// alone is a pool without other members.
func alone(t testing.TB, cluster string) *delegate {
	t.Helper()
	p, err := New(Config{
		Self:  Member{Cluster: cluster, Name: "a", Role: APIServer, Addr: netip.MustParseAddrPort("127.0.0.1:1")},
		Speed: WAN, Keys: [][]byte{key(1)}, Clusters: []string{"east", "west", "north"}, Sign: signer(cluster), Verify: verify,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &delegate{p}
}

// A member of the pool, which has all its keys, reports on another cluster's nodes.
func TestReportCountsOnlyFromTheClusterItIsAbout(t *testing.T) {
	now := uint64(time.Now().UnixNano())
	honest := signed("west", Report{Cluster: "west", Reporter: "a", Sequence: now, Dead: []string{"n1"}})
	altered := honest
	altered.Dead = []string{"n1", "n2"}
	renamed := honest
	renamed.Reporter = "b"
	unsigned := honest
	unsigned.Signature = nil
	for name, c := range map[string]struct {
		report Report
		kept   bool
	}{
		"its own":           {honest, true},
		"somebody else's":   {signed("north", Report{Cluster: "west", Reporter: "a", Sequence: now, Dead: []string{"n1"}}), false},
		"in our own name":   {signed("north", Report{Cluster: "east", Reporter: "b", Sequence: now}), false},
		"not signed":        {unsigned, false},
		"altered":           {altered, false},
		"another reporter":  {renamed, false},
		"too old":           {signed("west", Report{Cluster: "west", Reporter: "a", Sequence: now - uint64(ReportLife+time.Minute)}), false},
		"from ahead":        {signed("west", Report{Cluster: "west", Reporter: "a", Sequence: now + uint64(ReportLife+time.Minute)}), false},
		"beyond any time":   {signed("west", Report{Cluster: "west", Reporter: "a", Sequence: 1<<64 - 1}), false},
		"of no reporter":    {signed("west", Report{Cluster: "west", Sequence: now}), false},
		"of no name":        {signed("west", Report{Cluster: "west", Reporter: "a/b", Sequence: now}), false},
		"too many nodes":    {signed("west", Report{Cluster: "west", Reporter: "a", Sequence: now, Dead: make([]string, maxDead+1)}), false},
		"clocks that drift": {signed("west", Report{Cluster: "west", Reporter: "a", Sequence: now + uint64(ReportLife/2)}), true},
	} {
		t.Run(name, func(t *testing.T) {
			d := alone(t, "east")
			d.accept(c.report)
			if kept := len(d.Reports()) == 1; kept != c.kept {
				t.Errorf("kept: %v", kept)
			}
			if refused := d.Refused() == 1; refused == c.kept {
				t.Errorf("refused: %d", d.Refused())
			}
			if passedOn := len(d.GetBroadcasts(0, 1400)) == 1; passedOn != c.kept {
				t.Errorf("passed on: %v", passedOn)
			}
		})
	}
}

func TestClusterCannotHaveAnyNumberOfReporters(t *testing.T) {
	d, now := alone(t, "east"), uint64(time.Now().UnixNano())
	for i := range 2 * maxReporters {
		d.accept(signed("west", Report{Cluster: "west", Reporter: fmt.Sprint(i), Sequence: now}))
	}
	d.accept(signed("west", Report{Cluster: "west", Reporter: "0", Sequence: now + 1}))
	d.accept(signed("north", Report{Cluster: "north", Reporter: "a", Sequence: now}))
	if got := d.Reports(); len(got) != maxReporters+1 || got[1].Sequence != now+1 {
		t.Errorf("%d reports: %v", len(got), got)
	}
}

// TestClocksApart receives a report again and again until the next one is made, as
// members pass it on.
func TestClocksApart(t *testing.T) {
	for _, c := range []struct {
		ahead time.Duration
		heard bool
	}{
		{-ReportLife, false},
		{-(ReportLife - reportRefresh) - time.Minute, false},
		{-(ReportLife - reportRefresh), true},
		{ReportLife, true},
		{ReportLife + time.Minute, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := alone(t, "east")
			r := signed("west", Report{Cluster: "west", Reporter: "a", Sequence: uint64(time.Now().Add(c.ahead).UnixNano())})
			always := true
			for range int(reportRefresh / time.Second) {
				d.accept(r)
				always = always && len(d.Reports()) == 1
				time.Sleep(time.Second)
			}
			if always != c.heard {
				t.Errorf("%v ahead: counts until the next is made: %v", c.ahead, always)
			}
		})
	}
}

// Ignored reports about a peer are warned of, but not again and again. Those about
// other clusters are not.
func TestOperatorHearsOfReportsThatDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := alone(t, "east")
		var lines strings.Builder
		d.cfg.Log = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelWarn}))
		d.SetClusters([]string{"west", "north"})
		for _, c := range []struct {
			pause time.Duration
			want  string
		}{{0, "cluster=west cluster=north"}, {time.Minute, ""}, {warnAgain, "cluster=west cluster=north"}} {
			time.Sleep(c.pause)
			lines.Reset()
			old := uint64(time.Now().Add(-ReportLife - time.Minute).UnixNano())
			for range 10 {
				for _, cluster := range []string{"west", "north", "south"} {
					d.accept(signed(cluster, Report{Cluster: cluster, Reporter: "a", Sequence: old}))
				}
			}
			var got []string
			for _, word := range strings.Fields(lines.String()) {
				if strings.HasPrefix(word, "cluster=") {
					got = append(got, word)
				}
			}
			if strings.Join(got, " ") != c.want || c.want != "" && !strings.Contains(lines.String(), "it is 16m0s old: compare the clocks") {
				t.Errorf("after %v: %s", c.pause, lines.String())
			}
		}
	})
}

func TestReportIsRefreshedAndForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		east, west := alone(t, "east"), alone(t, "west")
		if err := west.SetDead([]string{"n1"}); err != nil {
			t.Fatal(err)
		}
		pass := func() {
			if err := west.refresh(); err != nil {
				t.Fatal(err)
			}
			east.MergeRemoteState(west.LocalState(false), false)
		}
		dead := func() string {
			for _, r := range east.Reports() {
				return strings.Join(r.Dead, " ")
			}
			return "nothing"
		}
		for range 10 {
			pass()
			if dead() != "n1" {
				t.Fatal(dead())
			}
			time.Sleep(reportRefresh)
		}
		before := west.LocalState(false)
		time.Sleep(ReportLife)
		if dead() != "nothing" {
			t.Error("a report outlives its time:", dead())
		}
		east.MergeRemoteState(before, false)
		if dead() != "nothing" {
			t.Error("a report is brought up again:", dead())
		}
		pass()
		if dead() != "n1" {
			t.Error("west speaks again and is not heard:", dead())
		}
	})
}

// FuzzMember: whatever a member that has the pool's keys says, only what a cluster has
// signed is kept and passed on.
func FuzzMember(f *testing.F) {
	honest, err := json.Marshal(signed("west", Report{Cluster: "west", Reporter: "a", Sequence: uint64(time.Now().UnixNano()), Dead: []string{"n1"}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("west/apiserver/a", []byte(`{"cluster":"west","role":"apiserver","name":"a"}`), honest)
	f.Add("west/agent/../n1", []byte(`{"cluster":"west","role":"agent","name":"../n1"}`), []byte(`{"cluster":"west","reporter":"a","sequence":18446744073709551615}`))
	f.Add("", []byte("null"), []byte("[null]"))
	d := alone(f, "east")
	f.Fuzz(func(t *testing.T, name string, meta, said []byte) {
		n := &memberlist.Node{Name: name, Addr: net.IP{192, 0, 2, 1}, Port: 7946, Meta: meta}
		if m, err := member(n); d.NotifyAlive(n) == nil && (err != nil || m.String() != name || !d.admits(m.Cluster)) {
			t.Errorf("%q was let in as %v: %v", name, m, err)
		}
		d.NotifyJoin(n)
		d.NotifyUpdate(n)
		d.NotifyMsg(said)
		d.MergeRemoteState(said, false)
		d.MergeRemoteState(append(append([]byte("["), said...), ']'), true)
		d.NotifyLeave(n)
		for _, r := range d.Reports() {
			if err := verify(r.Cluster, r.text(), r.Signature); err != nil {
				t.Errorf("keeps %+v: %v", r, err)
			}
		}
		for _, sent := range d.GetBroadcasts(0, 1400) {
			var r Report
			if err := json.Unmarshal(sent, &r); err != nil || verify(r.Cluster, r.text(), r.Signature) != nil {
				t.Errorf("passes on %s", sent)
			}
		}
	})
}
