package trace

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/bpf"
)

// Connections that have lost their backend are found, whether packets are translated or the socket was
// given it, and no others.
func TestLostConnections(t *testing.T) {
	const (
		open   = bpf.FlowReplied
		closed = bpf.FlowFinLocal | bpf.FlowFinRemote
	)
	service := bpf.Flow{Ifindex: 5, Service: 7, Via: bpf.ViaTunnel, Node: 1, Cluster: 2, Flags: open | bpf.FlowService, Bport: bpf.PortOf(8080)}
	given := bpf.Flow{Ifindex: 5, Service: 7, Via: bpf.ViaTunnel, Node: 1, Cluster: 2, Flags: open | bpf.FlowMember, Backend: addr("10.101.0.7"), Bport: bpf.PortOf(80)}
	through := func(backend string) bpf.Flow { f := service; f.Backend = addr(backend); return f }
	with := func(f bpf.Flow, flags bpf.FlowFlags) bpf.Flow { f.Flags |= flags; return f }
	without := func(f bpf.Flow, flags bpf.FlowFlags) bpf.Flow { f.Flags &^= flags; return f }
	via := func(f bpf.Flow, v bpf.Via) bpf.Flow { f.Via = v; return f }
	of := func(f bpf.Flow, service, ifindex uint32) bpf.Flow { f.Service, f.Ifindex = service, ifindex; return f }
	const front = "10.101.0.7"

	m := mesh(t)
	put(t, m.Members, bpf.MemberKey{Addr: addr("10.9.1.2"), Service: 7, Port: bpf.PortOf(8080)}, bpf.Member{})
	put(t, m.Services, bpf.ServiceKey{Addr: addr("172.16.1.2"), Port: bpf.PortOf(8080), Proto: 6, Scope: bpf.ScopeNode}, bpf.Service{ID: 9})
	var want []bpf.FlowKey
	for i, c := range []struct {
		name, remote string
		f            bpf.Flow
		lost         bool
	}{
		{"translated, nobody has the address", front, through("10.2.1.9"), true},
		{"translated, the peer is gone", front, through("10.3.9.9"), true},
		{"translated, the node is gone", front, through("172.16.2.1"), true},
		{"translated, another pod of this node has it", front, through("10.1.1.2"), true},
		{"translated, no longer a service's, but it is there", front, through("10.2.1.2"), false},
		{"translated, a process that another service offers", front, through("172.16.1.2"), false},
		{"translated, the service has it: cut off at most", front, through("10.9.1.2"), false},
		{"the same backend of another service", front, of(through("10.9.1.2"), 8, 5), true},
		{"given, nobody has the address", "10.2.1.9", given, true},
		{"given, but it is there", "10.2.1.2", given, false},
		{"given, and translated to one that is gone", "10.2.1.2", with(through("10.2.1.9"), bpf.FlowMember), true},
		{"given, and translated to one that is there", "10.2.1.9", with(through("10.2.1.2"), bpf.FlowMember), false},
		{"given, at another port", "10.2.1.9", with(given, bpf.FlowDirect), true},
		{"given, a pod of this node that is gone", "10.1.1.9", via(given, bpf.ViaPod), true},
		{"no service", "10.2.1.9", bpf.Flow{Ifindex: 5, Via: bpf.ViaTunnel, Flags: open}, false},
		{"not answered yet", front, without(through("10.2.1.9"), bpf.FlowReplied), false},
		{"reset", front, with(through("10.2.1.9"), bpf.FlowReset), false},
		{"closed", front, with(through("10.2.1.9"), closed), false},
		{"half closed", front, with(through("10.2.1.9"), bpf.FlowFinLocal), true},
		{"answers", front, with(through("10.2.1.9"), bpf.FlowAnswers), false},
		{"the pod itself", front, with(through("10.2.1.9"), bpf.FlowLoop), false},
		{"another pod's before", front, of(through("10.2.1.9"), 7, 6), false},
	} {
		k := bpf.FlowKey{Local: addr("10.1.1.2"), Remote: addr(c.remote), Lport: bpf.PortOf(uint16(4000 + i)), Rport: bpf.PortOf(8080), Proto: 6}
		put(t, m.Flows, k, c.f)
		if c.lost {
			want = append(want, k)
		}
		if got, err := StillLost(t.Context(), m, k); got != c.lost || err != nil {
			t.Errorf("%s: lost %v, %v", c.name, got, err)
		}
		udp := k
		udp.Proto = 17
		put(t, m.Flows, udp, c.f)
	}
	got, err := Lost(t.Context(), m)
	slices.SortFunc(got, func(a, b bpf.FlowKey) int { return cmp.Compare(a.Lport.Number(), b.Lport.Number()) })
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("lost %v, %v; want %v", got, err, want)
	}

	done, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := Lost(done, m); len(got) != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v, %v", got, err)
	}
	for _, k := range want {
		if err := m.Flows.Delete(k); err != nil {
			t.Fatal(err)
		}
		if got, err := StillLost(t.Context(), m, k); got || err != nil {
			t.Errorf("without a flow: %v, %v", got, err)
		}
	}
}
