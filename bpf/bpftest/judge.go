package bpftest

import "github.com/weft-mesh/weft/bpf"

// Judge decides about a new flow of a pod as the programs do, by what the tables say: may it
// pass, under the pod's own policies, to or from a peer with this identity? known is false
// if the pod's policies are not there, which lets nothing pass.
func Judge(m *bpf.Maps, pod bpf.Addr, peer uint32, dir bpf.Direction, proto uint8, port uint16) (allow, known bool) {
	s, _, _ := m.Settings.Lookup(0)
	row, _, _ := m.Endpoints.Lookup(pod)
	if row.Set == 0 {
		return true, true
	}
	info, ok, _ := m.Sets.Lookup(bpf.SetKey{Gen: s.PolicyGen, Set: row.Set})
	if !ok {
		return false, false
	}
	class, _, _ := m.Classes.Lookup(bpf.ClassKey{Gen: s.PolicyGen, Identity: peer})
	portClass := uint16(0)
	if i, ok := bpf.PortIndex(s.PolicyGen, proto, port); ok {
		portClass, _, _ = m.Ports.Lookup(i)
	}
	for _, c := range []uint32{class, bpf.AnyClass} {
		for _, k := range [][2]uint16{{portClass, uint16(proto)}, {0, uint16(proto)}, {0, 0}} {
			key := bpf.PolicyKey{Gen: s.PolicyGen, Set: row.Set, Class: c, Port: k[0], Proto: uint8(k[1]), Dir: dir}
			if !info.Shapes[dir].Have(key) {
				continue
			}
			if e, ok, _ := m.Policy.Lookup(key); ok {
				return e.Deny == 0, true
			}
		}
	}
	return info.Enforced[dir] == 0, true
}
