package connectivity

import (
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Summary counts results by outcome.
type Summary struct {
	Passed  int      `json:"passed"`
	Failed  int      `json:"failed"`
	Skipped int      `json:"skipped"`
	Results []Report `json:"results"`
}

// Summarize sorts results by cluster, and then as the table of checks has them.
func Summarize(results []Report, checks []Check) Summary {
	at := map[string]int{}
	for i, c := range checks {
		at[c.Name] = i
	}
	s := Summary{Results: slices.Clone(results)}
	slices.SortStableFunc(s.Results, func(a, b Report) int {
		if c := strings.Compare(a.Cluster+"\x00"+a.Peer, b.Cluster+"\x00"+b.Peer); c != 0 && a.Cluster != b.Cluster {
			return c
		}
		if c := at[a.Check] - at[b.Check]; c != 0 {
			return c
		}
		return strings.Compare(a.Peer, b.Peer)
	})
	for _, r := range results {
		switch r.Outcome {
		case Passed:
			s.Passed++
		case Failed:
			s.Failed++
		default:
			s.Skipped++
		}
	}
	return s
}

// where is the cluster of a result, or the two.
func (r *Report) where() string {
	if r.Peer != "" {
		return r.Cluster + " → " + r.Peer
	}
	return r.Cluster
}

// Text is a result as people read it.
func (r *Report) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-7s %s %s", r.Outcome, r.where(), r.Check)
	switch r.Outcome {
	case Skipped:
		fmt.Fprintf(&b, ": %s", r.Reason)
	case Passed:
		fmt.Fprintf(&b, " (%.1f s)", r.Seconds)
	case Failed:
		fmt.Fprintf(&b, " (%.1f s)\n%s", r.Seconds, r.details("        "))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// details explain a failure.
func (r *Report) details(indent string) string {
	var b strings.Builder
	line := func(what, text string) {
		if text != "" {
			fmt.Fprintf(&b, "%s%-9s %s\n", indent, what+":", text)
		}
	}
	line("wanted", r.Says)
	line("tried", r.Tried)
	line("expected", r.Expected)
	line("happened", r.Happened)
	for _, e := range r.Events {
		line("event", e)
	}
	line("next", r.Next)
	return b.String()
}

// The format of JUnit, as far as CI systems agree on it.
type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     string      `xml:"time,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string     `xml:"name,attr"`
	Class   string     `xml:"classname,attr"`
	Time    string     `xml:"time,attr"`
	Failure *junitText `xml:"failure,omitempty"`
	Skipped *junitText `xml:"skipped,omitempty"`
}

type junitText struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// JUnit writes the results as JUnit does: a suite per cluster, or pair of them.
func (s *Summary) JUnit(w io.Writer) error {
	var out junitSuites
	times := map[string]float64{}
	for _, r := range s.Results {
		i := slices.IndexFunc(out.Suites, func(u junitSuite) bool { return u.Name == r.where() })
		if i < 0 {
			i = len(out.Suites)
			out.Suites = append(out.Suites, junitSuite{Name: r.where()})
		}
		u := &out.Suites[i]
		c := junitCase{Name: r.Check, Class: "weft.connectivity." + r.Cluster, Time: fmt.Sprintf("%.3f", r.Seconds)}
		switch r.Outcome {
		case Failed:
			u.Failures++
			c.Failure = &junitText{r.Happened, r.details("")}
		case Skipped:
			u.Skipped++
			c.Skipped = &junitText{Message: r.Reason}
		}
		u.Tests++
		times[u.Name] += r.Seconds
		u.Time = fmt.Sprintf("%.3f", times[u.Name])
		u.Cases = append(u.Cases, c)
	}
	text, err := xml.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s%s\n", xml.Header, text)
	return err
}
