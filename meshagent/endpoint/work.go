package endpoint

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// bring creates a pod's network, or finds it. It is called by whoever's turn it is.
func (e *Endpoints) bring(r Record) (*api.EndpointResult, error) {
	link, row, err := e.create(r)
	if err != nil {
		return nil, e.fail(r, err, true)
	}
	e.mu.Lock()
	_, mended := e.failed[r.Key()]
	delete(e.failed, r.Key())
	e.mu.Unlock()
	e.cfg.Tell(r.Key(), "")
	e.change(r, func(t *tables.Endpoint) bool {
		if t.Ifindex == link.Ifindex && t.Phase != tables.Removing {
			t.UID = r.UID // a recovered record had none
			if mended {
				t.Why = ""
			}
			return true
		}
		t.UID, t.ID, t.IP, t.Second, t.Device, t.Ifindex = r.UID, r.ID, r.IP, r.Second, link.Host, link.Ifindex
		copy(t.MAC[:], link.MAC)
		copy(t.HostMAC[:], link.HostMAC)
		t.Phase, t.Why, t.Ready = tables.Held, "", false
		if row.Held == 0 {
			t.Phase, t.Identity, t.Set = tables.Live, identity.Number(row.Identity), row.Set
		}
		return true
	})
	return e.result(r, link, row), nil
}

// create makes what a pod needs in the kernel. A new pod is held: its row and its programs
// are in place before its first packet.
func (e *Endpoints) create(r Record) (link Link, row bpf.Endpoint, err error) {
	if link, err = e.cfg.Plumbing.Create(r); err != nil {
		return link, row, err
	}
	ran := true
	for _, ip := range r.IPs() {
		var kept bool
		if row, kept, err = e.hold(r, ip, link); err != nil {
			return link, row, err
		}
		ran = ran && kept && row.Held == 0
	}
	e.mu.Lock()
	if _, known := e.ran[r.Key()]; !known {
		e.ran[r.Key()] = ran
	}
	e.mu.Unlock()
	if err := e.cfg.Datapath.AttachPod(link.Ifindex); err != nil {
		return link, row, err
	}
	if err := e.openNamespace(r, link); err != nil {
		return link, row, err
	}
	return link, row, e.cfg.Plumbing.Up(link, r)
}

// hold gives an address of a pod a row by which it is held, or keeps the one that it has.
func (e *Endpoints) hold(r Record, ip netip.Addr, link Link) (row bpf.Endpoint, kept bool, err error) {
	addr := bpf.AddrOf(ip)
	row, ok, err := e.cfg.Datapath.Maps().Endpoints.Lookup(addr)
	if err != nil || ok && row.Ifindex == uint32(link.Ifindex) {
		return row, ok, err
	}
	if old := row.Ifindex; old != 0 {
		e.detach(r, int(old)) // a device that is gone
	}
	row = bpf.Endpoint{Ifindex: uint32(link.Ifindex), ID: r.ID, Held: 1}
	copy(row.MAC[:], link.MAC)
	copy(row.HostMAC[:], link.HostMAC)
	return row, false, e.cfg.Datapath.Maps().Endpoints.Update(addr, row)
}

func (e *Endpoints) result(r Record, link Link, row bpf.Endpoint) *api.EndpointResult {
	out := &api.EndpointResult{
		Namespace: r.Namespace, Name: r.Pod, UID: r.UID, Container: r.Container, Netns: e.cfg.Plumbing.Netns(r),
		Interface: r.Device(), MAC: link.MAC.String(), Device: link.Host, DeviceMAC: link.HostMAC.String(), MTU: e.cfg.MTU,
		Held: row.Held != 0,
	}
	for _, ip := range r.IPs() {
		gateway := gatewayOf(ip)
		out.Addresses = append(out.Addresses, netip.PrefixFrom(ip, ip.BitLen()))
		out.Routes = append(out.Routes,
			api.EndpointRoute{Destination: netip.PrefixFrom(gateway, gateway.BitLen())},
			api.EndpointRoute{Destination: everything(ip), Gateway: gateway})
	}
	return out
}

// Look implements api.EndpointRequests.
func (e *Endpoints) Look(ctx context.Context, req api.EndpointRequest) (*api.EndpointResult, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	leave, err := e.enter(ctx, req.Key())
	if err != nil {
		return nil, err
	}
	defer leave()
	r, ok := e.record(req.Key())
	if !ok || !means(req, r) {
		return nil, api.NotFound("add it", "this node has no network of pod %s", req.Key())
	}
	damaged := func(err error) error {
		return api.Conflict("add it again", "the network of pod %s is damaged: %v", r.Key(), err)
	}
	link, err := e.cfg.Plumbing.Look(r)
	if err != nil {
		return nil, damaged(err)
	}
	var row bpf.Endpoint
	for _, ip := range r.IPs() {
		var ok bool
		row, ok, err = e.cfg.Datapath.Maps().Endpoints.Lookup(bpf.AddrOf(ip))
		switch {
		case err != nil:
			return nil, err
		case !ok || row.Ifindex != uint32(link.Ifindex):
			return nil, damaged(fmt.Errorf("%v is not in the table of this node's pods", ip))
		}
	}
	return e.result(r, link, row), nil
}

// means says whether a request is about the pod and container of a record.
func means(req api.EndpointRequest, r Record) bool {
	return (req.UID == "" || r.UID == "" || req.UID == r.UID) && (req.Container == "" || r.Container == "" || req.Container == r.Container)
}

// Remove implements api.EndpointRequests. The node stops reporting the pod first, and gives
// up its address last.
func (e *Endpoints) Remove(ctx context.Context, req api.EndpointRequest) error {
	if err := req.Validate(); err != nil {
		return err
	}
	leave, err := e.enter(ctx, req.Key())
	if err != nil {
		return err
	}
	defer leave()
	r, ok := e.record(req.Key())
	if !ok {
		// It may have failed before it had an address.
		e.forget(Record{Namespace: req.Namespace, Pod: req.Name})
		return nil
	}
	if !means(req, r) {
		return nil
	}
	e.mark(r) // before it waits: the node stops reporting it at once
	// What was begun is finished, whoever waits for it.
	free, err := e.plumber(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer free()
	return e.remove(r)
}

// mark lets the node stop reporting a pod.
func (e *Endpoints) mark(r Record) {
	e.change(r, func(t *tables.Endpoint) bool {
		t.Phase = tables.Removing
		return true
	})
}

// remove takes a pod's network away.
func (e *Endpoints) remove(r Record) error {
	e.mark(r)
	if err := e.unplumb(r); err != nil {
		return e.fail(r, err, false)
	}
	if err := e.cfg.Dir.Release(r, time.Now()); err != nil {
		return e.fail(r, err, false)
	}
	e.mu.Lock()
	e.pool.Release(r, time.Now())
	delete(e.records, r.Key())
	delete(e.ran, r.Key())
	delete(e.inherited, r.Key())
	delete(e.adds, r.Key())
	e.mu.Unlock()
	e.forget(r)
	e.cfg.Log.Info("pod removed", "pod", r.Key(), "ip", r.addresses())
	return nil
}

// unplumb takes from the kernel what belongs to a pod. Its programs go after its device,
// because until then they filter what the pod sends.
func (e *Endpoints) unplumb(r Record) error {
	ifindex := 0
	for _, ip := range r.IPs() {
		if row, ok, err := e.cfg.Datapath.Maps().Endpoints.Lookup(bpf.AddrOf(ip)); err == nil && ok {
			ifindex = int(row.Ifindex)
		}
	}
	if t := tables.Get(e.cfg.Tables.DB.ReadTxn(), e.cfg.Tables.Endpoints, r.Key()); t != nil {
		ifindex = cmp.Or(t.Ifindex, ifindex)
	}
	if err := e.cfg.Plumbing.Remove(r); err != nil {
		return err
	}
	if ifindex != 0 {
		e.detach(r, ifindex)
	}
	if err := e.closeNamespace(r.Key(), 0); err != nil {
		return err
	}
	for _, ip := range r.IPs() {
		if err := e.cfg.Datapath.Maps().Endpoints.Delete(bpf.AddrOf(ip)); err != nil {
			return err
		}
	}
	return nil
}

func (e *Endpoints) detach(r Record, ifindex int) {
	if err := e.cfg.Datapath.Detach(ifindex); err != nil {
		e.cfg.Log.Debug("detach", "pod", r.Key(), "error", err)
	}
}

// forget drops the row of a pod that has nothing left on this node.
func (e *Endpoints) forget(r Record) {
	e.mu.Lock()
	delete(e.failed, r.Key())
	e.mu.Unlock()
	e.cfg.Tell(r.Key(), "")
	e.change(r, func(*tables.Endpoint) bool { return false })
}

// fail shows why a pod is not as requested, and returns that. If its network is wanted and
// on disk, it is tried again without another request.
func (e *Endpoints) fail(r Record, err error, again bool) error {
	e.mu.Lock()
	_, before := e.failed[r.Key()]
	e.failed[r.Key()] = again
	e.mu.Unlock()
	if !before {
		e.cfg.Log.Warn("pod's network is not as requested yet", "pod", r.Key(), "error", err)
	}
	e.cfg.Tell(r.Key(), err.Error())
	e.change(r, func(t *tables.Endpoint) bool {
		if t.Phase == "" {
			t.Phase = tables.Creating
		}
		t.UID, t.ID, t.IP, t.Second, t.Why = r.UID, r.ID, r.IP, r.Second, err.Error()
		return true
	})
	return err
}

// SetReady notes whether a pod is ready, and why it is not.
func (e *Endpoints) SetReady(r Record, ready bool, why string) {
	e.change(r, func(t *tables.Endpoint) bool {
		if t.UID != r.UID || t.Phase == "" || t.Phase == tables.Removing {
			return t.Phase != "" // gone meanwhile
		}
		t.Ready, t.Why = ready, why
		return true
	})
}

func (e *Endpoints) change(r Record, f func(*tables.Endpoint) bool) {
	t := e.cfg.Tables
	txn := t.DB.WriteTxn(t.Endpoints)
	blank := &tables.Endpoint{Namespace: r.Namespace, Pod: r.Pod}
	before := tables.Get(txn, t.Endpoints, blank.Key())
	var after *tables.Endpoint
	keep := false
	tables.Change(txn, t.Endpoints, blank, func(e *tables.Endpoint) bool {
		keep = f(e)
		after = e
		return keep
	})
	if before != nil && keep && compared(before) == compared(after) || before == nil && !keep {
		txn.Abort() // nothing changed
		return
	}
	txn.Commit()
}

// visible is the part of an endpoint that is changed here.
type visible struct {
	uid, device, why string
	ip, second       netip.Addr
	id               uint16
	ifindex          int
	phase            tables.Phase
	ready            bool
}

func compared(e *tables.Endpoint) visible {
	return visible{e.UID, e.Device, e.Why, e.IP, e.Second, e.ID, e.Ifindex, e.Phase, e.Ready}
}
