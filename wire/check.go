package wire

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-mesh/weft/identity"
)

// The functions here read a value and refuse it unless it agrees with its key, as
// Cilium's readers do. Whether the cluster is entitled to what the value claims is
// checked in apiserver/mirror.

// ParseNode reads the Node at ref in the mirror of cluster id. An id of 0 is not
// compared.
func ParseNode(ref CacheRef, id identity.ClusterID, b []byte) (*Node, error) {
	n, err := Unmarshal[Node](b)
	if err != nil {
		return nil, err
	}
	errs := []error{
		same("cluster", n.Cluster, ref.Cluster),
		same("name", n.Name, ref.Node),
		sameID(n.ClusterID, id),
	}
	for _, a := range n.IPAddresses {
		errs = append(errs, usable(a.IP))
	}
	for _, a := range []netip.Addr{n.IPv4HealthIP, n.IPv6HealthIP, n.IPv4IngressIP, n.IPv6IngressIP} {
		if a.IsValid() {
			errs = append(errs, usable(a))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &n, nil
}

// ParseIPIdentityPair reads the pair at ref.
func ParseIPIdentityPair(ref CacheRef, b []byte) (*IPIdentityPair, error) {
	p, err := Unmarshal[IPIdentityPair](b)
	if err != nil {
		return nil, err
	}
	if err := usable(p.IP); err != nil {
		return nil, err
	}
	prefix, err := p.Prefix()
	if err != nil {
		return nil, err
	}
	if prefix != ref.IP {
		return nil, fmt.Errorf("address is %v, but the key says %v", prefix, ref.IP)
	}
	if p.HostIP.IsValid() {
		if err := usable(p.HostIP); err != nil {
			return nil, err
		}
	}
	return &p, nil
}

// ParseIdentity reads an identity's labels.
func ParseIdentity(b []byte) (identity.Labels, error) {
	labels, err := identity.ParseLabels(string(b))
	if err != nil {
		return nil, err
	}
	if len(labels) == 0 {
		return nil, errors.New("identity has no labels")
	}
	return labels, nil
}

// ParseClusterService reads the service at ref in the mirror of cluster id. An id of
// 0 is not compared.
func ParseClusterService(ref CacheRef, id identity.ClusterID, b []byte) (*ClusterService, error) {
	s, err := Unmarshal[ClusterService](b)
	if err != nil {
		return nil, err
	}
	errs := []error{
		same("cluster", s.Cluster, ref.Cluster),
		same("name", s.Namespace+"/"+s.Name, ref.Namespace+"/"+ref.Name),
		sameID(s.ClusterID, id),
	}
	for _, m := range []map[netip.Addr]map[string]L4Addr{s.Frontends, s.Backends} {
		for a, ports := range m {
			errs = append(errs, usable(a))
			for _, p := range ports {
				errs = append(errs, knownProtocol(p.Protocol))
			}
		}
	}
	for a := range s.Hostnames {
		errs = append(errs, usable(a))
	}
	for a := range s.Zones {
		errs = append(errs, usable(a))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &s, nil
}

// ParseSlice reads the slice at ref in the mirror of cluster id. An id of 0 is not
// compared.
func ParseSlice(ref CacheRef, id identity.ClusterID, b []byte) (*ClusterEndpointSlice, error) {
	s, err := ParseClusterEndpointSlice(b)
	if err != nil {
		return nil, err
	}
	errs := []error{
		same("cluster", s.Cluster, ref.Cluster),
		same("name", s.Namespace+"/"+s.Name, ref.Namespace+"/"+ref.Name),
		sameID(s.ClusterID, id),
	}
	if s.AddressType != "IPv4" && s.AddressType != "IPv6" {
		errs = append(errs, fmt.Errorf("addressType %q is neither IPv4 nor IPv6", s.AddressType))
	}
	if s.Service() == "" {
		errs = append(errs, fmt.Errorf("label %s is missing", ServiceNameLabel))
	}
	for _, e := range s.Endpoints {
		for _, text := range e.Addresses {
			a, err := ParseAddr(text)
			if err == nil && a.Is4() != (s.AddressType == "IPv4") {
				err = fmt.Errorf("address %v is not %s", a, s.AddressType)
			}
			errs = append(errs, err)
		}
	}
	for _, p := range s.Ports {
		errs = append(errs, knownProtocol(p.Protocol))
		if p.Port < 0 || p.Port > 65535 {
			errs = append(errs, fmt.Errorf("port %d is out of range", p.Port))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

func same(what, got, want string) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("%s is %q, but the key says %q", what, got, want)
}

func sameID(got uint32, want identity.ClusterID) error {
	if want == 0 || got == uint32(want) {
		return nil
	}
	return fmt.Errorf("clusterID is %d, but the cluster's is %d", got, want)
}

func usable(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return errors.New("an address is missing")
	case a.Zone() != "":
		return fmt.Errorf("address %v has a zone, which means nothing outside its node", a)
	case a.Is4In6():
		return fmt.Errorf("address %v is IPv4 written as IPv6", a)
	}
	return nil
}

func knownProtocol(p string) error {
	switch p {
	case "", "TCP", "UDP", "SCTP":
		return nil
	}
	return fmt.Errorf("protocol %q is not TCP, UDP or SCTP", p)
}
