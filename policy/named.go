package policy

import (
	"maps"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/identity"
)

// Each endpoint decides which number a port name stands for. To judge by name, the
// number is among the labels of the destination: the subject for ingress, the peer for
// egress. A rule by name then becomes one rule for each number in use.

// PortName is a port as policies name it.
type PortName struct {
	Proto uint8
	Name  string
}

// key is the name as a label key. No key that a selector can name starts like this.
func (n PortName) key() string {
	return map[uint8]string{ProtoTCP: "TCP", ProtoUDP: "UDP", ProtoSCTP: "SCTP"}[n.Proto] + "/" + n.Name
}

// PortLabel is the label of an endpoint with a named port.
func PortLabel(protocol, name string, port uint16) identity.Label {
	return identity.Label{Source: identity.SourcePort, Key: protocol + "/" + name, Value: strconv.Itoa(int(port))}
}

// NamedPorts returns the label keys of the ports that policies refer to by name.
func NamedPorts(policies []*Policy) map[string]bool {
	out := map[string]bool{}
	for _, p := range policies {
		for _, r := range p.rules {
			for _, t := range slices.Concat(r.terms[:]...) {
				for _, s := range t.ports {
					if s.name != "" {
						out[PortName{s.proto, s.name}.key()] = true
					}
				}
			}
		}
	}
	return out
}

// portNumbers says, by label key, which numbers of named ports there are and how many
// identities and subjects have each.
type portNumbers map[string]map[uint16]int

// count adds n for each port number in labels. It returns the keys that gained or lost a
// number by that.
func (p portNumbers) count(labels identity.Labels, n int) (changed []string) {
	for _, l := range labels {
		number, ok := portNumber(l)
		if !ok {
			continue
		}
		have := p[l.Key]
		if have == nil {
			have = map[uint16]int{}
			p[l.Key] = have
		}
		before := have[number]
		if have[number] = before + n; have[number] == 0 {
			delete(have, number)
		}
		if before == 0 || have[number] == 0 {
			changed = append(changed, l.Key)
		}
	}
	return changed
}

// of returns the numbers of a named port, ascending.
func (p portNumbers) of(s portSpec) []uint16 {
	return slices.Sorted(maps.Keys(p[PortName{s.proto, s.name}.key()]))
}

// knows reports whether rules were made for all port numbers in labels.
func (p portNumbers) knows(labels identity.Labels) bool {
	return !slices.ContainsFunc(labels, func(l identity.Label) bool {
		n, ok := portNumber(l)
		return ok && p[l.Key][n] == 0
	})
}

// portNumber is the number in the label of an endpoint with a named port.
func portNumber(l identity.Label) (uint16, bool) {
	if l.Source != identity.SourcePort {
		return 0, false
	}
	n, err := strconv.ParseUint(l.Value, 10, 16)
	return uint16(n), err == nil
}

// requires is the condition that an endpoint's port of this name has this number.
func requires(s portSpec, number uint16) requirement {
	return requirement{source: identity.SourcePort, key: PortName{s.proto, s.name}.key(), op: metav1.LabelSelectorOpIn, values: []string{strconv.Itoa(int(number))}}
}

// named splits a term into its numeric ports and its ports by name.
func (t compiledTerm) named() (plain *compiledTerm, names []portSpec) {
	var numbers []portSpec
	for _, s := range t.ports {
		if s.name == "" {
			numbers = append(numbers, s)
		} else {
			names = append(names, s)
		}
	}
	if len(names) > 0 && len(numbers) == 0 {
		return nil, names
	}
	t.ports = numbers
	return &t, names
}

// unnamed rewrites a rule without port names: for ingress as one rule for each number
// that a subject's port may have, for egress as one term for each number that a peer's
// port may have.
func (p portNumbers) unnamed(r compiledRule) []compiledRule {
	out := []compiledRule{r}
	for _, dir := range directions {
		var terms []compiledTerm
		for _, t := range r.terms[dir] {
			plain, names := t.named()
			if plain != nil {
				terms = append(terms, *plain)
			}
			for _, s := range names {
				if dir == Ingress {
					out = append(out, p.ofSubjects(r, t, s)...)
				} else {
					terms = append(terms, p.ofPeers(t, s)...)
				}
			}
		}
		out[0].terms[dir] = terms
	}
	return out
}

func (p portNumbers) ofSubjects(r compiledRule, t compiledTerm, s portSpec) (out []compiledRule) {
	for _, n := range p.of(s) {
		t.ports = []portSpec{{proto: s.proto, first: n, last: n}}
		sub := compiledRule{policy: r.policy, subject: append(slices.Clone(r.subject), requires(s, n)), log: r.log}
		sub.terms[Ingress] = []compiledTerm{t}
		out = append(out, sub)
	}
	return out
}

func (p portNumbers) ofPeers(t compiledTerm, s portSpec) (out []compiledTerm) {
	peers := t.peers
	if t.any {
		peers = []peer{{}}
	}
	for _, n := range p.of(s) {
		one := t
		one.any, one.ports, one.peers = false, []portSpec{{proto: s.proto, first: n, last: n}}, nil
		for _, q := range peers {
			// Addresses outside of the mesh have no named ports.
			if q.kind == peerLabels || q.mesh {
				q.selector = append(slices.Clone(q.selector), requires(s, n))
				one.peers = append(one.peers, q)
			}
		}
		one.known = true
		out = append(out, one)
	}
	if t.deny {
		// The ports of an unknown peer are not known: it is denied all of them.
		one := t
		one.any, one.peers, one.ports, one.unknown = false, peers, []portSpec{{proto: s.proto, last: maxPort}}, true
		out = append(out, one)
	}
	return out
}
