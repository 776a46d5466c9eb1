package service

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// Every weight is in one class, whose members are accepted every second time at least, and
// those of the default weight always.
func TestClasses(t *testing.T) {
	for weight := 1; weight <= math.MaxUint16; weight++ {
		w := uint16(weight)
		c := ClassOf(w)
		if c >= Classes || (c == 0) != (w == DefaultWeight) {
			t.Fatalf("weight %d is in class %d", w, c)
		}
		accepted := 1 - float64(c.Reject(w))/(1<<16)
		// The highest weight of a class, relative to the default one.
		most := math.Pow(2, float64(c)-evenClass)
		if c == 0 {
			most = 1
		}
		if accepted < 0.5 || math.Abs(accepted*most*DefaultWeight-float64(w)) > float64(w)/10_000 {
			t.Fatalf("weight %d in class %d is accepted %f", w, c, accepted)
		}
	}
	for set, want := range map[classSet]Class{0: 0, 1: 0, 1 << 3: 3, 1<<3 | 1: evenClass, 1<<9 | 1: 9, 1<<9 | 1<<2: 9} {
		if got := set.merged(); got != want {
			t.Errorf("classes %b together are %d, want %d", set, got, want)
		}
	}
	// In a class that is not its own, a light backend is still taken now and then.
	if r := Class(17).Reject(1); r != math.MaxUint16 {
		t.Errorf("weight 1 is rejected %d times of 65536 in the last class", r)
	}
}

func TestParseClusterWeights(t *testing.T) {
	for text, want := range map[string]string{
		"east=3,west=1":        "map[east:3 west:1]",
		" east = 3 , *=0":      "map[*:0 east:3]",
		"east=65535":           "map[east:65535]",
		"":                     `"" is not a cluster and its weight; write them as in east=3,west=1`,
		"east":                 `"east" is not a cluster and its weight; write them as in east=3,west=1`,
		"east=3,":              `"" is not a cluster and its weight; write them as in east=3,west=1`,
		"=3":                   `"=3" is not a cluster and its weight; write them as in east=3,west=1`,
		"east=65536":           `the weight of east is "65536"; write a number from 0 to 65535`,
		"east=-1":              `the weight of east is "-1"; write a number from 0 to 65535`,
		"east=":                `the weight of east is ""; write a number from 0 to 65535`,
		"east=1,west=2,east=1": "east is named twice; name it once",
	} {
		w, err := ParseClusterWeights(text)
		got := fmt.Sprint(map[string]uint16(w))
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	w := ClusterWeights{"east": 3, "south": 0}
	s := w.Split(func(name string) ClusterID { return map[string]ClusterID{"east": 7}[name] })
	if w.Of("east") != 3 || w.Of("west") != 1 || s.Of(7) != 3 || s.Of(8) != 1 || len(s.By) != 1 {
		t.Errorf("%v %+v", w, s)
	}
	if rest := (ClusterWeights{"*": 0, "east": 3}); rest.Of("west") != 0 || rest.Split(func(string) ClusterID { return 0 }).Of(9) != 0 {
		t.Errorf("%v", rest)
	}
	if s := ClusterWeights(nil).Split(nil); s != nil || s.Of(3) != 1 {
		t.Error("clusters have weights although nobody said so")
	}
}

// group is a portion with the weights of its backends.
type group struct {
	cluster ClusterID
	tier    uint8
	weights []uint16
}

// expected is each backend's share of its tier: drawn by tickets, then accepted or drawn again.
func expected(t *testing.T, groups []group, split *Split) (shares [][]float64) {
	var all []Portion
	for _, g := range groups {
		p := Portion{Cluster: g.cluster, Tier: g.tier, Count: len(g.weights)}
		for _, w := range g.weights {
			if p.Class = ClassOf(w); p.Class != ClassOf(g.weights[0]) {
				t.Fatal("a group of several classes")
			}
			p.Rejected += uint64(p.Class.Reject(w))
		}
		all = append(all, p)
	}
	tickets := Tickets(all, split)
	totals := map[uint8]float64{}
	sum := map[uint8]uint64{}
	for i, g := range groups {
		each := uint32(1)
		if tickets != nil {
			each = tickets[i]
		}
		if each == 0 {
			t.Fatalf("no tickets for %+v", g)
		}
		sum[g.tier] += uint64(each) * uint64(len(g.weights))
		var some []float64
		for _, w := range g.weights {
			share := float64(each) * (1 - float64(all[i].Class.Reject(w))/(1<<16))
			totals[g.tier] += share
			some = append(some, share)
		}
		shares = append(shares, some)
	}
	for i, g := range groups {
		if sum[g.tier] >= 1<<32 {
			t.Fatalf("%d tickets", sum[g.tier])
		}
		for j := range shares[i] {
			shares[i][j] /= totals[g.tier]
		}
	}
	return shares
}

// Whatever weights backends and clusters have, the share of each is proportional to them.
func TestTicketsAreProportional(t *testing.T) {
	r := rand.New(rand.NewPCG(12, 1))
	for round := range 500 {
		var groups []group
		var split *Split
		if round%2 == 1 {
			split = &Split{By: map[ClusterID]uint16{1: uint16(1 + r.IntN(100)), 2: 1}, Rest: 7}
		}
		weight, cluster := map[uint8]float64{}, map[string]float64{}
		clusters := map[uint8]map[ClusterID]bool{}
		for range 1 + r.IntN(MaxGroups) {
			g := group{cluster: ClusterID(1 + r.IntN(3)), tier: uint8(r.IntN(2))}
			first := uint16(1 + r.IntN(math.MaxUint16))
			if r.IntN(3) == 0 {
				first = DefaultWeight
			}
			for range 1 + r.IntN(20) {
				w := first
				for w == first && r.IntN(4) > 0 {
					if other := uint16(max(1, int(first)+r.IntN(9)-4)); ClassOf(other) == ClassOf(first) {
						w = other
						break
					}
				}
				g.weights = append(g.weights, w)
				weight[g.tier] += float64(w)
				cluster[fmt.Sprint(g.tier, g.cluster)] += float64(w)
			}
			if clusters[g.tier] == nil {
				clusters[g.tier] = map[ClusterID]bool{}
			}
			clusters[g.tier][g.cluster] = true
			groups = append(groups, g)
		}
		shares := expected(t, groups, split)
		for i, g := range groups {
			var all float64
			for c := range clusters[g.tier] {
				all += float64(split.Of(c))
			}
			for j, w := range g.weights {
				want := float64(w) / weight[g.tier]
				if split != nil {
					want = float64(split.Of(g.cluster)) / all * float64(w) / cluster[fmt.Sprint(g.tier, g.cluster)]
				}
				if got := shares[i][j]; math.Abs(got-want) > want/1000+1e-8 {
					t.Fatalf("round %d: a backend of weight %d has a share of %g, want %g: %+v %+v", round, w, got, want, groups, split)
				}
			}
		}
	}
}

func TestTickets(t *testing.T) {
	for _, c := range []struct {
		name  string
		all   []Portion
		split *Split
		want  string
	}{
		{"no weights", []Portion{{Cluster: 1, Count: 3}, {Cluster: 2, Count: 1}}, nil, "[]"},
		{"half and double", []Portion{{Class: ClassOf(50), Count: 3}, {Count: 1}, {Class: ClassOf(200), Count: 1}}, nil, "[1 2 4]"},
		{"all alike, and not the default", []Portion{{Class: ClassOf(400), Count: 3}}, nil, "[1]"},
		{"lightest and heaviest, too many for whole tickets", []Portion{{Class: ClassOf(1), Count: 1}, {Class: ClassOf(math.MaxUint16), Count: 1 << 18}}, nil, "[1 8192]"},
		{"an empty group", []Portion{{Cluster: 1, Class: ClassOf(50)}, {Cluster: 2, Count: 1}}, &Split{Rest: 1}, "[1 2147483648]"},
	} {
		if got := fmt.Sprint(Tickets(c.all, c.split)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
