package apiserver

import (
	"net/netip"
	"strings"
	"testing"
)

func good() Config {
	c := Defaults()
	c.Cluster, c.ID = "east", 1
	c.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	c.ServiceCIDR = netip.MustParsePrefix("10.101.0.0/16")
	c.Advertise = netip.MustParseAddr("172.16.1.1")
	return c
}

func TestValidate(t *testing.T) {
	if err := good().Validate(); err != nil {
		t.Error("a good configuration:", err)
	}
	dual := good()
	dual.PodCIDRs = append(dual.PodCIDRs, netip.MustParsePrefix("fd00:10:1::/48"))
	if err := dual.Validate(); err != nil {
		t.Error("one with pod CIDRs of both families:", err)
	}
	prefix := netip.MustParsePrefix
	dual.IPv6ServiceCIDR = prefix("fd00:10:101::/108")
	if err := dual.Validate(); err != nil {
		t.Error("one with service CIDRs of both families:", err)
	}
	six := good()
	six.PodCIDRs, six.ServiceCIDR = []netip.Prefix{prefix("fd00:10:1::/48")}, prefix("fd00:10:101::/112")
	six.Advertise = netip.MustParseAddr("fd00:172:16:1::1")
	if err := six.Validate(); err != nil {
		t.Error("one of IPv6 alone:", err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"name too long":     {func(c *Config) { c.Cluster = strings.Repeat("e", 33) }, "1 to 32 of a-z"},
		"name in capitals":  {func(c *Config) { c.Cluster = "East" }, `cluster name "East"`},
		"no ID":             {func(c *Config) { c.ID = 0 }, "choose one from 1 to 255"},
		"ID beyond range":   {func(c *Config) { c.ID = 300 }, "choose one from 1 to 255"},
		"other split":       {func(c *Config) { c.MaxConnectedClusters = 300 }, "255 or 511"},
		"no pod CIDR":       {func(c *Config) { c.PodCIDRs = nil }, "pod-cidrs is missing"},
		"loopback for pods": {func(c *Config) { c.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }, "pod-cidrs: 127.0.0.0/8 contains addresses of 127.0.0.0/8, which no machine"},
		"no service CIDR":   {func(c *Config) { c.ServiceCIDR = netip.Prefix{} }, "service-cidr is missing"},
		"bits beyond":       {func(c *Config) { c.PodCIDRs[0] = netip.MustParsePrefix("10.1.2.0/16") }, "write 10.1.0.0/16"},
		"overlap":           {func(c *Config) { c.ServiceCIDR = prefix("10.1.128.0/17") }, "overlaps 10.1.0.0/16"},
		"own address":       {func(c *Config) { c.PodCIDRs[0] = prefix("172.16.0.0/16") }, "contains 172.16.1.1"},
		"IPv6 pods alone":   {func(c *Config) { c.PodCIDRs[0] = prefix("fd00::/48") }, "service-cidr: 10.101.0.0/16 is IPv4, but no pod could answer there"},
		"IPv6 before IPv4":  {func(c *Config) { c.PodCIDRs = []netip.Prefix{prefix("fd00::/48"), prefix("10.1.0.0/16")} }, "write those of IPv4 first, or IPv6 alone"},
		"IPv6 too small":    {func(c *Config) { c.PodCIDRs = append(c.PodCIDRs, prefix("fd00::/121")) }, "give a prefix from /16 to /120"},
		"IPv6 services":     {func(c *Config) { c.ServiceCIDR = prefix("fd00:1::/112") }, "give an IPv4 prefix here, and the IPv6 one as ipv6-service-cidr"},
		"IPv6 services twice": {func(c *Config) {
			c.PodCIDRs[0], c.ServiceCIDR, c.IPv6ServiceCIDR = prefix("fd00::/48"), prefix("fd00:1::/112"), prefix("fd00:2::/112")
		}, "service-cidr is IPv6 already: leave it out"},
		"IPv4 as IPv6": {func(c *Config) { c.IPv6ServiceCIDR = prefix("10.102.0.0/16") }, "ipv6-service-cidr: 10.102.0.0/16 is IPv4"},
		"pods of IPv4": {func(c *Config) { c.IPv6ServiceCIDR = prefix("fd00:1::/112") }, "give pod-cidrs an IPv6 prefix too"},
		"IPv6 overlap": {func(c *Config) {
			c.PodCIDRs, c.IPv6ServiceCIDR = append(c.PodCIDRs, prefix("fd00:10:1::/48")), prefix("fd00:10:1:f::/112")
		}, "fd00:10:1:f::/112 overlaps fd00:10:1::/48"},
		"small IPv6 services": {func(c *Config) {
			c.PodCIDRs, c.IPv6ServiceCIDR = append(c.PodCIDRs, prefix("fd00:10:1::/48")), prefix("fd00:10:101::/124")
		}, "ipv6-service-cidr: fd00:10:101::/124 is too large or too small"},
		"no address":         {func(c *Config) { c.Advertise = netip.Addr{} }, "advertise is"},
		"relative path":      {func(c *Config) { c.DataDir = "data" }, "data-dir"},
		"listen":             {func(c *Config) { c.Listen = "7443" }, "listen is"},
		"port":               {func(c *Config) { c.EtcdListen = ":70000" }, "must be a number from 0 to 65535"},
		"half external":      {func(c *Config) { c.EtcdEndpoints = []string{"https://e:2379"} }, "belong together"},
		"member name":        {func(c *Config) { c.Name = "East_1" }, `name: "East_1" cannot be an API server's name`},
		"peer port":          {func(c *Config) { c.EtcdPeerListen = "2380" }, "etcd-peer-listen is"},
		"joins unreachable":  {func(c *Config) { c.Join, c.EtcdPeerListen = "server.yaml", "" }, "join needs etcd-peer-listen"},
		"joins an external":  {func(c *Config) { c.Join, c.EtcdEndpoints = "server.yaml", []string{"https://e:2379"} }, "give one of them"},
		"no room for peers":  {func(c *Config) { c.PeerEntries = 0 }, "peer-entries is 0"},
		"plain etcd":         {func(c *Config) { c.EtcdEndpoints = []string{"http://e:2379"} }, "not an https URL"},
		"everything at once": {func(c *Config) { *c = Config{} }, "advertise is"},
	} {
		conf := good()
		c.change(&conf)
		if err := conf.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if lines := strings.Count((Config{}).Validate().Error(), "\n"); lines < 6 {
		t.Errorf("an empty configuration has %d mistakes", lines+1)
	}
}
