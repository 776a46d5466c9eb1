package trace

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/flow"
)

// shownFlows, shownBackends and shownReports bound what is told of each.
const (
	shownFlows    = 3
	shownBackends = 10
	shownReports  = 3
)

// known is a flow of the connection.
type known struct {
	key bpf.FlowKey
	bpf.Flow
}

// flows tells of the live flows with this key, in which a zero port of the client is any, and
// returns the latest that has not ended; nil: there is none.
func (w *walk) flows(key bpf.FlowKey) *known {
	now := bpf.Now()
	var all []known
	client := key.Lport
	if w.q.Arrives != "" && !isICMP(key.Proto) {
		client = key.Rport
	}
	keep := func(k bpf.FlowKey, f bpf.Flow) {
		if f.Flags&bpf.FlowAnswers == 0 && !f.Expired(k.Proto, now) {
			all = append(all, known{k, f})
		}
	}
	if client != (bpf.Port{}) {
		for _, beside := range []uint8{0, 1} {
			key.Beside = beside
			if f, ok := look(&w.rows, w.maps.Flows, key); ok {
				keep(key, f)
			}
		}
	} else {
		rows, failed := w.maps.Flows.All()
		for k, f := range rows {
			if k.Local == key.Local && k.Remote == key.Remote && k.Proto == key.Proto &&
				(k.Rport == key.Rport || key.Rport == (bpf.Port{})) && (k.Lport == key.Lport || key.Lport == (bpf.Port{})) {
				keep(k, f)
			}
		}
		w.err = cmp.Or(w.err, failed())
	}
	if len(all) == 0 {
		w.found("flow", "none: what follows is about a new connection")
		return nil
	}
	slices.SortFunc(all, func(a, b known) int { return cmp.Compare(b.Seen, a.Seen) })
	for i, f := range all {
		if i == shownFlows {
			w.found("flow", "and %d more", len(all)-i)
			break
		}
		w.found("flow", "%s", w.flowText(f, now))
	}
	if i := slices.IndexFunc(all, func(f known) bool { return f.Lifetime(f.key.Proto) != bpf.TCPClosing }); i >= 0 {
		return &all[i]
	}
	return nil
}

func (w *walk) flowText(f known, now uint64) string {
	port := f.key.Lport
	if w.q.Arrives != "" && !isICMP(f.key.Proto) {
		port = f.key.Rport
	}
	what, text := "port", []string{"not answered yet"}
	if isICMP(f.key.Proto) {
		what = "identifier"
	}
	const closed = bpf.FlowFinLocal | bpf.FlowFinRemote
	switch {
	case f.Flags&bpf.FlowReset != 0:
		text[0] = "reset"
	case f.Flags&closed == closed:
		text[0] = "closed"
	case f.Flags&bpf.FlowReplied != 0:
		text[0] = "open"
	}
	if f.Flags&bpf.FlowRemoteInitiated != 0 && w.q.Arrives == "" || f.Flags&bpf.FlowRemoteInitiated == 0 && w.q.Arrives != "" {
		text = append(text, "opened by the other side")
	}
	text = append(text, "last packet "+ago(time.Duration(max(now, f.Seen)-f.Seen))+" ago")
	if f.Flags&bpf.FlowService != 0 {
		text = append(text, fmt.Sprintf("backend %v", netip.AddrPortFrom(f.Backend.Netip(), f.Bport.Number())))
	}
	if other := f.Flags.Other(); other != (bpf.Port{}) {
		text = append(text, fmt.Sprintf("with port %d towards the other side", other.Number()))
	}
	switch {
	case !w.holds(f.key, f.Flow):
		text = append(text, "to be judged again at its next packet")
	case f.Rule == 0:
		text = append(text, "no rule decided")
	default:
		if p, ok := w.Resolver.Rule(w.settings.PolicyGen, f.Rule); ok {
			text = append(text, "allowed by "+p.String())
		}
	}
	return fmt.Sprintf("%s %d: %s", what, port.Number(), strings.Join(text, ", "))
}

// seenFrom is the client as the other side sees it.
func (w *walk) seenFrom(known *known) netip.AddrPort {
	if known == nil || w.q.From.Port() == 0 {
		return w.q.From
	}
	if other := known.Flags.Other(); other != (bpf.Port{}) {
		return netip.AddrPortFrom(w.q.From.Addr(), other.Number())
	}
	return w.q.From
}

// choose tells which backends a service has for a new connection of the client, and returns the
// one that is followed: that of the flow or session there is, or one that may be chosen; false if
// there is none.
func (w *walk) choose(svc bpf.Service, client bpf.Addr, known *known) (netip.AddrPort, bool) {
	name := w.q.To.Addr().String()
	if namespace, of := w.Resolver.Service(w.q.To, w.q.Protocol); of != "" {
		name = namespace + "/" + of
	}
	name += " " + w.portName(w.q.To.Port())
	if svc.Timeout.Flags()&bpf.ServiceRanged != 0 && !w.admits(svc, client) {
		w.drop("service", fmt.Sprintf("%s: %v is in none of its loadBalancerSourceRanges", name, w.q.From.Addr()), bpf.ReasonSourceRange)
		return netip.AddrPort{}, false
	}
	all := w.backends(svc)
	slices.SortStableFunc(all, func(a, b backend) int {
		return cmp.Or(cmp.Compare(a.group.Tier, b.group.Tier), a.Addr.Netip().Compare(b.Addr.Netip()))
	})
	at, why := slices.IndexFunc(all, func(b backend) bool { return b.chosen }), "the first that may be"
	usable := 0
	for _, b := range all {
		if b.chosen {
			usable++
		}
	}
	if last, ok := look(&w.rows, w.maps.Affinities, bpf.AffinityKey{Client: client, Service: svc.ID}); ok && svc.Timeout.String() != "0s" {
		if i := slices.IndexFunc(all, func(b backend) bool { return b.chosen && b.Addr == last.Backend && b.Port == last.Port }); i >= 0 {
			at, why = i, "the one of the client's session"
		}
	}
	followed := netip.AddrPort{}
	if at >= 0 {
		followed = netip.AddrPortFrom(all[at].Addr.Netip(), all[at].Port.Number())
	}
	// With no port of the client, the question is about new connections too.
	if known != nil && known.Flags&bpf.FlowService != 0 && (usable > 0 || w.q.From.Port() != 0) {
		followed, why = netip.AddrPortFrom(known.Backend.Netip(), known.Bport.Number()), "that of the flow"
	}
	w.found("service", "%s: %s, of which new connections get %d", name, api.Count(len(all), "backend"), usable)
	for i := range all {
		if i == shownBackends {
			w.found("backend", "and %d more", len(all)-i)
			break
		}
		w.found("backend", "%s", w.backendText(&all[i]))
	}
	if !followed.IsValid() {
		found := name + " has no backend"
		if len(all) > 0 {
			found = name + " has no backend that can be reached"
		}
		w.drop("service", found, bpf.ReasonNoBackend)
		return followed, false
	}
	if usable != 1 || why != "the first that may be" {
		w.found("service", "what follows is about %v, %s", followed, why)
	}
	return followed, true
}

func (w *walk) backendText(b *backend) string {
	at := place{identity: 0}
	if info, why := w.locate(b.Addr); why == 0 {
		at = info
	}
	text := fmt.Sprintf("tier %d: %s, port %d", b.group.Tier, w.name(b.Addr.Netip(), at.identity), b.Port.Number())
	switch {
	case b.why != 0:
		text += ": " + unreachable[b.why]
	case b.remote:
		text += ": " + w.nodeName(b.node) + " is " + pathNames[b.path]
		if b.path == bpf.PathDead {
			text += sinceDown(w.pathRow(b.node))
		} else if !b.tunnel {
			text += ", without a tunnel"
		}
	default:
		text += ": on this node or outside of the mesh"
	}
	switch {
	case b.group.Weight == 0:
		text += "; takes no new connections"
	case !b.chosen && b.usable(false):
		text += "; not before a lower tier has none"
	}
	return text
}

var pathNames = map[bpf.Path]string{bpf.PathDead: "dead", bpf.PathAlive: "alive", bpf.PathSilent: "silent"}

// unreachable is why an address is not reached, in words.
var unreachable = map[bpf.Reason]string{
	bpf.ReasonNoBackend:    "it is a service address that no service has",
	bpf.ReasonNodeAddress:  "it is another node's own address, which no tunnel leads to",
	bpf.ReasonFormerMember: "it is an address of a peer that was removed",
	bpf.ReasonNoEndpoint:   "it is in this node's pod CIDR, and no pod has it",
	bpf.ReasonNoTunnel:     "it is a member's address, and of no known node",
}

// advice is what to do about a reason.
var advice = map[bpf.Reason]string{
	bpf.ReasonPolicyDenied:  "let a rule of one of these policies allow it, or add a policy that does",
	bpf.ReasonUnknownMember: "the other side's identity is not known here: see `weft debug table ips` and `weft status`",
	bpf.ReasonNoPolicy:      "see `weft debug table problems`",
	bpf.ReasonNotReady:      "see `weft status`: the agent has not read its store yet",
	bpf.ReasonHeld:          "it is let through once its identity and policies are known: see `weft debug table endpoints`",
	bpf.ReasonSpoofedSource: "see `weft get pods -o wide`: is the pod on this node, and was the address its own?",
	bpf.ReasonNoBackend:     "see `weft service list -o wide`: which backends are ready, and why are the others left out?",
	bpf.ReasonNoEndpoint:    "see `weft get pods -o wide`: the pod is gone, or has another address",
	bpf.ReasonNoTunnel:      "see `weft debug table nodes` and `weft status`: the node or its key is not known here",
	bpf.ReasonPathDown:      "see `weft status`: the machine or the network between the nodes",
	bpf.ReasonFormerMember:  "add the peer again, or release its addresses with `weft peer forget`",
	bpf.ReasonNodeAddress:   "use an address of a pod or a service",
	bpf.ReasonSourceRange:   "add the client to spec.loadBalancerSourceRanges of the service",
}

// reported tells the latest reports of the connection's packets on this node.
func (w *walk) reported() {
	past := w.Ring.Last(-1, w.isReport)
	for _, f := range past[max(0, len(past)-shownReports):] {
		step := api.TraceStep{LookUp: "report", Hook: "from_pod", Reason: f.Reason}
		if f.Direction == flow.Ingress {
			step.Hook = w.hook
		}
		text := strings.ToLower(string(f.Verdict))
		if f.Source.Port != 0 {
			text += fmt.Sprintf(" from port %d", f.Source.Port)
		}
		text += " " + ago(time.Since(f.Time)) + " ago"
		if f.Reason != "" {
			text += ": " + f.Reason
		}
		for _, p := range f.Policies {
			step.Policies = append(step.Policies, p.String())
		}
		if len(f.Policies) > 0 {
			by := " by "
			if f.DefaultDeny {
				by = " not allowed by "
			}
			text += by + strings.Join(step.Policies, ", ")
		}
		if step.Found = text; f.Hint != "" {
			step.Advice = f.Hint
		}
		w.add(step)
	}
}

// isReport says whether a report is about the connection.
func (w *walk) isReport(f *flow.Flow) bool {
	want := flow.Egress
	if w.q.Arrives != "" {
		want = flow.Ingress
	}
	if f.Direction != want || f.Source.Address != w.q.From.Addr() || f.Protocol != flow.ProtocolName(w.q.Protocol) {
		return false
	}
	if isICMP(w.q.Protocol) {
		return f.Destination.Address == w.q.To.Addr() && f.ICMP != nil && uint16(f.ICMP.Type) == w.q.To.Port()
	}
	if w.q.From.Port() != 0 && f.Source.Port != w.q.From.Port() {
		return false
	}
	if f.Service != nil {
		return f.Service.Address == w.q.To.Addr() && f.Service.Port == w.q.To.Port()
	}
	return f.Destination.Address == w.q.To.Addr() && f.Destination.Port == w.q.To.Port()
}
