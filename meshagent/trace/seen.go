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

// established says of a TCP connection that both sides have sent something.
func (f *known) established() bool { return f.key.Proto == 6 && f.Flags&bpf.FlowReplied != 0 }

// backend is that of the service which the flow goes through; false: it goes through none.
func (f *known) backend() (netip.AddrPort, bool) {
	switch {
	case f.Flags&bpf.FlowService != 0:
		return netip.AddrPortFrom(f.Backend.Netip(), f.Bport.Number()), true
	case f.Flags&bpf.FlowMember != 0: // the pod's socket was given it
		return netip.AddrPortFrom(f.key.Remote.Netip(), f.key.Rport.Number()), true
	}
	return netip.AddrPort{}, false
}

func (f *known) throughService() bool { return f.Flags&(bpf.FlowService|bpf.FlowMember) != 0 }

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
	given := func(f bpf.Flow) bool {
		return f.Flags&(bpf.FlowMember|bpf.FlowTranslated) == bpf.FlowMember && f.Backend == key.Remote && f.Bport == key.Rport
	}
	if client != (bpf.Port{}) {
		for _, beside := range []uint8{0, 1} {
			key.Beside = beside
			if f, ok := look(&w.rows, w.maps.Flows, key); ok {
				keep(key, f)
			}
		}
	}
	// A flow that a socket was given a backend for has the backend's key.
	if client == (bpf.Port{}) || len(all) == 0 && w.q.Arrives == "" && w.isService() && w.inSockets() {
		rows, failed := w.maps.Flows.All()
		for k, f := range rows {
			if w.err = cmp.Or(w.err, w.ctx.Err()); w.err != nil {
				return nil
			}
			if k.Local != key.Local || k.Proto != key.Proto || k.Lport != key.Lport && key.Lport != (bpf.Port{}) {
				continue
			}
			if given(f) || k.Remote == key.Remote && (k.Rport == key.Rport || key.Rport == (bpf.Port{})) {
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
	if backend, ok := f.backend(); ok {
		text = append(text, fmt.Sprintf("backend %v", backend))
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

// continues says where a flow takes the connection, if the question names its port; false: it is a
// new connection.
func (w *walk) continues(ep bpf.Endpoint, f *known) (to netip.AddrPort, open bool) {
	if to = w.q.To; f == nil || w.q.From.Port() == 0 || f.Flags&bpf.FlowRemoteInitiated != 0 || f.Ifindex != ep.Ifindex {
		return to, false
	}
	backend, ok := f.backend()
	if !ok {
		w.found("flow", "what follows is about this open connection")
		return to, true
	}
	stays := w.keeps(f)
	if !stays && f.established() {
		w.drop("flow", fmt.Sprintf("its backend %v is gone: the pod is told by a reset at its next packet", backend), bpf.ReasonPathDown)
		return to, false
	}
	if at, _ := w.locate(bpf.AddrOf(backend.Addr())); stays && at.node != 0 && !f.established() {
		path, _ := w.rows.path(at.node, at.cluster)
		stays = path != bpf.PathDead
	}
	if !stays {
		w.found("flow", "its backend %v cannot be reached: what follows is about a new choice", backend)
		return to, false
	}
	w.found("flow", "what follows is about this open connection, to its backend %v: the service and its source ranges are not looked up again", backend)
	return backend, true
}

// isService says whether a service has the address and port that are asked for.
func (w *walk) isService() bool {
	_, ok := look(&w.rows, w.maps.Services, bpf.ServiceKey{Addr: bpf.AddrOf(w.q.To.Addr()), Port: bpf.PortOf(w.q.To.Port()), Proto: w.q.Protocol})
	return ok
}

// choose tells which backends a service has for a new connection of the client, and returns the
// one that is followed: that of the client's session, or of those that may be chosen that of a
// flow or else the first; false if there is none.
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
	all, hook := w.backends(svc), w.hook
	slices.SortStableFunc(all, func(a, b backend) int {
		return cmp.Or(cmp.Compare(a.group.Tier, b.group.Tier), a.Addr.Netip().Compare(b.Addr.Netip()))
	})
	followed, why, usable := netip.AddrPort{}, firstChosen, 0
	for _, b := range all {
		if !b.chosen {
			continue
		}
		at := netip.AddrPortFrom(b.Addr.Netip(), b.Port.Number())
		if usable++; usable == 1 {
			followed = at
		}
		if known == nil || w.q.From.Port() != 0 {
			continue
		}
		if now, ok := known.backend(); ok && now == at {
			followed, why = at, "that of the newest flow"
		}
	}
	if last, ok := w.session(svc, client, bpf.Now()); ok {
		followed, why = netip.AddrPortFrom(last.Backend.Netip(), last.Port.Number()), "that of the client's session"
	}
	if followed.IsValid() && w.inSockets() {
		w.hook = "socket"
		defer func() { w.hook = hook }()
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
	if usable != 1 || why != firstChosen {
		w.found("service", "what follows is about %v, %s", followed, why)
	}
	return followed, true
}

const firstChosen = "the first that may be chosen"

func (w *walk) backendText(b *backend) string {
	at, why := w.locateBackend(b.Addr)
	if why != 0 {
		at.identity = 0
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
	bpf.ReasonNodeAddress:  "it is another node's own address, and no process of the cluster that is behind a service listens there",
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
		step := api.TraceStep{At: w.at(), LookUp: "report", Hook: reportHook(&f, w.q.Arrives), Reason: f.Reason}
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
		w.trace.Steps = append(w.trace.Steps, step)
	}
}

// reportHook is the hook that reported a packet; "" if another one behind it may have.
func reportHook(f *flow.Flow, arrives string) string {
	switch {
	case arrives == api.ArrivesByTunnel:
		return "from_tunnel"
	case arrives == "" && f.Service == nil && f.Verdict != flow.Forwarded && len(f.Policies) == 0 && !f.DefaultDeny:
		return "" // to_tunnel and to_device know neither services nor policies
	}
	return "from_pod"
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
	to := netip.AddrPortFrom(f.Destination.Address, f.Destination.Port)
	// What to_tunnel and to_device drop has the backend's address.
	return to == w.q.To || to == w.backend && f.Verdict == flow.Dropped && reportHook(f, w.q.Arrives) == ""
}
