// Package flow turns the kernel's numeric events into flows that people can read: who
// spoke to whom, what became of it and by which policy. It keeps the most recent flows
// and streams them to followers.
//
// Which packets are reported is decided in package bpf; what an address or an identity
// stands for, functions of the caller say.
package flow

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/identity"
)

// Verdict is what became of a flow's packet.
type Verdict string

const (
	Forwarded Verdict = "FORWARDED" // the first packet of an allowed connection
	Dropped   Verdict = "DROPPED"
	Reset     Verdict = "RESET"   // an open connection was ended with a TCP reset to the pod: its path is down, or its peer was removed
	Refused   Verdict = "REFUSED" // cannot work, which the pod was told by a TCP reset or an ICMP error
)

// Direction is as seen from the local pod, as in policies.
type Direction string

const (
	Egress  Direction = "EGRESS"
	Ingress Direction = "INGRESS"
)

// Flow is one report. Its JSON field names are stable; each flow is one line in every
// stream of the API.
type Flow struct {
	Time    time.Time `json:"time"`
	Verdict Verdict   `json:"verdict"`
	// Reason says why the packet was not forwarded, with the names of the drop counters;
	// empty for a forwarded one.
	Reason string `json:"reason,omitempty"`
	// Policies are those that decided: the one whose rule matched, or with DefaultDeny
	// all that select the pod, none of which allows the packet.
	Policies    []Policy `json:"policies,omitempty"`
	DefaultDeny bool     `json:"defaultDeny,omitempty"`
	// Hint says what to change in the policies, if that is known.
	Hint      string    `json:"hint,omitempty"`
	Direction Direction `json:"direction"`
	Source    Endpoint  `json:"source"`
	// Destination is where the packet went or would have gone: the backend, if it was
	// sent to a service.
	Destination Endpoint `json:"destination"`
	// Service is the service that the pod addressed, nil if it addressed the
	// destination itself.
	Service *Service `json:"service,omitempty"`
	// Protocol is the protocol's name or number; empty for packets other than IPv4.
	Protocol string   `json:"protocol"`
	TCPFlags []string `json:"tcpFlags,omitempty"`
	ICMP     *ICMP    `json:"icmp,omitempty"`
	Bytes    int      `json:"bytes,omitempty"`
	// Node is the node that saw the packet, as cluster/node.
	Node string `json:"node"`
	// Summary describes the packet in a few words, as Hubble does in brackets.
	Summary string `json:"summary,omitempty"`
	// Lost is how many flows this reader missed directly before this one, because it or
	// the agent read too slowly. It counts before filtering, so not all of them would
	// have matched.
	Lost uint64 `json:"lost,omitempty"`
	// Suppressed is how many events of the pod that caused this one the datapath left
	// out before it, to keep room for the events of other pods.
	Suppressed uint64 `json:"suppressed,omitempty"`
}

// Policy identifies a policy. Namespace is empty for the cluster-wide kinds.
type Policy struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String returns "namespace/name (Kind)".
func (p Policy) String() string {
	name := p.Name
	if p.Namespace != "" {
		name = p.Namespace + "/" + p.Name
	}
	return fmt.Sprintf("%s (%s)", name, p.Kind)
}

// Endpoint is one side of a flow. Unknown fields are empty: an address outside of all
// clusters has neither cluster nor pod, only the identity world.
type Endpoint struct {
	Cluster   string          `json:"cluster,omitempty"`
	Namespace string          `json:"namespace,omitempty"`
	Pod       string          `json:"pod,omitempty"`
	Identity  identity.Number `json:"identity"`
	Labels    []string        `json:"labels,omitempty"`
	Address   netip.Addr      `json:"address"`
	Port      uint16          `json:"port,omitempty"`
}

// Service is the frontend that a pod addressed.
type Service struct {
	Namespace string     `json:"namespace,omitempty"`
	Name      string     `json:"name,omitempty"`
	Address   netip.Addr `json:"address"`
	Port      uint16     `json:"port,omitempty"`
}

// ICMP is the type and code of an ICMP packet.
type ICMP struct {
	Type uint8 `json:"type"`
	Code uint8 `json:"code"`
}

// Name returns "cluster/namespace/pod" if the pod is known, else the address, or a
// question mark for a packet that is not IP, whose addresses were not read.
func (e Endpoint) Name() string {
	switch {
	case e.Pod != "":
		return e.Cluster + "/" + e.Namespace + "/" + e.Pod
	case !e.Address.IsValid():
		return "?"
	}
	return e.Address.String()
}

// line returns Name with the port.
func (e Endpoint) line() string {
	switch {
	case e.Port == 0 || e.Pod == "" && !e.Address.IsValid():
		return e.Name()
	case e.Pod == "":
		return netip.AddrPortFrom(e.Address, e.Port).String()
	}
	return e.Name() + ":" + strconv.Itoa(int(e.Port))
}

// who returns the identity, with the cluster if Name does not contain it.
func (e Endpoint) who() string {
	who := e.Identity.String()
	if !e.Identity.Reserved() {
		who = "ID:" + who
	}
	if e.Pod == "" && e.Cluster != "" {
		who = e.Cluster + ", " + who
	}
	return who
}

// read reports whether the packet's addresses were read.
func (f *Flow) read() bool { return f.Source.Name() != "?" || f.Destination.Name() != "?" }

// Line formats the flow for people. What matters most comes first, so that a narrow
// terminal shows it: the verdict, when, who spoke to whom, and why not.
//
//	DROPPED   Jan _2 15:04:05.000 east/shop/job:4321 -> west/shop/web-1:80 ingress policy-denied … (ID:65540 -> ID:131080) [west/n1]
//
// Control characters in names are escaped, so that no stream can control the terminal it
// is printed on.
func (f *Flow) Line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-*s %s %s -> %s %s", len(Forwarded), f.Verdict, f.Time.Local().Format(time.StampMilli),
		f.Source.line(), f.Destination.line(), strings.ToLower(string(f.Direction)))
	if f.Reason != "" {
		fmt.Fprintf(&b, " %s", f.Reason)
	}
	if len(f.Policies) > 0 {
		names := make([]string, len(f.Policies))
		for i, p := range f.Policies {
			names[i] = p.String()
		}
		by := " BY "
		if f.DefaultDeny {
			by = " not allowed by "
		}
		b.WriteString(by + strings.Join(names, ", "))
	}
	if f.Service != nil {
		fmt.Fprintf(&b, " via %s", f.Service.line())
	}
	if f.Summary != "" {
		fmt.Fprintf(&b, " (%s)", f.Summary)
	}
	if f.read() {
		fmt.Fprintf(&b, " (%s -> %s)", f.Source.who(), f.Destination.who())
	}
	fmt.Fprintf(&b, " [%s]", f.Node)
	if f.Hint != "" {
		fmt.Fprintf(&b, " (%s)", f.Hint)
	}
	return Printable(b.String())
}

func (s *Service) line() string {
	addr := netip.AddrPortFrom(s.Address, s.Port).String()
	if s.Name == "" {
		return addr
	}
	return s.Namespace + "/" + s.Name + ":" + strconv.Itoa(int(s.Port))
}

// Printable escapes everything that a terminal would act on.
func Printable(s string) string {
	clean := func(r rune) bool { return r >= ' ' && (r < 0x7f || r > 0x9f) }
	if strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if clean(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\x%02x`, r)
		}
	}
	return b.String()
}
