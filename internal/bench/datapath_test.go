package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"testing"
)

// What `make bench-datapath` measures, in short: every line comes, with a target where it
// has one. How long anything takes is not looked at.
func TestDatapathIsMeasured(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs programs in the kernel")
	}
	var out bytes.Buffer
	if err := measureDatapath(t.Context(), []string{"-rounds", "1", "-packets", "2500"}, &out); err != nil {
		t.Fatal(err)
	}
	got := map[string]line{}
	for row := range bytes.Lines(out.Bytes()) {
		var l line
		if err := json.Unmarshal(row, &l); err != nil {
			t.Fatalf("%s: %v", row, err)
		}
		got[key(l)] = l
	}
	for _, yardstick := range []string{"empty", "stage", "lookup"} {
		if l, ok := got[key(line{Line: yardstick})]; !ok || l.Met != nil {
			t.Errorf("yardstick %s: %v, %+v", yardstick, ok, l)
		}
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, identities := range []int{100, 16000} {
			for _, want := range []struct {
				line           string
				plain, service []string
			}{
				{"established", []string{"egress", "next-door", "tunnel", "ingress", "device"}, []string{"egress", "next-door", "tunnel"}},
				{"new", []string{"egress", "next-door", "tunnel", "ingress", "device"}, []string{"egress", "next-door"}},
				{"denied", []string{"egress", "tunnel", "ingress", "device"}, []string{"egress"}},
			} {
				for service, hooks := range map[bool][]string{false: want.plain, true: want.service} {
					for _, at := range hooks {
						k := key(line{Line: want.line, At: at, Service: service, Family: family, Identities: identities})
						if l, ok := got[k]; !ok || l.Met == nil || l.Unit != "ns" || l.Target <= 0 {
							t.Errorf("%s: %v, %+v", k, ok, l)
						}
						k = "ipv6 " + k
						if l, ok := got[k]; ok != (family == "IPv6" && want.line == "established") || ok && l.Met == nil {
							t.Errorf("%s: %v, %+v", k, ok, l)
						}
					}
				}
			}
		}
	}
}

func key(l line) string {
	k := fmt.Sprint(l.Line, " ", l.At, " ", l.Service, " ", l.Family, " ", l.Identities)
	if l.What != "" {
		return fmt.Sprint(l.Line, " ", l.What, " ", l.At, " ", l.Service, " ", l.Family, " ", l.Identities)
	}
	return k
}

func TestDatapathIsJudged(t *testing.T) {
	round := func(by float64) (figures []figure) {
		for _, f := range []figure{
			{Name: "yardstick/empty", Value: 10}, {Name: "yardstick/stage", Value: 40},
			{Name: "yardstick/draw", Value: 20}, {Name: "yardstick/lookup", Value: 20 + 2*usualLookup},
			{Name: "IPv4/100/new/egress/plain", Value: 640}, {Name: "IPv4/100/new/egress/service", Value: 1660},
			{Name: "IPv4/100/established/egress/plain", Value: 140}, {Name: "IPv6/100/established/egress/plain", Value: 160},
			{Name: "IPv4/100/denied/next-door/plain", Value: 540},
		} {
			figures = append(figures, figure{Name: "datapath/" + f.Name, Value: f.Value + by, Unit: "ns/packet"})
		}
		return figures
	}
	rounds := [][]figure{round(0), round(500), round(3)}
	lines, err := judged(rounds)
	if err != nil {
		t.Fatal(err)
	}
	type verdict struct {
		value, lookups, target float64
		met                    string
		over                   float64
	}
	want := map[string]verdict{
		key(line{Line: "empty"}):  {13, 0.05, 0, "", 0},
		key(line{Line: "stage"}):  {30, 0.12, 0, "", 0},
		key(line{Line: "lookup"}): {254, 1, 0, "", 0},
		key(line{Line: "new", At: "egress", Family: "IPv4", Identities: 100}):                {600, 2.36, 600, "true", 0},
		key(line{Line: "new", At: "egress", Service: true, Family: "IPv4", Identities: 100}): {1620, 6.38, 600, "false", 1.35},
		key(line{Line: "established", At: "egress", Family: "IPv4", Identities: 100}):        {100, 0.39, 90, "true", 0}, // by its look-ups
		key(line{Line: "established", At: "egress", Family: "IPv6", Identities: 100}):        {120, 0.47, 90, "true", 0},
		key(line{Line: "denied", At: "next-door", Family: "IPv4", Identities: 100}):          {500, 1.97, 500, "true", 0},

		key(line{Line: "ipv6", What: "established", At: "egress", Family: "IPv6", Identities: 100}): {1.2, 0, 1.1, "false", 1.09},
	}
	for _, l := range lines {
		met := ""
		if l.Met != nil {
			met = fmt.Sprint(*l.Met)
		}
		if got := (verdict{l.Value, l.Lookups, l.Target, met, l.Over}); got != want[key(l)] {
			t.Errorf("%s: %+v, want %+v", key(l), got, want[key(l)])
		}
		delete(want, key(l))
	}
	for k := range want {
		t.Errorf("no line %s", k)
	}
	if _, err := judged([][]figure{rounds[0], rounds[0][:6]}); err == nil {
		t.Error("a round that lacks lines is accepted")
	}
	if _, err := judged([][]figure{rounds[0][1:]}); err == nil {
		t.Error("a round without a yardstick is accepted")
	}
}
