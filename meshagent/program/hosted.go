package program

import (
	"iter"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/internal/addrmap"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// hosted finds the addresses and prefixes behind a tunnel endpoint. It may find some
// that have moved away since. There is one entry for each address in the mesh, so it
// is not an index of the table, which would take thirty times the memory.
type hosted struct {
	behind map[string]*addrmap.Map[bpf.Addr, *spots] // by cluster
	count  int
}

func newHosted() hosted { return hosted{behind: map[string]*addrmap.Map[bpf.Addr, *spots]{}} }

// spots are the addresses and prefixes behind a tunnel endpoint; nil: none.
func (h *hosted) spots(of host) *spots {
	hosts := h.behind[of.cluster]
	if hosts == nil {
		return nil
	}
	in, _ := hosts.Get(bpf.AddrOf(of.addr))
	return in
}

func (h *hosted) put(ip *tables.IP) {
	if !ip.Host.IsValid() {
		return
	}
	in := h.spots(host{ip.Cluster, ip.Host})
	if in == nil {
		in = &spots{}
		if h.behind[ip.Cluster] == nil {
			h.behind[ip.Cluster] = &addrmap.Map[bpf.Addr, *spots]{}
		}
		h.behind[ip.Cluster].Put(bpf.AddrOf(ip.Host), in)
	}
	h.count -= in.count
	in.put(bpf.PrefixOf(ip.Prefix))
	h.count += in.count
}

func (h *hosted) drop(ip *tables.IP) {
	in := h.spots(host{ip.Cluster, ip.Host})
	if in == nil {
		return
	}
	h.count -= in.count
	in.drop(bpf.PrefixOf(ip.Prefix))
	if h.count += in.count; in.count > 0 {
		return
	}
	if h.behind[ip.Cluster].Delete(bpf.AddrOf(ip.Host)); h.behind[ip.Cluster].Len() == 0 {
		delete(h.behind, ip.Cluster)
	}
}

// at yields what is behind a tunnel endpoint.
func (h *hosted) at(of host) iter.Seq[bpf.PrefixKey] {
	if in := h.spots(of); in != nil {
		return in.all()
	}
	return func(func(bpf.PrefixKey) bool) {}
}

// learnHosts makes the index again from the table, without those that have moved away.
func (p *Program) learnHosts(v *view) {
	p.hosted = newHosted()
	for ip := range v.tables.EachIP(v.txn) {
		p.hosted.put(&ip)
	}
	if p.ported != nil {
		p.learnPorts(v)
	}
}

// learnPorts does the same for named ports.
func (p *Program) learnPorts(v *view) {
	p.ported = ported{}
	for ip := range v.tables.EachIP(v.txn) {
		p.ported.put(&ip)
	}
}

// crowded says whether most of the index has moved away.
func (p *Program) crowded(v *view) bool {
	return p.hosted.count > 1000+2*v.tables.CountIPs()
}
