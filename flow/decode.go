package flow

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
)

// Resolver supplies what an event only has as numbers. Any function may be nil or return
// nothing: the flow then shows the bare number. Functions are called from the goroutine
// that decodes.
type Resolver struct {
	// Node is this node, as cluster/node.
	Node string
	// Time converts the kernel's CLOCK_BOOTTIME in nanoseconds to a time of day. If nil,
	// the time of decoding is used.
	Time func(ns uint64) time.Time
	// Endpoint returns cluster, namespace, pod and labels of a side whose address and
	// identity are known. It may replace an identity whose number is local to the node.
	Endpoint func(addr netip.Addr, id identity.Number) Endpoint
	// Rule returns the policy behind a rule's cookie in a generation of the policy.
	Rule func(generation, cookie uint32) (Policy, bool)
	// Selecting returns the policies that put a policy set under default deny in one
	// direction.
	Selecting func(generation, set uint32, dir Direction) []Policy
	// Service returns the name of a frontend.
	Service func(addr netip.AddrPort, protocol uint8) (namespace, name string)
}

// Decode says what an event means.
func (r *Resolver) Decode(ev *bpf.Event) Flow {
	f := Flow{
		Time:      time.Now(),
		Verdict:   Forwarded,
		Direction: Egress,
		Bytes:     int(ev.Bytes),
		Node:      r.Node,

		Suppressed: uint64(ev.Suppressed),
	}
	if ev.Src != (bpf.Addr{}) {
		f.Protocol = ProtocolName(ev.Proto)
	}
	if r.Time != nil {
		f.Time = r.Time(ev.Time)
	}
	if ev.Dir == bpf.Ingress {
		f.Direction = Ingress
	}
	switch ev.Type {
	case bpf.EventDrop:
		f.Verdict, f.Reason = Dropped, ev.Reason.String()
	case bpf.EventReset:
		f.Verdict, f.Reason = Reset, ev.Reason.String()
	case bpf.EventRefused:
		f.Verdict, f.Reason = Refused, ev.Reason.String()
	}
	f.Source = r.endpoint(ev.Src, ev.SrcIdentity)
	f.Destination = r.endpoint(ev.Dst, ev.DstIdentity)
	f.ports(ev)
	f.Service = r.service(ev)
	r.policies(&f, ev)
	return f
}

func (r *Resolver) endpoint(a bpf.Addr, n uint32) Endpoint {
	addr, id := a.Netip(), identity.Number(n)
	var e Endpoint
	if r.Endpoint != nil {
		e = r.Endpoint(addr, id)
	}
	if e.Identity == identity.Unknown {
		e.Identity = id
	}
	e.Address = addr
	return e
}

// notIP describes a packet of a protocol that the datapath does not parse.
const notIP = "not IP"

// ports fills in the transport layer; ICMP carries type and code in place of the source
// port.
func (f *Flow) ports(ev *bpf.Event) {
	if ev.Src == (bpf.Addr{}) && ev.Reason == bpf.ReasonNotSupported {
		f.Summary = notIP
		return
	}
	switch ev.Proto {
	case 1, 58:
		f.ICMP = &ICMP{Type: ev.Sport[0], Code: ev.Sport[1]}
		f.Summary = fmt.Sprintf("ICMP type %d code %d", f.ICMP.Type, f.ICMP.Code)
		return
	case 6:
		f.TCPFlags = tcpFlags(ev.TCPFlags)
		f.Summary = "TCP Flags: " + strings.Join(f.TCPFlags, ", ")
	default:
		f.Summary = f.Protocol
	}
	f.Source.Port, f.Destination.Port = ev.Sport.Number(), ev.Dport.Number()
}

func (r *Resolver) service(ev *bpf.Event) *Service {
	if ev.Service == (bpf.Addr{}) {
		return nil
	}
	s := &Service{Address: ev.Service.Netip(), Port: ev.ServicePort.Number()}
	if r.Service != nil {
		s.Namespace, s.Name = r.Service(netip.AddrPortFrom(s.Address, s.Port), ev.Proto)
	}
	return s
}

// policies names the policies that decided. Cookie 0 of a policy drop means that no rule
// matched: default deny.
func (r *Resolver) policies(f *Flow, ev *bpf.Event) {
	switch {
	case ev.Rule != 0 && r.Rule != nil:
		if p, ok := r.Rule(ev.PolicyGen, ev.Rule); ok {
			f.Policies = []Policy{p}
		}
	case ev.Rule == 0 && ev.Type == bpf.EventDrop && refusal(ev.Reason):
		f.DefaultDeny = true
		if r.Selecting != nil {
			f.Policies = r.Selecting(ev.PolicyGen, ev.Set, f.Direction)
		}
	}
}

// refusal reports whether policy dropped the packet, rather than something missing.
func refusal(r bpf.Reason) bool {
	return r == bpf.ReasonPolicyDenied || r == bpf.ReasonUnknownMember
}

func tcpFlags(bits uint8) (names []string) {
	for i, name := range [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if bits&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}
