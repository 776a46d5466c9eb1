package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Limits of Cilium's schema.
const (
	maxPorts      = 40
	maxICMPFields = 40
	maxPort       = 65535
)

var protocols = map[string][]uint8{
	"":     {ProtoTCP, ProtoUDP, ProtoSCTP},
	"ANY":  {ProtoTCP, ProtoUDP, ProtoSCTP},
	"TCP":  {ProtoTCP},
	"UDP":  {ProtoUDP},
	"SCTP": {ProtoSCTP},
}

// extendedProtocols need a flag in Cilium and are not supported here.
var extendedProtocols = []string{"VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH"}

// parsePorts reads toPorts and icmps of one item; nil means any port and
// protocol.
func parsePorts(at path, it item, deny bool, p *Policy, ps *problems) []portSpec {
	if len(it.ports) > 0 && len(it.icmps) > 0 {
		ps.add(at, "combines toPorts and icmps; write one list item for each")
	}
	var out []portSpec
	for i, r := range it.ports {
		where := at.field("toPorts").index(i)
		refuseL7(where, r, deny, ps)
		switch {
		case len(r.Ports) == 0:
			ps.add(where.field("ports"), "is empty; list the ports, or leave toPorts out to mean any")
		case len(r.Ports) > maxPorts:
			ps.add(where.field("ports"), "lists %d ports, but %d is the limit; use endPort for ranges or a second item", len(r.Ports), maxPorts)
		}
		for j, p := range r.Ports {
			out = append(out, parsePort(where.field("ports").index(j), p, ps)...)
		}
	}
	for i, r := range it.icmps {
		where := at.field("icmps").index(i)
		switch {
		case len(r.Fields) == 0:
			ps.add(where.field("fields"), "is empty; list the ICMP types, or leave icmps out")
		case len(r.Fields) > maxICMPFields:
			ps.add(where.field("fields"), "lists %d types, but %d is the limit; use a second item", len(r.Fields), maxICMPFields)
		}
		for j, f := range r.Fields {
			if spec, ok := parseICMP(where.field("fields").index(j), f, deny, p, ps); ok {
				out = append(out, spec)
			}
		}
	}
	return out
}

// refuseL7 refuses what needs a proxy: ignoring it would allow more than the policy
// says.
func refuseL7(at path, r *portRule, deny bool, ps *problems) {
	for _, f := range []struct {
		name  string
		value json.RawMessage
		what  string
	}{
		{"rules", r.Rules, "rules on requests (http, dns, kafka, l7) are"},
		{"terminatingTLS", r.TerminatingTLS, "TLS interception is"},
		{"originatingTLS", r.OriginatingTLS, "TLS interception is"},
		{"serverNames", r.ServerNames, "rules on TLS server names are"},
		{"listener", r.Listener, "redirecting to a listener is"},
	} {
		switch {
		case hollow(f.value) || f.name == "rules" && noRequests(f.value):
		case deny:
			ps.add(at.field(f.name), "a deny list takes ports only; remove it")
		default:
			ps.add(at.field(f.name), "%s not supported; remove it to allow the whole port, or leave the port out", f.what)
		}
	}
}

// noRequests reports whether rules lists no request of any kind: as in Cilium, the
// whole port is then allowed.
func noRequests(raw json.RawMessage) bool {
	var lists map[string]json.RawMessage
	if json.Unmarshal(raw, &lists) != nil {
		return false
	}
	for kind, list := range lists {
		if !slices.Contains([]string{"http", "dns", "kafka", "l7"}, kind) || !emptyList(list) {
			return false
		}
	}
	return true
}

func parsePort(at path, p *portProtocol, ps *problems) []portSpec {
	protos, ok := protocols[strings.ToUpper(p.Protocol)]
	if !ok {
		ps.add(at.field("protocol"), "%s", refuseProtocol(p.Protocol))
	}
	number, name, ok := parsePortNumber(at.field("port"), p.Port, ps)
	if !ok {
		return nil
	}
	out := make([]portSpec, 0, len(protos))
	if name != "" {
		if p.EndPort != nil && *p.EndPort != 0 {
			ps.add(at.field("endPort"), "needs a port number, not a name")
		}
		for _, proto := range protos {
			out = append(out, portSpec{proto: proto, name: name})
		}
		return out
	}
	first, last := number, number
	if number == 0 {
		last = maxPort
	}
	if p.EndPort != nil && *p.EndPort != 0 {
		end := *p.EndPort
		where := at.field("endPort")
		switch {
		case end < 0 || end > maxPort:
			ps.add(where, "%d is out of range; write a number from 1 to %d", end, maxPort)
			return nil
		case number == 0:
			ps.add(where, "needs a port to start from; port 0 already means any port")
			return nil
		case end < int64(number):
			ps.add(where, "%d is below port %d; swap them", end, number)
			return nil
		}
		last = uint16(end)
	}
	for _, proto := range protos {
		out = append(out, portSpec{proto: proto, first: first, last: last})
	}
	return out
}

func digitsOnly(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func refuseProtocol(name string) string {
	upper := strings.ToUpper(name)
	switch {
	case upper == "ICMP" || upper == "ICMPV6":
		return fmt.Sprintf("%q has no ports; use icmps instead of toPorts", name)
	case slices.Contains(extendedProtocols, upper):
		return fmt.Sprintf("%q is not supported; TCP, UDP, SCTP and ANY are", name)
	}
	return fmt.Sprintf("%q is not a protocol; write TCP, UDP, SCTP or ANY", name)
}

// parsePortNumber reads a port number or a port name.
func parsePortNumber(at path, raw json.RawMessage, ps *problems) (_ uint16, name string, ok bool) {
	if raw == nil {
		ps.add(at, `is missing; write a number in quotes, "0" for any port`)
		return 0, "", false
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		ps.add(at, "%s is not a string; put it in quotes: %q", raw, strings.Trim(string(raw), `"`))
		return 0, "", false
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err == nil {
		if plain := strconv.FormatUint(n, 10); plain != text {
			ps.addNew(at, "%q is not a port number; write %q", text, plain)
		}
		return uint16(n), "", true
	}
	if first, last, ok := strings.Cut(text, "-"); ok && digitsOnly(first) && digitsOnly(last) {
		ps.add(at, "%q is a range; write port: %q and endPort: %s", text, first, last)
		return 0, "", false
	}
	if _, digits := strconv.ParseInt(text, 10, 64); digits == nil || strings.Trim(text, "0123456789") == "" {
		ps.add(at, "%q is out of range; write a number from 0 to %d", text, maxPort)
		return 0, "", false
	}
	name = strings.ToLower(text)
	if why := validation.IsValidPortName(name); len(why) != 0 {
		ps.add(at, "%q is neither a port number nor the name of one: %s", text, why[0])
		return 0, "", false
	}
	return 0, name, true
}
