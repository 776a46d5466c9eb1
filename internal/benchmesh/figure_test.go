package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/benchmesh/peers"
	"github.com/weft-mesh/weft/internal/figures"
	"github.com/weft-mesh/weft/lab/scenario"
)

func TestFiguresAreJudged(t *testing.T) {
	for name, c := range map[string]struct {
		in   figure
		met  any // nil: no target
		over float64
	}{
		"below its target":       {figure{Line: "bootstrap", Value: 4.2}, true, 0},
		"on its target":          {figure{Line: "bootstrap", Value: 5}, true, 0},
		"three times its target": {figure{Line: "one-change", What: "node", Value: 3}, false, 3},
		"of nothing too many":    {figure{Line: "reconnect", What: "deletions", Value: 7}, false, 7},
		"none, as it should be":  {figure{Line: "reconnect", What: "deletions"}, true, 0},
		"not reached":            {figure{Line: "converge", Value: 1, Error: "after 2m0s"}, false, 0.5},
		"without a target":       {figure{Line: "join", Value: 9, Unit: "s"}, nil, 0},
	} {
		got := judged(c.in)
		if c.met == nil {
			if got.Met != nil || got.Target != nil {
				t.Errorf("%s: %+v", name, got)
			}
			continue
		}
		if got.Met == nil || *got.Met != c.met || got.Over != c.over || got.Unit == "" {
			t.Errorf("%s: met %v, over %v, unit %q", name, got.Met, got.Over, got.Unit)
		}
	}
	// Each target belongs to a line that can be asked for, and each panel to targets.
	for key, a := range aims {
		if !slices.Contains(names, a.line) {
			t.Errorf("%s is measured by %q, which -only does not take", key, a.line)
		}
	}
	for _, p := range panels {
		for _, key := range p.keys {
			if aims[key].unit == "" || aims[key].unit != aims[p.keys[0]].unit {
				t.Errorf("panel %q draws %s in %q", p.title, key, aims[key].unit)
			}
		}
	}
}

// What is printed reads back the same and is drawn; a later figure replaces an earlier one.
func TestFiguresAreDrawn(t *testing.T) {
	var out bytes.Buffer
	for _, f := range []figure{
		{Line: "bootstrap", Clusters: 10, Value: 9999},
		{Line: "bootstrap", Clusters: 10, Value: 3},
		{Line: "bootstrap", Clusters: 250, Value: 4},
		{Line: "one-change", What: "node", Clusters: 10, Value: 0.5},
		{Line: "converge", Clusters: 10, Error: "not measured"},
	} {
		if err := json.NewEncoder(&out).Encode(judged(f)); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	from := filepath.Join(dir, "figures")
	if err := os.WriteFile(from, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := parse([]string{"-from", from, "-docs", dir}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.run(t.Context(), io.Discard); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(filepath.Join(dir, "bench-mesh.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(filepath.Join(dir, "bench-mesh.jsonl")); err != nil || !bytes.Equal(kept, out.Bytes()) {
		t.Errorf("kept: %v\n%s", err, kept)
	}
	if n := strings.Count(string(svg), "<circle"); n != 3 {
		t.Errorf("%d points are drawn, want 3", n)
	}
	if text := string(svg); !strings.Contains(text, "10 clusters: 3 s") || strings.Contains(text, "9999") || strings.Contains(text, "Converge") {
		t.Errorf("drawn:\n%s", text)
	}
	for _, bad := range []string{"{", `{"value":1}`, `{"line":"x","clusters":0}`} {
		if _, err := figures.Read(strings.NewReader(bad), figure.lacks); err == nil || !strings.Contains(err.Error(), "line 1 is not a figure") {
			t.Errorf("%s is read as a figure: %v", bad, err)
		}
	}
}

func FuzzReadFigures(f *testing.F) {
	f.Add(`{"line":"bootstrap","clusters":10,"known":9000,"value":3,"unit":"s"}`)
	f.Add("{\"line\":\"flat\",\"what\":\"node\",\"clusters\":3,\"value\":-1}\n\n{}")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := figures.Read(strings.NewReader(text), figure.lacks)
		if err == nil && !bytes.HasSuffix(draw(all), []byte("</svg>\n")) {
			t.Errorf("%q is not drawn to the end", text)
		}
	})
}

func TestTheCommandLine(t *testing.T) {
	o, err := parse(nil, io.Discard)
	if err != nil || !slices.Equal(o.sizes, []int{10, 50, 250, 511}) || slices.Contains(o.only, "millions") || len(o.only) != len(names)-1 || o.limit != 30*time.Minute {
		t.Errorf("by default %+v, %v", o, err)
	}
	o, err = parse([]string{"-clusters", "3, 10", "-only", "bootstrap,converge", "-effort", "quick", "-memory", "100"}, io.Discard)
	if err != nil || !slices.Equal(o.sizes, []int{3, 10}) || !slices.Equal(o.only, []string{"bootstrap", "converge"}) || o.rounds != efforts["quick"].rounds || o.memory != 100<<20 {
		t.Errorf("%+v, %v", o, err)
	}
	for want, args := range map[string][]string{
		"number from 3 to 511":  {"-clusters", "2"},
		`"x" is not a number`:   {"-clusters", "10,x"},
		`there is no line "y"`:  {"-only", "memory,y"},
		"unexpected argument":   {"all"},
		"say where to":          {"-from", "x"},
		`"much" is not`:         {"-effort", "much"},
		"flag provided but not": {"-nope"},
	} {
		if _, err := parse(args, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want %q, got %v", args, want, err)
		}
	}
	var help bytes.Buffer
	if _, err := parse([]string{"-h"}, &help); err != flag.ErrHelp || !strings.Contains(help.String(), "needs root") {
		t.Errorf("help: %v\n%s", err, help.String())
	}
	if lines := len(strings.Split(strings.TrimSpace(help.String()), "\n")); lines > 30 {
		t.Errorf("help has %d lines", lines)
	}
}

// Every mesh that can be asked for can be generated.
func TestTheShapesOfAllSizes(t *testing.T) {
	for _, clusters := range []int{3, 10, 50, 250, 255, 256, 511} {
		for real := 1; real <= 2; real++ {
			if err := efforts["full"].shapeOf(clusters, real).Validate(); err != nil {
				t.Errorf("%d clusters, %d of them real: %v", clusters, real, err)
			}
		}
	}
	p := efforts["full"]
	p.shape = millionsShape(p.shape)
	s := p.shapeOf(millionsClusters, 1)
	if err := s.Validate(); err != nil || s.Known() != 3_000_000 {
		t.Errorf("%d endpoints: %v", s.Known(), err)
	}
}

func TestTheFailoverScript(t *testing.T) {
	for clusters, want := range map[int]string{10: "", 511: "--max-connected-clusters"} {
		text, err := script(clusters, 7)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "failover.txtar")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, topology, err := scenario.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(topology.Clusters[0].APIServer, " "); len(topology.Clusters) != 2 || !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%d clusters: API servers have the flags %q", clusters, got)
		}
		if strings.Count(text, "\nrepeat 7\n") != 2 {
			t.Errorf("%d clusters: the script does not repeat its faults 7 times", clusters)
		}
	}
}

func TestWhatDiffersIsCounted(t *testing.T) {
	s := efforts["full"].shapeOf(3, 1)
	s.Nodes, s.Endpoints, s.Identities, s.Services, s.Backends, s.Large = 2, 10, 5, 0, 0, 0
	w, err := peers.New(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	rows := func(change func(pods map[netip.Addr]identity.Number, one netip.Addr)) map[netip.Addr]identity.Number {
		have := w.Pods()
		have[s.PodCIDR(0).Addr().Next()] = identity.RemoteNode // a node's
		have[netip.MustParseAddr("10.1.0.7")] = 65537          // another cluster's
		for a := range w.Pods() {
			change(have, a)
			break
		}
		return have
	}
	for name, c := range map[string]struct {
		have           map[netip.Addr]identity.Number
		differ, absent int
	}{
		"all are there":    {rows(func(map[netip.Addr]identity.Number, netip.Addr) {}), 0, 0},
		"one is absent":    {rows(func(p map[netip.Addr]identity.Number, a netip.Addr) { delete(p, a) }), 1, 1},
		"one is another's": {rows(func(p map[netip.Addr]identity.Number, a netip.Addr) { p[a]++ }), 1, 0},
		"one is still there": {rows(func(p map[netip.Addr]identity.Number, _ netip.Addr) {
			p[netip.PrefixFrom(s.PodCIDR(1).Addr(), 24).Addr().Next().Next().Next().Next().Next().Next().Next().Next().Next().Next()] = 65536*3 + 1
		}), 1, 0},
	} {
		if differ, absent := difference(w, c.have); differ != c.differ || absent != c.absent {
			t.Errorf("%s: %d differ and %d are absent, want %d and %d", name, differ, absent, c.differ, c.absent)
		}
	}
}

func TestWhatProcessesTake(t *testing.T) {
	if n, err := statusField("Name:\tweft\nVmRSS:\t   2048 kB\nThreads:\t9\n", "VmRSS"); err != nil || n != 2<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if _, err := statusField("Name:\tweft\n", "VmRSS"); err == nil {
		t.Error("a status without the field is read")
	}
	const dev = "Inter-|   Receive\n face |bytes    packets\n    lo:     100       1    0\n  eth0: 123456     789    0\n"
	if n, err := deviceReceived(dev, "eth0"); err != nil || n != 123456 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if _, err := deviceReceived(dev, "eth1"); err == nil {
		t.Error("a device that is not there has received something")
	}
	if d, err := stalledFor("some avg10=98.34 avg60=98.35 avg300=98.61 total=24544168\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"); err != nil || d != 24544168*time.Microsecond {
		t.Errorf("stalled for %v, %v", d, err)
	}
	if _, err := stalledFor("full avg10=0.00 total=1\n"); err == nil {
		t.Error("another line is read as CPU pressure")
	}
	own := process{"benchmesh", os.Getpid()}
	before, err := own.cpu()
	for began := time.Now(); time.Since(began) < 20*time.Millisecond; {
	}
	after, err2 := own.cpu()
	if err != nil || err2 != nil || after <= before {
		t.Errorf("CPU time went from %v to %v: %v, %v", before, after, err, err2)
	}
	if n, err := own.resident(); err != nil || n < 1<<20 {
		t.Errorf("this process takes %d bytes: %v", n, err)
	}
	u := usage{at: time.Unix(2, 0), agent: time.Second, received: 100}
	if agent, _, received, _ := (usage{at: time.Unix(4, 0), agent: 3 * time.Second, received: 500}).since(u); agent != 1 || received != 200 {
		t.Errorf("%v cores and %v bytes per second", agent, received)
	}
}
