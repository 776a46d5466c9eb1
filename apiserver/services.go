package apiserver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/service"
)

// services lists the cluster's services with the backends of every cluster, and says which
// of them new connections from here reach. It reads the store, so that it shows what was
// just applied.
func (s *server) services(ctx context.Context) (*api.ServiceList, error) {
	t := newServiceTable(s.cluster.Name, s.store, s.log)
	for _, prefix := range servicePrefixes() {
		kvs, _, err := s.store.List(ctx, prefix)
		if err != nil {
			return nil, err
		}
		t.replace(prefix, kvs)
	}
	nodes, err := s.nodeStatus(ctx)
	if err != nil {
		return nil, err
	}
	peers, _, _, err := s.peerRows(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	return serviceList(s.cluster.Name, t.all(), reachOf(s.cluster.Name, nodes, peers)), nil
}

// stored is a service as it is in the store: its object, and its slices by cluster.
type stored struct {
	service.Service
	clusterIPs, externalIPs []string
	slices                  map[string][]service.Slice
}

// serviceList lists services with their backends.
func serviceList(own string, all []stored, r reach) *api.ServiceList {
	out := &api.ServiceList{Cluster: own, Services: []api.Service{}}
	for i := range all {
		svc := &all[i]
		row := api.Service{
			Cluster: own, Namespace: svc.Namespace, Name: svc.Name, ClusterIPs: svc.clusterIPs, ExternalIPs: svc.externalIPs,
			Global: svc.Global, Shared: svc.Shared, Affinity: string(svc.Affinity), SessionTimeoutSeconds: int64(svc.Session.Seconds()), Ports: []string{}, Backends: []api.ServiceBackend{},
			Algorithm: string(svc.Algorithm), ClusterWeights: svc.ClusterWeights,
		}
		if len(svc.clusterIPs) > 0 {
			row.ClusterIP = svc.clusterIPs[0]
		}
		for _, p := range svc.Ports {
			text := p.String()
			if p.Name != "" {
				text = p.Name + " " + text
			}
			row.Ports, row.PortNames = append(row.Ports, text), append(row.PortNames, p.Label())
		}
		taking := map[frontend]int{}
		for _, cluster := range slices.Sorted(maps.Keys(svc.slices)) {
			if cluster != own && (!svc.Global || svc.NodeLocal) {
				continue
			}
			for _, b := range service.Stands(&svc.Service, cluster, svc.slices[cluster], cluster == own) {
				left := leftOut(b, row.PortNames, r.why(cluster, b.Node))
				row.Backends = append(row.Backends, api.ServiceBackend{Cluster: cluster, Node: b.Node, Address: b.Addr, Ready: len(left) == 0, LeftOut: left, Weight: b.Weight})
				for i, why := range b.Why {
					if why == "" {
						taking[frontend{i, b.Addr.Is4()}]++
					}
				}
			}
		}
		if svc.Algorithm == service.Maglev && len(svc.clusterIPs) > 0 {
			if row.TableSize = svc.TableSize; row.TableSize == 0 {
				for _, n := range taking {
					row.TableSize = max(row.TableSize, service.TableSizeFor(n))
				}
			}
		}
		out.Services = append(out.Services, row)
	}
	return out
}

// frontend is a port of a service, by its index, in one IP family.
type frontend struct {
	port int
	v4   bool
}

// leftOut says on which ports a backend gets no new connections, and why. What applies to
// every port is said once; that it cannot be reached at all comes before everything else.
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

// misfitConcerns are services whose backends in some cluster all lack a port: they count
// as backends, but no connection to that port reaches them.
func misfitConcerns(l *api.ServiceList) (out []api.Concern) {
	for _, svc := range l.Services {
		for _, port := range svc.PortNames {
			lack := misfits(svc, port)
			for _, cluster := range slices.Sorted(maps.Keys(lack)) {
				next := "give the port the same name in both clusters"
				if cluster == l.Cluster {
					next = "correct the service's targetPort, or give a container port that name"
				}
				out = append(out, api.Concern{
					Object: "service " + svc.Namespace + "/" + svc.Name, Reason: "PortNotServed", Part: cluster + " " + port, Next: next,
					Message: fmt.Sprintf("service %s/%s: no backend of %s serves port %s (%s)", svc.Namespace, svc.Name, cluster, port, lack[cluster]),
				})
			}
		}
	}
	return out
}

// misfits returns the clusters whose backends of a service all lack the port, and why.
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
