package registry

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

func readEndpointSlice(r *reading) {
	slice, ok := decode[*discoveryv1.EndpointSlice](r)
	if !ok {
		return
	}
	if slice.Labels[discoveryv1.LabelServiceName] == "" {
		r.refuse("label %s is missing; set it to the name of the slice's service", discoveryv1.LabelServiceName)
	}
	if slice.Labels[discoveryv1.LabelManagedBy] == wire.ManagedBy {
		r.refuse("label %s is %q, which marks slices that weft derives itself; remove it", discoveryv1.LabelManagedBy, wire.ManagedBy)
	}
	if slice.AddressType != discoveryv1.AddressTypeIPv4 && slice.AddressType != discoveryv1.AddressTypeIPv6 {
		r.refuse("addressType is %q; write IPv4 or IPv6", slice.AddressType)
	}
	warnAnnotations(r, slice.Annotations, service.AnnotationWeight)
	for i, e := range slice.Endpoints {
		if len(e.Addresses) == 0 {
			r.refuse("endpoints[%d].addresses is empty", i)
		}
		for _, text := range e.Addresses {
			ip, err := netip.ParseAddr(text)
			if err != nil || ip.Is4() != (slice.AddressType == discoveryv1.AddressTypeIPv4) {
				r.refuse("endpoints[%d].addresses: %q is not an %s address", i, text, slice.AddressType)
			} else if err := service.CheckAddress(ip); err != nil {
				r.refuse("endpoints[%d].addresses: %v, which no backend can have", i, err)
			}
		}
	}
	if weight, ok := slice.Annotations[service.AnnotationWeight]; ok {
		if _, err := strconv.ParseUint(weight, 10, 16); err != nil {
			r.refuse("annotation %s is %q; write a number from 0 to 65535", service.AnnotationWeight, weight)
		}
	}
	names := map[string]bool{}
	for i, p := range slice.Ports {
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if mistakes := validation.IsDNS1123Label(name); name != "" && len(mistakes) > 0 {
			r.refuse("ports[%d].name %q: %s", i, name, mistakes[0])
		}
		if names[name] {
			r.refuse("ports[%d].name %q is used twice; give each port its own", i, name)
		}
		names[name] = true
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			r.refuse("ports[%d].port must be from 1 to 65535", i)
		}
		if p.Protocol != nil {
			checkProtocol(r, *p.Protocol, "ports[%d].protocol", i)
		}
	}
}

// fitSlice refuses addresses of services and those that nodes have inside the mesh, because a
// slice, written in one namespace, leads the clients of its service there. Processes of nodes are
// behind a service at their nodes' other addresses. Agents check this again, as nodes
// may be added later, and also check whose pod an address is.
func (p *planner) fitSlice(ctx context.Context, slice *discoveryv1.EndpointSlice) (problem string, err error) {
	of, err := p.insideAddresses(ctx)
	if err != nil {
		return "", err
	}
	for i, e := range slice.Endpoints {
		for _, text := range e.Addresses {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				continue // readEndpointSlice has refused it
			}
			if p.conf.cidrOf(ip).IsValid() {
				return fmt.Sprintf("endpoints[%d].addresses: %v is a service's address; write those of the pods behind it", i, ip), nil
			}
			if node, ok := of[ip]; ok {
				return fmt.Sprintf("endpoints[%d].addresses: %v is the address of node %s inside the mesh, where nothing is behind a service; write the one outside, which it is registered with", i, ip, node), nil
			}
		}
	}
	return "", nil
}
