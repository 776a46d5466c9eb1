package wire

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-mesh/weft/identity"
)

// ClusterConfig is how a cluster introduces itself.
type ClusterConfig struct {
	ID           uint32       `json:"id,omitempty"`
	Capabilities Capabilities `json:"capabilities"`
}

// Capabilities say which parts of the format a cluster uses. A cluster that does not
// know a field leaves it at its zero value.
type Capabilities struct {
	SyncedCanaries       bool   `json:"syncedCanaries,omitempty"`
	Cached               bool   `json:"cached,omitempty"` // served from cilium/cache/
	MaxConnectedClusters uint32 `json:"maxConnectedClusters,omitempty"`
	// ServiceExportsEnabled is nil if the cluster does not know service exports,
	// and false if they are turned off.
	ServiceExportsEnabled *bool `json:"serviceExportsEnabled,omitempty"`
	// EndpointSlicesExportMode is "" for services only.
	EndpointSlicesExportMode string `json:"endpointSlicesExportMode,omitempty"`
}

// Values of EndpointSlicesExportMode besides "".
const (
	ServicesAndEndpointSlices = "services-and-endpointslices"
	EndpointSlicesOnly        = "endpointslices-only"
)

// DefaultMaxConnectedClusters is what a config without the field means.
const DefaultMaxConnectedClusters = 255

// ParseClusterConfig reads a ClusterConfig and refuses ID 0 and an unknown
// EndpointSlicesExportMode.
func ParseClusterConfig(b []byte) (ClusterConfig, error) {
	c, err := Unmarshal[ClusterConfig](b)
	if err != nil {
		return ClusterConfig{}, err
	}
	if c.ID == 0 {
		return ClusterConfig{}, fmt.Errorf("cluster ID is 0, which is reserved")
	}
	switch c.Capabilities.MaxConnectedClusters {
	case 0:
		c.Capabilities.MaxConnectedClusters = DefaultMaxConnectedClusters
	case 255, 511:
	default:
		return ClusterConfig{}, fmt.Errorf("maxConnectedClusters is %d; it must be 255 or 511", c.Capabilities.MaxConnectedClusters)
	}
	switch mode := c.Capabilities.EndpointSlicesExportMode; mode {
	case "", ServicesAndEndpointSlices, EndpointSlicesOnly:
	default:
		return ClusterConfig{}, fmt.Errorf("endpointSlicesExportMode %q is not known", mode)
	}
	return c, nil
}

// Node is a node of a cluster. Field names and order are Cilium's; an absent address
// is the empty string, an absent CIDR is null.
type Node struct {
	Name                    string
	Cluster                 string
	IPAddresses             []NodeAddress
	IPv4AllocCIDR           *CIDR
	IPv4SecondaryAllocCIDRs []*CIDR
	IPv6AllocCIDR           *CIDR
	IPv6SecondaryAllocCIDRs []*CIDR
	IPv4HealthIP            netip.Addr
	IPv6HealthIP            netip.Addr
	IPv4IngressIP           netip.Addr
	IPv6IngressIP           netip.Addr
	ClusterID               uint32
	Source                  string
	EncryptionKey           uint8
	Labels                  map[string]string
	Annotations             map[string]string
	WireguardPubKey         string
	BootID                  string
}

// NodeAddress is one address of a node and what it is for.
type NodeAddress struct {
	Type string
	IP   netip.Addr
}

// Values of NodeAddress.Type that we write, and of Node.Source.
const (
	NodeInternalIP       = "InternalIP"
	NodeExternalIP       = "ExternalIP"
	NodeCiliumInternalIP = "CiliumInternalIP"
	SourceCustomResource = "custom-resource"
)

// Address returns the first address of a type, or the zero Addr if there is none.
func (n *Node) Address(typ string) netip.Addr {
	for _, a := range n.IPAddresses {
		if a.Type == typ {
			return a.IP
		}
	}
	return netip.Addr{}
}

// PodCIDRs returns all CIDRs from which the node allocates addresses.
func (n *Node) PodCIDRs() []netip.Prefix {
	var out []netip.Prefix
	add := func(c *CIDR) {
		if c != nil {
			out = append(out, netip.Prefix(*c))
		}
	}
	add(n.IPv4AllocCIDR)
	for _, c := range n.IPv4SecondaryAllocCIDRs {
		add(c)
	}
	add(n.IPv6AllocCIDR)
	for _, c := range n.IPv6SecondaryAllocCIDRs {
		add(c)
	}
	return out
}

// SetPodCIDRs spreads CIDRs over the fields that PodCIDRs reads.
func (n *Node) SetPodCIDRs(cidrs []netip.Prefix) {
	n.IPv4AllocCIDR, n.IPv4SecondaryAllocCIDRs = nil, nil
	n.IPv6AllocCIDR, n.IPv6SecondaryAllocCIDRs = nil, nil
	for _, p := range cidrs {
		first, more := &n.IPv6AllocCIDR, &n.IPv6SecondaryAllocCIDRs
		if p.Addr().Is4() {
			first, more = &n.IPv4AllocCIDR, &n.IPv4SecondaryAllocCIDRs
		}
		c := CIDR(p)
		if *first == nil {
			*first = &c
		} else {
			*more = append(*more, &c)
		}
	}
}

// CIDR is a prefix in the JSON of Go's net.IPNet: {"IP":"10.1.0.0","Mask":"//8AAA=="}.
type CIDR netip.Prefix

type cidrJSON struct {
	IP   netip.Addr
	Mask []byte
}

// MarshalJSON writes IP and Mask.
func (c CIDR) MarshalJSON() ([]byte, error) {
	p := netip.Prefix(c).Masked()
	if !p.IsValid() {
		return []byte("null"), nil
	}
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return json.Marshal(cidrJSON{p.Addr(), mask})
}

// UnmarshalJSON refuses masks with holes, masks of the wrong length and addresses
// with bits outside the mask.
func (c *CIDR) UnmarshalJSON(b []byte) error {
	var v cidrJSON
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	p, err := v.cidr()
	if err == nil {
		*c = p
	}
	return err
}

func (v cidrJSON) cidr() (CIDR, error) {
	p, err := maskPrefix(v.IP, v.Mask)
	if err == nil && p != p.Masked() {
		err = fmt.Errorf("CIDR %v has bits set outside its mask", p)
	}
	return CIDR(p), err
}

// maskPrefix combines an address and a net.IPMask.
func maskPrefix(a netip.Addr, mask []byte) (netip.Prefix, error) {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
		return netip.Prefix{}, fmt.Errorf("CIDR has no usable address")
	}
	if len(mask)*8 != a.BitLen() {
		return netip.Prefix{}, fmt.Errorf("CIDR of %v has a mask of %d bytes", a, len(mask))
	}
	bits, ended := 0, false
	for i := range a.BitLen() {
		set := mask[i/8]&(0x80>>(i%8)) != 0
		if set && ended {
			return netip.Prefix{}, fmt.Errorf("CIDR of %v has a mask with a hole", a)
		}
		if set {
			bits++
		}
		ended = ended || !set
	}
	return netip.PrefixFrom(a, bits), nil
}

// IPIdentityPair says which identity an address has and which node it is behind.
// Field names and order are Cilium's.
type IPIdentityPair struct {
	IP                netip.Addr
	Mask              []byte     // nil: a single address
	HostIP            netip.Addr // the node, as tunnel endpoint
	ID                identity.Number
	Key               uint8 // 0 plain, WireGuardKey otherwise, IPsec in between
	Metadata          string
	K8sNamespace      string      `json:",omitempty"`
	K8sPodName        string      `json:",omitempty"`
	K8sServiceAccount string      `json:",omitempty"`
	NamedPorts        []NamedPort `json:",omitempty"`
}

// WireGuardKey is the value of IPIdentityPair.Key and Node.EncryptionKey when
// WireGuard is on.
const WireGuardKey = 0xff

// Prefix is what the pair is about; a single address has all bits.
func (p *IPIdentityPair) Prefix() (netip.Prefix, error) {
	if p.Mask == nil {
		if !p.IP.IsValid() {
			return netip.Prefix{}, fmt.Errorf("no address")
		}
		return netip.PrefixFrom(p.IP, p.IP.BitLen()), nil
	}
	return maskPrefix(p.IP, p.Mask)
}

// ClusterService is a global service in the older form, without conditions.
type ClusterService struct {
	Cluster         string                           `json:"cluster"`
	Namespace       string                           `json:"namespace"`
	Name            string                           `json:"name"`
	Frontends       map[netip.Addr]map[string]L4Addr `json:"frontends"` // by port name
	Backends        map[netip.Addr]map[string]L4Addr `json:"backends"`  // by port name; those ready or serving
	Hostnames       map[netip.Addr]string            `json:"hostnames"`
	Zones           map[netip.Addr]BackendZone       `json:"zones"`
	Labels          map[string]string                `json:"labels"`
	Selector        map[string]string                `json:"selector"`
	IncludeExternal bool                             `json:"includeExternal"`
	Shared          bool                             `json:"shared"`
	ClusterID       uint32                           `json:"clusterID"`
}

// NewClusterService returns a service without anything, whose maps can be written to.
func NewClusterService() ClusterService {
	return ClusterService{
		Frontends: map[netip.Addr]map[string]L4Addr{}, Backends: map[netip.Addr]map[string]L4Addr{},
		Hostnames: map[netip.Addr]string{}, Zones: map[netip.Addr]BackendZone{},
		Labels: map[string]string{}, Selector: map[string]string{},
	}
}

// L4Addr is a port of a ClusterService.
type L4Addr struct {
	Protocol string // TCP, UDP or SCTP
	Port     uint16
}

// BackendZone is where a backend runs and which zones it is meant for.
type BackendZone struct {
	Zone     string    `json:"zone"`
	ForZones []ForZone `json:"forZones"`
}

// ForZone names a zone that a backend is meant for.
type ForZone struct {
	Name string `json:"name"`
}

// TimeText returns t as the value of a canary or the heartbeat.
func TimeText(t time.Time) []byte { return []byte(t.UTC().Format(time.RFC3339Nano)) }

// ParseTime reads what TimeText writes, and the formats that Cilium uses instead.
func ParseTime(b []byte) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, time.RFC1123, time.RFC1123Z} {
		if t, err := time.Parse(layout, string(b)); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time", b)
}
