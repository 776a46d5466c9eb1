package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// tested has the benchmark, and knows what its packets are.
const tested = "github.com/weft-mesh/weft/bpf"

// usualLookup is what looking up a random key in a hash table of 100,000 rows took on the
// machine that the targets are meant for, in ns. On another one a target is as many look-ups.
const usualLookup = 127

// aims are the most that a packet may take, in ns. One to a pod next door passes the
// policies of both.
var aims = map[string]float64{"established": 90, "new": 600, "denied": 250}

// mostIPv6 is how many times as long a packet of IPv6 may take as one of IPv4.
const mostIPv6 = 1.1

// A line of `make bench-datapath`: what a packet of this kind takes beyond an empty program.
type line struct {
	Line       string `json:"line"`           // established, new, denied, a yardstick, or ipv6
	What       string `json:"what,omitempty"` // of ipv6: the line that is compared
	At         string `json:"at,omitempty"`   // hook
	Service    bool   `json:"service"`        // through one
	Family     string `json:"family,omitempty"`
	Identities int    `json:"identities,omitempty"` // known to the node

	Value float64 `json:"value"` // median
	Least float64 `json:"least"`
	Most  float64 `json:"most"`
	Unit  string  `json:"unit"`
	// Lookups is the value in look-ups of a hash table of 100,000 rows.
	Lookups float64 `json:"lookups,omitempty"`

	// Target is the highest value that is good, TargetLookups the same in look-ups. Met
	// tells whether either is: the times of a shared machine wander.
	Target        float64 `json:"target,omitempty"`
	TargetLookups float64 `json:"target_lookups,omitempty"`
	Met           *bool   `json:"met,omitempty"`
	Over          float64 `json:"over,omitempty"` // value / target, if missed
}

// measureDatapath runs the benchmark of the datapath so many rounds, and prints lines.
func measureDatapath(ctx context.Context, args []string, out io.Writer) error {
	set := flag.NewFlagSet("bench datapath", flag.ContinueOnError)
	rounds := set.Int("rounds", 7, "`number` of measurements, of which the median counts")
	packets := set.Int("packets", 300000, "`number` of packets in each")
	binary := set.String("test", "", "test `program` of package bpf to measure, of another version for instance;\nby default that of this tree is built")
	if err := set.Parse(args); err != nil || *rounds < 1 || *packets < 1 || set.NArg() > 0 {
		return errors.Join(err, errors.New("usage: bench datapath [-rounds number] [-packets number] [-test program]"))
	}
	if *binary == "" {
		dir, err := os.MkdirTemp("", "bench-datapath")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		*binary = filepath.Join(dir, "bpf.test")
		if output, err := command(ctx, "go", "test", "-c", "-o", *binary, tested).CombinedOutput(); err != nil {
			return fmt.Errorf("build the test program of %s: %w\n%s", tested, err, output)
		}
	}
	var all [][]figure
	for round := range *rounds {
		fmt.Fprintf(os.Stderr, "bench: datapath, round %d of %d\n", round+1, *rounds)
		output, err := command(ctx, *binary, "-test.run", "^$", "-test.bench", "^BenchmarkDatapath$", "-test.benchtime", fmt.Sprintf("%dx", *packets)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("measure: %w\n%s", err, output)
		}
		figures, err := benchmarks("datapath")(output)
		if err != nil {
			return fmt.Errorf("%w: it needs root\n%s", err, output)
		}
		all = append(all, figures)
	}
	lines, err := judged(all)
	if err != nil {
		return err
	}
	to := json.NewEncoder(out)
	for _, l := range lines {
		if err := to.Encode(l); err != nil {
			return err
		}
	}
	return nil
}

// judged makes lines of the figures of each round. Yardsticks are subtracted round by
// round, because the machine may be slow for a while.
func judged(rounds [][]figure) (lines []line, err error) {
	series := map[string][]float64{}
	var names []string
	for _, figures := range rounds {
		yard := map[string]float64{}
		for _, f := range figures {
			if name, ok := strings.CutPrefix(f.Name, "datapath/yardstick/"); ok {
				yard[name] = f.Value
			}
		}
		for _, name := range []string{"empty", "stage", "draw", "lookup"} {
			if yard[name] <= 0 {
				return nil, fmt.Errorf("a round has no yardstick %s", name)
			}
		}
		for _, f := range figures {
			name, value := strings.TrimPrefix(f.Name, "datapath/"), f.Value
			switch name {
			case "yardstick/empty":
			case "yardstick/stage":
				value -= yard["empty"]
			case "yardstick/draw":
				continue
			case "yardstick/lookup":
				value -= yard["draw"]
			default:
				value -= yard["stage"]
			}
			if series[name] == nil {
				names = append(names, name)
			}
			series[name] = append(series[name], value)
		}
	}
	// On a machine that is too busy to measure, differences may be anything.
	lookup := max(median(series["yardstick/lookup"]), 1)
	four := map[line]float64{} // by what is the same for both families
	for _, name := range names {
		values := series[name]
		if len(values) != len(rounds) {
			return nil, fmt.Errorf("%s was measured in %d rounds of %d", name, len(values), len(rounds))
		}
		l, err := lineOf(name)
		if err != nil {
			return nil, err
		}
		same := l
		same.Family = ""
		l.Value, l.Least, l.Most, l.Unit = tenth(median(values)), tenth(slices.Min(values)), tenth(slices.Max(values)), "ns"
		l.Lookups = hundredth(median(values) / lookup)
		if most := aims[l.Line]; most > 0 {
			if l.At == "next-door" {
				most *= 2
			}
			l.Target, l.TargetLookups = most, hundredth(most/usualLookup)
			l.meet(l.Value <= most || l.Lookups <= l.TargetLookups)
			if !*l.Met {
				l.Over = hundredth(min(l.Value/most, l.Lookups/l.TargetLookups))
			}
		}
		lines = append(lines, l)
		switch {
		case l.Family == "IPv4":
			four[same] = median(values)
		case l.Family == "IPv6" && l.Line == "established":
			if _, ok := four[same]; !ok {
				continue
			}
			r := l
			r.Line, r.What, r.Lookups, r.TargetLookups, r.Over = "ipv6", l.Line, 0, 0, 0
			ratio := median(values) / max(four[same], 1)
			r.Value, r.Least, r.Most, r.Unit, r.Target = hundredth(ratio), hundredth(ratio), hundredth(ratio), "× IPv4", mostIPv6
			r.meet(ratio <= mostIPv6)
			if !*r.Met {
				r.Over = hundredth(ratio / mostIPv6)
			}
			lines = append(lines, r)
		}
	}
	return lines, nil
}

func (l *line) meet(met bool) { l.Met = &met }

// lineOf reads the name of a benchmark: IPv4/100/new/egress/plain, or yardstick/empty.
func lineOf(name string) (l line, err error) {
	parts := strings.Split(name, "/")
	if len(parts) == 2 && parts[0] == "yardstick" {
		return line{Line: parts[1]}, nil
	}
	if len(parts) != 5 {
		return l, fmt.Errorf("what is benchmark %s?", name)
	}
	l = line{Line: parts[2], At: parts[3], Service: parts[4] == "service", Family: parts[0]}
	if l.Identities, err = strconv.Atoi(parts[1]); err != nil || aims[l.Line] == 0 {
		return l, fmt.Errorf("what is benchmark %s?", name)
	}
	return l, nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[len(sorted)/2] + sorted[(len(sorted)-1)/2]) / 2
}

func tenth(x float64) float64     { return math.Round(x*10) / 10 }
func hundredth(x float64) float64 { return math.Round(x*100) / 100 }
