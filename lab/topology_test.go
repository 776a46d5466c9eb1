package lab

import (
	"slices"
	"strings"
	"testing"
)

func TestParseTopology(t *testing.T) {
	top, err := ParseTopology([]byte("clusters:\n- {name: east, id: 1}\n- {name: west, id: 2, nodes: [a, b, c], control: b}\nwan: {delay: 5ms, loss: 0.1}\n"))
	if err != nil {
		t.Fatal(err)
	}
	west := &top.Clusters[1]
	if got := list(west.nodePodCIDRs("c")); got != "10.2.3.0/24" {
		t.Errorf("pod CIDR of west/c = %s", got)
	}
	dual, err := ParseTopology([]byte("clusters:\n- {name: east, id: 12, ipFamilies: [IPv4, IPv6]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := list(dual.Clusters[0].PodCIDRs()) + " " + list(dual.Clusters[0].nodePodCIDRs("n2")); got != "10.12.0.0/16,fd00:10:12::/48 10.12.2.0/24,fd00:10:12:2::/64" {
		t.Errorf("pod CIDRs of both families: %s", got)
	}
	if got := list(west.host(west.number("b"))); got != "172.16.2.2" {
		t.Errorf("address of west/b = %s", got)
	}
	six, err := ParseTopology([]byte("clusters:\n- {name: east, id: 12, ipFamilies: [IPv6], nodeIPFamilies: [IPv6]}\n- {name: west, id: 13, nodeIPFamilies: [IPv6, IPv4]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	e, w := &six.Clusters[0], &six.Clusters[1]
	if got := list(e.PodCIDRs()) + " " + list(e.nodePodCIDRs("n2")) + " " + list(e.ServiceCIDRs()); got != "fd00:10:12::/48 fd00:10:12:2::/64 fd00:10:112::/112" {
		t.Errorf("CIDRs of IPv6 alone: %s", got)
	}
	if got := list(e.host(2)) + " " + list(w.host(2)); got != "fd00:172:16:12::2 fd00:172:16:13::2,172.16.13.2" {
		t.Errorf("addresses of machines: %s", got)
	}
	if top.Clusters[0].Control != "n1" || top.Clusters[0].ServiceCIDR.String() != "10.101.0.0/16" {
		t.Errorf("defaults of east = %+v", top.Clusters[0])
	}
}

func TestParseTopologyMistakes(t *testing.T) {
	for name, tt := range map[string]struct{ yaml, want string }{
		"no cluster":         {"wan: {}", "at least one cluster"},
		"unknown field":      {"clusters: [{name: a, id: 1, color: red}]", "color"},
		"same ID":            {"clusters: [{name: a, id: 1}, {name: b, id: 1}]", "must occur once"},
		"ID out of range":    {"clusters: [{name: a, id: 300}]", "1 to 99"},
		"control elsewhere":  {"clusters: [{name: a, id: 1, control: n9}]", "not among its nodes"},
		"too many nodes":     {"clusters: [{name: a, id: 1, podCIDR: 10.1.0.0/23, nodes: [b, c]}]", "has room for 1 node, not 2"},
		"IP families":        {"clusters: [{name: a, id: 1, ipFamilies: [IPv6, IPv4]}]", "use [IPv4], [IPv6] or [IPv4, IPv6]"},
		"machines' families": {"clusters: [{name: a, id: 1, nodeIPFamilies: [IPv5]}]", "use IPv4, IPv6 or both"},
		"loss":               {"clusters: [{name: a, id: 1}]\nwan: {loss: 3}", "share from 0 to 1"},
		"delay":              {"clusters: [{name: a, id: 1}]\nwan: {delay: soon}", "not a duration"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseTopology([]byte(tt.yaml))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one that says %q", err, tt.want)
			}
		})
	}
}

// A script about `weft tunnel` runs on any kernel.
func TestProcessesOfANode(t *testing.T) {
	for _, tt := range []struct {
		kernel, userspace, dns bool
		want                   []string
	}{
		{false, false, false, []string{"tunnel", "agent"}},
		{false, true, false, []string{"tunnel", "agent"}},
		{true, false, false, []string{"agent"}},
		{true, true, false, []string{"tunnel", "agent"}},
		{true, false, true, []string{"agent", "dns"}},
	} {
		l := &Lab{kernel: tt.kernel, Topology: Topology{Userspace: tt.userspace}}
		if got := l.nodeProcesses(&Cluster{DNS: tt.dns}); !slices.Equal(got, tt.want) {
			t.Errorf("kernel %v, userspace %v: %q, want %q", tt.kernel, tt.userspace, got, tt.want)
		}
	}
}

// A scenario that needs other programs says which package has them.
func TestMissingTools(t *testing.T) {
	top, err := ParseTopology([]byte("clusters: [{name: east, id: 1}]\ntools: {sh: dash, no-such-tool: some-package, nor-this: another}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := top.Missing(); err == nil || err.Error() != "missing no-such-tool, nor-this: apt-get install some-package another" {
		t.Errorf("missing: %v", err)
	}
	delete(top.Tools, "no-such-tool")
	delete(top.Tools, "nor-this")
	if err := top.Missing(); err != nil {
		t.Errorf("nothing is missing: %v", err)
	}
}
