package service

import (
	"net/netip"
	"strings"
	"testing"
)

func TestCheckAddress(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.1.2":        "",
		"192.0.2.1":       "",
		"fd00:10:1::2":    "",
		"::ffff:10.1.1.2": "write 10.1.1.2",
		"0.0.0.0":         "no network",
		"0.1.2.3":         "no network",
		"::":              "unspecified",
		"127.0.0.1":       "loopback",
		"127.8.9.1":       "loopback",
		"::1":             "loopback",
		"169.254.169.254": "link-local",
		"fe80::1":         "link-local",
		"fe80::1%eth0":    "not an IP address",
		"224.0.0.1":       "multicast",
		"239.255.255.250": "multicast",
		"ff02::1":         "multicast",
		"240.0.0.1":       "reserved",
		"255.255.255.255": "broadcast",
	} {
		err := CheckAddress(netip.MustParseAddr(text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if CheckAddress(netip.Addr{}) == nil {
		t.Error("the zero address is accepted")
	}
}

func TestCheckCIDR(t *testing.T) {
	for text, want := range map[string]string{
		"10.2.0.0/16": "", "100.64.0.0/10": "", "192.0.2.0/28": "", "10.0.0.0/8": "", "fd00:2::/48": "",
		"10.2.3.0/16":         "not a valid prefix",
		"::ffff:10.2.0.0/112": "not a valid prefix",
		"0.0.0.0/0":           "wider than /8",
		"128.0.0.0/1":         "wider than /8",
		"::/0":                "wider than /16",
		"127.0.0.0/8":         "127.0.0.0/8, which no machine",
		"127.8.0.0/16":        "127.0.0.0/8, which no machine",
		"169.254.169.254/32":  "169.254.0.0/16, which no machine",
		"168.0.0.0/8":         "",
		"169.0.0.0/8":         "169.254.0.0/16, which no machine",
		"239.0.0.0/8":         "224.0.0.0/3, which no machine",
		"fe80::/64":           "fe80::/10, which no machine",
	} {
		err := CheckCIDR(netip.MustParsePrefix(text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if CheckCIDR(netip.Prefix{}) == nil {
		t.Error("no prefix is one")
	}
}
