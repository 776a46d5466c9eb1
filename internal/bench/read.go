package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A figure is one line of the output.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// benchmarks reads what `go test -bench` prints:
//
//	BenchmarkPacket/established/egress/100-2   200000   0 ns/op   93.2 ns/packet
//
// becomes group/established/egress/100 in ns/packet. A benchmark that reports its
// own unit sets ns/op to 0, which is left out.
func benchmarks(group string) func([]byte) ([]figure, error) {
	return func(output []byte) (figures []figure, err error) {
		for line := range strings.Lines(string(output)) {
			fields := strings.Fields(line)
			if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
				continue
			}
			name := strings.TrimPrefix(fields[0], "Benchmark")
			if i := strings.LastIndex(name, "-"); i > 0 { // GOMAXPROCS
				if _, err := strconv.Atoi(name[i+1:]); err == nil {
					name = name[:i]
				}
			}
			if first, rest, ok := strings.Cut(name, "/"); ok && strings.EqualFold(first, group) {
				name = rest
			}
			for i := 2; i+1 < len(fields); i += 2 {
				value, err := strconv.ParseFloat(fields[i], 64)
				if err != nil {
					return nil, fmt.Errorf("line %q: %w", strings.TrimSpace(line), err)
				}
				unit := fields[i+1]
				if value == 0 && unit == "ns/op" {
					continue
				}
				f := figure{Name: group + "/" + name, Value: value, Unit: unit}
				if !strings.HasPrefix(unit, "ns/") {
					f.Name += "/" + strings.TrimSuffix(unit, "/op")
				}
				figures = append(figures, f)
			}
		}
		if len(figures) == 0 {
			return nil, errors.New("no benchmark results in the output")
		}
		return figures, nil
	}
}

// result is the last line of `weft lab run -o json`.
type result struct {
	Scenario string         `json:"scenario"`
	OK       bool           `json:"ok"`
	Error    string         `json:"error"`
	Figures  map[string]any `json:"figures"`
}

// scenarios reads the figures of a scenario. A series becomes four figures: p50,
// p99, max and count. Names that end in one of without are left out, such as
// failures that the script provokes.
func scenarios(group string, without ...string) func([]byte) ([]figure, error) {
	return func(output []byte) (figures []figure, err error) {
		lines := bytes.Split(bytes.TrimSpace(output), []byte("\n"))
		var r result
		if err := json.Unmarshal(lines[len(lines)-1], &r); err != nil {
			return nil, fmt.Errorf("last line of the output is not a result: %w", err)
		}
		for _, name := range slices.Sorted(maps.Keys(r.Figures)) {
			if slices.ContainsFunc(without, func(end string) bool { return strings.HasSuffix(name, end) }) {
				continue
			}
			switch v := r.Figures[name].(type) {
			case float64:
				figures = append(figures, figure{group + "/" + name, v, unitOf(name)})
			case map[string]any:
				for _, part := range []string{"count", "p50", "p99", "max"} {
					value, ok := v[part].(float64)
					if !ok {
						return nil, fmt.Errorf("series %s has no %s", name, part)
					}
					unit := "s"
					if part == "count" {
						unit = "1"
					}
					figures = append(figures, figure{group + "/" + name + "/" + part, value, unit})
				}
			}
		}
		if !r.OK {
			return figures, fmt.Errorf("scenario %s failed: %s", r.Scenario, r.Error)
		}
		return figures, nil
	}
}

// unitOf reads the unit at the end of a figure's name.
func unitOf(name string) string {
	switch {
	case strings.HasSuffix(name, "_mib"):
		return "MiB"
	case strings.HasSuffix(name, "_seconds"):
		return "s"
	}
	return "1"
}
