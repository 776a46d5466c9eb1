package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
)

// TraceQuestion asks a node what it does with a connection.
type TraceQuestion struct {
	// From is the client: a pod of the node, unless the connection arrives there. Its port
	// is 0 if any will do.
	From netip.AddrPort
	// To is what the client addressed or, where the connection arrives, the pod. Of ICMP,
	// the port is the type.
	To netip.AddrPort
	// Protocol is that of IP.
	Protocol uint8
	// Arrives is how the connection reaches the pod's node: ArrivesByTunnel or ArrivesFromPod;
	// empty: a pod of this node sends it.
	Arrives string
}

// Ways for a connection to reach the node of the pod that it is for.
const (
	ArrivesByTunnel = "tunnel"
	ArrivesFromPod  = "pod" // of the same node
)

// Values returns the question as query parameters; ParseTraceQuestion reads them back.
func (q TraceQuestion) Values() url.Values {
	return url.Values{"from": {q.From.String()}, "to": {q.To.String()}, "protocol": {strconv.Itoa(int(q.Protocol))}, "arrives": {q.Arrives}}
}

// ParseTraceQuestion reads query parameters.
func ParseTraceQuestion(query url.Values) (q TraceQuestion, err error) {
	if q.From, err = netip.ParseAddrPort(query.Get("from")); err != nil {
		return q, fmt.Errorf("from: %w", err)
	}
	if q.To, err = netip.ParseAddrPort(query.Get("to")); err != nil {
		return q, fmt.Errorf("to: %w", err)
	}
	if q.From.Addr().Is4() != q.To.Addr().Is4() {
		return q, fmt.Errorf("from %v to %v: they are of different IP families", q.From.Addr(), q.To.Addr())
	}
	n, err := strconv.ParseUint(query.Get("protocol"), 10, 8)
	if err != nil {
		return q, fmt.Errorf("protocol: %w", err)
	}
	q.Protocol = uint8(n)
	switch q.Arrives = query.Get("arrives"); q.Arrives {
	case "", ArrivesByTunnel, ArrivesFromPod:
		return q, nil
	}
	return q, fmt.Errorf("arrives: choose %s, %s or nothing, not %q", ArrivesByTunnel, ArrivesFromPod, q.Arrives)
}

// Trace is what one node does with a connection: GET /v1/nodes/{node}/trace, and the agent's
// own GET /v1/trace.
type Trace struct {
	Steps []TraceStep `json:"steps"`
	// End is how the node is done with the connection: one of the Ends below, or the reason for
	// which it is dropped.
	End string `json:"end"`
	// Dropped says that it ends here.
	Dropped bool `json:"dropped"`
	// Next is where it arrives if it goes on to a pod: with EndToPod and EndTunnelled.
	Next *TraceNext `json:"next,omitempty"`
}

// Ends of a connection on a node that does not drop it.
const (
	EndDelivered = "delivered" // to a pod of this node
	EndToPod     = "to-pod"    // goes on to a pod of the same node, which Next is about
	EndTunnelled = "tunnelled" // goes on to the node of Next
	EndToStack   = "to-stack"  // left to the node's routes and firewall
	EndUnknown   = "unknown"   // goes on, and the agent does not know where; the last look-up says why
)

// TraceStep is one thing that a hook looks up.
type TraceStep struct {
	At     string `json:"at"`   // cluster/node
	Hook   string `json:"hook"` // the program: from_pod, to_tunnel, from_tunnel, to_device, or socket (connect4 and its like); of a report "" if it is not known
	LookUp string `json:"lookUp"`
	Found  string `json:"found"`
	// Reason is why the connection ends here, with the names of the drop counters.
	Reason string `json:"reason,omitempty"`
	// Policies are those that decided, as "namespace/name (Kind)".
	Policies []string `json:"policies,omitempty"`
	// Advice is what to do about the reason.
	Advice string `json:"advice,omitempty"`
}

// TraceNext is where a connection arrives.
type TraceNext struct {
	Cluster string         `json:"cluster"`
	Node    string         `json:"node"`
	From    netip.AddrPort `json:"from"` // as the pod there sees it
	To      netip.AddrPort `json:"to"`
	Arrives string         `json:"arrives"`
}

// Trace asks a node's agent what the node does with a connection. An empty node means that
// this client talks to the agent itself.
func (c *Client) Trace(ctx context.Context, node string, q TraceQuestion) (*Trace, error) {
	path := "/v1/trace"
	if node != "" {
		path = "/v1/nodes/" + url.PathEscape(node) + "/trace"
	}
	var out Trace
	return &out, c.call(ctx, http.MethodGet, path, q.Values(), nil, &out)
}
