package service

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// FuzzFromKubernetes checks that any service and slice either are refused or give
// frontends whose backends can be connected to, each once and in order, and which the
// listing for people agrees with.
func FuzzFromKubernetes(f *testing.F) {
	f.Add(
		[]byte(`{"metadata":{"name":"web","namespace":"shop","annotations":{"service.cilium.io/global":"true"}},"spec":{"clusterIP":"10.101.0.1","ports":[{"name":"http","port":80,"targetPort":"http"},{"name":"dns","port":53,"protocol":"UDP"}]}}`),
		[]byte(`{"metadata":{"name":"web-1","labels":{"kubernetes.io/service-name":"web"}},"ports":[{"name":"http","port":8080},{"name":"dns","port":53,"protocol":"UDP"}],"endpoints":[{"addresses":["10.1.1.2"],"conditions":{"ready":true},"nodeName":"n1"},{"addresses":["10.1.1.2","10.1.1.3"],"conditions":{"ready":false,"serving":true,"terminating":true}}]}`))
	f.Add(
		[]byte(`{"spec":{"clusterIPs":["10.101.0.1","fd00::1"],"ports":[{"port":443}],"trafficDistribution":"PreferSameNode"}}`),
		[]byte(`{"metadata":{"annotations":{"service.cilium.io/weight":"0"}},"ports":[{"port":8443},{}],"endpoints":[{"addresses":["fd00:1::2","10.1.1.2","nowhere"],"hints":{"forZones":[{"name":"a"}]}}]}`))
	f.Add(
		[]byte(`{"metadata":{"annotations":{"service.cilium.io/global":"true","weft.io/cluster-weights":"east=0,*=3"}},"spec":{"clusterIP":"10.101.0.1","ports":[{"port":443}]}}`),
		[]byte(`{"metadata":{"annotations":{"service.cilium.io/weight":"250"}},"ports":[{"port":8443}],"endpoints":[{"addresses":["10.1.1.2","10.1.1.3"]}]}`))
	f.Fuzz(func(t *testing.T, service, slice []byte) {
		var (
			ks corev1.Service
			es discoveryv1.EndpointSlice
		)
		if json.Unmarshal(service, &ks) != nil || json.Unmarshal(slice, &es) != nil {
			return
		}
		svc, err := FromKubernetes(&ks)
		if err != nil {
			return
		}
		svc.Split = svc.ClusterWeights.Split(func(name string) ClusterID { return map[string]ClusterID{"east": 1}[name] })
		from := []Slice{SliceFromKubernetes(&es)}
		stands := Stands(&svc, "east", from, true)
		for i, fe := range Frontends(fromEast, &svc, map[ClusterID][]Slice{1: from}) {
			used := map[netip.Addr]bool{}
			for _, g := range fe.Groups {
				for _, list := range [][]Backend{g.Backends, g.Draining} {
					if !slices.IsSortedFunc(list, Backend.compare) || len(slices.CompactFunc(slices.Clone(list), func(a, b Backend) bool { return a.compare(b) == 0 })) != len(list) {
						t.Fatalf("not in order, or not each once: %v", list)
					}
					for _, b := range list {
						if b.Port == 0 || b.Addr.Is4() != fe.Addr.Is4() {
							t.Fatalf("%v cannot serve %v:%d", b, fe.Addr, fe.Port)
						}
					}
				}
				for _, b := range g.Backends {
					if slices.ContainsFunc(g.Draining, func(d Backend) bool { return d.compare(b) == 0 }) {
						t.Fatalf("%v both takes connections and drains", b)
					}
					used[b.Addr] = true
				}
			}
			port := i % max(len(svc.Ports), 1)
			for _, s := range stands {
				if s.Addr.Is4() == fe.Addr.Is4() && used[s.Addr] != (s.Why[port] == "") {
					t.Fatalf("port %d, %v: used %v, why %q", port, s.Addr, used[s.Addr], s.Why[port])
				}
			}
		}
	})
}
