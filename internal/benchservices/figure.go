package main

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/internal/figures"
)

// A mode is one of the four that are compared.
type mode string

const (
	plain    mode = "plain" // forwards to pods; there are no services
	weft     mode = "weft"
	iptables mode = "iptables"
	nftables mode = "nftables"
)

// modes are all of them, in the order in which tables show them.
var modes = []mode{weft, iptables, nftables, plain}

// names are the lines that -only takes, in the order in which they are measured.
var names = []string{"first-packet", "crr", "rr", "p95", "softirq", "memory", "sync-one", "sync-full"}

// A figure is one line of the output.
type figure struct {
	Line     string `json:"line"`
	Mode     mode   `json:"mode"`
	Services int    `json:"services"`
	// Place is where in the chain of iptables the service is: first, middle or last.
	Place string  `json:"place,omitempty"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Ratio is the value over that of each other mode.
	Ratio   map[mode]float64 `json:"ratio,omitempty"`
	Targets []verdict        `json:"targets,omitempty"`
	// Error says why there is no value.
	Error  string             `json:"error,omitempty"`
	Detail map[string]float64 `json:"detail,omitempty"`
}

// A verdict is a target and whether a figure meets it.
type verdict struct {
	// Over is the mode to whose value the figure's ratio is judged; empty: the figure itself.
	Over  mode    `json:"over,omitempty"`
	Bound float64 `json:"bound"`
	Least bool    `json:"least,omitempty"` // the bound is the lowest good value, not the highest
	Is    float64 `json:"is"`
	Met   bool    `json:"met"`
}

// An aim is a target of Weft's figures of one line.
type aim struct {
	line     string
	services int // 0: with any number of services
	over     mode
	least    bool
	bound    float64
}

// aims are all targets.
var aims = []aim{
	{line: "first-packet", over: plain, bound: 1.05},
	{line: "crr", services: 1, over: iptables, least: true, bound: 1},
	{line: "crr", services: 1, over: nftables, least: true, bound: 1},
	{line: "crr", services: 10_000, over: iptables, least: true, bound: 2.5},
	{line: "rr", over: plain, least: true, bound: 0.98},
	{line: "p95", services: 10_000, over: iptables, bound: 0.5},
	{line: "softirq", services: 10_000, over: iptables, bound: 0.3},
	{line: "memory", services: 20_000, over: iptables, bound: 1},
	{line: "memory", services: 20_000, over: nftables, bound: 1},
	{line: "sync-one", bound: 10},
	{line: "sync-one", over: iptables, bound: 1. / 20},
	{line: "sync-one", over: nftables, bound: 1. / 20},
	{line: "sync-full", services: 20_000, bound: 1},
	{line: "sync-full", services: 20_000, over: nftables, bound: 1. / 20},
}

// compared completes the figures of one line, number of services and place, one of each
// mode: with their ratios, and Weft's with its targets.
func compared(same []figure) []figure {
	for i := range same {
		f := &same[i]
		if f.Error != "" {
			continue
		}
		for _, other := range same {
			if other.Mode != f.Mode && other.Error == "" && other.Value > 0 {
				if f.Ratio == nil {
					f.Ratio = map[mode]float64{}
				}
				f.Ratio[other.Mode] = figures.Digits(f.Value / other.Value)
			}
		}
	}
	for i := range same {
		f := &same[i]
		f.Value = figures.Digits(f.Value)
		for k, v := range f.Detail {
			f.Detail[k] = figures.Digits(v)
		}
		if f.Mode != weft || f.Error != "" {
			continue
		}
		for _, a := range aims {
			if a.line != f.Line || a.services != 0 && a.services != f.Services {
				continue
			}
			is, ok := f.Value, true
			if a.over != "" {
				is, ok = f.Ratio[a.over]
			}
			if !ok {
				continue // there is nothing to compare with
			}
			f.Targets = append(f.Targets, verdict{Over: a.over, Bound: figures.Digits(a.bound), Least: a.least, Is: is, Met: a.least && is >= a.bound || !a.least && is <= a.bound})
		}
	}
	return same
}

// median is the middle value, or the mean of the two in the middle; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// percentile is the lowest value that a share of the values do not exceed; 0 of none.
func percentile(values []float64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return s[min(len(s)-1, max(0, int(math.Ceil(share*float64(len(s))))-1))]
}

// lacks says what a line lacks to be a figure.
func (f figure) lacks() string {
	if f.Line == "" || f.Services < 1 || !slices.Contains(modes, f.Mode) {
		return "a line, a mode or a number of services"
	}
	return ""
}

// row is what the figures of a row of the table have in common.
type row struct {
	line, place string
	services    int
}

// table shows figures as rows with a column for each mode, in Markdown.
func table(all []figure) string {
	rows := map[row]map[mode]figure{}
	var order []row
	for _, f := range all {
		r := row{f.Line, f.Place, f.Services}
		if rows[r] == nil {
			rows[r] = map[mode]figure{}
			order = append(order, r)
		}
		rows[r][f.Mode] = f
	}
	if len(order) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("| line | services |")
	for _, m := range modes {
		fmt.Fprintf(&b, " %s |", m)
	}
	b.WriteString(" targets |\n|---|---|" + strings.Repeat("---|", len(modes)) + "---|\n")
	for _, r := range order {
		name := r.line
		if r.place != "" {
			name += ", " + r.place
		}
		fmt.Fprintf(&b, "| %s | %d |", name, r.services)
		for _, m := range modes {
			f, there := rows[r][m]
			switch {
			case !there:
				b.WriteString(" – |")
			case f.Error != "":
				b.WriteString(" failed |")
			default:
				fmt.Fprintf(&b, " %v %s |", short(f.Value), f.Unit)
			}
		}
		var judged []string
		for _, v := range rows[r][weft].Targets {
			judged = append(judged, v.String())
		}
		fmt.Fprintf(&b, " %s |\n", strings.Join(judged, "; "))
	}
	return b.String()
}

// String says a target and how it was met, as in "0.98 of plain (≤ 1.05)".
func (v verdict) String() string {
	text, sign := fmt.Sprint(short(v.Is)), "≤"
	if v.Over != "" {
		text += " of " + string(v.Over)
	}
	if v.Least {
		sign = "≥"
	}
	text += fmt.Sprintf(" (%s %v)", sign, short(v.Bound))
	if !v.Met {
		text += " missed"
	}
	return text
}

// short keeps three digits, and all of a larger number.
func short(v float64) float64 {
	if math.Abs(v) >= 100 {
		return math.Round(v)
	}
	return math.Round(v*1000) / 1000
}

// panels says which figures are drawn together.
var panels = []struct{ line, place, title string }{
	{"first-packet", "first", "connect() p50, first in the chain"},
	{"first-packet", "middle", "connect() p50, middle"},
	{"first-packet", "last", "connect() p50, last"},
	{"crr", "", "New connections"},
	{"rr", "", "Requests on one connection"},
	{"p95", "", "Request under load, p95"},
	{"softirq", "", "Soft interrupts per 50,000 connections"},
	{"sync-one", "", "One slice written, first connection, p99"},
	{"sync-full", "", "All rules from nothing"},
}

// draw returns the curves of some figures.
func draw(all []figure) []byte {
	var out []figures.Panel
	for _, p := range panels {
		panel := figures.Panel{Title: p.title}
		for _, m := range modes {
			points := map[int]float64{}
			for _, f := range all {
				if f.Line == p.line && f.Place == p.place && f.Mode == m && f.Error == "" {
					points[f.Services], panel.Unit = f.Value, f.Unit
				}
			}
			line := figures.Line{Name: string(m)}
			for _, x := range slices.SortedFunc(maps.Keys(points), cmp.Compare[int]) {
				line.Points = append(line.Points, figures.Point{X: float64(x), Y: points[x]})
			}
			panel.Lines = append(panel.Lines, line)
		}
		out = append(out, panel)
	}
	return figures.Draw("What services cost, by their number: Weft beside kube-proxy and plain forwarding", "services", out)
}
