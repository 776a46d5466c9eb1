package endpoints

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// partName is the name of slice i of a kind, from 0.
func partName(kind string, i int) string {
	if i == 0 {
		return kind
	}
	return fmt.Sprintf("%s-part%d", kind, i+1)
}

// partNumber is the number of a slice of this kind; false if it is of another.
func partNumber(kind, part string) (int, bool) {
	if part == kind {
		return 0, true
	}
	digits, ok := strings.CutPrefix(part, kind+"-part")
	i, err := strconv.Atoi(digits)
	return i - 1, ok && err == nil && i > 1 && partName(kind, i-1) == part
}

func partOf(kind, part string) bool {
	_, ok := partNumber(kind, part)
	return ok
}

func kubernetesSlice(sliceName string, of service.Slice, endpoints []service.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: of.Namespace, Name: sliceName, Labels: map[string]string{
			discoveryv1.LabelServiceName: of.Service,
			discoveryv1.LabelManagedBy:   wire.ManagedBy,
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, p := range of.Ports {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: new(corev1.Protocol(p.Protocol)), Port: new(int32(p.Port))})
	}
	for _, e := range endpoints {
		if e.Addr.Is6() {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{e.Addr.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &e.Ready, Serving: &e.Serving, Terminating: &e.Terminating},
			NodeName:   &e.Node,
			Hostname:   unlessEmpty(e.Hostname),
			Zone:       unlessEmpty(e.Zone),
		})
	}
	return s
}

func unlessEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func addresses(s *discoveryv1.EndpointSlice) []netip.Addr {
	var out []netip.Addr
	for _, e := range s.Endpoints {
		for _, text := range e.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
}

// encode returns a slice's JSON; encoding these cannot fail.
func encode(s *discoveryv1.EndpointSlice) []byte {
	text, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("endpoint slice does not encode: %v", err))
	}
	return text
}

// sorted returns a set's names in order, so that tests can rely on it.
func sorted(set map[name]bool) []name {
	return slices.SortedFunc(maps.Keys(set), func(a, b name) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
}
