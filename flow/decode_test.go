package flow

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
)

func addr(s string) bpf.Addr { return bpf.AddrOf(netip.MustParseAddr(s)) }

// cluster returns what the agent of node west-1 knows.
func cluster() *Resolver {
	boot := time.Date(2026, 1, 2, 15, 4, 0, 0, time.UTC)
	d := denied()
	pods := map[netip.Addr]Endpoint{
		d.Source.Address:      {Cluster: "east", Namespace: "shop", Pod: "frontend-1", Labels: d.Source.Labels},
		d.Destination.Address: {Cluster: "west", Namespace: "shop", Pod: "web-2", Labels: d.Destination.Labels},
	}
	return &Resolver{
		Node:     "west/west-1",
		Time:     func(ns uint64) time.Time { return boot.Add(time.Duration(ns)) },
		Endpoint: func(a netip.Addr, _ identity.Number) Endpoint { return pods[a] },
		Rule: func(generation, cookie uint32) (Policy, bool) {
			return Policy{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "no-frontend"}, generation == 7 && cookie == 3
		},
		Selecting: func(generation, set uint32, dir Direction) []Policy {
			if generation != 7 || set != 12 || dir != Ingress {
				return nil
			}
			return []Policy{{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "web"}}
		},
		Service: func(netip.AddrPort, uint8) (string, string) { return "shop", "web" },
	}
}

// syn returns the event that becomes denied().
func syn() bpf.Event {
	return bpf.Event{
		Time: uint64(5*time.Second + 6*time.Millisecond),
		Type: bpf.EventDrop, Reason: bpf.ReasonPolicyDenied, Dir: bpf.Ingress,
		Src: addr("10.1.1.5"), Dst: addr("10.2.1.9"), Service: addr("10.101.0.7"),
		SrcIdentity: 65540, DstIdentity: 131080, Set: 12, PolicyGen: 7,
		Sport: bpf.PortOf(40000), Dport: bpf.PortOf(80), ServicePort: bpf.PortOf(8080),
		Bytes: 60, Proto: 6, TCPFlags: 2,
	}
}

func TestDecode(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*bpf.Event)
		want   func(*Flow)
	}{
		{"default deny names all that select the pod", func(*bpf.Event) {}, func(*Flow) {}},
		{"a rule that denies names its policy",
			func(ev *bpf.Event) { ev.Rule = 3 },
			func(f *Flow) {
				f.DefaultDeny, f.Policies = false, []Policy{{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "no-frontend"}}
			}},
		{"events of the same pod were suppressed before",
			func(ev *bpf.Event) { ev.Suppressed = 42 },
			func(f *Flow) { f.Suppressed = 42 }},
		{"a rule of a generation that is gone",
			func(ev *bpf.Event) { ev.Rule, ev.PolicyGen = 3, 6 },
			func(f *Flow) { f.DefaultDeny, f.Policies = false, nil }},
		{"allowed, and by which rule",
			func(ev *bpf.Event) { ev.Type, ev.Reason, ev.Rule = bpf.EventNewFlow, bpf.ReasonDelivered, 3 },
			func(f *Flow) {
				f.Verdict, f.Reason, f.DefaultDeny = Forwarded, "", false
				f.Policies = []Policy{{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "no-frontend"}}
			}},
		{"allowed where no policy selects",
			func(ev *bpf.Event) { ev.Type, ev.Reason = bpf.EventNewFlow, bpf.ReasonDelivered },
			func(f *Flow) { f.Verdict, f.Reason, f.DefaultDeny, f.Policies = Forwarded, "", false, nil }},
		{"a lack is no policy",
			func(ev *bpf.Event) { ev.Reason = bpf.ReasonNoTunnel },
			func(f *Flow) { f.Reason, f.DefaultDeny, f.Policies = "no-tunnel", false, nil }},
		{"member without identity is refused by default deny",
			func(ev *bpf.Event) {
				ev.Reason, ev.SrcIdentity, ev.Src = bpf.ReasonUnknownMember, 127, addr("10.1.9.9")
			},
			func(f *Flow) {
				f.Reason = "unknown-member"
				f.Source = Endpoint{Identity: identity.UnknownMember, Address: netip.MustParseAddr("10.1.9.9"), Port: 40000}
			}},
		{"answered with a reset",
			func(ev *bpf.Event) {
				ev.Type, ev.Reason, ev.Dir, ev.TCPFlags = bpf.EventReset, bpf.ReasonPathDown, bpf.Egress, 0x18
			},
			func(f *Flow) {
				f.Verdict, f.Reason, f.Direction, f.DefaultDeny, f.Policies = Reset, "path-down", Egress, false, nil
				f.TCPFlags, f.Summary = []string{"PSH", "ACK"}, "TCP Flags: PSH, ACK"
			}},
		{"refused, and why",
			func(ev *bpf.Event) {
				ev.Type, ev.Reason, ev.Dir, ev.TCPFlags = bpf.EventRefused, bpf.ReasonNoBackend, bpf.Egress, 0x02
			},
			func(f *Flow) {
				f.Verdict, f.Reason, f.Direction, f.DefaultDeny, f.Policies = Refused, "no-backend", Egress, false, nil
				f.TCPFlags, f.Summary = []string{"SYN"}, "TCP Flags: SYN"
			}},
		{"no service",
			func(ev *bpf.Event) { ev.Service, ev.ServicePort = bpf.Addr{}, bpf.Port{} },
			func(f *Flow) { f.Service = nil }},
		{"UDP",
			func(ev *bpf.Event) { ev.Proto, ev.TCPFlags = 17, 0 },
			func(f *Flow) { f.Protocol, f.TCPFlags, f.Summary = "UDP", nil, "UDP" }},
		{"ICMP has no ports",
			func(ev *bpf.Event) {
				ev.Proto, ev.TCPFlags, ev.Service = 1, 0, bpf.Addr{}
				ev.Sport, ev.Dport = bpf.Port{3, 1}, bpf.Port{}
			},
			func(f *Flow) {
				f.Protocol, f.TCPFlags, f.Summary, f.Service = "ICMP", nil, "ICMP type 3 code 1", nil
				f.ICMP, f.Source.Port, f.Destination.Port = &ICMP{Type: 3, Code: 1}, 0, 0
			}},
		{"not IP, so nothing of it was read",
			func(ev *bpf.Event) {
				*ev = bpf.Event{Time: ev.Time, Type: bpf.EventDrop, Reason: bpf.ReasonNotSupported, Dir: bpf.Egress, Bytes: 90}
			},
			func(f *Flow) {
				*f = Flow{Time: f.Time, Verdict: Dropped, Reason: "not-supported", Direction: Egress, Bytes: 90, Node: f.Node, Summary: "not IP"}
			}},
		{"a protocol without a name here",
			func(ev *bpf.Event) { ev.Proto, ev.TCPFlags = 47, 0 },
			func(f *Flow) { f.Protocol, f.TCPFlags, f.Summary = "47", nil, "47" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			ev, want := syn(), denied()
			test.change(&ev)
			test.want(&want)
			if diff := cmp.Diff(want, cluster().Decode(&ev), plain); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecodeKnowsNobody(t *testing.T) {
	ev := syn()
	got := (&Resolver{Node: "west/west-1"}).Decode(&ev)
	if got.Source.Name() != "10.1.1.5" || got.Source.Identity != 65540 || !got.DefaultDeny || got.Time.IsZero() {
		t.Errorf("got %+v", got)
	}
}
