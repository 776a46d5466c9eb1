// Package trace follows one connection through the hooks of a node: what each of them looks up,
// and where the connection ends and why.
//
// It only reads, and sends nothing: a packet of its own would open flows, and be judged as the
// node's. What has happened is told by the rows of flows and by the flows that were reported. What
// becomes of a new connection is decided again from the maps that packets meet, in the order
// of the programs in package bpf. What it does not decide about is what only a packet shows: ports
// that are taken, shares of the flow table, fragments, and what the machine's own firewall and
// routes do. If such a thing has ended the connection, a report says so.
//
// It answers for one node; whoever asks goes on where the answer says that the connection arrives.
package trace

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/flow"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/tunnel/probe"
)

// Node is what is known on a node.
type Node struct {
	Cluster, Name string
	Maps          *bpf.Maps
	Tables        *tables.Tables
	// Ring has the flows that were reported.
	Ring *flow.Ring
	// Resolver names what the maps only have as numbers.
	Resolver flow.Resolver
	// RuleOf is a rule of the policy in force.
	RuleOf func(generation, cookie uint32) (policy.RuleInfo, bool)
	// Hint suggests what is missing in the policies that deny a flow by default.
	Hint func(f *flow.Flow, proto uint8) string
	// Tunnels reads the tunnels' devices.
	Tunnels func(context.Context) (tunnel.Status, error)
}

// Follow says what the node does with a connection.
func (n *Node) Follow(ctx context.Context, q api.TraceQuestion) (*api.Trace, error) {
	w, err := n.once(ctx, q)
	if err != nil {
		return nil, err
	}
	// The rows of a generation of the policy go once there is a newer one.
	if now, _, err := n.Maps.Settings.Lookup(0); err != nil {
		return nil, fmt.Errorf("read map settings: %w", err)
	} else if now.PolicyGen != w.settings.PolicyGen {
		if w, err = n.once(ctx, q); err != nil {
			return nil, err
		}
	}
	return &w.trace, nil
}

// once follows the connection with the settings as they are when it begins.
func (n *Node) once(ctx context.Context, q api.TraceQuestion) (*walk, error) {
	r, err := newRows(ctx, n.Maps)
	if err != nil {
		return nil, err
	}
	w := &walk{Node: n, q: q, rows: r, hook: "from_pod"}
	if q.Arrives == api.ArrivesByTunnel {
		w.hook = "from_tunnel"
	}
	switch {
	case w.settings.Revision == 0:
		w.drop("settings", "the agent has not written them yet", bpf.ReasonNotReady)
	case q.Arrives == "":
		w.sent()
	default:
		w.received()
	}
	w.reported()
	if w.err != nil {
		return nil, w.err
	}
	return w, nil
}

// walk is one connection on its way through a node.
type walk struct {
	*Node
	rows
	q     api.TraceQuestion
	hook  string
	trace api.Trace
	// backend is where the connection goes, if through a service.
	backend netip.AddrPort
}

func (w *walk) at() string { return w.Cluster + "/" + w.Name }

func (w *walk) add(s api.TraceStep) {
	s.At = w.at()
	if s.Hook == "" {
		s.Hook = w.hook
	}
	w.trace.Steps = append(w.trace.Steps, s)
}

func (w *walk) found(lookUp, format string, args ...any) {
	w.add(api.TraceStep{LookUp: lookUp, Found: fmt.Sprintf(format, args...)})
}

// drop ends the connection here.
func (w *walk) drop(lookUp, found string, why bpf.Reason) {
	w.dropped(api.TraceStep{LookUp: lookUp, Found: found}, why)
}

func (w *walk) dropped(s api.TraceStep, why bpf.Reason) {
	s.Reason = why.String()
	if s.Advice == "" {
		s.Advice = advice[why]
	}
	w.trace.End, w.trace.Dropped = s.Reason, true
	w.add(s)
}

// sent is what from_pod does.
func (w *walk) sent() {
	src, dst := bpf.AddrOf(w.q.From.Addr()), bpf.AddrOf(w.q.To.Addr())
	ep, ok := look(&w.rows, w.maps.Endpoints, src)
	if !ok {
		w.drop("source", fmt.Sprintf("no pod of this node has %v", w.q.From.Addr()), bpf.ReasonSpoofedSource)
		return
	}
	from := w.name(w.q.From.Addr(), ep.Identity)
	if ep.Held != 0 {
		w.drop("source", from+" is not programmed yet", bpf.ReasonHeld)
		return
	}
	w.found("source", "%s", from)
	known := w.flows(bpf.FlowKey{Local: src, Remote: dst, Lport: w.sport(), Rport: bpf.PortOf(w.q.To.Port()), Proto: w.q.Protocol})

	// An open connection stays with its backend, whatever has become of the service's row and ranges.
	to, open := w.continues(ep, known)
	switch {
	case w.trace.Dropped:
		return
	case open && known.throughService():
		w.backend = to
	case !open:
		svc, ok := w.serviceAt(dst, bpf.PortOf(to.Port()), w.q.Protocol)
		if ok {
			if to, ok = w.choose(svc, src, known); !ok {
				return
			}
			w.backend = to
		}
		known = nil
	}
	if w.backend.Addr() == w.q.From.Addr() {
		w.found("destination", "the pod itself, which may always reach itself through a service")
		w.trace.End = bpf.ReasonDelivered.String()
		return
	}
	w.send(ep, to, known)
}

// inSockets says whether sockets choose the backend of this connection.
func (w *walk) inSockets() bool {
	return (w.q.Protocol == 6 || w.q.Protocol == 17) && w.givesBackends(bpf.AddrOf(w.q.From.Addr()))
}

// send judges what a pod sends to a pod or to the world, and sends it there. An open connection
// is known.
func (w *walk) send(ep bpf.Endpoint, to netip.AddrPort, known *known) {
	dst := bpf.AddrOf(to.Addr())
	at, why := w.locateOffered(dst, bpf.PortOf(to.Port()), w.q.Protocol)
	if why == bpf.ReasonNoBackend {
		what := "no service has port " + w.portName(to.Port()) + " there"
		if isICMP(w.q.Protocol) {
			what = "those do not answer echoes"
		}
		w.drop("destination", fmt.Sprintf("%v is a service address, and %s", to.Addr(), what), why)
		return
	}
	where := ""
	switch {
	case why != 0: // told below, after policy
	case at.via == bpf.ViaPod:
		where = ", a pod of this node"
	case at.via == bpf.ViaTunnel:
		where = ", behind node " + w.nodeName(at.node)
	case at.identity == uint32(identity.Host):
		where = ", this node itself"
	default:
		where = ", outside of the mesh"
	}
	w.found("destination", "%s%s", w.name(to.Addr(), at.identity), where)
	v := w.judge(ep.Set, at.identity, bpf.Egress, w.q.Protocol, to.Port())
	if !w.policy(v, flow.Egress, to, ep.Identity, at.identity) {
		return
	}
	if why != 0 {
		w.drop("destination", unreachable[why], why)
		return
	}
	switch at.via {
	case bpf.ViaPod:
		w.trace.End = api.EndToPod
		w.trace.Next = &api.TraceNext{Cluster: w.Cluster, Node: w.Name, From: w.seenFrom(known), To: to, Arrives: api.ArrivesFromPod}
	case bpf.ViaTunnel:
		w.enter(at, to, known)
	default:
		w.leave(to)
	}
}

// enter sends the connection into a tunnel.
func (w *walk) enter(at place, to netip.AddrPort, known *known) {
	key := w.nodeName(at.node)
	state, ofCluster := w.rows.path(at.node, at.cluster)
	what := "node " + key
	if ofCluster {
		what = "cluster " + clusterOf(key)
	}
	row := w.pathRow(at.node)
	if state == bpf.PathDead {
		w.drop("path", fmt.Sprintf("%s is dead%s", what, sinceDown(row)), bpf.ReasonPathDown)
		return
	}
	text := "alive"
	if state == bpf.PathSilent {
		text = "silent: it stopped answering a moment ago"
	}
	if row != nil {
		if o := row.Seen(); o.RTT > 0 {
			text += fmt.Sprintf(", round trip %v", o.RTT.Round(10*time.Microsecond))
		} else if row.Observation == nil {
			text += ", which nobody probes now"
		}
	}
	w.found("path", "%s is %s", what, text)
	lane, ok := w.rows.tunnel(at.node)
	if !ok {
		w.drop("tunnel", "there is no tunnel to "+key+": its key or a tunnel's device is missing here", bpf.ReasonNoTunnel)
		return
	}
	w.hook = "to_tunnel"
	w.found("tunnel", "tunnel %d to %s%s", lane, key, w.handshake(key, lane))
	if row == nil {
		w.trace.End = api.EndUnknown
		w.found("tunnel", "the agent does not know yet which node that is: ask again in a moment, or see `weft debug table paths`")
		return
	}
	w.trace.End = api.EndTunnelled
	w.trace.Next = &api.TraceNext{Cluster: row.Cluster, Node: row.Node, From: w.seenFrom(known), To: to, Arrives: api.ArrivesByTunnel}
}

// leave hands the connection to the node's stack.
func (w *walk) leave(to netip.AddrPort) {
	w.trace.End = bpf.ReasonToStack.String()
	a := bpf.AddrOf(to.Addr())
	if at := w.resolve(a); at.identity == uint32(identity.Host) {
		w.found("route", "to the node's own stack: whether its firewall lets it through and something listens is not known here")
		return
	}
	w.found("route", "to the node's stack, whose routes and firewall decide")
	w.hook = "to_device"
	if seen, ok := w.masqueraded(a); ok {
		w.found("masquerade", "the world sees %v instead of the pod's address, if it leaves by the device towards the other nodes", seen)
	} else if seen.IsValid() {
		w.found("masquerade", "none: %v is in a native CIDR, and sees the pod's own address", to.Addr())
	} else {
		w.found("masquerade", "none: the pod's own address leaves")
	}
}

// received is what the delivery to a pod does.
func (w *walk) received() {
	src, dst := bpf.AddrOf(w.q.From.Addr()), bpf.AddrOf(w.q.To.Addr())
	ep, ok := look(&w.rows, w.maps.Endpoints, dst)
	if !ok && w.q.Arrives == api.ArrivesByTunnel && w.toProcess(src, dst) {
		return
	}
	if !ok {
		w.drop("destination", fmt.Sprintf("no pod of this node has %v", w.q.To.Addr()), bpf.ReasonNoEndpoint)
		return
	}
	to := w.name(w.q.To.Addr(), ep.Identity)
	if ep.Held != 0 {
		w.drop("destination", to+" is not programmed yet", bpf.ReasonHeld)
		return
	}
	w.found("destination", "%s", to)
	var from place
	if w.q.Arrives == api.ArrivesFromPod {
		from, _ = w.locate(src)
	} else if from = w.resolve(src); !from.member {
		w.drop("source", fmt.Sprintf("%v is not an address of any member: only members send through tunnels", w.q.From.Addr()), bpf.ReasonSpoofedSource)
		return
	}
	w.found("source", "%s", w.name(w.q.From.Addr(), from.identity))
	key := bpf.FlowKey{Local: dst, Remote: src, Lport: bpf.PortOf(w.q.To.Port()), Rport: w.sport(), Proto: w.q.Protocol}
	if isICMP(w.q.Protocol) { // the key has the identifier, and the type with a mark
		key.Lport, key.Rport = w.sport(), bpf.PortOf(askedByRemote|w.q.To.Port())
	}
	w.flows(key)
	v := w.judge(ep.Set, from.identity, bpf.Ingress, w.q.Protocol, w.q.To.Port())
	if w.policy(v, flow.Ingress, w.q.To, ep.Identity, from.identity) {
		w.found("pod", "delivered")
		w.trace.End = bpf.ReasonDelivered.String()
	}
}

// toProcess is what the delivery to a process of this node does; false if that is not asked.
func (w *walk) toProcess(src, dst bpf.Addr) bool {
	at := w.resolve(dst)
	if at.identity != uint32(identity.Host) || at.member || at.flags != 0 || slices.Contains(w.settings.Internal[:], dst) {
		return false
	}
	_, open := look(&w.rows, w.maps.Services, bpf.ServiceKey{Addr: dst, Port: bpf.PortOf(w.q.To.Port()), Proto: w.q.Protocol, Scope: bpf.ScopeNode})
	from := w.resolve(src)
	switch {
	case !open:
		w.drop("destination", fmt.Sprintf("%v is this node itself, and no service has a backend at %s there", w.q.To.Addr(), w.portName(w.q.To.Port())), bpf.ReasonNodeClosed)
	case !from.member || from.node == 0 || from.cluster != w.settings.Cluster:
		w.drop("source", fmt.Sprintf("%v is not an address of a pod of another node of this cluster", w.q.From.Addr()), bpf.ReasonNodeClosed)
	default:
		w.found("destination", "%v, this node itself: a process at %s is behind a service", w.q.To.Addr(), w.portName(w.q.To.Port()))
		w.found("route", "to the node's own stack: whether its firewall lets it through and something listens is not known here")
		w.trace.End = bpf.ReasonToStack.String()
	}
	return true
}

// askedByRemote marks the type of an ICMP request that the other side sent: ASKED_BY_REMOTE.
const askedByRemote = 0x100

func isICMP(proto uint8) bool { return proto == 1 || proto == 58 }

// sport is the client's port; zero: any.
func (w *walk) sport() bpf.Port { return bpf.PortOf(w.q.From.Port()) }

// policy tells what policy says of the pod in this direction, and whether it allows the connection.
// The peer is the other side.
func (w *walk) policy(v verdict, dir flow.Direction, to netip.AddrPort, subject, peer uint32) bool {
	way := strings.ToLower(string(dir))
	if v.set == 0 {
		w.found("policy", "%s: no policy selects the pod", way)
		return true
	}
	if v.reason == bpf.ReasonNoPolicy {
		w.drop("policy", way+": the rules of the pod's policies are not in the kernel", v.reason)
		return false
	}
	step := api.TraceStep{LookUp: "policy"}
	if v.rule != 0 {
		step.Found = fmt.Sprintf("%s: rule %d", way, v.rule)
		if r, ok := w.RuleOf(w.settings.PolicyGen, v.rule); ok {
			by := flow.Policy{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}.String()
			step.Found, step.Policies = fmt.Sprintf("%s: %s, %s[%d]", way, by, r.List, r.Index), []string{by}
		}
		if v.reason != 0 {
			step.Found = strings.Replace(step.Found, way+":", way+": denied by", 1)
			step.Advice = "a rule that denies counts before all that allow: change it"
			w.dropped(step, v.reason)
			return false
		}
		step.Found = strings.Replace(step.Found, way+":", way+": allowed by", 1)
		w.add(step)
		return true
	}
	if v.reason == 0 {
		w.found("policy", "%s: no policy of the pod is about this direction", way)
		return true
	}
	selecting := w.Resolver.Selecting(w.settings.PolicyGen, v.set, dir)
	for _, p := range selecting {
		step.Policies = append(step.Policies, p.String())
	}
	step.Found = way + ": not allowed by " + strings.Join(step.Policies, ", ")
	if len(step.Policies) == 0 {
		step.Found = way + ": no rule allows it"
	}
	// What the report of such a packet would suggest.
	f := &flow.Flow{DefaultDeny: true, Direction: dir, Policies: selecting}
	f.Source, f.Destination = w.Resolver.Endpoint(w.q.From.Addr(), identity.Number(subject)), w.Resolver.Endpoint(to.Addr(), identity.Number(peer))
	if dir == flow.Ingress {
		f.Source, f.Destination = w.Resolver.Endpoint(w.q.From.Addr(), identity.Number(peer)), w.Resolver.Endpoint(to.Addr(), identity.Number(subject))
	}
	if f.Destination.Port = to.Port(); isICMP(w.q.Protocol) {
		f.Destination.Port, f.ICMP = 0, &flow.ICMP{Type: uint8(to.Port())}
	}
	if v.reason == bpf.ReasonPolicyDenied {
		step.Advice = w.Hint(f, w.q.Protocol)
	}
	w.dropped(step, v.reason)
	return false
}

// name is an address with who has it.
func (w *walk) name(a netip.Addr, number uint32) string {
	e := w.Resolver.Endpoint(a, identity.Number(number))
	e.Address = a
	who := "identity " + e.Identity.String()
	if e.Pod == "" {
		return fmt.Sprintf("%v, %s", a, who)
	}
	return flow.Printable(fmt.Sprintf("%s %v, %s", e.Name(), a, who))
}

func (w *walk) portName(port uint16) string {
	name := flow.ProtocolName(w.q.Protocol)
	if isICMP(w.q.Protocol) {
		return name
	}
	return strconv.Itoa(int(port)) + "/" + name
}

// nodeName is "cluster/node" of an index; the number if it has no name.
func (w *walk) nodeName(index uint16) string {
	if p := w.pathRow(index); p != nil {
		return p.Key()
	}
	return fmt.Sprintf("number %d", index)
}

func clusterOf(key string) string {
	cluster, _, _ := strings.Cut(key, "/")
	return cluster
}

func (w *walk) pathRow(index uint16) *tables.Path {
	for p := range w.Tables.Paths.All(w.Tables.DB.ReadTxn()) {
		if p.Index == index && index != 0 {
			return p
		}
	}
	return nil
}

// sinceDown says since when the path to a node is down, and why; nothing if it is up itself, and
// what is dead is its cluster.
func sinceDown(p *tables.Path) string {
	if p == nil {
		return ""
	}
	o := p.Seen()
	if o.Since.IsZero() || o.State == probe.Up {
		return ""
	}
	text := " since " + ago(time.Since(o.Since))
	if o.Reason != "" {
		text += ": " + o.Reason
	}
	return text
}

// handshake is the age of the last handshake with a node on a tunnel.
func (w *walk) handshake(key string, lane int) string {
	status, err := w.Tunnels(w.ctx)
	if err != nil {
		return fmt.Sprintf(" (its devices cannot be read: %v)", err)
	}
	for _, p := range status.Peers {
		if p.Cluster+"/"+p.Node != key {
			continue
		}
		if shaken := p.Lanes[lane].Handshake; !shaken.IsZero() {
			at := p.Lanes[lane].Endpoint
			return fmt.Sprintf(" at %v, last handshake %s ago", netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), ago(time.Since(shaken)))
		}
		return ", without a handshake yet"
	}
	return ""
}

// ago is a duration as precise as a person needs it.
func ago(d time.Duration) string {
	if d < 10*time.Second {
		return max(d, 0).Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
