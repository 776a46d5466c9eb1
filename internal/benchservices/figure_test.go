package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/internal/figures"
)

func TestCompared(t *testing.T) {
	all := compared([]figure{
		{Line: "first-packet", Mode: weft, Services: 10_000, Value: 10.6},
		{Line: "first-packet", Mode: iptables, Services: 10_000, Value: 106},
		{Line: "first-packet", Mode: nftables, Services: 10_000, Error: "it has ended"},
		{Line: "first-packet", Mode: plain, Services: 10_000, Value: 10},
	})
	want := []figure{
		{Line: "first-packet", Mode: weft, Services: 10_000, Value: 10.6, Ratio: map[mode]float64{iptables: 0.1, plain: 1.06},
			Targets: []verdict{{Over: plain, Bound: 1.05, Is: 1.06}}},
		{Line: "first-packet", Mode: iptables, Services: 10_000, Value: 106, Ratio: map[mode]float64{weft: 10, plain: 10.6}},
		{Line: "first-packet", Mode: nftables, Services: 10_000, Error: "it has ended"},
		{Line: "first-packet", Mode: plain, Services: 10_000, Value: 10, Ratio: map[mode]float64{weft: 0.9434, iptables: 0.09434}},
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
}

func TestTargets(t *testing.T) {
	of := func(line string, services int, values map[mode]float64) (met []bool) {
		var same []figure
		for _, m := range modes {
			if v, ok := values[m]; ok {
				same = append(same, figure{Line: line, Mode: m, Services: services, Value: v})
			}
		}
		for _, v := range compared(same)[0].Targets {
			met = append(met, v.Met)
		}
		return met
	}
	for name, c := range map[string]struct {
		line     string
		services int
		values   map[mode]float64
		met      []bool
	}{
		"as many connections as either":      {"crr", 1, map[mode]float64{weft: 100, iptables: 100, nftables: 99}, []bool{true, true}},
		"fewer than one":                     {"crr", 1, map[mode]float64{weft: 100, iptables: 101, nftables: 99}, []bool{false, true}},
		"with many services, 2.5 times":      {"crr", 10_000, map[mode]float64{weft: 249, iptables: 100, nftables: 300}, []bool{false}},
		"no target with a thousand":          {"crr", 1000, map[mode]float64{weft: 1, iptables: 100}, nil},
		"a value alone and ratios":           {"sync-one", 1000, map[mode]float64{weft: 9, iptables: 180, nftables: 170}, []bool{true, true, false}},
		"a value is missed, its ratio met":   {"sync-full", 20_000, map[mode]float64{weft: 2, nftables: 50}, []bool{false, true}},
		"nothing to compare with, no target": {"rr", 1, map[mode]float64{weft: 9}, nil},
	} {
		if got := of(c.line, c.services, c.values); !slices.Equal(got, c.met) {
			t.Errorf("%s: met %v, want %v", name, got, c.met)
		}
	}
}

func TestEveryAimIsOfALine(t *testing.T) {
	for _, a := range aims {
		if !slices.Contains(names, a.line) {
			t.Errorf("there is no line %q", a.line)
		}
	}
	for _, p := range panels {
		if !slices.Contains(names, p.line) {
			t.Errorf("panel %q: there is no line %q", p.title, p.line)
		}
	}
}

func TestMedianAndPercentile(t *testing.T) {
	if got := median([]float64{9, 1, 5}); got != 5 {
		t.Errorf("median of three is %v, want 5", got)
	}
	if got := median([]float64{4, 2}); got != 3 {
		t.Errorf("median of two is %v, want 3", got)
	}
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for share, want := range map[float64]float64{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := percentile(hundred, share); got != want {
			t.Errorf("percentile %v is %v, want %v", share, got, want)
		}
	}
	if median(nil) != 0 || percentile(nil, 0.5) != 0 {
		t.Error("of no values, median and percentile are not 0")
	}
}

func TestTableAndDrawing(t *testing.T) {
	text := `{"line":"crr","mode":"weft","services":1,"value":9000,"unit":"1/s","targets":[{"over":"iptables","bound":1,"least":true,"is":0.9,"met":false}]}
{"line":"crr","mode":"plain","services":1,"value":10000,"unit":"1/s"}

{"line":"crr","mode":"nftables","services":1,"unit":"1/s","error":"no"}
{"line":"crr","mode":"weft","services":1000,"value":8000,"unit":"1/s"}
`
	all, err := figures.Read(strings.NewReader(text), figure.lacks)
	if err != nil {
		t.Fatal(err)
	}
	want := `| line | services | weft | iptables | nftables | plain | targets |
|---|---|---|---|---|---|---|
| crr | 1 | 9000 1/s | – | failed | 10000 1/s | 0.9 of iptables (≥ 1) missed |
| crr | 1000 | 8000 1/s | – | – | – |  |
`
	if diff := cmp.Diff(want, table(all)); diff != "" {
		t.Error(diff)
	}
	svg := string(draw(all))
	for _, want := range []string{"New connections", ">weft</text>", "1000 services: 8000 1/s"} {
		if !strings.Contains(svg, want) {
			t.Errorf("the drawing lacks %q", want)
		}
	}
	if strings.Contains(svg, "Soft interrupts") {
		t.Error("a panel without figures is drawn")
	}
	for _, bad := range []string{`{"line":"crr"}`, `{"line":"crr","mode":"ipvs","services":1}`, `crr`} {
		if _, err := figures.Read(strings.NewReader(bad), figure.lacks); err == nil {
			t.Errorf("%s is read as a figure", bad)
		}
	}
}

// What iptables-save prints of two services, one of which has no endpoints, and of what
// else is in the table.
const saved = `*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.128.1.2/32 -p tcp -m comment --comment "default/s00002:http cluster IP" -m tcp --dport 8080 -j KUBE-SVC-AAA
-A KUBE-SERVICES -d 10.128.1.0/32 -p tcp -m tcp --dport 8080 -j KUBE-SVC-BBB
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-AAA -m statistic --mode random --probability 0.25 -j KUBE-SEP-CCC
COMMIT
`

func TestChain(t *testing.T) {
	got := chain(strings.NewReader(saved))
	want := []netip.Addr{netip.MustParseAddr("10.128.1.2"), netip.MustParseAddr("10.128.1.0")}
	if !slices.Equal(got, want) {
		t.Errorf("the chain is %v, want %v", got, want)
	}
}

func TestTargetsOfAChain(t *testing.T) {
	order := make([]netip.Addr, 100)
	for i := range order {
		order[i] = plus(absent, i) // services that lead nowhere
	}
	at := func(service, position int) { order[position] = serviceAddr(service).Addr() }
	at(0, 97)
	at(1, 3)
	at(2, 48)
	at(3, 20)
	at(4, 99) // is not among those that answer
	want := []target{{"first", 1, 3}, {"middle", 2, 48}, {"last", 0, 97}}
	if got := targets(order, 4); !slices.Equal(got, want) {
		t.Errorf("targets are %v, want %v", got, want)
	}
	if got := targets(order[97:98], 4); !slices.Equal(got, []target{{"first", 0, 0}}) {
		t.Errorf("of a single service, targets are %v", got)
	}
	if got := targets(order[:3], 4); got != nil {
		t.Errorf("of a chain without a service that answers, targets are %v", got)
	}
}

func TestAddressesDoNotOverlap(t *testing.T) {
	for _, i := range []int{0, 1, realServices, mostServices - 1} {
		if a := serviceAddr(i).Addr(); !serviceCIDR.Contains(a) || a == extraService {
			t.Errorf("service %d has the address %v", i, a)
		}
		for _, e := range endpointsOf(i, []netip.Addr{netip.MustParseAddr("10.32.1.2")}) {
			if !podCIDR.Contains(e) {
				t.Errorf("service %d has the endpoint %v, outside of %v", i, e, podCIDR)
			}
		}
	}
	if a, b := endpointsOf(realServices, nil), endpointsOf(realServices+1, nil); plus(a[perService-1], 1) != b[0] {
		t.Errorf("endpoints %v are followed by %v", a, b)
	}
}

func TestReadings(t *testing.T) {
	c, err := parseCPU("cpu  100 10 50 9000 40 0 20 5 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
	if err != nil || c.softirq != 0.2 || figures.Digits(c.busy) != 1.85 {
		t.Errorf("read %+v, %v; want 0.2 s in soft interrupts and 1.85 s busy", c, err)
	}
	if _, err := parseCPU("intr 1 2 3\n"); err == nil {
		t.Error("another line is read as the time of all CPUs")
	}
	values, err := parseMetrics(strings.NewReader("# HELP a b\na{ip_family=\"IPv4\"} 2\na{ip_family=\"IPv6\"} 5\nb 1.5e9\nc{table=\"nat\"} 1\nc{table=\"filter\"} 2\n"))
	if want := map[string]float64{"a": 2, "b": 1.5e9, "c": 3}; err != nil || !cmp.Equal(values, want) {
		t.Errorf("read %v, %v; want %v", values, err, want)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-services", "1000,1", "-only", "crr,rr"}, &strings.Builder{})
	if err != nil || !slices.Equal(o.sizes, []int{1, 1000}) || !slices.Equal(o.only, []string{"crr", "rr"}) {
		t.Errorf("read %v, %v, %v", o.sizes, o.only, err)
	}
	for _, bad := range [][]string{{"-services", "0"}, {"-services", "1,x"}, {"-only", "ipvs"}, {"-rounds", "0"}, {"more"}} {
		if _, err := parse(bad, &strings.Builder{}); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}
