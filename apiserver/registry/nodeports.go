package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// A service's node ports mean what they mean in Kubernetes:
//
//   - A number belongs to one service, whatever the protocol. Within the service, two
//     protocols of the same port share theirs.
//   - A port keeps its number, by its name, for as long as the type has node ports.
//   - A service of type LoadBalancer may do without: allocateLoadBalancerNodePorts.
//   - One whose externalTrafficPolicy is Local has another for health checks, and keeps that for
//     as long as it is so.

const firstNodePort, lastNodePort = service.FirstNodePort, service.LastNodePort

// checkNodePorts checks what can be said about node ports without the store.
func checkNodePorts(r *reading, spec *corev1.ServiceSpec) {
	if p := spec.ExternalTrafficPolicy; p != "" && p != corev1.ServiceExternalTrafficPolicyCluster && p != corev1.ServiceExternalTrafficPolicyLocal {
		r.refuse("spec.externalTrafficPolicy %s does not exist; write Cluster or Local", p)
	}
	has := service.HasNodePorts(spec)
	if has && spec.ClusterIP == corev1.ClusterIPNone {
		r.refuse("spec.clusterIP is None, and a service of type %s needs an address; remove one of the two", spec.Type)
	}
	switch p := spec.HealthCheckNodePort; {
	case p == 0:
	case !service.HasHealthCheck(spec):
		r.warn("spec.healthCheckNodePort %d is left out: only services of type LoadBalancer with externalTrafficPolicy Local have health checks", p)
		spec.HealthCheckNodePort = 0
	case p < firstNodePort || p > lastNodePort:
		r.refuse("spec.healthCheckNodePort is %d; choose one from %d to %d, or none to have one chosen", p, firstNodePort, lastNodePort)
	case slices.ContainsFunc(spec.Ports, func(port corev1.ServicePort) bool { return port.NodePort == p }):
		r.refuse("spec.healthCheckNodePort is %d, which is the node port of one of spec.ports; choose another one, or none to have one chosen", p)
	}
	type use struct {
		port     int32
		protocol corev1.Protocol
	}
	used := map[use]bool{}
	for i, p := range spec.Ports {
		switch at := (use{p.NodePort, p.Protocol}); {
		case has && p.Protocol == corev1.ProtocolSCTP && (p.NodePort != 0 || assignsNodePorts(spec)):
			r.refuse("spec.ports[%d].protocol is SCTP, which node ports do not carry; put the port into a service of type ClusterIP", i)
		case p.NodePort == 0:
		case !has:
			r.refuse("spec.ports[%d].nodePort is %d, which a service of type %s cannot have; remove it, or write spec.type NodePort", i, p.NodePort, spec.Type)
		case p.NodePort < firstNodePort || p.NodePort > lastNodePort:
			r.refuse("spec.ports[%d].nodePort is %d; choose one from %d to %d, or none to have one chosen", i, p.NodePort, firstNodePort, lastNodePort)
		case used[at]:
			r.refuse("spec.ports[%d].nodePort: %d/%s is there twice; keep one", i, p.NodePort, p.Protocol)
		default:
			used[at] = true
		}
	}
}

// assignsNodePorts reports whether ports without a node port get one.
func assignsNodePorts(spec *corev1.ServiceSpec) bool {
	return spec.Type == corev1.ServiceTypeNodePort || spec.AllocateLoadBalancerNodePorts == nil || *spec.AllocateLoadBalancerNodePorts
}

// nodePortsOf returns the node ports that a service has.
func nodePortsOf(spec *corev1.ServiceSpec) map[int32]bool {
	all := map[int32]bool{}
	for _, p := range spec.Ports {
		if p.NodePort != 0 && service.HasNodePorts(spec) {
			all[p.NodePort] = true
		}
	}
	if service.HasHealthCheck(spec) && spec.HealthCheckNodePort != 0 {
		all[spec.HealthCheckNodePort] = true
	}
	return all
}

// nodePorts assigns node ports to the services of one plan.
type nodePorts struct {
	registry *Registry
	taken    map[int32]string // → namespace/name; nil until needed
}

// fit assigns node ports to a service: those that it has, those it asks for, or free ones.
// What it no longer has is free for the next apply.
func (n *nodePorts) fit(ctx context.Context, c *change, svc *corev1.Service) (problem string, err error) {
	var old corev1.Service
	if c.old.Modified != 0 {
		if err := json.Unmarshal(c.old.Value, &old); err != nil {
			return damaged(err), nil
		}
	}
	had := nodePortsOf(&old.Spec)
	if !service.HasNodePorts(&svc.Spec) && len(had) == 0 {
		return "", nil
	}
	if err := n.load(ctx); err != nil {
		return "", err
	}
	if service.HasNodePorts(&svc.Spec) {
		keepNodePorts(&old.Spec, &svc.Spec)
		if problem := n.assign(c, &svc.Spec); problem != "" {
			return problem, nil
		}
	}
	who, has := c.namespace+"/"+c.name, nodePortsOf(&svc.Spec)
	for _, port := range slices.Sorted(maps.Keys(has)) {
		if n.taken[port] != who { // free: assign has looked
			n.taken[port] = who
			c.conds = append(c.conds, store.Cond{Key: wire.NodePortKey(port)})
			c.writes = append(c.writes, wire.Write{Key: wire.NodePortKey(port), Value: []byte(who)})
		}
	}
	for _, port := range slices.Sorted(maps.Keys(had)) {
		if !has[port] && n.taken[port] == who {
			c.writes = append(c.writes, wire.Write{Key: wire.NodePortKey(port), Delete: true})
		}
	}
	return "", nil
}

// keepNodePorts takes over the numbers of ports that do not say one, by name.
func keepNodePorts(old, spec *corev1.ServiceSpec) {
	if !service.HasNodePorts(old) {
		return
	}
	used := nodePortsOf(spec)
	if service.HasHealthCheck(old) && service.HasHealthCheck(spec) && spec.HealthCheckNodePort == 0 && !used[old.HealthCheckNodePort] {
		spec.HealthCheckNodePort = old.HealthCheckNodePort
		used[old.HealthCheckNodePort] = true
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		for _, was := range old.Ports {
			if p.NodePort == 0 && was.Name == p.Name && was.NodePort != 0 && !used[was.NodePort] {
				p.NodePort, used[was.NodePort] = was.NodePort, true
			}
		}
	}
}

// assign chooses node ports for the ports that have none, and says why a service cannot have
// the others.
func (n *nodePorts) assign(c *change, spec *corev1.ServiceSpec) (problem string) {
	who := c.namespace + "/" + c.name
	for i := range spec.Ports {
		p := &spec.Ports[i]
		by := n.taken[p.NodePort]
		switch {
		case p.NodePort == 0 || by == "" || by == who:
		case c.printed: // nobody asked for it here
			c.warn("spec.ports[%d].nodePort %d belongs to service %s here; the service gets another one", i, p.NodePort, by)
			p.NodePort = 0
		default:
			return fmt.Sprintf("spec.ports[%d].nodePort %d belongs to service %s; choose another one, or none to have one chosen", i, p.NodePort, by)
		}
	}
	used := nodePortsOf(spec)
	free := func(port int32) bool { return !used[port] && (n.taken[port] == "" || n.taken[port] == who) }
	if service.HasHealthCheck(spec) {
		if problem := n.assignHealthCheck(c, spec, used, free); problem != "" {
			return problem
		}
	}
	if !assignsNodePorts(spec) {
		return ""
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		if p.NodePort != 0 {
			continue
		}
		if shared := sharedNodePort(spec, p); shared != 0 {
			p.NodePort = shared
			continue
		}
		port, ok := freeNodePort(fmt.Sprintf("%s/%d", who, p.Port), free)
		if !ok {
			return noNodePort
		}
		p.NodePort, used[port] = port, true
	}
	return ""
}

var noNodePort = fmt.Sprintf("none of the node ports %d-%d is free; delete services that have one", firstNodePort, lastNodePort)

// assignHealthCheck chooses the node port of a service's health checks, unless it has one.
func (n *nodePorts) assignHealthCheck(c *change, spec *corev1.ServiceSpec, used map[int32]bool, free func(int32) bool) (problem string) {
	who, p := c.namespace+"/"+c.name, spec.HealthCheckNodePort
	switch by := n.taken[p]; {
	case p != 0 && (by == "" || by == who):
		return ""
	case p != 0 && !c.printed:
		return fmt.Sprintf("spec.healthCheckNodePort %d belongs to service %s; choose another one, or none to have one chosen", p, by)
	case p != 0:
		c.warn("spec.healthCheckNodePort %d belongs to service %s here; the service gets another one", p, by)
	}
	p, ok := freeNodePort(who+"/health", free)
	if !ok {
		return noNodePort
	}
	spec.HealthCheckNodePort, used[p] = p, true
	return ""
}

// sharedNodePort is the number of the same port of another protocol; 0 if there is none.
func sharedNodePort(spec *corev1.ServiceSpec, p *corev1.ServicePort) int32 {
	for _, other := range spec.Ports {
		if other.Port == p.Port && other.Protocol != p.Protocol && other.NodePort != 0 {
			return other.NodePort
		}
	}
	return 0
}

// freeNodePort picks a free port for a name, always the same one if it is free, so that a
// service that is deleted and created again keeps its ports.
func freeNodePort(name string, free func(int32) bool) (int32, bool) {
	const count = lastNodePort - firstNodePort + 1
	h := fnv.New32a()
	h.Write([]byte(name))
	for i := range uint32(count) {
		if port := firstNodePort + int32((h.Sum32()+i)%count); free(port) {
			return port, true
		}
	}
	return 0, false
}

// load reads which ports are taken.
func (n *nodePorts) load(ctx context.Context) error {
	if n.taken != nil {
		return nil
	}
	kvs, _, err := n.registry.store.List(ctx, wire.NodePortsPrefix)
	if err != nil {
		return err
	}
	n.taken = make(map[int32]string, len(kvs))
	for _, kv := range kvs {
		if port, err := strconv.ParseInt(kv.Key[len(wire.NodePortsPrefix):], 10, 32); err == nil {
			n.taken[int32(port)] = string(kv.Value)
		}
	}
	return nil
}

// freeNodePorts returns what to write when a service is deleted.
func (r *Registry) freeNodePorts(ctx context.Context, svc *corev1.Service, who string) (writes []wire.Write, err error) {
	for _, port := range slices.Sorted(maps.Keys(nodePortsOf(&svc.Spec))) {
		kv, err := r.store.Get(ctx, wire.NodePortKey(port))
		if err != nil {
			return nil, err
		}
		if string(kv.Value) == who { // an earlier version gave none out
			writes = append(writes, wire.Write{Key: kv.Key, Delete: true})
		}
	}
	return writes, nil
}
