package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/big"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// allocated reports whether a service has an address of its own.
func allocated(svc *corev1.Service) bool {
	return svc.Spec.ClusterIP != "" && svc.Spec.ClusterIP != corev1.ClusterIPNone
}

// serviceIPs assigns addresses to the services of one plan.
type serviceIPs struct {
	registry *Registry
	taken    map[netip.Addr]string // → namespace/name; nil until needed
}

// fit assigns a service the address that it has, the one it asks for, or a free one.
func (s *serviceIPs) fit(ctx context.Context, c *change, svc *corev1.Service) (problem string, err error) {
	asked := svc.Spec.ClusterIP
	if ip, err := netip.ParseAddr(asked); err == nil && c.printed && !s.registry.conf.ServiceCIDR.Contains(ip) {
		c.warn("spec.clusterIP %s is another cluster's; the service gets its own from %s here", asked, s.registry.conf.ServiceCIDR)
		asked = ""
	}
	if c.old.Modified != 0 {
		var old corev1.Service
		if err := json.Unmarshal(c.old.Value, &old); err != nil {
			return damaged(err), nil
		}
		if asked != "" && asked != old.Spec.ClusterIP {
			return fmt.Sprintf("spec.clusterIP cannot change from %s to %s; delete the service first", old.Spec.ClusterIP, asked), nil
		}
		setClusterIP(svc, old.Spec.ClusterIP)
		return "", nil
	}
	if asked == corev1.ClusterIPNone {
		setClusterIP(svc, asked)
		return "", nil
	}
	if s.taken == nil {
		kvs, _, err := s.registry.store.List(ctx, wire.ServiceIPsPrefix)
		if err != nil {
			return "", err
		}
		s.taken = make(map[netip.Addr]string, len(kvs))
		for _, kv := range kvs {
			if ip, err := netip.ParseAddr(kv.Key[len(wire.ServiceIPsPrefix):]); err == nil {
				s.taken[ip] = string(kv.Value)
			}
		}
	}
	who, cidr := c.namespace+"/"+c.name, s.registry.conf.ServiceCIDR
	var ip netip.Addr
	if asked == "" {
		free, ok := freeAddress(cidr, who, func(ip netip.Addr) bool { return s.taken[ip] == "" })
		if !ok {
			return fmt.Sprintf("no address is free in the service CIDR %s; delete services, or start the cluster with a larger one", cidr), nil
		}
		ip = free
	} else if ip, problem = s.usable(asked); problem != "" {
		return problem, nil
	}
	s.taken[ip] = who
	setClusterIP(svc, ip.String())
	c.conds = append(c.conds, store.Cond{Key: wire.ServiceIPKey(ip.String())})
	c.writes = append(c.writes, wire.Write{Key: wire.ServiceIPKey(ip.String()), Value: []byte(who)})
	return "", nil
}

// usable reads an address that a service asks for, and says why it cannot have it.
func (s *serviceIPs) usable(text string) (ip netip.Addr, problem string) {
	cidr := s.registry.conf.ServiceCIDR
	ip, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		problem = fmt.Sprintf("spec.clusterIP %q is not an IP address", text)
	case !cidr.Contains(ip) || ip == cidr.Masked().Addr() || ip == last(cidr):
		problem = fmt.Sprintf("spec.clusterIP %s is outside of the service CIDR %s; choose one inside, or none to have one chosen", ip, cidr)
	case s.taken[ip] != "":
		problem = fmt.Sprintf("spec.clusterIP %s belongs to service %s; choose another one, or none to have one chosen", ip, s.taken[ip])
	}
	return ip, problem
}

func setClusterIP(svc *corev1.Service, ip string) {
	svc.Spec.ClusterIP = ip
	svc.Spec.ClusterIPs = nil
	if ip != "" {
		svc.Spec.ClusterIPs = []string{ip}
	}
}

// freeAddress picks a free address of cidr for a name, always the same one if it is free, so
// that a service that is deleted and created again keeps its address. It never picks the
// first or the last.
func freeAddress(cidr netip.Prefix, name string, free func(netip.Addr) bool) (netip.Addr, bool) {
	first, end := cidr.Masked().Addr().Next(), last(cidr)
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

func last(cidr netip.Prefix) netip.Addr {
	b := cidr.Masked().Addr().AsSlice()
	for i := cidr.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	ip, _ := netip.AddrFromSlice(b)
	return ip
}
