package program

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
)

// Host ports of this node's pods are frontends like those of services. Their ID is the pod's
// name after a mark that puts it behind every service's: if both want an address and port, the
// service has it.
const podMark = "~"

// hostPorts is the table that problems with host ports are of.
const hostPorts = "hostports"

func podID(p *tables.Pod) string { return podMark + p.Key() }

// rowOf is the row that problems with the frontends of an ID are told of.
func (v *view) rowOf(id string) rowName {
	if pod, ok := strings.CutPrefix(id, podMark); ok {
		return rowName{hostPorts, pod}
	}
	return rowName{"services", v.own.Name + "/" + id}
}

// holder is whoever has a frontend, for people.
func (r rowName) holder() string {
	if r.table == hostPorts {
		return "pod " + r.row
	}
	return "service " + r.row
}

// hostPortsOf are the host ports of a pod, if it is on this node.
func (v *view) hostPortsOf(p *tables.Pod) []service.HostPort {
	if p == nil || p.Object == nil || p.Object.Spec.NodeName != v.self {
		return nil
	}
	return service.HostPorts(&p.Object.Spec)
}

// hostFrontends are the frontends of a pod's host ports.
func (v *view) hostFrontends(p *tables.Pod) []service.Frontend {
	if ports := v.hostPortsOf(p); len(ports) > 0 && p.Endpoint != nil && p.Endpoint.Node == v.self {
		return service.HostFrontends(v.client(), &service.Pod{Namespace: p.Namespace, Name: p.Name}, p.Endpoint.IPs(), v.addresses, ports)
	}
	return nil
}

// derivePod is deriveService for the host ports of a pod, "namespace/name".
func derivePod(v *view, name string, index func(string) uint16) (d derived) {
	namespace, pod, _ := strings.Cut(name, "/")
	p := tables.Get(v.txn, v.tables.Pods, (&tables.Pod{Namespace: namespace, Name: pod}).Key())
	row := rowName{hostPorts, name}
	for _, h := range v.hostPortsOf(p) {
		d.read = []rowName{row}
		if !h.Named() || h.Addr.IsLoopback() {
			continue
		}
		d.outer = append(d.outer, h.Addr)
		if len(v.addresses) > 0 && !slices.Contains(v.addresses, h.Addr) {
			d.doubts = append(d.doubts, doubt{row.table, row.row, fmt.Sprintf("hostIP %v is no address of this node's device; leave it out, or name one of %v", h.Addr, v.addresses)})
		}
	}
	d.addOuter(v, row, v.hostFrontends(p), index)
	return d
}

// takePods marks the pods dirty whose host ports may have changed.
func (f *frontends) takePods(v *view, r *report, dirty dirt) {
	for _, c := range f.pods.take(v.txn) {
		id := podID(c.Object)
		if _, known := f.known[id]; known || len(v.hostPortsOf(c.Object)) > 0 {
			r.row(hostPorts, c.Object.Key())
			dirty.whole(id)
		}
	}
	if f.readdressed {
		for id := range f.known {
			if strings.HasPrefix(id, podMark) {
				dirty.whole(id)
			}
		}
	}
}
