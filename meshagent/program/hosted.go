package program

import (
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// hosted finds the addresses and prefixes behind a tunnel endpoint. It may find some
// that have moved away since. There is one entry for each address in the mesh, so it
// is not an index of the table, which would take four times the memory.
type hosted struct {
	behind map[host]map[bpf.PrefixKey]struct{}
	count  int
}

func (h *hosted) put(ip *tables.IP) {
	if !ip.Host.IsValid() {
		return
	}
	at := host{ip.Cluster, ip.Host}
	if h.behind[at] == nil {
		h.behind[at] = map[bpf.PrefixKey]struct{}{}
	}
	before := len(h.behind[at])
	h.behind[at][bpf.PrefixOf(ip.Prefix)] = struct{}{}
	h.count += len(h.behind[at]) - before
}

func (h *hosted) drop(ip *tables.IP) {
	at := host{ip.Cluster, ip.Host}
	before := len(h.behind[at])
	delete(h.behind[at], bpf.PrefixOf(ip.Prefix))
	h.count += len(h.behind[at]) - before
	if len(h.behind[at]) == 0 {
		delete(h.behind, at)
	}
}

// learnHosts makes the index again from the table, without those that have moved away.
func (p *Program) learnHosts(v *view) {
	p.hosted = hosted{behind: map[host]map[bpf.PrefixKey]struct{}{}}
	for ip := range v.tables.IPs.All(v.txn) {
		p.hosted.put(ip)
	}
}

// crowded says whether most of the index has moved away.
func (p *Program) crowded(v *view) bool {
	return p.hosted.count > 1000+2*v.tables.IPs.NumObjects(v.txn)
}
