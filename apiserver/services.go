package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// serviceName is a service's place in a cluster.
type serviceName struct{ namespace, name string }

// services lists the cluster's services with the backends of every cluster, and
// says which of them new connections from here reach.
func (s *server) services(ctx context.Context) (*api.ServiceList, error) {
	all, err := s.readServices(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := s.nodeStatus(ctx)
	if err != nil {
		return nil, err
	}
	return serviceList(s.cluster.Name, all, reachOf(s.cluster.Name, nodes)), nil
}

// stored is a service as the store has it: its own object, and its slices by
// cluster.
type stored struct {
	service.Service
	clusterIP string
	slices    map[string][]service.Slice
}

// serviceList says what stands behind each service.
func serviceList(own string, all []stored, r reach) *api.ServiceList {
	out := &api.ServiceList{Cluster: own, Services: []api.Service{}}
	for i := range all {
		svc := &all[i]
		row := api.Service{
			Cluster: own, Namespace: svc.Namespace, Name: svc.Name, ClusterIP: svc.clusterIP,
			Global: svc.Global, Shared: svc.Shared, Affinity: string(svc.Affinity), Ports: []string{}, Backends: []api.ServiceBackend{},
		}
		for _, p := range svc.Ports {
			text := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
			if p.Name != "" {
				text = p.Name + " " + text
			}
			row.Ports, row.PortNames = append(row.Ports, text), append(row.PortNames, p.Label())
		}
		for _, cluster := range slices.Sorted(maps.Keys(svc.slices)) {
			if cluster != own && !svc.Global {
				continue
			}
			for _, b := range service.Stands(&svc.Service, svc.slices[cluster], cluster == own) {
				left := leftOut(b, row.PortNames, r.why(cluster, b.Node))
				row.Backends = append(row.Backends, api.ServiceBackend{Cluster: cluster, Node: b.Node, Address: b.Addr, Ready: len(left) == 0, LeftOut: left})
			}
		}
		out.Services = append(out.Services, row)
	}
	return out
}

// leftOut says on which ports a backend gets no new connections. What is so of
// every port is said once, and that it cannot be reached at all before all else.
func leftOut(b service.Stand, ports []string, unreachable string) (out []api.LeftOut) {
	if unreachable != "" {
		return []api.LeftOut{{Reason: unreachable}}
	}
	for i, why := range b.Why {
		if why != "" {
			out = append(out, api.LeftOut{Port: ports[i], Reason: why, Misfit: b.Misfit[i]})
		}
	}
	if len(out) < len(ports) || slices.ContainsFunc(out, func(l api.LeftOut) bool { return l.Reason != out[0].Reason }) {
		return out
	}
	return []api.LeftOut{{Reason: out[0].Reason, Misfit: out[0].Misfit}}
}

// misfitConcerns are services whose backends in a cluster all lack a port: they
// count as backends, and no connection reaches them.
func misfitConcerns(l *api.ServiceList) (out []api.Concern) {
	for _, svc := range l.Services {
		for _, port := range svc.PortNames {
			for cluster, reason := range misfits(svc, port) {
				next := "give the port the same name in both clusters"
				if cluster == l.Cluster {
					next = "correct the service's targetPort, or name a port of the container so"
				}
				out = append(out, api.Concern{
					Object: "service " + svc.Namespace + "/" + svc.Name, Reason: "PortNotServed", Part: cluster + " " + port, Next: next,
					Message: fmt.Sprintf("service %s/%s: no backend of %s serves port %s (%s)", svc.Namespace, svc.Name, cluster, port, reason),
				})
			}
		}
	}
	return out
}

// misfits are the clusters that have backends of a service, of which none has the
// port, and why.
func misfits(svc api.Service, port string) map[string]string {
	lack, have := map[string]string{}, map[string]bool{}
	for _, b := range svc.Backends {
		misfit := false
		for _, l := range b.LeftOut {
			if l.Misfit && (l.Port == "" || l.Port == port) {
				misfit, lack[b.Cluster] = true, l.Reason
			}
		}
		have[b.Cluster] = have[b.Cluster] || !misfit
	}
	maps.DeleteFunc(lack, func(cluster, _ string) bool { return have[cluster] })
	return lack
}

// serviceReads keeps what was read of services for a while, for those who ask
// again and again whether all is well.
type serviceReads struct {
	mu       sync.Mutex // guards what follows, and held over a read
	all      []stored
	revision int64
	at       time.Time
}

// How old that may be while the store goes on: for who asks, and for the server's own
// look, which comes by the clock and must not read all services each time.
const (
	serviceAge      = 5 * time.Second
	serviceAgeAlone = time.Minute
)

// misfitServices are concerns about services, as of a revision of the store or age
// before.
func (s *server) misfitServices(ctx context.Context, revision int64, age time.Duration, nodes []api.NodeStatus) []api.Concern {
	c := &s.serviceReads
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() || c.revision != revision && time.Since(c.at) > age {
		all, err := s.readServices(ctx)
		if err != nil {
			return []api.Concern{{Object: "services", Reason: "ServicesUnreadable", Message: "services cannot be read: " + err.Error()}}
		}
		c.all, c.revision, c.at = all, revision, time.Now()
	}
	return misfitConcerns(serviceList(s.cluster.Name, c.all, reachOf(s.cluster.Name, nodes)))
}

// readServices reads all services and their slices, in order of key.
func (s *server) readServices(ctx context.Context) ([]stored, error) {
	objects, _, err := s.store.List(ctx, wire.ObjectsPrefix+"services/")
	if err != nil {
		return nil, err
	}
	backends := map[serviceName]map[string][]service.Slice{}
	add := func(cluster string, slice service.Slice) {
		who := serviceName{slice.Namespace, slice.Service}
		if backends[who] == nil {
			backends[who] = map[string][]service.Slice{}
		}
		backends[who][cluster] = append(backends[who][cluster], slice)
	}
	if err := s.ownSlices(ctx, add); err != nil {
		return nil, err
	}
	if err := s.remoteSlices(ctx, add); err != nil {
		return nil, err
	}
	var out []stored
	for _, kv := range objects {
		var object corev1.Service
		if err := json.Unmarshal(kv.Value, &object); err != nil {
			return nil, fmt.Errorf("stored object %s is damaged: %w", kv.Key, err)
		}
		svc, err := service.FromKubernetes(&object)
		if err != nil {
			return nil, err
		}
		out = append(out, stored{svc, object.Spec.ClusterIP, backends[serviceName{svc.Namespace, svc.Name}]})
	}
	return out, nil
}

func (s *server) ownSlices(ctx context.Context, add func(string, service.Slice)) error {
	kvs, _, err := s.store.List(ctx, wire.ObjectsPrefix+"endpointslices/")
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		var object discoveryv1.EndpointSlice
		if err := json.Unmarshal(kv.Value, &object); err != nil {
			return fmt.Errorf("stored object %s is damaged: %w", kv.Key, err)
		}
		add(s.cluster.Name, service.SliceFromKubernetes(&object))
	}
	return nil
}

// remoteSlices are what peers export: endpoint slices, and services where there
// are none of the same name. What the mirror would not take in is left out.
func (s *server) remoteSlices(ctx context.Context, add func(string, service.Slice)) error {
	type origin struct {
		serviceName
		cluster string
	}
	inSlices := map[origin]bool{}
	kvs, _, err := s.store.List(ctx, wire.EndpointSlices.AllCachePrefix())
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		ref, ok := wire.ParseCiliumCacheKey(kv.Key)
		if !ok {
			continue
		}
		slice, err := wire.ParseSlice(ref, 0, kv.Value)
		if err != nil {
			continue
		}
		inSlices[origin{serviceName{ref.Namespace, slice.Service()}, ref.Cluster}] = true
		add(ref.Cluster, slice.Slice())
	}
	if kvs, _, err = s.store.List(ctx, wire.Services.AllCachePrefix()); err != nil {
		return err
	}
	for _, kv := range kvs {
		ref, ok := wire.ParseCiliumCacheKey(kv.Key)
		if !ok || inSlices[origin{serviceName{ref.Namespace, ref.Name}, ref.Cluster}] {
			continue
		}
		svc, err := wire.ParseClusterService(ref, 0, kv.Value)
		if err != nil || !svc.Shared {
			continue
		}
		for _, slice := range svc.Slices() {
			add(ref.Cluster, slice)
		}
	}
	return nil
}
