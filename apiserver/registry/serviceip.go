package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/big"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// allocated returns a service's own addresses.
func allocated(svc *corev1.Service) []string {
	return slices.DeleteFunc(service.ClusterIPs(svc), func(ip string) bool { return ip == corev1.ClusterIPNone })
}

// cidrs are the prefixes of service addresses by IP family; services of the first get theirs
// from it unless they say otherwise.
func (c *Config) cidrs() []netip.Prefix {
	return slices.DeleteFunc([]netip.Prefix{c.ServiceCIDR, c.IPv6ServiceCIDR}, func(p netip.Prefix) bool { return !p.IsValid() })
}

// families are those that services can have addresses of, the default first.
func (c *Config) families() (out []corev1.IPFamily) {
	for _, p := range c.cidrs() {
		out = append(out, service.FamilyOf(p.Addr()))
	}
	return out
}

// cidrFor is the prefix of service addresses of a family; invalid if there are none.
func (c *Config) cidrFor(family corev1.IPFamily) netip.Prefix {
	for _, p := range c.cidrs() {
		if service.FamilyOf(p.Addr()) == family {
			return p
		}
	}
	return netip.Prefix{}
}

// cidrOf is the prefix of service addresses that an address is in; invalid if in none.
func (c *Config) cidrOf(ip netip.Addr) netip.Prefix {
	for _, p := range c.cidrs() {
		if p.Contains(ip) {
			return p
		}
	}
	return netip.Prefix{}
}

// serviceIPs assigns addresses to the services of one plan.
type serviceIPs struct {
	registry *Registry
	taken    map[netip.Addr]string // → namespace/name; nil until needed
}

// fit completes a service's IP families and assigns it addresses: those that it has, those
// it asks for, or free ones. What it no longer has is free again.
func (s *serviceIPs) fit(ctx context.Context, c *change, svc *corev1.Service) (problem string, err error) {
	s.registry.dropForeign(c, &svc.Spec)
	var old *corev1.ServiceSpec
	if c.old.Modified != 0 {
		var was corev1.Service
		if err := json.Unmarshal(c.old.Value, &was); err != nil {
			return damaged(err), nil
		}
		old = complete(&was)
	}
	if problem := s.registry.conf.fitFamilies(old, &svc.Spec); problem != "" {
		return problem, nil
	}
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return "", nil
	}
	var had []string
	if old != nil {
		had = old.ClusterIPs
	}
	asked, ips := svc.Spec.ClusterIPs, []string(nil)
	for i, family := range svc.Spec.IPFamilies {
		ip := ""
		switch {
		case i < len(had):
			ips = append(ips, had[i])
			continue
		case i < len(asked):
			ip = asked[i]
		}
		if ip, problem, err = s.take(ctx, c, family, ip); problem != "" || err != nil {
			return problem, err
		}
		ips = append(ips, ip)
	}
	for _, ip := range had[min(len(ips), len(had)):] {
		c.writes = append(c.writes, wire.Write{Key: wire.ServiceIPKey(ip), Delete: true})
	}
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs = ips[0], ips
	return "", nil
}

// take reserves an address of a family for a service: the one that it asks for, or if that
// is empty a free one.
func (s *serviceIPs) take(ctx context.Context, c *change, family corev1.IPFamily, asked string) (got, problem string, err error) {
	if err := s.load(ctx); err != nil {
		return "", "", err
	}
	who, cidr := c.namespace+"/"+c.name, s.registry.conf.cidrFor(family)
	var ip netip.Addr
	if asked == "" {
		free, ok := freeAddress(cidr, who, func(ip netip.Addr) bool { return s.taken[ip] == "" })
		if !ok {
			return "", fmt.Sprintf("no address is free in the service CIDR %s; delete services, or start the cluster with a larger one", cidr), nil
		}
		ip = free
	} else if ip, problem = s.usable(asked, cidr); problem != "" {
		return "", problem, nil
	}
	s.taken[ip] = who
	c.conds = append(c.conds, store.Cond{Key: wire.ServiceIPKey(ip.String())})
	c.writes = append(c.writes, wire.Write{Key: wire.ServiceIPKey(ip.String()), Value: []byte(who)})
	return ip.String(), "", nil
}

// load reads which addresses are taken.
func (s *serviceIPs) load(ctx context.Context) error {
	if s.taken != nil {
		return nil
	}
	kvs, _, err := s.registry.store.List(ctx, wire.ServiceIPsPrefix)
	if err != nil {
		return err
	}
	s.taken = make(map[netip.Addr]string, len(kvs))
	for _, kv := range kvs {
		if ip, err := netip.ParseAddr(kv.Key[len(wire.ServiceIPsPrefix):]); err == nil {
			s.taken[ip] = string(kv.Value)
		}
	}
	return nil
}

// usable reads an address that a service asks for, and says why it cannot have it.
func (s *serviceIPs) usable(text string, cidr netip.Prefix) (ip netip.Addr, problem string) {
	ip, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		problem = fmt.Sprintf("spec.clusterIP %q is not an IP address", text)
	case !cidr.Contains(ip) || ip == cidr.Masked().Addr() || ip == wire.LastAddr(cidr):
		problem = fmt.Sprintf("spec.clusterIP %s is outside of the service CIDR %s; choose one inside, or none to have one chosen", ip, cidr)
	case s.taken[ip] != "":
		problem = fmt.Sprintf("spec.clusterIP %s belongs to service %s; choose another one, or none to have one chosen", ip, s.taken[ip])
	}
	return ip, problem
}

// freeAddress picks a free address of cidr for a name, always the same one if it is free, so
// that a service that is deleted and created again keeps its address. It never picks the
// first or the last.
func freeAddress(cidr netip.Prefix, name string, free func(netip.Addr) bool) (netip.Addr, bool) {
	first, end := cidr.Masked().Addr().Next(), wire.LastAddr(cidr)
	hosts := cidr.Addr().BitLen() - cidr.Bits()
	if hosts < 2 {
		return netip.Addr{}, false
	}
	count := uint64(1)<<min(hosts, 32) - 2
	h := fnv.New64a()
	h.Write([]byte(name))
	ip := plus(first, h.Sum64()%count)
	for range count {
		if free(ip) {
			return ip, true
		}
		if ip = ip.Next(); ip == end || !cidr.Contains(ip) {
			ip = first
		}
	}
	return netip.Addr{}, false
}

func plus(ip netip.Addr, n uint64) netip.Addr {
	sum := new(big.Int).Add(new(big.Int).SetBytes(ip.AsSlice()), new(big.Int).SetUint64(n))
	out, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, ip.BitLen()/8)))
	return out
}
