package endpoint_test

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
)

// given are the pods' addresses whose sockets are given the backends of services.
func (m *machine) given() map[uint64][2]string {
	m.t.Helper()
	rows, failed := m.datapath.Maps().Namespaces.All()
	out := map[uint64][2]string{}
	for cookie, row := range rows {
		var both [2]string
		for i, a := range row.Addr {
			if a != (bpf.Addr{}) {
				both[i] = a.String()
			}
		}
		out[cookie] = both
	}
	if err := failed(); err != nil {
		m.t.Fatal(err)
	}
	return out
}

// A pod's network namespace is known for as long as the pod has its network, whatever agents do
// meanwhile, and only where that is wanted.
func TestSocketsOfPodsAreGivenBackends(t *testing.T) {
	m := newMachine(t)
	m.sockets = true
	m.cidrs = append(m.cidrs, netip.MustParsePrefix("fd00:10:1:1::/64"))
	want := func(when string, want map[uint64][2]string) {
		t.Helper()
		if got := m.given(); !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	both := func(r *api.EndpointResult) [2]string {
		t.Helper()
		if len(r.Addresses) != 2 {
			t.Fatalf("addresses %v", r.Addresses)
		}
		return [2]string{r.Addresses[0].Addr().String(), r.Addresses[1].Addr().String()}
	}
	l := m.start()
	first := both(l.add(web))
	want("added", map[uint64][2]string{5001: first})
	l.add(web)
	want("added again", map[uint64][2]string{5001: first})
	db := api.EndpointRequest{Namespace: "shop", Name: "db-1", UID: "two"}
	second := both(l.add(db))
	want("with another pod", map[uint64][2]string{5001: first, 5002: second})

	// Connections are ended in the namespaces of their pods alone, and only while they are lost.
	lost := bpf.FlowKey{Local: bpf.AddrOf(netip.MustParseAddr(first[1])), Lport: bpf.PortOf(4000), Proto: 6}
	found, nobodys := lost, lost
	found.Lport = bpf.PortOf(4001)
	nobodys.Local = bpf.AddrOf(netip.MustParseAddr("10.1.1.200"))
	still := func(k bpf.FlowKey) (bool, error) { return k != found, nil }
	if n, err := l.EndConnections([]bpf.FlowKey{nobodys, found, lost}, still); n != 1 || err != nil || !slices.Equal(m.plumbing.Ended(web.Key()), []bpf.FlowKey{lost}) || len(m.plumbing.Ended(db.Key())) != 0 {
		t.Errorf("ended %d connections, %v: %v", n, err, m.plumbing.Ended(web.Key()))
	}

	// Its namespace is another one now, as after a crash of the runtime.
	m.plumbing.Reboot()
	l.add(web)
	want("in another namespace", map[uint64][2]string{5003: first, 5002: second})

	// The next agent takes them over, and removes what nobody has.
	if err := m.datapath.Maps().Namespaces.Update(4711, bpf.Namespace{}); err != nil {
		t.Fatal(err)
	}
	l = m.start()
	if got := m.given(); len(got) != 2 || got[5003] != first {
		t.Errorf("with another agent: %v", got)
	}
	if err := l.Remove(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	want("removed", map[uint64][2]string{5003: first})

	// A pod that cannot be brought up yet keeps its row, until it has another namespace.
	m.onStep(func(act, pod string) error {
		if act == "create" {
			return errors.New("the kernel is busy")
		}
		return nil
	})
	if err := m.datapath.Maps().Namespaces.Update(4711, bpf.Namespace{Addr: [2]bpf.Addr{bpf.AddrOf(netip.MustParseAddr("10.1.1.200"))}}); err != nil {
		t.Fatal(err)
	}
	l = m.start()
	want("while nothing can be brought up", map[uint64][2]string{5003: first})
	m.plumbing.Reboot()
	m.onStep(nil)
	l.add(web)
	want("brought up in another namespace", map[uint64][2]string{5005: first})

	m.sockets = false
	l = m.start()
	want("in the node's namespace only", map[uint64][2]string{})
	l.add(db)
	want("added in the node's namespace only", map[uint64][2]string{})
	if rows, err := m.datapath.Maps().Endpoints.Len(); rows != 4 || err != nil {
		t.Errorf("%d rows of pods, %v", rows, err)
	}
}
