package meshagent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent/tables"
)

func TestPortsBeside(t *testing.T) {
	for _, test := range []struct {
		first, last, from, to uint16
		overlaps              bool
	}{
		{32768, 60999, 1024, 29999, false},
		{1024, 40000, 40001, 65535, false},
		{10000, 65535, 1024, 9999, false},
		{60000, 65535, 1024, 29999, false},
		{1024, 20000, 32768, 65535, false},
		{1024, 61439, 61440, 65535, false},
		{1024, 61440, 1024, 29999, true},
		{5120, 65535, 1024, 5119, false},
		{5119, 65535, 1024, 29999, true},
		{1024, 65535, 1024, 29999, true},
		{1, 65535, 1024, 29999, true},
		{2000, 64000, 1024, 29999, true},
	} {
		from, to, err := portsBeside(test.first, test.last)
		if from != test.from || to != test.to || (err != nil) != test.overlaps {
			t.Errorf("beside %d-%d: %d-%d, %v; want %d-%d, overlapping: %t", test.first, test.last, from, to, err, test.from, test.to, test.overlaps)
		}
		if says := fmt.Sprintf("net.ipv4.ip_local_port_range %d-%d overlaps the ports of pods", test.first, test.last); err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("beside %d-%d: %v", test.first, test.last, err)
		}
	}
}

func TestLocalPorts(t *testing.T) {
	for text, want := range map[string]string{
		"32768\t60999\n": "32768-60999",
		"32768":          "",
		"1 70000":        "",
		"":               "",
	} {
		file := filepath.Join(t.TempDir(), "range")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		first, last, err := localPorts(file)
		if got := fmt.Sprintf("%d-%d", first, last); err == nil && got != want || err != nil && (want != "" || got != "0-0") {
			t.Errorf("%q: %s, %v; want %q", text, got, err, want)
		}
	}
	if _, _, err := localPorts(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func addrsOf(text string) (all []netip.Addr) {
	for _, a := range strings.Fields(text) {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

// leaving are the addresses of a row.
func leaving(row bpf.Masquerading) string {
	var all []string
	for _, a := range row.Addr {
		if a != (bpf.Addr{}) {
			all = append(all, a.String())
		}
	}
	return strings.Join(all, " ")
}

func TestMasqueradingAddresses(t *testing.T) {
	for _, test := range []struct{ name, was, addrs, tentative, want, problem string }{
		{name: "where tunnels end", addrs: "192.0.2.1", want: "192.0.2.1"},
		{name: "not the first", addrs: "198.51.100.1 192.0.2.1", want: "192.0.2.1"},
		{name: "tunnels end at another device", addrs: "198.51.100.1 198.51.100.2", want: "198.51.100.1"},
		{name: "private IPv4", addrs: "10.0.0.1 198.51.100.1", want: "10.0.0.1"},
		{name: "both families", addrs: "192.0.2.1 fe80::1 2001:db8::1 2001:db8::2", want: "192.0.2.1 2001:db8::1"},
		{name: "not the ULA", addrs: "192.0.2.1 fd00::1 2001:db8::1", want: "192.0.2.1 2001:db8::1"},
		{name: "nothing but ULAs", addrs: "192.0.2.1 fe80::1 fd00::1 fd00::2", want: "192.0.2.1 fd00::1"},
		{name: "link-local", addrs: "fe80::1 169.254.0.1", problem: "no address that the world could answer to"},
		{name: "not yet usable", addrs: "192.0.2.1", tentative: "2001:db8::1", want: "192.0.2.1"},

		{name: "a new address before it", was: "192.0.2.1 2001:db8::1", addrs: "198.51.100.1 192.0.2.1 2001:db8::2 2001:db8::1", want: "192.0.2.1 2001:db8::1"},
		{name: "that where tunnels end is new", was: "198.51.100.1", addrs: "192.0.2.1 198.51.100.1", want: "198.51.100.1"},
		{name: "another takes its place", was: "198.51.100.1 2001:db8::1", addrs: "198.51.100.2 192.0.2.1 2001:db8::2", want: "192.0.2.1 2001:db8::2"},
		{name: "a ULA takes its place", was: "192.0.2.1 2001:db8::1", addrs: "192.0.2.1 fd00::1", want: "192.0.2.1 fd00::1"},
		{name: "IPv6 is new", was: "192.0.2.1", addrs: "192.0.2.1 2001:db8::1", want: "192.0.2.1 2001:db8::1"},

		{name: "IPv6 is gone", was: "192.0.2.1 2001:db8::1", addrs: "192.0.2.1 fe80::1", want: "192.0.2.1 2001:db8::1",
			problem: "lost its address 2001:db8::1, so pods' connections to the world over IPv6 are not answered"},
		{name: "IPv6 comes back", was: "192.0.2.1 2001:db8::1", addrs: "192.0.2.1 fd00::1", tentative: "2001:db8::1", want: "192.0.2.1 2001:db8::1",
			problem: "lost its address 2001:db8::1, so pods' connections to the world over IPv6 are not answered"},
		{name: "IPv4 is gone", was: "192.0.2.1 2001:db8::1", addrs: "2001:db8::1", want: "192.0.2.1 2001:db8::1",
			problem: "lost its address 192.0.2.1, so pods' connections to the world over IPv4 are not answered"},
		{name: "all is gone", was: "192.0.2.1 2001:db8::1", want: "192.0.2.1 2001:db8::1",
			problem: "IPv4 are not answered: give it that address again, or another one; the node's device has lost its address 2001:db8::1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var was bpf.Masquerading
			for _, a := range addrsOf(test.was) {
				family := 0
				if a.Is6() {
					family = 1
				}
				was.Addr[family] = bpf.AddrOf(a)
			}
			o := Outside{Addrs: addrsOf(test.addrs), Tentative: addrsOf(test.tentative), FirstPort: 32768, LastPort: 60999}
			row, err := masquerading(o, []netip.Addr{netip.MustParseAddr("192.0.2.1")}, was)
			if got := leaving(row); got != test.want {
				t.Errorf("pods leave as %q, want %q", got, test.want)
			}
			if (err != nil) != (test.problem != "") || err != nil && !strings.Contains(err.Error(), test.problem) {
				t.Errorf("error %v, want %q", err, test.problem)
			}
		})
	}
}

// While the range of the node's ports cannot be read, pods' ports stay.
func TestMasqueradingPorts(t *testing.T) {
	node, unread := netip.MustParseAddr("192.0.2.1"), errors.New("unread")
	for _, test := range []struct {
		was, first, last uint16
		unread           error
		want             string
		problem          string
	}{
		{0, 32768, 60999, nil, "1024-29999", ""},
		{2000, 32768, 60999, nil, "1024-29999", ""},
		{2000, 0, 0, unread, "2000-2999", "unread"},
		{0, 0, 0, unread, "1024-29999", "unread"},
		{2000, 1024, 65535, nil, "1024-29999", "overlaps"},
	} {
		was := bpf.Masquerading{Addr: [2]bpf.Addr{bpf.AddrOf(node)}}
		if test.was > 0 {
			was.First, was.Last = test.was, test.was+999
		}
		row, err := masquerading(Outside{Addrs: []netip.Addr{node}, FirstPort: test.first, LastPort: test.last, Unread: test.unread}, []netip.Addr{node}, was)
		got := fmt.Sprintf("%d-%d", row.First, row.Last)
		if got != test.want || (err != nil) != (test.problem != "") || err != nil && !strings.Contains(err.Error(), test.problem) || row.Addr != was.Addr {
			t.Errorf("%+v: %s from %s, %v", test, got, leaving(row), err)
		}
	}
}

func TestMasqueradingTakesWhatLasts(t *testing.T) {
	for _, test := range []struct {
		addr             string
		flags            int
		addrs, tentative string
	}{
		{"192.0.2.1", unix.IFA_F_PERMANENT, "192.0.2.1", ""},
		{"192.0.2.1", unix.IFA_F_SECONDARY, "192.0.2.1", ""},
		{"192.0.2.1", unix.IFA_F_DEPRECATED, "", ""},
		{"2001:db8::1", unix.IFA_F_MANAGETEMPADDR, "2001:db8::1", ""},
		{"2001:db8::1", unix.IFA_F_TEMPORARY, "", ""},
		{"2001:db8::1", unix.IFA_F_TEMPORARY | unix.IFA_F_TENTATIVE, "", ""},
		{"2001:db8::1", unix.IFA_F_TENTATIVE, "", "2001:db8::1"},
		{"2001:db8::1", unix.IFA_F_TENTATIVE | unix.IFA_F_OPTIMISTIC, "", "2001:db8::1"},
		{"2001:db8::1", unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED, "", ""},
		{"2001:db8::1", unix.IFA_F_DEPRECATED, "", ""},
	} {
		var o Outside
		o.add(netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(test.addr)}, Flags: test.flags})
		if !slices.Equal(o.Addrs, addrsOf(test.addrs)) || !slices.Equal(o.Tentative, addrsOf(test.tentative)) {
			t.Errorf("%s with flags %#x: %v, tentative %v", test.addr, test.flags, o.Addrs, o.Tentative)
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
	m := &masquerade{conf: conf, node: now.Addrs[:1], maps: maps, outside: func() (Outside, error) { return now, failed }, trouble: tell}
	look := func(want string, prefixes int) {
		t.Helper()
		row, _, err := maps.Masquerading.Lookup(0)
		if err != nil {
			t.Fatal(err)
		}
		got := leaving(row)
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
	now.Addrs, failed = addrsOf("192.0.2.2 192.0.2.1"), nil
	if err := m.turn(); err != nil {
		t.Error(err)
	}
	look("192.0.2.1", 6)
	now.Addrs = addrsOf("192.0.2.2 2001:db8::1")
	if err := m.turn(); err != nil {
		t.Error(err)
	}
	look("192.0.2.2 2001:db8::1", 6)
	now.Addrs = addrsOf("192.0.2.2")
	if err := m.turn(); err == nil || !strings.Contains(err.Error(), "over IPv6 are not answered") {
		t.Errorf("without an IPv6 address: %v", err)
	}
	look("192.0.2.2 2001:db8::1", 6)
	now.Addrs = nil
	if err := m.turn(); err == nil || !strings.Contains(err.Error(), "over IPv4 are not answered") {
		t.Errorf("without an address: %v", err)
	}
	look("192.0.2.2 2001:db8::1", 6)
	now.Addrs = addrsOf("192.0.2.2 2001:db8::1")
	now.FirstPort = 1024
	if err := m.turn(); err != nil { // 61000-65535 is enough
		t.Error(err)
	}
	now.LastPort = 65535
	if err := m.turn(); err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_local_port_range 1024-65535 overlaps the ports of pods") {
		t.Errorf("without ports of their own: %v", err)
	}
	look("192.0.2.2 2001:db8::1", 6)
	m.conf.Masquerade, m.conf.MasqLinkLocal = false, true
	if err := m.turn(); err != nil {
		t.Error(err)
	}
	look("", 5)
}
