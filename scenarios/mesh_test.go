package scenarios

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

// TestAMeshOfGeneratedClusters measures a small mesh as `make bench-mesh` measures a large
// one: every line comes, nothing fails on the way and nothing is lost. How long anything
// takes is not looked at.
func TestAMeshOfGeneratedClusters(t *testing.T) {
	needLab(t)
	cmd := exec.CommandContext(t.Context(), "go", "run", "../internal/benchmesh", "-weft", build(t), "-effort", "check", "-clusters", "3",
		"-only", "one-change,propagation,memory,apiserver,traffic,converge,reconnect,bootstrap")
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	type figure struct {
		Line, What, Error string
		Clusters, Known   int
		Value             float64
		Detail            map[string]float64
	}
	got := map[string]figure{} // of three clusters; one-change and propagation come for two as well
	for line := range bytes.Lines(out) {
		var f figure
		if err := json.Unmarshal(line, &f); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if f.Error != "" {
			t.Errorf("%s %s: %s", f.Line, f.What, f.Error)
		}
		if f.Clusters == 3 {
			got[strings.TrimSpace(f.Line+" "+f.What)] = f
		}
	}
	for _, key := range []string{
		"join", "memory", "one-change address", "one-change identity", "one-change backend", "one-change node", "traffic",
		"propagation", "apiserver cpu", "apiserver rss", "converge", "reconnect", "reconnect deletions", "bootstrap",
	} {
		if f, there := got[key]; !there || f.Known != 300 {
			t.Errorf("%s is about %d endpoints of three clusters, want 300", key, f.Known)
		}
	}
	for _, key := range []string{"join", "memory", "traffic", "propagation", "apiserver rss", "converge", "reconnect", "bootstrap"} {
		if got[key].Value <= 0 {
			t.Errorf("%s is %v", key, got[key].Value)
		}
	}
	if lost := got["reconnect deletions"].Value; lost != 0 {
		t.Errorf("a restarted API server took away %v rows", lost)
	}
	// Beyond what an idle agent receives it may seem to be nothing in so short a time.
	if b, d := got["one-change backend"].Detail, got["traffic"].Detail; b["interval_bytes"] < 100 || d["backends"] < 150 || d["peer_bytes"] < 100 {
		t.Errorf("a changed backend costs %v, the mesh %v", b, d)
	}
}
