package arch

import (
	"go/ast"
	"regexp"
	"strings"
	"testing"
)

// Who gets the tree finds under which licenses it is, how to work on it, where to report
// what is dangerous, and what has changed.
func TestThePagesOfAProjectAreThere(t *testing.T) {
	for name, wants := range map[string][]string{
		"LICENSE":                  {"Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS"},
		"bpf/LICENSE":              {"LICENSE.GPL-2.0", "LICENSE.BSD-2-Clause"},
		"bpf/LICENSE.GPL-2.0":      {"GNU GENERAL PUBLIC LICENSE", "Version 2, June 1991"},
		"bpf/LICENSE.BSD-2-Clause": {"Redistributions in binary form must reproduce"},
		"bpf/datapath.c":           {`SEC("license") = "Dual BSD/GPL"`},
		"CONTRIBUTING.md":          {"## Build and test", "## Where things are", "make test"},
		"SECURITY.md":              {"## Reporting", "## Supported versions"},
		"CHANGELOG.md":             {"## Unreleased"},
		// The version is the tag once there is one.
		"Makefile": {"VERSION := $(shell git describe --tags", "-X main.version=$(VERSION)"},
	} {
		page := read(t, name)
		for _, want := range wants {
			if !strings.Contains(page, want) {
				t.Errorf("%s does not say %q", name, want)
			}
		}
	}
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z-]*):`).FindAllStringSubmatch(read(t, "Makefile"), -1) {
		targets[m[1]] = true
	}
	for _, m := range regexp.MustCompile("(?m)(?:^ +|`)make ([a-z][a-z-]*)").FindAllStringSubmatch(read(t, "CONTRIBUTING.md"), -1) {
		if !targets[m[1]] {
			t.Errorf("CONTRIBUTING.md says `make %s`, which the Makefile does not have", m[1])
		}
	}
}

// What docs/operations.md tells to alert on is what programs say: each metric is made,
// each message is logged.
func TestWhatOneIsToldToAlertOnIsSaid(t *testing.T) {
	files := goFiles(t)
	helpers := prefixes(files)
	metrics, messages := map[string]bool{}, map[string]bool{}
	for _, f := range files {
		if f.test() {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if name, _, ok := metric(n); ok {
				metrics[name] = true
			}
			call, is := n.(*ast.CallExpr)
			if !is || len(call.Args) == 0 {
				return true
			}
			if prefix := helpers[f.dir()+"."+ident(call.Fun)]; prefix != "" {
				metrics[prefix+text(call.Args[0])] = true
			}
			if sel, is := call.Fun.(*ast.SelectorExpr); is && (sel.Sel.Name == "Warn" || sel.Sel.Name == "Error") {
				message, _, _ := strings.Cut(text(call.Args[0]), ";")
				messages[message] = true
			}
			return true
		})
	}
	page := read(t, "docs/operations.md")
	of := func(heading string) (firsts []string) {
		_, section, _ := strings.Cut(page, "\n## "+heading+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
			firsts = append(firsts, m[1])
		}
		return firsts
	}
	told := of("Metrics to alert on")
	for _, name := range told {
		if name, _, _ = strings.Cut(name, "{"); !metrics[name] {
			t.Errorf("docs/operations.md names metric %s, which nothing makes", name)
		}
	}
	logged := of("Logs to alert on")
	for _, message := range logged {
		if !strings.HasPrefix(message, "level=") && !messages[message] {
			t.Errorf("docs/operations.md names message %q, which nothing logs", message)
		}
	}
	if len(told) < 10 || len(logged) < 3 {
		t.Errorf("read only %d metrics and %d messages", len(told), len(logged))
	}
}
