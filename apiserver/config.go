// Package apiserver puts a cluster's mesh API server together: store, register, endpoints,
// export, mirrors of peers, and the API over all of them.
//
// Each part is a package below. Agents take care of the kernel, and decide whether a path
// is alive.
package apiserver

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/enroll"
	"github.com/weft-mesh/weft/apiserver/members"
	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/apiserver/nodes"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// Config of an API server. Cluster, ID, PodCIDRs, ServiceCIDR and Advertise
// have no defaults, and an IPv6ServiceCIDR is not needed.
type Config struct {
	// Cluster is the cluster's name: up to 32 characters of a-z, 0-9 and "-". ID is
	// its number in the mesh, from 1 to MaxConnectedClusters. Neither can change later.
	Cluster string `json:"cluster"`
	ID      uint32 `json:"id"`
	// PodCIDRs contain the addresses of all pods of the cluster, ServiceCIDR those of
	// its services. No two clusters of a mesh may share any. With pod CIDRs of both IP
	// families, those of IPv4 first, each pod has an address of each. ServiceCIDR is of
	// the family of the first pod CIDR.
	PodCIDRs    []netip.Prefix `json:"podCIDRs"`
	ServiceCIDR netip.Prefix   `json:"serviceCIDR"`
	// IPv6ServiceCIDR lets services have IPv6 addresses beside IPv4 ones. It may be added
	// to a cluster that exists, and needs an IPv6 pod CIDR.
	IPv6ServiceCIDR netip.Prefix `json:"ipv6ServiceCIDR,omitzero"`
	// MaxConnectedClusters is 255 or 511, the same in the whole mesh. 511 halves the
	// number of identities a cluster can have, to 32,768.
	MaxConnectedClusters uint32 `json:"maxConnectedClusters"`

	// DataDir holds certificates and the embedded etcd. 0700.
	DataDir string `json:"dataDir"`
	// AdminConfig is where the first operator's context is written, 0600.
	AdminConfig string `json:"adminConfig"`
	// Advertise is the address at which agents, operators and peers reach this
	// API server. AdvertiseNames are its other names and addresses.
	Advertise      netip.Addr `json:"advertise"`
	AdvertiseNames []string   `json:"advertiseNames,omitempty"`
	// AdvertiseElsewhere allows an Advertise that is not an address of this machine,
	// such as that of a load balancer or a router that leads here.
	AdvertiseElsewhere bool `json:"advertiseElsewhere,omitempty"`
	// Listen is where the API is served, EtcdListen the store, both with mutual TLS.
	// Port 0 means any free port, for tests.
	Listen     string `json:"listen"`
	EtcdListen string `json:"etcdListen"`
	// Name is this API server's among those of the cluster; empty: Advertise.
	Name string `json:"name,omitempty"`
	// EtcdPeerListen is where the embedded etcd listens for those of other API servers, with
	// mutual TLS; they reach it at Advertise. Empty: it stays alone.
	EtcdPeerListen string `json:"etcdPeerListen"`
	// Join is the file with the join bundle that `weft server add` wrote. It is read only
	// while DataDir holds no store: this API server then joins the others, and takes over
	// their certificate authority.
	Join string `json:"join,omitempty"`
	// Manifests is a folder whose manifests are the cluster's objects, for as long as they
	// are in it. The API server that leads follows it, so all of them should have the same.
	// Empty: objects come from `weft apply` alone.
	Manifests string `json:"manifests,omitempty"`
	// Kubernetes says that the cluster's objects are those of a Kubernetes cluster: its API
	// server is read with Kubeconfig, in KubeContext, or if there is none with the service
	// account of the pod that this process runs in. The API server that leads reads it.
	Kubernetes  bool   `json:"kubernetes,omitempty"`
	Kubeconfig  string `json:"kubeconfig,omitempty"`
	KubeContext string `json:"kubeContext,omitempty"`
	// KubernetesUID is that of the namespace kube-system, to follow another Kubernetes
	// cluster from now on. Empty: only the one that was followed first is.
	KubernetesUID string `json:"kubernetesUID,omitempty"`
	// AgentAccount is the service account of Kubernetes, as NAMESPACE/NAME, that the agents'
	// pods have: an agent that shows its token gets the join bundle of its node, as Kubernetes
	// has it. Empty: operators add nodes.
	AgentAccount string `json:"agentAccount,omitempty"`
	// KubernetesNamespace is the namespace of Kubernetes in which the API servers of this
	// cluster find each other, and keep what a lost store could not get back: one with an
	// empty disk joins the others, or begins the store again with it. Empty: they do neither.
	KubernetesNamespace string `json:"kubernetesNamespace,omitempty"`
	// PolicyWebhook has the Kubernetes API server ask this one about policies that are applied.
	// Ignore or Fail says what happens with them while nobody answers. Empty: it does not ask.
	PolicyWebhook string `json:"policyWebhook,omitempty"`
	// IPAM says who gives nodes of Kubernetes their pod CIDRs.
	IPAM nodes.IPAM `json:"ipam"`
	// MetricsAddress is where /metrics is served, in plain HTTP and without
	// authentication. Empty: not served.
	MetricsAddress string `json:"metricsAddress"`
	// EtcdQuotaBytes bounds the embedded etcd's database. Beyond it writes are refused,
	// reads are not. A pod takes about 2 kB.
	EtcdQuotaBytes int64 `json:"etcdQuotaBytes"`
	// DiskReserveBytes is how much of DataDir's file system stays free. Below it the
	// embedded etcd refuses writes, because an etcd that cannot write exits.
	DiskReserveBytes int64 `json:"diskReserveBytes"`

	// EtcdEndpoints are https URLs of an existing etcd to use instead of the embedded
	// one; EtcdCA, EtcdCert and EtcdKey are the files to connect with, as its user
	// root. Its version is checked. It must require client certificates and also trust
	// those signed by pki/ca.crt in DataDir, because agents and peers connect to it.
	// Several API servers may share it.
	EtcdEndpoints []string `json:"etcdEndpoints,omitempty"`
	EtcdCA        string   `json:"etcdCA,omitempty"`
	EtcdCert      string   `json:"etcdCert,omitempty"`
	EtcdKey       string   `json:"etcdKey,omitempty"`

	// PeerEntries and PeerBytes (keys and values) bound what is copied from one peer.
	// Beyond either, our copy only shrinks and the status says so. Beyond twice either,
	// it stays as it is: what the peer withdraws stays too. A mesh is expected to have
	// 500,000 entries; that of a pod has about 250 bytes.
	PeerEntries int `json:"peerEntries"`
	PeerBytes   int `json:"peerBytes"`
	// PeerChanges and PeerHistoryBytes bound how many of a peer's changes are copied
	// per second: keys, and bytes that become history of the store. Changes beyond that
	// arrive late.
	PeerChanges      int `json:"peerChanges"`
	PeerHistoryBytes int `json:"peerHistoryBytes"`

	// GossipPort is this process's port in the pool of the cluster's agents,
	// WANGossipPort the one in the pool of all clusters' API servers. 0: it does not
	// take part, and dead nodes are found by probes alone.
	GossipPort    uint16 `json:"gossipPort"`
	WANGossipPort uint16 `json:"wanGossipPort"`

	// Version is the program's version, for the status; empty: that of Go's build
	// information.
	Version string       `json:"-"`
	Log     *slog.Logger `json:"-"`
}

// gossipPort differs from the agents' port: an API server may run on a node.
const gossipPort = 7948

// agentGossipPort is where agents listen unless told otherwise.
const agentGossipPort = api.LANGossipPort

// Defaults returns the defaults of an ordinary cluster.
func Defaults() Config {
	return Config{
		MaxConnectedClusters: uint32(identity.Split255),
		DataDir:              "/var/lib/weft/apiserver",
		AdminConfig:          api.AdminConfigPath,
		Listen:               fmt.Sprintf(":%d", api.ServerPort),
		EtcdListen:           "0.0.0.0:2379",
		EtcdPeerListen:       "0.0.0.0:2380",
		MetricsAddress:       "127.0.0.1:9963",
		EtcdQuotaBytes:       2 << 30,
		DiskReserveBytes:     128 << 20,
		PeerEntries:          mirror.DefaultLimit().Entries,
		PeerBytes:            mirror.DefaultLimit().Bytes,
		PeerChanges:          mirror.DefaultRate().Changes,
		PeerHistoryBytes:     mirror.DefaultRate().Bytes,
		IPAM:                 nodes.Kubernetes,
		GossipPort:           gossipPort,
		WANGossipPort:        api.WANGossipPort,
		Log:                  slog.Default(),
	}
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := wire.CheckClusterName(c.Cluster); err != nil {
		errs = append(errs, err)
	}
	split, err := identity.SplitFor(int(c.MaxConnectedClusters))
	if err != nil {
		errs = append(errs, err)
	} else if c.ID > uint32(split.MaxCluster()) || c.ID == 0 {
		add("id is %d: choose one from 1 to %d that no other cluster of the mesh has", c.ID, split.MaxCluster())
	}
	errs = append(errs, c.validateCIDRs()...)
	if !c.Advertise.IsValid() || c.Advertise.IsUnspecified() || c.Advertise.Zone() != "" {
		add("advertise is %q: give the address at which agents and peers reach this machine", text(c.Advertise))
	}
	if !filepath.IsAbs(c.DataDir) {
		add("data-dir is %q: give an absolute path", c.DataDir)
	}
	if c.Manifests != "" && !filepath.IsAbs(c.Manifests) {
		add("manifests is %q: give an absolute path", c.Manifests)
	}
	switch {
	case c.Kubeconfig != "" && !filepath.IsAbs(c.Kubeconfig):
		add("kubeconfig is %q: give an absolute path", c.Kubeconfig)
	case c.KubeContext != "" && c.Kubeconfig == "":
		add("kube-context is %q, and contexts are in a file: give kubeconfig too", c.KubeContext)
	case !c.Kubernetes && (c.Kubeconfig != "" || c.KubernetesUID != ""):
		add("kubeconfig and kubernetes-uid need kubernetes: set it to read the cluster's objects from Kubernetes")
	}
	if !filepath.IsAbs(c.AdminConfig) {
		add("admin-config is %q: give an absolute path", c.AdminConfig)
	}
	listeners := []struct {
		name, addr string
		optional   bool
	}{{"listen", c.Listen, false}, {"metrics-address", c.MetricsAddress, true}, {"etcd-listen", c.EtcdListen, len(c.EtcdEndpoints) > 0}, {"etcd-peer-listen", c.EtcdPeerListen, true}}
	for _, l := range listeners {
		if l.addr == "" && l.optional {
			continue
		}
		if _, port, err := net.SplitHostPort(l.addr); err != nil {
			add("%s is %q: write host:port, or :port for every address", l.name, l.addr)
		} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			add("%s is %q: the port must be a number from 0 to 65535", l.name, l.addr)
		}
	}
	if c.Name != "" {
		if err := members.CheckName(c.Name); err != nil {
			add("name: %w", err)
		}
	}
	switch {
	case c.Join == "":
	case len(c.EtcdEndpoints) > 0:
		add("join is for the embedded etcd, and etcd-endpoints name an existing one: give one of them")
	case c.EtcdPeerListen == "":
		add("join needs etcd-peer-listen: the other API servers have to reach this one")
	}
	if w := c.PolicyWebhook; w != "" && (w != "Ignore" && w != "Fail" || !c.Kubernetes) {
		add("policy-webhook is %q: it may be Ignore or Fail, and needs kubernetes", w)
	}
	if c.AgentAccount != "" {
		if _, _, err := enroll.ParseAccount(c.AgentAccount); err != nil {
			add("agent-account: %w", err)
		} else if !c.Kubernetes {
			add("agent-account is %q, and tokens are Kubernetes': set kubernetes too", c.AgentAccount)
		}
	}
	if c.KubernetesNamespace != "" && !c.Kubernetes {
		add("kubernetes-namespace is %q, and Kubernetes is not read: set kubernetes too", c.KubernetesNamespace)
	}
	if c.IPAM != nodes.ClusterPool && c.IPAM != nodes.Kubernetes {
		add("ipam is %q: give %s or %s", c.IPAM, nodes.ClusterPool, nodes.Kubernetes)
	}
	if c.GossipPort != 0 && c.GossipPort == c.WANGossipPort {
		add("gossip-port and wan-gossip-port are both %d: give each its own", c.GossipPort)
	}
	if c.EtcdQuotaBytes < 8<<20 {
		add("etcd-quota-bytes is %d: give at least %d", c.EtcdQuotaBytes, 8<<20)
	}
	if c.DiskReserveBytes < 0 {
		add("disk-reserve-bytes is %d: give 0 or more", c.DiskReserveBytes)
	}
	if c.PeerEntries < 1 || c.PeerBytes < 1 {
		add("peer-entries is %d and peer-bytes %d: give at least 1 each", c.PeerEntries, c.PeerBytes)
	}
	if c.PeerChanges < 1 || c.PeerHistoryBytes < 1 {
		add("peer-changes is %d and peer-history-bytes %d: give at least 1 each", c.PeerChanges, c.PeerHistoryBytes)
	}
	for _, e := range c.EtcdEndpoints {
		if u, err := url.Parse(e); err != nil || u.Scheme != "https" || u.Host == "" {
			add("etcd-endpoints: %q is not an https URL", e)
		}
	}
	if given := c.EtcdCA != "" || c.EtcdCert != "" || c.EtcdKey != ""; given != (len(c.EtcdEndpoints) > 0) {
		add("etcd-endpoints, etcd-ca, etcd-cert and etcd-key belong together: give all of them, or none for the embedded etcd")
	} else if given && (c.EtcdCA == "" || c.EtcdCert == "" || c.EtcdKey == "") {
		add("an existing etcd needs all of etcd-ca, etcd-cert and etcd-key")
	}
	return errors.Join(errs...)
}

func (c Config) validateCIDRs() (errs []error) {
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.PodCIDRs) == 0 {
		add("pod-cidrs is missing: give the addresses of the cluster's pods, like 10.1.0.0/16")
	}
	errs = append(errs, c.validateFamilies()...)
	all := append(append([]netip.Prefix(nil), c.PodCIDRs...), c.ServiceCIDR)
	if c.IPv6ServiceCIDR.IsValid() {
		all = append(all, c.IPv6ServiceCIDR)
	}
	for i, p := range all {
		name := "pod-cidrs"
		switch i - len(c.PodCIDRs) {
		case 0:
			name = "service-cidr"
		case 1:
			name = "ipv6-service-cidr"
		}
		switch {
		case !p.IsValid():
			add("%s is missing or not a CIDR: write it like 10.1.0.0/16", name)
			continue
		case p != p.Masked():
			add("%s: %s has bits beyond its prefix: write %s", name, p, p.Masked())
		case p.Addr().Is4() && name == "ipv6-service-cidr":
			add("%s: %s is IPv4: give an IPv6 prefix, like fd00:10:101::/112", name, p)
		case p.Addr().Is4() && (p.Bits() < 8 || p.Bits() > 28):
			add("%s: %s is too large or too small: give a prefix from /8 to /28", name, p)
		case !p.Addr().Is4() && (p.Bits() < 16 || p.Bits() > 120):
			add("%s: %s is too large or too small: give a prefix from /16 to /120", name, p)
		case service.CheckCIDR(p) != nil:
			add("%s: %w", name, service.CheckCIDR(p))
		case c.Advertise.IsValid() && p.Contains(c.Advertise):
			add("%s: %s contains %s, the address of this machine: pods and services need addresses of their own", name, p, c.Advertise)
		}
		for _, q := range all[:i] {
			if q.IsValid() && q.Overlaps(p) {
				add("%s: %s overlaps %s: give pods and services separate addresses", name, p, q)
			}
		}
	}
	return errs
}

// validateFamilies checks that pods and services have IP families in common: a cluster has
// IPv4 alone, IPv6 alone, or IPv4 with IPv6 beside it.
func (c Config) validateFamilies() (errs []error) {
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	is4 := func(p netip.Prefix) bool { return p.Addr().Is4() }
	is6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
	four, six := slices.IndexFunc(c.PodCIDRs, is4), slices.IndexFunc(c.PodCIDRs, is6)
	switch {
	case four > 0 && six == 0:
		add("pod-cidrs: %s is IPv6 and comes before the IPv4 prefix %s: write those of IPv4 first, or IPv6 alone", c.PodCIDRs[0], c.PodCIDRs[four])
	case is4(c.ServiceCIDR) && four < 0 && six >= 0:
		add("service-cidr: %s is IPv4, but no pod could answer there: give an IPv6 prefix, like fd00:10:101::/112, or pod-cidrs an IPv4 prefix first", c.ServiceCIDR)
	case is6(c.ServiceCIDR) && four >= 0:
		add("service-cidr: %s is IPv6, but the first of pod-cidrs is IPv4: give an IPv4 prefix here, and the IPv6 one as ipv6-service-cidr if the pods have IPv6 too", c.ServiceCIDR)
	case c.IPv6ServiceCIDR.IsValid() && is6(c.ServiceCIDR):
		add("ipv6-service-cidr is %s, but service-cidr is IPv6 already: leave it out", c.IPv6ServiceCIDR)
	case c.IPv6ServiceCIDR.IsValid() && six < 0:
		add("ipv6-service-cidr is %s, but no pod could answer there: give pod-cidrs an IPv6 prefix too", c.IPv6ServiceCIDR)
	}
	return errs
}

// name is what this API server is called among those of the cluster.
func (c Config) name() string { return cmp.Or(c.Name, c.Advertise.String()) }

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// cluster returns the part of the configuration that is written to the store.
func (c Config) cluster() wire.Cluster {
	return wire.Cluster{
		Name: c.Cluster, ID: identity.ClusterID(c.ID), PodCIDRs: c.PodCIDRs, ServiceCIDR: c.ServiceCIDR, IPv6ServiceCIDR: c.IPv6ServiceCIDR,
		MaxConnectedClusters: cmp.Or(c.MaxConnectedClusters, uint32(identity.Split255)),
	}
}
