package meshagent

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/certificate"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/wire"
)

// Config of an agent. What the join bundle says may be left empty here.
type Config struct {
	// Join is the bundle that the API server issued for this node, 0600.
	Join string `json:"join"`
	// Token is the file with the agent's service account token, where this is a node of
	// Kubernetes: for that, an API server issues the bundle. Bootstrap is the file that says
	// where those are, as api.Bootstrap. Empty: an operator puts the bundle there.
	Token     string `json:"token,omitempty"`
	Bootstrap string `json:"bootstrap,omitempty"`
	// NodeName, NodeIP and PodCIDR are the join bundle's unless given. NodeIP is
	// where others reach this node, and where tunnels to it end. Of the bundle's pod CIDRs
	// the first of each IP family is used; PodCIDR is the one to use of its family.
	NodeName string       `json:"nodeName,omitempty"`
	NodeIP   netip.Addr   `json:"nodeIP,omitzero"`
	PodCIDR  netip.Prefix `json:"podCIDR,omitzero"`
	// Device is the interface towards the other nodes; empty: the one that holds
	// NodeIP.
	Device string `json:"device,omitempty"`

	// SocketLB gives sockets the backends of services when they connect or send: those of
	// processes in and below CgroupRoot, a folder of the version 2 tree; empty: where that
	// tree is mounted. Without it, processes of the node itself reach no services.
	SocketLB   bool   `json:"socketLB"`
	CgroupRoot string `json:"cgroupRoot,omitempty"`
	// SocketLBHostNamespaceOnly leaves sockets of pods alone: what they send to services is
	// translated at the pods' devices, after whatever redirects it in the pod (Istio). The name
	// is Cilium's.
	SocketLBHostNamespaceOnly bool `json:"socketLBHostNamespaceOnly,omitempty"`

	// StateDir holds what outlives a reboot: endpoints and keys.
	StateDir string `json:"dataDir"`
	// BPFDir is where maps and programs outlive the agent, on a BPF file system.
	BPFDir string `json:"bpfDir"`
	// NetnsDir holds the pods' network namespaces as files.
	NetnsDir string `json:"netnsDir"`
	// PodsFrom says who requests the pods' networks.
	PodsFrom PodsFrom `json:"podsFrom"`
	// CNIConfDir and CNIBinDir are where a container runtime looks for network
	// configurations and plugins; empty: the CNI plugin is not installed.
	CNIConfDir string `json:"cniConfDir,omitempty"`
	CNIBinDir  string `json:"cniBinDir,omitempty"`
	// CNISpoolDir is where the plugin leaves what is to be removed while no agent answers.
	CNISpoolDir string `json:"cniSpoolDir"`
	// Hosts is the file that names services, in the form of /etc/hosts, for
	// bind-mounting into pods. Empty: none is written.
	Hosts string `json:"hosts"`
	// ClusterDNS are the addresses at which pods reach a name server (`weft dns`, behind a
	// service). Beside Hosts, which then names no service, resolv.conf is written for
	// bind-mounting into pods. ClusterDomain is that of the cluster's own services.
	ClusterDNS    []netip.Addr `json:"clusterDNS,omitempty"`
	ClusterDomain string       `json:"clusterDomain,omitempty"`
	// Socket is the local API, 0600; Listen its port on NodeIP, by mutual TLS.
	Socket string `json:"socket"`
	Listen string `json:"listen"`
	// MetricsAddress serves /metrics in plain HTTP, to whoever reaches it: on
	// loopback by default. Empty: not served.
	MetricsAddress string `json:"metricsAddress"`
	// GossipPort is the port of the cluster's gossip; 0: no gossip, and only probes find
	// dead nodes.
	GossipPort uint16 `json:"gossipPort"`

	// Limits are rows per map; see bpf.Limits.
	Limits bpf.Limits `json:"limits"`
	// KeepFlows is how many flow events are kept for readers, some 500 bytes each.
	KeepFlows int `json:"keepFlows"`
	// Trace reports new allowed flows as well as drops.
	Trace bool `json:"trace"`
	// Unreachable is what happens to a packet of a pod that cannot be delivered.
	Unreachable bpf.Unreachable `json:"unreachable"`

	// Masquerade lets what pods send to the world through Device come from the node's
	// address there, except towards NonMasqueradeCIDRs and link-local addresses. Pods
	// keep their own addresses towards each other, in whatever cluster. The names are
	// those of ip-masq-agent.
	Masquerade         bool           `json:"masquerade"`
	NonMasqueradeCIDRs []netip.Prefix `json:"nonMasqueradeCIDRs,omitempty"`
	MasqLinkLocal      bool           `json:"masqLinkLocal,omitempty"`
	MasqLinkLocalIPv6  bool           `json:"masqLinkLocalIPv6,omitempty"`

	Log *slog.Logger `json:"-"`
}

// Defaults is the configuration of an ordinary node.
func Defaults() Config {
	return Config{
		Join:           "/etc/weft/join.yaml",
		StateDir:       "/var/lib/weft/agent",
		BPFDir:         bpf.Defaults().PinDir,
		NetnsDir:       "/run/netns",
		PodsFrom:       Objects,
		CNISpoolDir:    string(api.DefaultEndpointSpool),
		SocketLB:       true,
		Hosts:          "/run/weft/hosts",
		ClusterDomain:  "cluster.local",
		Socket:         "/run/weft/agent.sock",
		Listen:         fmt.Sprintf(":%d", api.AgentPort),
		MetricsAddress: "127.0.0.1:9962",
		GossipPort:     api.LANGossipPort,
		Limits:         bpf.Defaults().Limits,
		KeepFlows:      4096,
		Trace:          true,
		Unreachable:    bpf.Defaults().Unreachable,
		Masquerade:     true,
		Log:            slog.Default(),
	}
}

// LoadConfig reads a YAML file over base. Unknown fields are refused.
func LoadConfig(path string, base Config) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return base, fmt.Errorf("read configuration: %w", err)
	}
	if err := yaml.UnmarshalStrict(text, &base); err != nil {
		return base, fmt.Errorf("configuration %s: %w", path, err)
	}
	return base, nil
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	for _, f := range []struct{ name, path string }{
		{"join", c.Join}, {"data-dir", c.StateDir}, {"bpf-dir", c.BPFDir}, {"netns-dir", c.NetnsDir}, {"socket", c.Socket}, {"cni-spool-dir", c.CNISpoolDir},
	} {
		if !filepath.IsAbs(f.path) {
			errs = append(errs, fmt.Errorf("%s is %q: give an absolute path", f.name, f.path))
		}
	}
	if (c.Token == "") != (c.Bootstrap == "") {
		errs = append(errs, fmt.Errorf("token is %q and bootstrap %q: give both, or neither", c.Token, c.Bootstrap))
	}
	for _, f := range []struct{ name, path string }{{"token", c.Token}, {"bootstrap", c.Bootstrap}} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			errs = append(errs, fmt.Errorf("%s is %q: give an absolute path, or leave it empty", f.name, f.path))
		}
	}
	if c.Hosts != "" && !filepath.IsAbs(c.Hosts) {
		errs = append(errs, fmt.Errorf("hosts is %q: give an absolute path, or leave it empty", c.Hosts))
	}
	if len(c.ClusterDNS) > 0 && c.Hosts == "" {
		errs = append(errs, errors.New("cluster-dns is given, but hosts is empty: resolv.conf is written beside that file"))
	}
	if len(c.ClusterDNS) > 3 {
		errs = append(errs, fmt.Errorf("cluster-dns names %d addresses: pods ask three at most", len(c.ClusterDNS)))
	}
	if c.CgroupRoot != "" && !filepath.IsAbs(c.CgroupRoot) {
		errs = append(errs, fmt.Errorf("cgroup-root is %q: give an absolute path, or leave it empty", c.CgroupRoot))
	}
	for _, f := range []struct{ name, path string }{{"cni-conf-dir", c.CNIConfDir}, {"cni-bin-dir", c.CNIBinDir}} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			errs = append(errs, fmt.Errorf("%s is %q: give an absolute path, or leave it empty", f.name, f.path))
		}
	}
	if (c.CNIConfDir == "") != (c.CNIBinDir == "") {
		errs = append(errs, errors.New("cni-conf-dir and cni-bin-dir belong together: give both or neither"))
	}
	if c.CNIConfDir != "" && c.PodsFrom == Objects {
		errs = append(errs, fmt.Errorf("cni-conf-dir is %q, but pods-from is %s: with a container runtime it is %s", c.CNIConfDir, Objects, Requests))
	}
	if c.PodsFrom != Objects && c.PodsFrom != Requests {
		errs = append(errs, fmt.Errorf("pods-from is %q: give %s or %s", c.PodsFrom, Objects, Requests))
	}
	if c.PodCIDR.IsValid() && c.PodCIDR.Addr().BitLen()-c.PodCIDR.Bits() < 2 {
		errs = append(errs, fmt.Errorf("pod-cidr is %v: give a prefix with room for two addresses, /30 or shorter (IPv6: /126)", c.PodCIDR))
	}
	for _, a := range []struct{ name, address string }{{"listen", c.Listen}, {"metrics-address", c.MetricsAddress}} {
		if err := validAddress(a.address); err != nil {
			errs = append(errs, fmt.Errorf("%s is %q: %w", a.name, a.address, err))
		}
	}
	for _, p := range c.NonMasqueradeCIDRs {
		if !p.IsValid() || p != p.Masked() {
			errs = append(errs, fmt.Errorf("non-masquerade-cidrs names %v: give a prefix without bits beyond its length, as in 10.0.0.0/8", p))
		}
	}
	if n := len(c.native()); n > int(c.Limits.Native) && c.Limits.Native > 0 {
		errs = append(errs, fmt.Errorf("non-masquerade-cidrs names %d prefixes, but limit-native is %d: raise it", n, c.Limits.Native))
	}
	if c.KeepFlows < 1 {
		errs = append(errs, fmt.Errorf("keep-flows is %d: at least 1", c.KeepFlows))
	}
	if err := c.datapath().Validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ports are those that machines with an agent need for themselves.
func (c Config) ports() []uint16 {
	all := append(slices.Clone(tunnel.DefaultPorts[:]), api.ServerPort, api.AgentPort, api.LANGossipPort, api.WANGossipPort, c.GossipPort)
	if _, text, err := net.SplitHostPort(c.Listen); err == nil {
		if n, err := strconv.ParseUint(text, 10, 16); err == nil {
			all = append(all, uint16(n))
		}
	}
	return all
}

// validAddress checks for host:port with a numeric port. Empty is valid and means that
// nothing is served.
func validAddress(text string) error {
	if text == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return errors.New("give it as host:port or :port, or leave it empty to switch it off")
	}
	return nil
}

// datapath is the part of the configuration for package bpf.
func (c Config) datapath() bpf.Config {
	return bpf.Config{PinDir: c.BPFDir, Limits: c.Limits, EventBytes: bpf.Defaults().EventBytes, Unreachable: c.Unreachable, Log: c.Log}
}

// node is what an agent knows about itself from its configuration.
type node struct {
	cluster string
	name    string
	ip      netip.Addr     // where others reach it
	addrs   []netip.Addr   // ip, and that of the other IP family if it has one
	cidrs   []netip.Prefix // for its pods: one, or one of each IP family
	members []netip.Prefix // own cluster's pod CIDRs
	gossip  []byte
	bundle  *api.JoinBundle
}

func (n node) key() string { return n.cluster + "/" + n.name }

// readJoin reads the join bundle and applies what the configuration overrides.
func readJoin(c Config) (node, error) {
	text, err := os.ReadFile(c.Join)
	if err != nil {
		return node{}, fmt.Errorf("read join bundle: %w; issue one with `weft node add` and copy it to %s", err, c.Join)
	}
	var b api.JoinBundle
	if err := yaml.UnmarshalStrict(text, &b); err != nil {
		return node{}, badBundle{fmt.Errorf("join bundle %s is damaged: %w; issue a new one with `weft node add`", c.Join, err)}
	}
	if err := certificate.Check(&b); err != nil {
		return node{}, badBundle{fmt.Errorf("join bundle %s is damaged: %w; issue a new one with `weft node add`", c.Join, err)}
	}
	return whoAmI(c, &b)
}

func whoAmI(c Config, b *api.JoinBundle) (node, error) {
	n := node{cluster: b.Cluster, name: b.Node, ip: c.NodeIP, members: b.ClusterPodCIDRs, bundle: b}
	if c.NodeName != "" && c.NodeName != b.Node {
		return n, fmt.Errorf("node-name is %q, but the join bundle was issued for %q: issue one for this node", c.NodeName, b.Node)
	}
	if !n.ip.IsValid() && len(b.Addresses) > 0 {
		n.ip = b.Addresses[0]
	}
	n.addrs = ofEachFamily(n.ip, b.Addresses)
	n.cidrs = wire.OfEachFamily(b.PodCIDRs)
	if given := c.PodCIDR; given.IsValid() {
		i := slices.IndexFunc(n.cidrs, func(p netip.Prefix) bool { return p.Addr().BitLen() == given.Addr().BitLen() })
		switch {
		case len(b.PodCIDRs) > 0 && !slices.Contains(b.PodCIDRs, given):
			return n, fmt.Errorf("pod-cidr is %v, but the join bundle says %v", given, b.PodCIDRs)
		case i < 0:
			n.cidrs = append(n.cidrs, given)
		default:
			n.cidrs[i] = given
		}
	}
	switch {
	case n.cluster == "" || n.name == "":
		return n, badBundle{fmt.Errorf("join bundle %s names no cluster or no node: issue a new one with `weft node add`", c.Join)}
	case !n.ip.IsValid():
		return n, fmt.Errorf("no address of this node is known: give --node-ip")
	case len(n.cidrs) == 0:
		return n, fmt.Errorf("no pod CIDR of this node is known: give --pod-cidr")
	}
	if b.GossipKey != "" {
		key, err := base64.StdEncoding.DecodeString(b.GossipKey)
		if err != nil {
			return n, badBundle{fmt.Errorf("gossip key of join bundle %s is not base64: issue a new one with `weft node add`", c.Join)}
		}
		n.gossip = key
	}
	return n, nil
}

// ofEachFamily is a first address and, of more, the first of the other IP family.
func ofEachFamily(first netip.Addr, more []netip.Addr) []netip.Addr {
	i := slices.IndexFunc(more, func(a netip.Addr) bool { return a.BitLen() != first.BitLen() })
	if i < 0 {
		return []netip.Addr{first}
	}
	return []netip.Addr{first, more[i]}
}

// mtu is what pods and lanes get over the device.
func mtu(device int) (int, error) { return tunnel.MTU(device) }
