package meaning

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/bpf"
)

// policyRows says what policy lets through, for each endpoint and identity.
func (s *state) policyRows() {
	gen := s.settings.PolicyGen
	used := map[uint32]bool{}
	for _, e := range s.endpoints {
		used[e.Set] = true
	}
	who := map[uint32][]string{bpf.AnyClass: {"anybody"}}
	for k, class := range s.classes {
		if k.Gen != gen {
			s.say("stray class of identity %d", k.Identity)
			continue
		}
		who[class] = append(who[class], fmt.Sprintf("identity %d", k.Identity))
	}
	for k := range s.sets {
		if k.Gen != gen || !used[k.Set] {
			s.say("stray policy set")
		}
	}
	inForce := map[uint32]map[bpf.PolicyKey]bpf.PolicyEntry{}
	for k, e := range s.policy {
		if k.Gen != gen || !used[k.Set] {
			s.say("stray policy entry: %v %s", k.Dir, protocol(k.Proto))
			continue
		}
		if inForce[k.Set] == nil {
			inForce[k.Set] = map[bpf.PolicyKey]bpf.PolicyEntry{}
		}
		if info, ok := s.sets[bpf.SetKey{Gen: gen, Set: k.Set}]; ok && !info.Shapes[k.Dir].Have(k) {
			s.say("hidden policy entry: %v %s", k.Dir, protocol(k.Proto))
			continue
		}
		inForce[k.Set][k] = e
	}
	ports, stray := portClasses(s.ports, gen)
	if stray > 0 {
		s.say("stray ports: %d", stray)
	}
	for a, e := range s.endpoints {
		if e.Set == 0 {
			s.say("policy of %v: none", a)
			continue
		}
		info, ok := s.sets[bpf.SetKey{Gen: gen, Set: e.Set}]
		if !ok {
			s.say("policy of %v: its set is missing", a)
			continue
		}
		s.say("policy of %v: egress enforced %d, ingress enforced %d", a, info.Enforced[bpf.Egress], info.Enforced[bpf.Ingress])
		s.entries(a, inForce[e.Set], who, ports)
	}
}

// entries says what the entries of one set mean for one endpoint.
func (s *state) entries(a bpf.Addr, all map[bpf.PolicyKey]bpf.PolicyEntry, who map[uint32][]string, ports map[portClass][]uint16) {
	verdicts := map[string]map[string][]uint16{} // of whom, then by verdict; no ports is any
	for k, e := range all {
		verdict := "allowed"
		if e.Deny != 0 {
			verdict = "denied"
		}
		if k.Port == 0 {
			verdict += " on any port"
		}
		parties := who[k.Class]
		if len(parties) == 0 {
			parties = []string{"nobody"}
		}
		for _, one := range parties {
			subject := fmt.Sprintf("policy of %v: %v %s with %s", a, k.Dir, protocol(k.Proto), one)
			if verdicts[subject] == nil {
				verdicts[subject] = map[string][]uint16{}
			}
			of := verdicts[subject]
			if of[verdict] = append(of[verdict], ports[portClass{k.Proto, k.Port}]...); k.Port == 0 {
				of[verdict] = nil
			}
		}
	}
	for subject, by := range verdicts {
		var said []string
		for _, verdict := range slices.Sorted(maps.Keys(by)) {
			said = append(said, strings.TrimSpace(verdict+" "+ranges(by[verdict])))
		}
		s.say("%s: %s", subject, strings.Join(said, ", "))
	}
}

// portClass is a class of ports of a protocol.
type portClass struct {
	proto uint8
	class uint16
}

// portClasses returns the ports of each class in a generation, and how many rows of others
// there are.
func portClasses(rows map[uint32]uint16, gen uint32) (of map[portClass][]uint16, stray int) {
	of = map[portClass][]uint16{}
	found := 0
	for _, proto := range []uint8{1, 6, 17, 132} {
		first, _ := bpf.PortIndex(gen, proto, 0)
		for i, class := range rows {
			if i >= first && i < first+1<<16 {
				found++
				of[portClass{proto, class}] = append(of[portClass{proto, class}], uint16(i-first))
			}
		}
	}
	return of, len(rows) - found
}

// ranges writes ports in order, such as 80,443,8000-8080.
func ranges(ports []uint16) string {
	slices.Sort(ports)
	ports = slices.Compact(ports)
	var b strings.Builder
	for i := 0; i < len(ports); {
		last := i
		for last+1 < len(ports) && ports[last+1] == ports[last]+1 {
			last++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, ports[i])
		if last > i {
			fmt.Fprintf(&b, "-%d", ports[last])
		}
		i = last + 1
	}
	return b.String()
}
