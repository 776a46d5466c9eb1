package scenario

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/lab/traffic"
)

// Figures is what a run has measured: single values, and series of samples that are
// summarized by percentiles. Times are in seconds. It may be used concurrently.
type Figures struct {
	mu     sync.Mutex
	single map[string]float64   // guarded by mu, like what follows
	series map[string][]float64 // by name
}

func newFigures() *Figures {
	return &Figures{single: map[string]float64{}, series: map[string][]float64{}}
}

// Set gives a figure a value.
func (f *Figures) Set(name string, value float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.single[name] = value
}

// Add adds to a figure, which starts at 0.
func (f *Figures) Add(name string, value float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.single[name] += value
}

// Sample appends a value to a series.
func (f *Figures) Sample(name string, value float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.series[name] = append(f.series[name], value)
}

// Series is the summary of a series.
type Series struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

func summarize(values []float64) Series {
	return Series{len(values), round(traffic.Percentile(values, 0.5)), round(traffic.Percentile(values, 0.99)), round(slices.Max(values))}
}

// round rounds a time in seconds to microseconds.
func round(v float64) float64 { return math.Round(v*1e6) / 1e6 }

// Summary is all figures; a series becomes a Series.
func (f *Figures) Summary() map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]any{}
	for name, v := range f.single {
		all[name] = round(v)
	}
	for name, values := range f.series {
		all[name] = summarize(values)
	}
	return all
}

// Lines is the summary for people.
func (f *Figures) Lines() (lines []string) {
	all := f.Summary()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		label := strings.ReplaceAll(name, "_", " ")
		switch v := all[name].(type) {
		case Series:
			lines = append(lines, fmt.Sprintf("%-28s p50 %s  p99 %s  max %s  (%d times)", label, seconds(v.P50), seconds(v.P99), seconds(v.Max), v.Count))
		case float64:
			lines = append(lines, fmt.Sprintf("%-28s %s", label, strconv.FormatFloat(v, 'f', -1, 64)))
		}
	}
	return lines
}

func seconds(v float64) string {
	return time.Duration(v * float64(time.Second)).Round(100 * time.Microsecond).String()
}

// Value looks up a figure by name; for a series, by name.p50, .p99, .max or .count.
func (f *Figures) Value(name string) (float64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v, ok := f.single[name]; ok {
		return v, nil
	}
	base, part, _ := strings.Cut(name, ".")
	values := f.series[base]
	if len(values) == 0 {
		return 0, fmt.Errorf("there is no figure %q", base)
	}
	s := summarize(values)
	switch part {
	case "p50":
		return s.P50, nil
	case "p99":
		return s.P99, nil
	case "max":
		return s.Max, nil
	case "count":
		return float64(s.Count), nil
	}
	return 0, fmt.Errorf("figure %q: a series has .p50, .p99, .max and .count", name)
}

// combine is the difference or the quotient of two figures.
func (f *Figures) combine(a, operator, b string) (float64, error) {
	x, err := f.Value(a)
	if err != nil {
		return 0, err
	}
	y, err := f.Value(b)
	switch {
	case err != nil:
		return 0, err
	case operator == "-":
		return x - y, nil
	case operator == "/" && y != 0:
		return x / y, nil
	case operator == "/":
		return 0, fmt.Errorf("%s is 0", b)
	}
	return 0, fmt.Errorf("operator %q: use - or /", operator)
}

// expect compares a figure with a number or a duration.
func (f *Figures) expect(name, operator, text string) error {
	got, err := f.Value(name)
	if err != nil {
		return err
	}
	want, err := number(text)
	if err != nil {
		return err
	}
	var holds bool
	switch operator {
	case "<":
		holds = got < want
	case "<=":
		holds = got <= want
	case ">":
		holds = got > want
	case ">=":
		holds = got >= want
	case "=":
		holds = got == want
	default:
		return fmt.Errorf("operator %q: use <, <=, =, >= or >", operator)
	}
	if !holds {
		return fmt.Errorf("it is %v", got)
	}
	return nil
}

// number reads a plain number, or a duration as seconds.
func number(text string) (float64, error) {
	if v, err := strconv.ParseFloat(text, 64); err == nil {
		return v, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is neither a number nor a duration such as 800ms", text)
	}
	return d.Seconds(), nil
}
