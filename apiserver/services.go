package apiserver

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// serviceName is a service's place in a cluster.
type serviceName struct{ namespace, name string }

// services lists the cluster's services, and for those that are global the
// backends that peers offer.
func (s *server) services(ctx context.Context) (*api.ServiceList, error) {
	objects, _, err := s.store.List(ctx, wire.ObjectsPrefix+"services/")
	if err != nil {
		return nil, err
	}
	own, err := s.ownBackends(ctx)
	if err != nil {
		return nil, err
	}
	remote, err := s.remoteBackends(ctx)
	if err != nil {
		return nil, err
	}
	out := &api.ServiceList{Cluster: s.cluster.Name, Services: []api.Service{}}
	for _, kv := range objects {
		var object corev1.Service
		if err := json.Unmarshal(kv.Value, &object); err != nil {
			return nil, fmt.Errorf("stored object %s is damaged: %w", kv.Key, err)
		}
		svc, err := service.FromKubernetes(&object)
		if err != nil {
			return nil, err
		}
		who := serviceName{svc.Namespace, svc.Name}
		row := api.Service{
			Cluster: s.cluster.Name, Namespace: svc.Namespace, Name: svc.Name, ClusterIP: object.Spec.ClusterIP,
			Global: svc.Global, Shared: svc.Shared, Affinity: string(svc.Affinity), Ports: []string{}, Backends: []api.ServiceBackend{},
		}
		for _, p := range svc.Ports {
			text := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
			if p.Name != "" {
				text = p.Name + " " + text
			}
			row.Ports = append(row.Ports, text)
		}
		row.Backends = append(row.Backends, own[who]...)
		if svc.Global {
			row.Backends = append(row.Backends, remote[who]...)
		}
		slices.SortFunc(row.Backends, func(a, b api.ServiceBackend) int {
			return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.Address.Compare(b.Address))
		})
		out.Services = append(out.Services, row)
	}
	return out, nil
}

func (s *server) ownBackends(ctx context.Context) (map[serviceName][]api.ServiceBackend, error) {
	kvs, _, err := s.store.List(ctx, wire.ObjectsPrefix+"endpointslices/")
	if err != nil {
		return nil, err
	}
	out := map[serviceName][]api.ServiceBackend{}
	for _, kv := range kvs {
		var object discoveryv1.EndpointSlice
		if err := json.Unmarshal(kv.Value, &object); err != nil {
			return nil, fmt.Errorf("stored object %s is damaged: %w", kv.Key, err)
		}
		slice := service.SliceFromKubernetes(&object)
		who := serviceName{slice.Namespace, slice.Service}
		for _, e := range slice.Endpoints {
			out[who] = append(out[who], api.ServiceBackend{Cluster: s.cluster.Name, Node: e.Node, Address: e.Addr, Ready: e.Ready})
		}
	}
	return out, nil
}

// remoteBackends are those that peers export: from endpoint slices, and from
// services for peers that have no slices.
func (s *server) remoteBackends(ctx context.Context) (map[serviceName][]api.ServiceBackend, error) {
	type origin struct {
		serviceName
		cluster string
	}
	found := map[origin]map[netip.Addr]api.ServiceBackend{}
	add := func(o origin, b api.ServiceBackend) {
		if found[o] == nil {
			found[o] = map[netip.Addr]api.ServiceBackend{}
		}
		found[o][b.Address] = b
	}
	services, _, err := s.store.List(ctx, wire.Services.AllCachePrefix())
	if err != nil {
		return nil, err
	}
	for _, kv := range services {
		ref, ok := wire.ParseCiliumCacheKey(kv.Key)
		if !ok {
			continue
		}
		svc, err := wire.ParseClusterService(ref, 0, kv.Value)
		if err != nil || !svc.Shared {
			continue // the mirror takes in neither
		}
		for ip := range svc.Backends {
			add(origin{serviceName{ref.Namespace, ref.Name}, ref.Cluster}, api.ServiceBackend{Cluster: ref.Cluster, Address: ip, Ready: true})
		}
	}
	slicesFound, _, err := s.store.List(ctx, wire.EndpointSlices.AllCachePrefix())
	if err != nil {
		return nil, err
	}
	for _, kv := range slicesFound {
		ref, ok := wire.ParseCiliumCacheKey(kv.Key)
		if !ok {
			continue
		}
		slice, err := wire.ParseSlice(ref, 0, kv.Value)
		if err != nil {
			continue // the mirror does not take it in
		}
		maintained := service.Weightless(slice.Annotations)
		for _, e := range slice.Endpoints {
			ready, _, _ := service.Conditions(e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating)
			ready = ready && !maintained
			for _, text := range e.Addresses {
				if ip, err := wire.ParseAddr(text); err == nil {
					add(origin{serviceName{ref.Namespace, slice.Service()}, ref.Cluster}, api.ServiceBackend{Cluster: ref.Cluster, Node: e.NodeName, Address: ip, Ready: ready})
				}
			}
		}
	}
	out := map[serviceName][]api.ServiceBackend{}
	for o, backends := range found {
		out[o.serviceName] = append(out[o.serviceName], slices.Collect(maps.Values(backends))...)
	}
	return out, nil
}
