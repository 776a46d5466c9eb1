package meshagent

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent/tables"
)

func TestPortsBeside(t *testing.T) {
	for _, test := range []struct {
		first, last, from, to uint16
		problem               string
	}{
		{32768, 60999, 1024, 29999, ""},
		{1024, 40000, 40001, 65535, ""},
		{10000, 65535, 1024, 9999, ""},
		{1024, 65535, 1, 0, "leaves only 0 ports"},
		{1, 65535, 1, 0, "leaves only 0 ports"},
		{2000, 64000, 64001, 65535, "leaves only 1535 ports"},
		{60000, 65535, 1024, 29999, ""},
		{1024, 20000, 32768, 65535, ""},
	} {
		from, to, err := portsBeside(test.first, test.last)
		if from != test.from || to != test.to || (err == nil) != (test.problem == "") || err != nil && !strings.Contains(err.Error(), test.problem) {
			t.Errorf("beside %d-%d: %d-%d, %v; want %d-%d, %q", test.first, test.last, from, to, err, test.from, test.to, test.problem)
		}
	}
}

func TestMasqueradingAddresses(t *testing.T) {
	for _, test := range []struct{ node, addrs, want string }{
		{"192.0.2.1", "192.0.2.1", "192.0.2.1"},
		{"192.0.2.1", "198.51.100.1 192.0.2.1", "192.0.2.1"},
		{"192.0.2.1", "198.51.100.1", "198.51.100.1"}, // tunnels end at another device
		{"192.0.2.1", "192.0.2.1 fe80::1 2001:db8::1 2001:db8::2", "192.0.2.1 2001:db8::1"},
		{"192.0.2.1", "fe80::1 169.254.0.1", ""},
	} {
		o := Outside{FirstPort: 32768, LastPort: 60999}
		for _, a := range strings.Fields(test.addrs) {
			o.Addrs = append(o.Addrs, netip.MustParseAddr(a))
		}
		row, err := masquerading(o, netip.MustParseAddr(test.node))
		var got []string
		for _, a := range row.Addr {
			if a != (bpf.Addr{}) {
				got = append(got, a.String())
			}
		}
		if !slices.Equal(got, strings.Fields(test.want)) || (err != nil) != (test.want == "") {
			t.Errorf("%s among %s: %v, %v; want %s", test.node, test.addrs, got, err, test.want)
		}
	}
}

// The rows follow the device and the configuration, whatever an earlier agent has written,
// and stay while nothing is known.
func TestMasqueradeFollowsTheDevice(t *testing.T) {
	maps := bpftest.New()
	now, failed := Outside{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, FirstPort: 32768, LastPort: 60999}, error(nil)
	conf := Defaults()
	conf.NonMasqueradeCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	tell := partTrouble(tables.New(), "masquerade", "pods may not reach the world", slog.New(slog.DiscardHandler))
	m := &masquerade{conf: conf, node: now.Addrs[0], maps: maps, outside: func() (Outside, error) { return now, failed }, trouble: tell}
	look := func(want string, prefixes int) {
		t.Helper()
		row, _, err := maps.Masquerading.Lookup(0)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if row.Addr[0] != (bpf.Addr{}) {
			got = row.Addr[0].String()
		}
		if n, _ := maps.Native.Len(); got != want || n != prefixes {
			t.Errorf("pods leave as %q beside %d native prefixes, want %q, %d", got, n, want, prefixes)
		}
	}
	old := bpf.PrefixOf(netip.MustParsePrefix("172.16.0.0/12"))
	if err := maps.Native.Update(old, 1); err != nil {
		t.Fatal(err)
	}
	if err := m.turn(); err != nil {
		t.Error(err)
	}
	look("192.0.2.1", 6)
	if _, there, _ := maps.Native.Lookup(old); there {
		t.Error("a prefix of an earlier configuration is still there")
	}
	failed = errors.New("the device is gone")
	if err := m.turn(); !errors.Is(err, failed) {
		t.Errorf("without a device: %v", err)
	}
	look("192.0.2.1", 6)
	now.Addrs, failed = []netip.Addr{netip.MustParseAddr("192.0.2.2")}, nil
	if err := m.turn(); err != nil {
		t.Error(err)
	}
	look("192.0.2.2", 6)
	now.FirstPort = 1024
	if err := m.turn(); err != nil { // 60999-65535 is enough
		t.Error(err)
	}
	now.LastPort = 65535
	if err := m.turn(); err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_local_port_range 1024-65535 leaves only 0 ports") {
		t.Errorf("without ports: %v", err)
	}
	look("192.0.2.2", 6)
	m.conf.Masquerade, m.conf.MasqLinkLocal = false, true
	if err := m.turn(); err != nil {
		t.Error(err)
	}
	look("", 5)
}
