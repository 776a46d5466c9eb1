package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// suite is a choice among the specs of Kubernetes' e2e.test.
type suite struct {
	name, title string
	start, end  string // regular expressions that the names of its specs match in this order
}

var suites = []suite{
	{"netpol", "Network policies (`test/e2e/network/netpol`)", `\[sig-network\] Netpol`, ``},
	{"network", "Conformance specs of networks (`[sig-network]`, `[Conformance]`)", `\[sig-network\]`, `\[Conformance\]`},
}

func suiteOf(name string) (suite, bool) {
	i := slices.IndexFunc(suites, func(s suite) bool { return s.name == name })
	if i < 0 {
		return suite{}, false
	}
	return suites[i], true
}

// absent are the specs that a machine cannot run, with the reason of each.
type absent struct {
	pattern, reason string
	missing         func() bool
}

var absences = []absent{
	{`Feature:SCTPConnectivity`, "the kernel of the machine has no SCTP, so that no server of these specs starts", noSCTP},
}

// noSCTP says whether the kernel lacks SCTP.
func noSCTP() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, unix.EPROTONOSUPPORT)
}

// leftOut are the absences of this machine.
func leftOut() (out []absent) {
	for _, a := range absences {
		if a.missing() {
			out = append(out, a)
		}
	}
	return out
}

// arguments are those of e2e.test, but for the files that it reads and writes. Only patience differs from its
// defaults, because two machines of a lab share few cores: a spec has
// its own limits beside these.
func (s suite) arguments(focus string) []string {
	if focus != "" {
		focus = ".*(" + focus + ")"
	}
	if s.end != "" {
		focus += ".*" + s.end
	}
	args := []string{"-provider", "local", "-ginkgo.focus", s.start + focus}
	for _, a := range leftOut() {
		args = append(args, "-ginkgo.skip", a.pattern)
	}
	return append(args, "-ginkgo.timeout", "4h", "-ginkgo.no-color", "-dump-logs-on-failure=false", "-disable-log-dump")
}

// suite runs one of a lab's, and keeps its report beside those of earlier runs.
func (o options) suite(ctx context.Context, s suite) error {
	programs, err := filepath.Abs(o.programs)
	if err != nil {
		return err
	}
	reports, err := filepath.Abs(o.reports)
	if err != nil {
		return err
	}
	report := filepath.Join(reports, s.name+"-"+time.Now().UTC().Format("20060102T150405")+".json")
	args := slices.Concat([]string{"lab", "exec", o.lab, "operator", "--", filepath.Join(programs, "e2e.test")}, s.arguments(o.focus),
		[]string{"-context", "east", "-kubectl-path", filepath.Join(programs, "kubectl"), "-ginkgo.json-report", report})
	failed := o.command(ctx, nil, args...)
	if ctx.Err() != nil { // what it has written is not whole
		_ = os.Remove(report)
		return errors.Join(context.Cause(ctx), failed)
	}
	// It fails if a spec does: the report says which.
	if _, err := os.Stat(report); err != nil {
		return errors.Join(fmt.Errorf("suite %s has left no report", s.name), failed)
	}
	return nil
}

// result is what came out of a spec.
type result struct {
	suite   string
	name    string // the whole
	state   string // passed, failed or skipped
	message string // why it did not pass
	seconds float64
}

// report is what Ginkgo writes about a run of specs, as far as it is used here.
type report struct {
	SpecReports []struct {
		ContainerHierarchyTexts []string
		LeafNodeType            string
		LeafNodeText            string
		State                   string
		RunTime                 time.Duration
		Failure                 struct{ Message string }
	}
}

// read reads all reports in a folder: of a spec that ran several times, the last one counts.
func read(dir string) ([]result, error) {
	var all []result
	for _, s := range suites {
		found, err := filepath.Glob(filepath.Join(dir, s.name+"-*.json"))
		if err != nil {
			return nil, err
		}
		slices.Sort(found) // by time
		last := map[string]result{}
		for _, file := range found {
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			results, err := decode(s.name, text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			for _, r := range results {
				last[r.name] = r
			}
		}
		for _, name := range sortedResults(last) {
			all = append(all, last[name])
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there are no results in %s", dir)
	}
	return all, nil
}

func sortedResults(m map[string]result) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// decode reads a report. Specs that were not chosen are not part of it.
func decode(suite string, text []byte) (results []result, err error) {
	var reports []report
	if err := json.Unmarshal(text, &reports); err != nil {
		return nil, err
	}
	for _, report := range reports {
		for _, s := range report.SpecReports {
			r := result{
				suite: suite, name: strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " "),
				state: s.State, message: s.Failure.Message, seconds: s.RunTime.Seconds(),
			}
			switch {
			case s.LeafNodeType != "It" && s.State == "passed", s.State == "pending", s.State == "interrupted":
				continue
			case s.State == "skipped" && r.message == "": // not chosen
				continue
			case s.State != "passed" && s.State != "skipped":
				r.state = "failed" // or it panicked, or took too long
			}
			if s.LeafNodeType != "It" {
				// Before or after all of them.
				r.name = s.LeafNodeType
			}
			results = append(results, r)
		}
	}
	return results, nil
}
