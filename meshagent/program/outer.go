package program

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// unfit says why this node cannot offer a frontend outside of the mesh; "" if it can. A service
// whose address is inside of the mesh would take another cluster's pod away from everybody on
// this node, and one at a port of Weft's own the node from the mesh.
func (v *view) unfit(f service.Frontend) string {
	machine := f.Addr.IsLoopback() || slices.Contains(v.addresses, f.Addr) || slices.Contains(v.machines, f.Addr) || v.nodes.named.first(f.Addr) != ""
	if machine && slices.Contains(v.ports, f.Port) {
		return fmt.Sprintf("%v is the address of a machine of the mesh that needs port %d itself; give the service another port, or another address", f.Addr, f.Port)
	}
	if !machine && v.inMesh(whole(f.Addr)) {
		return fmt.Sprintf("%v is inside of the mesh, so it cannot be an external address; give the service another one", f.Addr)
	}
	return ""
}

// portsOf are the ports of the API servers that agents use.
func portsOf(a *wire.Access) (out []uint16) {
	if a == nil {
		return nil
	}
	for _, text := range slices.Concat(a.Servers, a.Etcd, a.Gossip) {
		text = strings.TrimPrefix(text, "https://")
		if _, port, err := net.SplitHostPort(text); err == nil {
			if n, err := strconv.ParseUint(port, 10, 16); err == nil {
				out = append(out, uint16(n))
			}
		}
	}
	return out
}

// admit adds the clients that may use a frontend. Processes of this node may if one of its
// addresses is among them, because they connect from there.
func (v *view) admit(f service.Frontend, to map[bpf.RangeKey]bool) {
	for _, p := range f.Ranges {
		to[bpf.RangeOf(p)] = true
		if slices.ContainsFunc(v.addresses, p.Contains) {
			to[bpf.RangeKey{Bits: 32 + 128, Addr: v.internal}] = true
		}
	}
}

// Health is what a load balancer is told of a service with externalTrafficPolicy Local.
type Health struct {
	Namespace, Name string
	Port            uint16
	// Local counts the service's backends on this node. Written says that the kernel knows them.
	Local   int
	Written bool
}

// checks are the health checks of all services, in order of name.
func (f *frontends) checks() (all []Health) {
	for _, id := range slices.Sorted(maps.Keys(f.health)) {
		h := f.health[id]
		h.Written = !f.again[id]
		all = append(all, h)
	}
	return all
}
