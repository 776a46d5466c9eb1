package probe_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/tunnel/probe"
)

// outcomes parses a row of outcomes: "a" answered, "m" missed, "." void.
func outcomes(row string) (all []probe.Outcome) {
	for _, c := range row {
		all = append(all, map[rune]probe.Outcome{'a': probe.Answered, 'm': probe.Missed, '.': probe.Void}[c])
	}
	return all
}

func TestDecide(t *testing.T) {
	limits := probe.Defaults().Thresholds
	gossip := probe.Evidence{GossipDead: true}
	for name, c := range map[string]struct {
		now      probe.State
		row      string
		evidence probe.Evidence
		want     probe.State
	}{
		"nothing seen yet stays unknown":               {probe.Unknown, "", probe.Evidence{}, probe.Unknown},
		"gossip alone takes nothing down":              {probe.Up, "", gossip, probe.Up},
		"gossip against answers takes nothing down":    {probe.Up, "aaaaa", gossip, probe.Up},
		"one answer is not up yet":                     {probe.Unknown, "a", probe.Evidence{}, probe.Unknown},
		"two answers are up":                           {probe.Unknown, "aa", probe.Evidence{}, probe.Up},
		"a lost probe keeps it up":                     {probe.Up, "aaam", probe.Evidence{}, probe.Up},
		"four misses keep it up":                       {probe.Up, "aammmm", probe.Evidence{}, probe.Up},
		"five misses take it down":                     {probe.Up, "aammmmm", probe.Evidence{}, probe.Down},
		"two misses with evidence keep it up":          {probe.Up, "aamm", gossip, probe.Up},
		"three misses with evidence take it down":      {probe.Up, "aammm", gossip, probe.Down},
		"every second lost keeps it up":                {probe.Up, "mamamamama", probe.Evidence{}, probe.Up},
		"never answered is down after five":            {probe.Unknown, "mmmmm", probe.Evidence{}, probe.Down},
		"one answer does not bring it back":            {probe.Down, "mmmmma", probe.Evidence{}, probe.Down},
		"answers that do not follow on do not either":  {probe.Down, "mmamama", probe.Evidence{}, probe.Down},
		"two answers bring it back":                    {probe.Down, "mmmmmaa", probe.Evidence{}, probe.Up},
		"two answers bring it back against gossip":     {probe.Down, "mmmmmaa", gossip, probe.Up},
		"a stall counts for nothing":                   {probe.Up, "aa.....", probe.Evidence{}, probe.Up},
		"a stall neither adds to misses nor ends them": {probe.Up, "ammmm..m", probe.Evidence{}, probe.Down},
		"a stall does not end a row of answers":        {probe.Down, "mmmma..a", probe.Evidence{}, probe.Up},
		"down stays down while silent":                 {probe.Down, "mmmmmmmm", probe.Evidence{}, probe.Down},
	} {
		t.Run(name, func(t *testing.T) {
			got, reason := probe.Decide(c.now, outcomes(c.row), c.evidence, limits)
			if got != c.want {
				t.Errorf("%s after %q: %s (%s), want %s", c.now, c.row, got, reason, c.want)
			}
			if (got != c.now) != (reason != "") {
				t.Errorf("a change has a reason, and only a change: %s to %s because %q", c.now, got, reason)
			}
		})
	}
}

func TestClusters(t *testing.T) {
	now := time.Now()
	doubt := now.Add(-probe.DoubtTime)
	for name, c := range map[string]struct {
		states string
		since  time.Time
		want   probe.Standing
	}{
		"all witnesses down":             {"down down down", doubt, probe.Dead},
		"a moment ago":                   {"down down down", doubt.Add(1), probe.Silent},
		"also if gossip agrees":          {"dead dead", doubt.Add(1), probe.Silent},
		"gossip agrees, and the time":    {"dead dead", doubt, probe.Dead},
		"one still answers":              {"down up down", doubt, probe.Alive},
		"one was only just added":        {"down unknown down", doubt, probe.Dead},
		"none was judged":                {"unknown unknown", doubt, probe.Unjudged},
		"one answers, others not judged": {"unknown up unknown", doubt, probe.Alive},
	} {
		t.Run(name, func(t *testing.T) {
			var rows []probe.Observation
			for _, s := range strings.Fields(c.states) {
				o := probe.Observation{Target: probe.Target{Cluster: "west"}, State: probe.State(s), Since: c.since}
				if s == "dead" {
					o.State, o.Evidence.GossipDead = probe.Down, true
				}
				rows = append(rows, o)
			}
			for range 2 { // in either order
				if got := probe.Clusters(rows, now); got["west"] != c.want || len(got) != 1 {
					t.Errorf("%s: %v, want %v", c.states, got, c.want)
				}
				slices.Reverse(rows)
			}
		})
	}
}

func mesh(clusters, nodes int) (all []probe.Target) {
	for c := range clusters {
		for n := range nodes {
			all = append(all, probe.Target{
				Cluster: fmt.Sprintf("c%d", c), Node: fmt.Sprintf("n%d", n),
				Addr: netip.AddrFrom4([4]byte{10, byte(c), byte(n), 1}),
			})
		}
	}
	return all
}

func names(targets []probe.Target) (all []string) {
	for _, t := range targets {
		all = append(all, t.Name())
	}
	return all
}

// witnesses are those chosen of some nodes that can all be probed.
func witnesses(self string, nodes []probe.Target, must map[string]bool) (chosen []string) {
	w := probe.NewWitnesses(self)
	for name := range must {
		w.Must(name, true)
	}
	for _, n := range nodes {
		w.Put(n.Cluster, n.Name(), true)
	}
	for _, name := range names(nodes) {
		if cluster, _, _ := strings.Cut(name, "/"); w.Chosen(cluster, name) {
			chosen = append(chosen, name)
		}
	}
	return chosen
}

// Whatever comes and goes in whatever order, those are chosen that would be chosen of
// what is left, and each change is told.
func TestWitnessesFollow(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		w := probe.NewWitnesses("c0/n0")
		can, must, known := map[string]bool{}, map[string]bool{}, map[string]bool{}
		for range 400 {
			name := fmt.Sprintf("c%d/n%d", random.IntN(2), random.IntN(14))
			switch cluster := name[:2]; random.IntN(4) {
			case 0:
				delete(can, name)
				w.Drop(cluster, name)
			case 1:
				must[name] = !must[name]
				w.Must(name, must[name])
			default:
				can[name] = random.IntN(4) > 0
				w.Put(cluster, name, can[name])
			}
			delete(can, "c0/n0")
			changed := w.Changed()
			fresh := probe.NewWitnesses("c0/n0")
			for name := range can {
				fresh.Put(name[:2], name, can[name])
			}
			for name := range must {
				fresh.Must(name, must[name])
			}
			for c := range 2 {
				for n := range 14 {
					name := fmt.Sprintf("c%d/n%d", c, n)
					is := w.Chosen(name[:2], name)
					if want := fresh.Chosen(name[:2], name); is != want {
						t.Fatalf("seed %d: %s is chosen: %v, from scratch %v", seed, name, is, want)
					}
					if is != known[name] && !changed[name] {
						t.Fatalf("seed %d: nobody was told that %s is chosen: %v", seed, name, is)
					}
					known[name] = is
				}
			}
		}
	}
}

func TestWitnesses(t *testing.T) {
	t.Run("a small cluster is probed whole, without ourselves", func(t *testing.T) {
		got := witnesses("c0/n0", mesh(2, 2), nil)
		if want := []string{"c0/n1", "c1/n0", "c1/n1"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	t.Run("a large one by three", func(t *testing.T) {
		if got := witnesses("c0/n0", mesh(3, 100), nil); len(got) != 9 {
			t.Errorf("%d targets in 3 clusters of 100: %v", len(got), got)
		}
	})
	t.Run("and whoever we have flows with", func(t *testing.T) {
		flows := map[string]bool{"c1/n7": true, "c1/n8": true, "c1/gone": true}
		got := witnesses("c0/n0", mesh(2, 100), flows)
		for _, want := range []string{"c1/n7", "c1/n8"} {
			if !slices.Contains(got, want) {
				t.Errorf("%s is missing in %v", want, got)
			}
		}
		if len(got) > 8 {
			t.Errorf("want at most 3 and 3 and 2: %v", got)
		}
	})
	t.Run("one that leaves changes one", func(t *testing.T) {
		all := mesh(1, 50)
		before := witnesses("x/y", all, nil)
		left := slices.DeleteFunc(slices.Clone(all), func(n probe.Target) bool { return n.Name() == before[1] })
		after := witnesses("x/y", left, nil)
		same := 0
		for _, n := range after {
			if slices.Contains(before, n) {
				same++
			}
		}
		if same != 2 {
			t.Errorf("%v became %v", before, after)
		}
	})
	t.Run("the load is spread", func(t *testing.T) {
		asked := map[string]int{}
		for i := range 300 {
			for _, name := range witnesses(fmt.Sprintf("x/n%d", i), mesh(1, 30), nil) {
				asked[name]++
			}
		}
		if most := slices.Max(slices.Collect(maps.Values(asked))); len(asked) != 30 || most > 3*30 {
			t.Errorf("%d nodes asked, one of them by %d of 300, want about 30: %v", len(asked), most, asked)
		}
	})
}
