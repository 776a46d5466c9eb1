package trace

import (
	"cmp"
	"context"
	"fmt"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
)

// Lost are the open connections of this node's pods over TCP whose service's backend is gone, by their
// flows' keys, which is how the pods know them. The next packet of each would be answered with a
// reset. A connection that is merely cut off is not lost.
//
// It passes over the table of flows, and asks other tables only once for each backend.
func Lost(ctx context.Context, m *bpf.Maps) (all []bpf.FlowKey, err error) {
	r, err := newRows(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("look for connections without a backend: %w", err)
	}
	pods := map[bpf.Addr]uint32{}
	endpoints, failed := m.Endpoints.All()
	for addr, ep := range endpoints {
		pods[addr] = ep.Ifindex
	}
	r.err = failed()
	fates := map[bpf.MemberKey]fate{}
	flows, failed := m.Flows.All()
	for k, f := range flows {
		if r.err = cmp.Or(r.err, ctx.Err()); r.err != nil {
			break
		}
		if !mayLose(k, f) || f.Ifindex != pods[k.Local] {
			continue
		}
		member := memberOf(k, f)
		backend, ok := fates[member]
		if !ok {
			backend = r.fate(member, k.Proto)
			fates[member] = backend
		}
		if !backend.keeps(k, f) {
			all = append(all, k)
		}
	}
	if err := cmp.Or(r.err, failed()); err != nil {
		return nil, fmt.Errorf("look for connections without a backend: %w", err)
	}
	return all, nil
}

// StillLost says whether a connection of Lost is lost now.
func StillLost(ctx context.Context, m *bpf.Maps, k bpf.FlowKey) (bool, error) {
	r, err := newRows(ctx, m)
	if err != nil {
		return false, err
	}
	f, ok := look(&r, m.Flows, k)
	ep, _ := look(&r, m.Endpoints, k.Local)
	lost := ok && mayLose(k, f) && f.Ifindex == ep.Ifindex && !r.fate(memberOf(k, f), k.Proto).keeps(k, f)
	return lost && r.err == nil, r.err
}

// newRows reads the maps with the settings as they are.
func newRows(ctx context.Context, m *bpf.Maps) (rows, error) {
	settings, _, err := m.Settings.Lookup(0)
	if err != nil {
		return rows{}, fmt.Errorf("read map settings: %w", err)
	}
	return rows{ctx: ctx, maps: m, settings: settings}, nil
}

// mayLose says of a flow that a pod of this node has opened it over TCP through a service, and that
// it is open.
func mayLose(k bpf.FlowKey, f bpf.Flow) bool {
	const others = bpf.FlowAnswers | bpf.FlowLoop | bpf.FlowRemoteInitiated
	return k.Proto == 6 && f.Ifindex != 0 && f.Flags&(bpf.FlowService|bpf.FlowMember) != 0 && f.Flags&others == 0 &&
		f.Lifetime(k.Proto) == bpf.TCPEstablished
}

// memberOf is the row of a flow's backend among those of its service.
func memberOf(k bpf.FlowKey, f bpf.Flow) bpf.MemberKey {
	if f.Flags&bpf.FlowService != 0 {
		return bpf.MemberKey{Addr: f.Backend, Service: f.Service, Port: f.Bport}
	}
	return bpf.MemberKey{Addr: k.Remote, Service: f.Service, Port: k.Rport} // the pod's socket was given it
}

// fate is what has become of a backend.
type fate struct {
	member bool // its service has it
	at     place
	why    bpf.Reason // packets to it go nowhere
}

func (r *rows) fate(m bpf.MemberKey, proto uint8) (b fate) {
	if _, b.member = look(r, r.maps.Members, m); !b.member {
		b.at, b.why = r.locateOffered(m.Addr, m.Port, proto)
	}
	return b
}

// keeps says whether a flow keeps this backend: rejudge. One that was removed from its service keeps
// its open connections for as long as it exists.
func (b fate) keeps(k bpf.FlowKey, f bpf.Flow) bool {
	return b.member || k.Proto == 6 && f.Flags&bpf.FlowReplied != 0 && (b.why == 0 || b.why == bpf.ReasonNoTunnel) &&
		b.at.via == f.Via && b.at.identity != uint32(identity.UnknownMember)
}
