package meshagent

import (
	"net"
	"strconv"

	"github.com/weft-mesh/weft/api"
)

// facts are what `weft doctor` needs to know of this node.
func (a *Agent) facts() api.NodeFacts {
	used := a.access.now()
	f := api.NodeFacts{
		Cluster: a.node.cluster, Node: a.node.name, Device: a.cfg.Device, Addresses: a.node.addrs, PodCIDRs: a.node.cidrs,
		StateDir: a.cfg.StateDir, BPFDir: a.cfg.BPFDir, CNIConfDir: a.cfg.CNIConfDir, Servers: used.Servers, Etcd: used.Etcd,
		GossipPort: a.cfg.GossipPort, TakesPods: a.cfg.PodsFrom == Requests, Ready: a.readyForPods(),
	}
	if _, port, err := net.SplitHostPort(a.cfg.Listen); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			f.Listen = uint16(n)
		}
	}
	return f
}
