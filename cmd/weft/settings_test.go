package main

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/cobra"
	"github.com/weft-mesh/weft/flow"
)

// sample has a field of every type that configurations use.
type sample struct {
	Name     string         `json:"name"`
	NodeIP   netip.Addr     `json:"nodeIP,omitzero"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	Ports    [2]uint16
	Trace    bool          `json:"trace"`
	Every    time.Duration `json:"every"`
	Limits   struct {
		Flows, IPs uint32
	} `json:"limits"`
	Clock func() time.Time `json:"-"`
	Log   *slog.Logger
}

var sampleUsage = map[string]string{"name": ".", "node-ip": ".", "pod-cidrs": ".", "ports": ".", "trace": ".", "every": ".", "limit-flows": ".", "limit-ips": "."}

func TestConfigure(t *testing.T) {
	defaults := sample{Name: "a", Ports: [2]uint16{1, 2}, Every: time.Second}
	defaults.Limits.Flows = 10
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("name: b\npodCIDRs: [10.1.0.0/16]\nports: [7, 8]\nlimits: {ips: 5}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		args []string
		want func(*sample)
		err  string
	}{
		{name: "defaults", want: func(*sample) {}},
		{name: "the file over the defaults", args: []string{"--config", file}, want: func(c *sample) {
			c.Name, c.PodCIDRs, c.Ports, c.Limits.IPs = "b", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, [2]uint16{7, 8}, 5
		}},
		{name: "flags over the file",
			args: []string{"--config", file, "--name", "c", "--pod-cidrs", "10.2.0.0/16,10.3.0.0/16", "--ports=9,10", "--limit-ips=6", "--trace"},
			want: func(c *sample) {
				c.Name, c.Ports, c.Limits.IPs, c.Trace = "c", [2]uint16{9, 10}, 6, true
				c.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("10.3.0.0/16")}
			}},
		{name: "addresses and durations", args: []string{"--node-ip=192.0.2.1", "--every=1m"}, want: func(c *sample) {
			c.NodeIP, c.Every = netip.MustParseAddr("192.0.2.1"), time.Minute
		}},
		{name: "every mistake at once", args: []string{"--node-ip=here", "--every=often", "--ports=1", "--limit-flows=many"},
			err: "--node-ip: \"here\" is not an address such as 192.0.2.11\n--ports: give 2 values, with commas\n--every: \"often\" is not a duration such as 30s or 5m\n--limit-flows: \"many\" is not a whole number from 0 to 4294967295"},
		{name: "no such file", args: []string{"--config", file + "x"}, err: "read configuration: open"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := &cobra.Command{}
			read := configure(cmd, defaults, sampleUsage)
			if err := cmd.ParseFlags(test.args); err != nil {
				t.Fatal(err)
			}
			got, err := read()
			var usage usageError
			if test.err != "" {
				if !errors.As(err, &usage) || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want a usage error …%s…", err, test.err)
				}
				return
			}
			want := defaults
			test.want(&want)
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreFields(sample{}, "Clock")); err != nil || diff != "" {
				t.Error(err, diff)
			}
		})
	}
}

func TestConfigureRefusesUnknownKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("nmae: b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := &cobra.Command{}
	read := configure(cmd, sample{}, sampleUsage)
	if err := cmd.ParseFlags([]string{"--config", file}); err != nil {
		t.Fatal(err)
	}
	if _, err := read(); err == nil || !strings.Contains(err.Error(), `unknown field "nmae"`) {
		t.Errorf("got %v", err)
	}
}

func TestKebab(t *testing.T) {
	for name, want := range map[string]string{
		"podCIDRs": "pod-cidrs", "nodeIP": "node-ip", "bpfDir": "bpf-dir", "MTU": "mtu", "IPs": "ips",
		"etcdCAFile": "etcd-ca-file", "StateDir": "state-dir", "join": "join", "serviceCIDR": "service-cidr",
	} {
		if got := kebab(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 1400 * time.Millisecond: "1s", 119 * time.Second: "119s", 2 * time.Minute: "2m",
		150 * time.Second: "2m30s", 10 * time.Minute: "10m", 179 * time.Minute: "179m", 3*time.Hour + 5*time.Minute: "3h5m",
		8*time.Hour + 5*time.Minute: "8h", 47 * time.Hour: "47h", 49 * time.Hour: "2d",
	} {
		if got := age(d.Seconds()); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func TestColour(t *testing.T) {
	tab := table{columns: columns("NODE", "STATE"), rows: [][]string{{"a", "ready"}, {"b\x1b[2J", "dead"}, {"c", ""}}}
	var out strings.Builder
	tab.write(&out, false, true)
	want := "\x1b[1mNODE\x1b[0m      \x1b[1mSTATE\x1b[0m\na         \x1b[32mready\x1b[0m\nb\\x1b[2J  \x1b[31mdead\x1b[0m\nc         -\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
	if colourful(&out) {
		t.Error("a buffer is no terminal")
	}
}

// The verdict comes first, and nothing else is coloured.
func TestFlowColour(t *testing.T) {
	for verdict, want := range map[flow.Verdict]string{
		flow.Dropped: "\x1b[31mDROPPED\x1b[0m   ", flow.Refused: "\x1b[31mREFUSED\x1b[0m   ",
		flow.Reset: "\x1b[33mRESET\x1b[0m     ", flow.Forwarded: "\x1b[32mFORWARDED\x1b[0m ",
	} {
		f := flow.Flow{Verdict: verdict, Direction: flow.Egress, Source: flow.Endpoint{Pod: "DROPPED"}}
		var out strings.Builder
		if err := (&flowPrinter{out: &out, colour: true}).print(&f); err != nil {
			t.Fatal(err)
		}
		rest, ok := strings.CutPrefix(out.String(), want)
		if !ok || strings.Contains(rest, "\x1b") {
			t.Errorf("got %q, want it to begin with %q and no other colour", out.String(), want)
		}
	}
}
