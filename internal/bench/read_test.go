package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/lab/scenario"
)

func TestBenchmarks(t *testing.T) {
	got, err := benchmarks("packet")([]byte(`goos: linux
pkg: github.com/weft-mesh/weft/bpf
BenchmarkPacket/established/egress/100-2   	  200000	         0 ns/op	        93.20 ns/packet
BenchmarkPacket/baseline/new 	  200000	        31.5 ns/packet
BenchmarkCompile-2   	     100	  11111 ns/op	  2048 B/op	  12 allocs/op
PASS
`))
	want := []figure{
		{"packet/established/egress/100", 93.2, "ns/packet"},
		{"packet/baseline/new", 31.5, "ns/packet"},
		{"packet/Compile", 11111, "ns/op"},
		{"packet/Compile/B", 2048, "B/op"},
		{"packet/Compile/allocs", 12, "allocs/op"},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if _, err := benchmarks("packet")([]byte("FAIL\n")); err == nil {
		t.Error("output without benchmarks is accepted")
	}
}

func TestScenarios(t *testing.T) {
	const text = `east answers
{"scenario":"spread","ok":true,"figures":{"usable_failed":9,"rest_agent_mib":41.5,"raise_seconds":7.25,"usable":{"count":20,"p50":0.1,"p99":0.2,"max":0.3}}}
`
	want := []figure{
		{"spread/raise_seconds", 7.25, "s"}, {"spread/rest_agent_mib", 41.5, "MiB"},
		{"spread/usable/count", 20, "1"}, {"spread/usable/p50", 0.1, "s"}, {"spread/usable/p99", 0.2, "s"}, {"spread/usable/max", 0.3, "s"},
	}
	got, err := scenarios("spread", "_failed")([]byte(text))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	got, err = scenarios("spread", "_failed")([]byte(strings.Replace(text, `"ok":true`, `"ok":false,"error":"it is 2"`, 1)))
	if len(got) != len(want) || err == nil || !strings.Contains(err.Error(), "it is 2") {
		t.Errorf("got %d figures, %v", len(got), err)
	}
	if _, err := scenarios("spread", "_failed")([]byte("weft: a lab needs root\n")); err == nil {
		t.Error("output without a result is accepted")
	}
}

// Every script here parses.
func TestScriptsAreUnderstood(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".txtar") {
			found++
			if _, _, err := scenario.Load(e.Name()); err != nil {
				t.Error(err)
			}
		}
	}
	if found != 3 {
		t.Errorf("found %d scripts", found)
	}
}
