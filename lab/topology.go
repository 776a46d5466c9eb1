package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/lab/fabric"
)

// Topology is what a lab consists of, as written in lab.yaml.
//
// Addresses follow a convention that only the lab relies on: in the cluster with
// ID i, machine number n has the address 172.16.i.n or fd00:172:16:i::n, or both, and the
// gateway's number is 254.
type Topology struct {
	Clusters []Cluster `json:"clusters"`
	WAN      Link      `json:"wan,omitempty"`
	// Manual leaves it to the script to start the clusters, with the verb boot.
	Manual bool `json:"manual,omitempty"`
	// Userspace runs `weft tunnel` on every node even if the kernel has WireGuard,
	// for scripts about that process.
	Userspace bool `json:"userspace,omitempty"`
	// Tools are commands that the script runs and Weft does not bring along, each with the
	// Debian package that has it.
	Tools map[string]string `json:"tools,omitempty"`
}

// Cluster is one cluster to raise.
type Cluster struct {
	Name        string       `json:"name"`
	ID          uint16       `json:"id"`                    // 1 to 99
	Nodes       []string     `json:"nodes,omitempty"`       // n1 and n2 if empty
	Control     string       `json:"control,omitempty"`     // runs the first API server; the first node if empty
	Servers     []string     `json:"servers,omitempty"`     // run more API servers, which join the first
	PodCIDR     netip.Prefix `json:"podCIDR,omitempty"`     // 10.<id>.0.0/16 if empty; each node gets a /24 of it
	ServiceCIDR netip.Prefix `json:"serviceCIDR,omitempty"` // 10.<100+id>.0.0/16 if empty
	IPFamilies  []IPFamily   `json:"ipFamilies,omitempty"`  // of pods and services: [IPv4] if empty; with IPv6 after it or instead, each node gets a /64 of fd00:10:<id>::/48, and services have fd00:10:<100+id>::/112
	// NodeIPFamilies are those of the machines themselves, the one to prefer first: [IPv4]
	// if empty, [IPv6] or both.
	NodeIPFamilies []IPFamily `json:"nodeIPFamilies,omitempty"`
	Bare           bool       `json:"bare,omitempty"` // machines only: no process is started
	// Kubernetes makes it a Kubernetes cluster, with a kubelet on each node and without
	// Weft, which the script installs.
	Kubernetes bool     `json:"kubernetes,omitempty"`
	Disk       string   `json:"disk,omitempty"`      // limits /var/lib/weft of each node, such as 64m; it then forgets at power loss
	CNI        bool     `json:"cni,omitempty"`       // the CNI plugin requests the pods' networks, as a container runtime calls it
	DNS        bool     `json:"dns,omitempty"`       // a name server runs on each node
	APIServer  []string `json:"apiserver,omitempty"` // extra flags of weft apiserver
	Agent      []string `json:"agent,omitempty"`     // extra flags of weft agent
}

// IPFamily is a family of addresses, as Kubernetes calls it.
type IPFamily string

const (
	IPv4 IPFamily = "IPv4"
	IPv6 IPFamily = "IPv6"
)

// Link describes the wide area network in each direction.
type Link struct {
	Delay string  `json:"delay,omitempty"` // one way, such as 5ms
	Loss  float64 `json:"loss,omitempty"`  // share of packets, 0 to 1
}

// DefaultTopology is two clusters, east and west, with two nodes each.
func DefaultTopology() Topology {
	return Topology{Clusters: []Cluster{{Name: "east", ID: 1}, {Name: "west", ID: 2}}}
}

// ParseTopology reads lab.yaml and fills in defaults. It reports all mistakes at
// once.
func ParseTopology(data []byte) (Topology, error) {
	var t Topology
	if err := yaml.UnmarshalStrict(data, &t); err != nil {
		return Topology{}, fmt.Errorf("lab.yaml: %w", err)
	}
	if len(t.Clusters) == 0 {
		return Topology{}, errors.New("lab.yaml: name at least one cluster under clusters:")
	}
	if err := t.complete(); err != nil {
		return Topology{}, fmt.Errorf("lab.yaml: %w", err)
	}
	return t, nil
}

// A name must fit into a device name.
var nameFormat = regexp.MustCompile(`^[a-z][a-z0-9-]{0,13}$`)

func (t *Topology) complete() error {
	var mistakes []error
	names, ids := map[string]bool{}, map[uint16]bool{}
	for i := range t.Clusters {
		c := &t.Clusters[i]
		wrong := func(format string, args ...any) {
			mistakes = append(mistakes, fmt.Errorf("cluster %q: "+format, append([]any{c.Name}, args...)...))
		}
		if !nameFormat.MatchString(c.Name) {
			wrong("name must be 1 to 14 lower-case letters, digits and dashes, beginning with a letter")
		}
		if c.ID < 1 || c.ID > 99 {
			wrong("id must be 1 to 99 in a lab, not %d", c.ID)
		}
		if names[c.Name] || ids[c.ID] {
			wrong("name or id %d is already used by another cluster: each must occur once", c.ID)
		}
		names[c.Name], ids[c.ID] = true, true
		if len(c.Nodes) == 0 {
			c.Nodes = []string{"n1", "n2"}
		}
		if len(c.Nodes) > 200 {
			wrong("a lab's cluster has at most 200 nodes")
		}
		seen := map[string]bool{}
		for _, n := range c.Nodes {
			if !nameFormat.MatchString(n) || seen[n] {
				wrong("node %q: each name must occur once and be 1 to 14 lower-case letters, digits and dashes, beginning with a letter", n)
			}
			seen[n] = true
		}
		if c.Control == "" {
			c.Control = c.Nodes[0]
		}
		if !seen[c.Control] {
			wrong("control node %q is not among its nodes", c.Control)
		}
		for j, n := range c.Servers {
			if !seen[n] || n == c.Control || slices.Contains(c.Servers[:j], n) {
				wrong("server %q: name each other node that runs an API server once", n)
			}
		}
		if !c.PodCIDR.IsValid() {
			c.PodCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(c.ID), 0, 0}), 16)
		}
		if !c.ServiceCIDR.IsValid() {
			c.ServiceCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + c.ID), 0, 0}), 16)
		}
		if c.PodCIDR.Bits() > 20 || !c.PodCIDR.Addr().Is4() {
			wrong("podCIDR %s: a lab gives each node a /24 of it, so use an IPv4 prefix up to /20", c.PodCIDR)
		}
		if len(c.IPFamilies) == 0 {
			c.IPFamilies = []IPFamily{IPv4}
		}
		if !usable(c.IPFamilies) || slices.Equal(c.IPFamilies, []IPFamily{IPv6, IPv4}) {
			wrong("ipFamilies %v: use [IPv4], [IPv6] or [IPv4, IPv6]", c.IPFamilies)
		}
		if len(c.NodeIPFamilies) == 0 {
			c.NodeIPFamilies = []IPFamily{IPv4}
		}
		if !usable(c.NodeIPFamilies) {
			wrong("nodeIPFamilies %v: use IPv4, IPv6 or both", c.NodeIPFamilies)
		}
		if room := 1<<max(0, 24-c.PodCIDR.Bits()) - 1; len(c.Nodes) > room {
			wrong("podCIDR %s has room for %s, not %d", c.PodCIDR, api.Count(room, "node"), len(c.Nodes))
		}
	}
	if _, err := t.weather(); err != nil {
		mistakes = append(mistakes, err)
	}
	return errors.Join(mistakes...)
}

// weather translates the wan section.
func (t *Topology) weather() (fabric.Weather, error) {
	w := fabric.Weather{Default: fabric.Quality{Loss: t.WAN.Loss}}
	if t.WAN.Loss < 0 || t.WAN.Loss > 1 {
		return w, fmt.Errorf("wan: loss must be a share from 0 to 1, not %v", t.WAN.Loss)
	}
	if t.WAN.Delay != "" {
		d, err := time.ParseDuration(t.WAN.Delay)
		if err != nil || d < 0 {
			return w, fmt.Errorf("wan: delay %q is not a duration such as 5ms", t.WAN.Delay)
		}
		w.Default.Delay = d
	}
	return w, nil
}

// number is the position of a node in its cluster, from 1.
func (c *Cluster) number(node string) int {
	for i, n := range c.Nodes {
		if n == node {
			return i + 1
		}
	}
	return 0
}

// usable says whether families are one or both, each once.
func usable(families []IPFamily) bool {
	known := !slices.ContainsFunc(families, func(f IPFamily) bool { return f != IPv4 && f != IPv6 })
	return known && (len(families) == 1 || len(families) == 2 && families[0] != families[1])
}

// subnets are the prefixes of the machines' own addresses, one of each family they have.
func (c *Cluster) subnets() (out []netip.Prefix) {
	for _, f := range c.NodeIPFamilies {
		if f == IPv6 {
			out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd00:172:16:%d::/64", c.ID)))
		} else {
			out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(c.ID), 0}), 24))
		}
	}
	return out
}

// host are the addresses of a machine, one in each of subnets.
func (c *Cluster) host(n int) (out []netip.Addr) {
	for _, f := range c.NodeIPFamilies {
		if f == IPv6 {
			out = append(out, netip.MustParseAddr(fmt.Sprintf("fd00:172:16:%d::%d", c.ID, n)))
		} else {
			out = append(out, netip.AddrFrom4([4]byte{172, 16, byte(c.ID), byte(n)}))
		}
	}
	return out
}

const (
	gatewayHost  = 254 // the fabric's own address
	operatorHost = 253 // where the operator's commands run
)

// has says whether pods and services have addresses of a family.
func (c *Cluster) has(f IPFamily) bool { return slices.Contains(c.IPFamilies, f) }

// PodCIDRs are the prefixes of the cluster's pods, one of each family it has.
func (c *Cluster) PodCIDRs() (out []netip.Prefix) {
	if c.has(IPv4) {
		out = append(out, c.PodCIDR)
	}
	if c.has(IPv6) {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/48", c.ID)))
	}
	return out
}

// ServiceCIDRs are the prefixes of the cluster's services, one of each family it has.
func (c *Cluster) ServiceCIDRs() (out []netip.Prefix) {
	if c.has(IPv4) {
		out = append(out, c.ServiceCIDR)
	}
	if c.has(IPv6) {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/112", 100+c.ID)))
	}
	return out
}

// nodePodCIDRs are a node's parts of the pod CIDRs.
func (c *Cluster) nodePodCIDRs(node string) (out []netip.Prefix) {
	a, number := c.PodCIDR.Masked().Addr().As4(), c.number(node)
	a[2] += byte(number)
	if c.has(IPv4) {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4(a), 24))
	}
	if c.has(IPv6) {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d:%d::/64", c.ID, number)))
	}
	return out
}

// list writes addresses or CIDRs with commas in between.
func list[T fmt.Stringer](all []T) string {
	var texts []string
	for _, p := range all {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}
