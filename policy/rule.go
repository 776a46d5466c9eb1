package policy

import (
	"bytes"
	"encoding/json"
	"unicode"
	"unicode/utf8"
)

const maxLogLength = 32

// rule checks one spec of policy p and converts it.
func (s *spec) rule(at path, p *Policy, ps *problems) rule {
	var out rule
	switch {
	case s.NodeSelector != nil && p.Kind == KindNamespaced:
		ps.add(at.field("nodeSelector"), "a %s cannot select nodes; use endpointSelector", KindNamespaced)
	case s.NodeSelector != nil:
		ps.add(at.field("nodeSelector"), "policies for nodes are not supported; use endpointSelector")
	case s.EndpointSelector == nil:
		ps.add(at.field("endpointSelector"), "is missing; write {} to select every workload%s", inNamespace(p))
	default:
		where := at.field("endpointSelector")
		subject := parseSelector(where, s.EndpointSelector, parseKey, ps)
		if word := subject.reservedWord(); word != "" {
			ps.addNew(where, "reserved:%s selects no workload; policies apply to pods, so select them by their own labels", word)
		}
		subject.refuseContradiction(where, "no workload", true, ps)
		out.subject = scopeSubject(where, subject, p.Namespace, ps)
	}
	if len(s.Ingress)+len(s.IngressDeny)+len(s.Egress)+len(s.EgressDeny) == 0 {
		ps.add(at, "has no rules; write at least one item under ingress, ingressDeny, egress or egressDeny (the item {} turns on default deny)")
	}
	if s.Log != nil {
		out.log = s.Log.Value
		checkLog(at.field("log").field("value"), s.Log.Value, ps)
	}
	for i, l := range s.Labels {
		if l.Key == "" {
			ps.add(at.field("labels").index(i).field("key"), "is missing; name the label or remove it")
		}
	}
	out.enforced = [2]bool{
		Egress:  len(s.Egress)+len(s.EgressDeny) > 0,
		Ingress: len(s.Ingress)+len(s.IngressDeny) > 0,
	}
	if d := s.EnableDefaultDeny; d != nil {
		where := at.field("enableDefaultDeny")
		if d.Ingress != nil {
			warnDefaultDeny(where, Ingress, *d.Ingress && !out.enforced[Ingress], p)
			out.enforced[Ingress] = *d.Ingress
		}
		if d.Egress != nil {
			warnDefaultDeny(where, Egress, *d.Egress && !out.enforced[Egress], p)
			out.enforced[Egress] = *d.Egress
		}
	}
	for i, it := range s.IngressDeny {
		out.add(at, "ingressDeny", i, it.item(), p, ps)
	}
	for i, it := range s.Ingress {
		out.add(at, "ingress", i, it.item(), p, ps)
	}
	for i, it := range s.EgressDeny {
		out.add(at, "egressDeny", i, it.item(), p, ps)
	}
	for i, it := range s.Egress {
		out.add(at, "egress", i, it.item(), p, ps)
	}
	return out
}

// warnDefaultDeny warns where we follow the field's documentation, which says that it
// denies, and Cilium's engine, which ignores it without rules, does not.
func warnDefaultDeny(at path, dir Direction, lone bool, p *Policy) {
	if lone {
		p.warn(at.field(dir.String()), "denies all %s of the selected workloads, because there are no %s rules (Cilium ignores the field then)", dir, dir)
	}
}

func inNamespace(p *Policy) string {
	if p.Namespace == "" {
		return ""
	}
	return " of namespace " + p.Namespace
}

// add checks one item of a list and appends it as a term.
func (r *rule) add(at path, list string, i int, it item, p *Policy, ps *problems) {
	where := at.field(list).index(i)
	t := term{list: list, index: i, deny: list == "ingressDeny" || list == "egressDeny"}
	t.peers, t.any = parsePeers(where, it, p.Namespace, ps)
	t.ports = parsePorts(where, it, t.deny, p, ps)
	if it.authn != nil {
		checkAuthentication(where.field("authentication"), it.authn, t.deny, ps)
	}
	dir := Ingress
	if it.prefix == "to" {
		dir = Egress
	}
	r.terms[dir] = append(r.terms[dir], t)
}

func checkAuthentication(at path, a *authentication, deny bool, ps *problems) {
	switch {
	case deny:
		ps.add(at, "has no meaning in a deny list; remove it")
	case a.Mode == "required", a.Mode == "test-always-fail":
		ps.add(at.field("mode"), "mutual authentication is not supported; remove authentication, traffic between clusters is encrypted and carries the workload's identity anyway")
	case a.Mode != "disabled":
		ps.add(at.field("mode"), "%q is not a mode; remove authentication or write disabled", a.Mode)
	}
}

func checkLog(at path, value string, ps *problems) {
	if utf8.RuneCountInString(value) > maxLogLength {
		ps.add(at, "is longer than %d characters; shorten it", maxLogLength)
	}
	for _, c := range value {
		if !unicode.IsPrint(c) {
			ps.add(at, "holds the unprintable character %q; remove it", c)
			return
		}
	}
}

// emptyList reports whether a raw value is an empty list.
func emptyList(raw json.RawMessage) bool {
	var items []json.RawMessage
	return json.Unmarshal(raw, &items) == nil && len(items) == 0
}

// hollow reports whether a raw value is absent or says nothing: {}, [] or "".
func hollow(raw json.RawMessage) bool {
	switch string(bytes.TrimSpace(raw)) {
	case "", "{}", "[]", `""`:
		return true
	}
	return false
}
