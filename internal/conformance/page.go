package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// reason is why a spec does not pass.
type reason struct {
	spec string // part of its name
	text string
}

// known are the failures whose reason is known. One that passes all the same is an error, too: it has to leave the list.
var known = []reason{}

func reasonOf(name string, reasons []reason) string {
	for _, r := range reasons {
		if strings.Contains(name, r.spec) {
			return r.text
		}
	}
	return ""
}

// judge says whether results are as expected.
func judge(results []result, reasons []reason) error {
	var errs []error
	for _, r := range results {
		why := reasonOf(r.name, reasons)
		switch {
		case r.state == "failed" && why == "":
			errs = append(errs, fmt.Errorf("failed: %s", r.name))
		case r.state == "passed" && why != "":
			errs = append(errs, fmt.Errorf("passed, although it is known to fail (%s): %s", why, r.name))
		}
	}
	return errors.Join(errs...)
}

// page is docs/conformance.md.
func (o options) page(results []result, reasons []reason) []byte {
	var b strings.Builder
	b.WriteString(`# Upstream conformance suites

What Kubernetes' own end-to-end specs say of Weft. They are those of ` + "`k8s.io/kubernetes/test/e2e`" + `, unmodified, and run against a
cluster of the lab: Kubernetes of the same version, built from its source, two kubelets with containerd and runc,
Weft as ` + "`weft install`" + ` installs it, no kube-proxy, CoreDNS. ` + "`make conformance`" + ` writes this page; with ` + "`FOCUS`" + `
it runs some specs again, and each counts with its last run.

`)
	fmt.Fprintf(&b, "Versions of the last run: Weft %s, Kubernetes %s, CoreDNS %s, %s.\n\n", o.version, o.kubernetes(), corednsVersion, said("uname", "-sr"))
	b.WriteString("| suite | passed | failed | skipped |\n|---|---|---|---|\n")
	for _, s := range suites {
		n := map[string]int{}
		for _, r := range results {
			if r.suite == s.name {
				n[r.state]++
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", s.title, n["passed"], n["failed"], n["skipped"])
	}
	b.WriteString("\nThe command of each, after which come the kubeconfig and the file for the report:\n\n")
	for _, s := range suites {
		fmt.Fprintf(&b, "    e2e.test %s\n", quoted(s.arguments("")))
	}
	for _, a := range leftOut() {
		fmt.Fprintf(&b, "\nLeft out here, and not counted: specs whose names match `%s`, because %s.\n", a.pattern, a.reason)
	}
	b.WriteString(`
A lab reaches no registry, so the images that specs pull are made on
the spot, under their names:

| image | made of |
|---|---|
`)
	for _, i := range images {
		fmt.Fprintf(&b, "| `%s` | %s |\n", i.reference, i.from)
	}
	for _, s := range suites {
		fmt.Fprintf(&b, "\n## %s\n", s.title)
		section(&b, s, results, reasons, "failed", "Failed, and why")
		section(&b, s, results, reasons, "skipped", "Skipped, with what the spec says")
		section(&b, s, results, reasons, "passed", "Passed")
	}
	return []byte(b.String())
}

// section lists a suite's specs that came out in one way.
func section(b *strings.Builder, s suite, results []result, reasons []reason, state, title string) {
	var lines []string
	for _, r := range results {
		if r.suite != s.name || r.state != state {
			continue
		}
		line := "- " + r.name
		switch state {
		case "failed":
			if why := reasonOf(r.name, reasons); why != "" {
				line += " — " + why
			} else {
				line += " — not explained yet: " + oneLine(r.message)
			}
		case "skipped":
			line += " — " + oneLine(r.message)
		}
		lines = append(lines, line)
	}
	if len(lines) > 0 {
		fmt.Fprintf(b, "\n%s:\n\n%s\n", title, strings.Join(lines, "\n"))
	}
}

// longest is how much of a message stands in the page.
const longest = 200

func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > longest {
		text = text[:longest] + "…"
	}
	return text
}

func quoted(args []string) string {
	var b strings.Builder
	for i, arg := range args {
		if i > 0 {
			b.WriteByte(' ')
		}
		if strings.ContainsAny(arg, `\[]()* `) {
			arg = "'" + arg + "'"
		}
		b.WriteString(arg)
	}
	return b.String()
}

// kubernetes is the version of Kubernetes' programs.
func (o options) kubernetes() string {
	return strings.TrimPrefix(said(filepath.Join(o.programs, "kubelet"), "--version"), "Kubernetes ")
}

func said(command ...string) string {
	out, err := exec.Command(command[0], command[1:]...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
