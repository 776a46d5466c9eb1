package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
)

func TestTheNodeOfAnAddress(t *testing.T) {
	cluster := func(cidrs ...string) *traceCluster {
		c := &traceCluster{}
		for i, cidr := range cidrs {
			c.nodes = append(c.nodes, api.NodeStatus{Name: "n" + string(rune('1'+i)), PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}})
		}
		return c
	}
	f := &follower{clusters: map[string]*traceCluster{
		"east":  cluster("10.1.1.0/24", "10.1.2.0/24"),
		"west":  cluster("10.1.1.0/24", "10.2.1.0/24"),
		"south": cluster("10.1.1.0/24", "10.2.1.0/24"),
	}}
	for _, c := range []struct{ home, address, want, refused string }{
		{"east", "10.1.2.7", "east/n2", ""},
		{"east", "10.1.1.7", "east/n1", ""},
		{"west", "10.1.1.7", "west/n1", ""},
		{"west", "10.1.2.7", "east/n2", ""},
		{"", "10.1.1.7", "", "in the pod CIDRs of several nodes: east/n1, south/n1, west/n1. Name the pod"},
		{"east", "10.2.1.7", "", "several nodes: south/n2, west/n2."},
		{"east", "10.9.1.7", "", "in no node's pod CIDR"},
	} {
		for range 10 { // of a map's orders
			f.home = c.home
			p := party{addresses: []netip.Addr{netip.MustParseAddr(c.address)}}
			err := f.locate(&p)
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("%s from %q: %v, want %s", c.address, c.home, err, c.refused)
				}
			} else if at := p.cluster + "/" + p.node; err != nil || at != c.want {
				t.Fatalf("%s from %q is at %s, %v; want %s", c.address, c.home, at, err, c.want)
			}
		}
	}
}
