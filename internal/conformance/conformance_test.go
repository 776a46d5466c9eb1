package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	first = `[{"SpecReports": [
{"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"},
{"ContainerHierarchyTexts": ["[sig-network] Netpol", "NetworkPolicy"], "LeafNodeType": "It", "LeafNodeText": "should a", "State": "passed", "RunTime": 2000000000},
{"ContainerHierarchyTexts": ["[sig-network] Netpol"], "LeafNodeType": "It", "LeafNodeText": "should b", "State": "failed", "Failure": {"Message": "no\n\tanswer"}},
{"ContainerHierarchyTexts": ["[sig-network] Netpol"], "LeafNodeType": "It", "LeafNodeText": "should c", "State": "skipped", "Failure": {"Message": "needs a cloud"}},
{"ContainerHierarchyTexts": ["[sig-network] Other"], "LeafNodeType": "It", "LeafNodeText": "was not chosen", "State": "skipped"}]}]`
	second = `[{"SpecReports": [
{"ContainerHierarchyTexts": ["[sig-network] Netpol", "NetworkPolicy"], "LeafNodeType": "It", "LeafNodeText": "should a", "State": "timedout", "Failure": {"Message": "late"}},
{"ContainerHierarchyTexts": ["[sig-network] Netpol"], "LeafNodeType": "It", "LeafNodeText": "should b", "State": "passed"}]}]`
)

func TestTheLastReportOfASpecCounts(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"netpol-20260102T000000.json": second, "netpol-20260101T000000.json": first} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	results, err := read(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []result{
		{"netpol", "[sig-network] Netpol NetworkPolicy should a", "failed", "late", 0},
		{"netpol", "[sig-network] Netpol should b", "passed", "", 0},
		{"netpol", "[sig-network] Netpol should c", "skipped", "needs a cloud", 0},
	}
	if !slices.Equal(results, want) {
		t.Errorf("results are %+v, want %+v", results, want)
	}
	if _, err := read(t.TempDir()); err == nil {
		t.Error("a folder without reports was read")
	}
}

func TestOnlyKnownFailuresAreAccepted(t *testing.T) {
	results, err := decode("netpol", []byte(first))
	if err != nil {
		t.Fatal(err)
	}
	known := []reason{{"should b", "the lab has no answer"}}
	for _, test := range []struct {
		reasons []reason
		want    string // in the error; empty: none
	}{
		{known, ""},
		{nil, "failed: [sig-network] Netpol should b"},
		{append(known, reason{"should a", "never"}), "passed, although it is known to fail (never): [sig-network] Netpol NetworkPolicy should a"},
	} {
		err := judge(results, test.reasons)
		if (err == nil) != (test.want == "") || err != nil && err.Error() != test.want {
			t.Errorf("with %v: %v, want %q", test.reasons, err, test.want)
		}
	}
	text := string(options{}.page(results, known))
	for _, line := range []string{
		"| Network policies (`test/e2e/network/netpol`) | 1 | 1 | 1 |",
		"- [sig-network] Netpol should b — the lab has no answer",
		"- [sig-network] Netpol should c — needs a cloud",
		"- [sig-network] Netpol NetworkPolicy should a\n",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("the page does not have %q:\n%s", line, text)
		}
	}
	if text := string(options{}.page(results, nil)); !strings.Contains(text, "should b — not explained yet: no answer\n") {
		t.Errorf("the page does not show a failure without a reason:\n%s", text)
	}
}

func TestALayerHasFoldersBeforeFiles(t *testing.T) {
	f := files{}
	f.add("/usr/bin/it", 0o755, []byte("text"))
	f.link("/bin/it", "../usr/bin/it")
	layer, err := f.layer()
	if err != nil {
		t.Fatal(err)
	}
	in, err := layer.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if want := []string{"bin/", "bin/it", "usr/", "usr/bin/", "usr/bin/it"}; !slices.Equal(names, want) {
		t.Errorf("the layer holds %v, want %v", names, want)
	}
}
