package main

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/internal/figures"
)

// A figure is one line of the output.
type figure struct {
	Line string `json:"line"`
	What string `json:"what,omitempty"`
	// Clusters is the size of the mesh, the real cluster included; Known is how many
	// endpoints of other clusters the agent knew.
	Clusters int     `json:"clusters"`
	Known    int     `json:"known"`
	Value    float64 `json:"value"`
	Unit     string  `json:"unit"`
	// Target is the highest value that is good; absent if there is none. Over is how
	// many times the target a value is that missed it, or by how much if the target is 0.
	Target *float64 `json:"target,omitempty"`
	Met    *bool    `json:"met,omitempty"`
	Over   float64  `json:"over,omitempty"`
	// Error says what was not reached; the value is how far it came, then.
	Error string `json:"error,omitempty"`
	// Basis says how a value was computed, if it was not measured itself.
	Basis  string             `json:"basis,omitempty"`
	Detail map[string]float64 `json:"detail,omitempty"`
}

// aim is what a figure is measured in and the highest value that is good.
type aim struct {
	unit string
	most float64
	// line is the name of the measurement that yields the figure, for -only.
	line string
}

// aims are all figures with a target.
var aims = map[string]aim{
	"bootstrap":             {"s", 5, "bootstrap"},
	"one-change/address":    {"ms", 1, "one-change"},
	"one-change/identity":   {"ms", 1, "one-change"},
	"one-change/backend":    {"ms", 1, "one-change"},
	"one-change/node":       {"ms", 1, "one-change"},
	"flat/address":          {"×", 1.5, "one-change"},
	"flat/identity":         {"×", 1.5, "one-change"},
	"flat/backend":          {"×", 1.5, "one-change"},
	"flat/node":             {"×", 1.5, "one-change"},
	"propagation":           {"ms", 100, "propagation"},
	"memory":                {"B", 500, "memory"},
	"apiserver/cpu":         {"cores", 1, "apiserver"},
	"apiserver/rss":         {"MiB", 1024, "apiserver"},
	"reconnect":             {"s", 10, "reconnect"},
	"reconnect/deletions":   {"rows", 0, "reconnect"},
	"converge":              {"s", 2, "converge"},
	"traffic":               {"MB", 50, "traffic"},
	"failover/node_loss":    {"s", 1, "failover"},
	"failover/cluster_loss": {"s", 1, "failover"},
	"millions":              {"MiB", 1536, "millions"},
}

// names are the lines that -only takes, in the order in which they are measured.
var names = []string{"one-change", "propagation", "memory", "apiserver", "traffic", "converge", "reconnect", "bootstrap", "failover", "millions"}

// judged compares a figure with its target. What was not reached misses it.
func judged(f figure) figure {
	key := f.Line
	if f.What != "" {
		key += "/" + f.What
	}
	f.Value = figures.Digits(f.Value)
	for k, v := range f.Detail {
		f.Detail[k] = figures.Digits(v)
	}
	a, ok := aims[key]
	if !ok {
		return f
	}
	met := f.Value <= a.most && f.Error == ""
	f.Unit, f.Target, f.Met = a.unit, &a.most, &met
	if !met && a.most > 0 {
		f.Over = figures.Digits(f.Value / a.most)
	} else if !met {
		f.Over = f.Value
	}
	return f
}

// lacks says what a line lacks to be a figure.
func (f figure) lacks() string {
	if f.Line == "" || f.Clusters < 1 {
		return "a line or a number of clusters"
	}
	return ""
}

// panels says which figures are drawn together. A curve is all figures of one name.
var panels = []struct {
	title string
	keys  []string
}{
	{"Agent CPU for one change", []string{"one-change/address", "one-change/identity", "one-change/backend", "one-change/node"}},
	{"Written in A, in the maps of B, p99", []string{"propagation"}},
	{"Bootstrap of a new agent", []string{"bootstrap"}},
	{"Agent memory per remote endpoint", []string{"memory"}},
	{"API server CPU under churn", []string{"apiserver/cpu"}},
	{"API server memory", []string{"apiserver/rss"}},
	{"Reconnect after a restart", []string{"reconnect"}},
	{"Converge after a partition", []string{"converge"}},
	{"Failover, p99", []string{"failover/node_loss", "failover/cluster_loss"}},
}

// draw returns the curves of some figures. The last of several figures of one name and size
// counts.
func draw(all []figure) []byte {
	values := map[string]map[int]float64{}
	for _, f := range all {
		key := f.Line
		if f.What != "" {
			key += "/" + f.What
		}
		if f.Error != "" && f.Value == 0 {
			continue
		}
		if values[key] == nil {
			values[key] = map[int]float64{}
		}
		values[key][f.Clusters] = f.Value
	}
	var out []figures.Panel
	for _, p := range panels {
		a := aims[p.keys[0]]
		panel := figures.Panel{Title: p.title, Unit: a.unit, Target: a.most}
		for _, key := range p.keys {
			line := figures.Line{}
			if len(p.keys) > 1 {
				_, what, _ := strings.Cut(key, "/")
				line.Name = strings.ReplaceAll(what, "_", " ")
			}
			for _, x := range slices.SortedFunc(maps.Keys(values[key]), cmp.Compare[int]) {
				line.Points = append(line.Points, figures.Point{X: float64(x), Y: values[key][x]})
			}
			panel.Lines = append(panel.Lines, line)
		}
		out = append(out, panel)
	}
	return figures.Draw("One agent and one API server in a mesh of many clusters (dashed: target)", "clusters", out)
}
