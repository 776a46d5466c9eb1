package meshagent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// workloads gives this node's pods their network and finds out whether they are
// ready. Pods are removed only when their object is gone from a list that was
// read in full.
type workloads struct {
	node     node
	tables   *tables.Tables
	datapath Datapath
	plumbing endpoint.Plumbing
	dir      endpoint.Dir
	// listed is closed once all sources were read.
	listed <-chan struct{}
	log    *slog.Logger

	// adopted is closed once every pod of an earlier life was found again.
	adopted chan struct{}
	// settled is closed once the table holds exactly the pods that are wanted.
	settled chan struct{}
	once    sync.Once

	// Of the loop alone.
	pool    *endpoint.Pool
	records map[string]endpoint.Record
	failed  map[string]int
	probes  map[string]*probing
	// found are pods that went on without us. One whose machine has booted since
	// begins anew, whatever was last said of it.
	found map[string]bool
	wg    sync.WaitGroup
}

// probing is the readiness check of one pod.
type probing struct {
	uid  string
	stop context.CancelFunc
}

func newWorkloads(n node, t *tables.Tables, d Datapath, p endpoint.Plumbing, dir endpoint.Dir, listed <-chan struct{}, log *slog.Logger) (*workloads, error) {
	records, err := dir.Load()
	if err != nil {
		return nil, err
	}
	w := &workloads{
		node: n, tables: t, datapath: d, plumbing: p, dir: dir, listed: listed, log: log,
		adopted: make(chan struct{}), settled: make(chan struct{}),
		pool: endpoint.NewPool(n.cidr, records), records: map[string]endpoint.Record{}, failed: map[string]int{}, probes: map[string]*probing{}, found: map[string]bool{},
	}
	for _, r := range records {
		w.records[r.Key()] = r
	}
	return w, nil
}

// Run works until ctx ends; pods keep their network.
func (w *workloads) Run(ctx context.Context) error {
	defer w.wg.Wait()
	defer func() {
		for _, p := range w.probes {
			p.stop()
		}
	}()
	for _, r := range w.records {
		if err := w.bring(r); err != nil {
			w.fail(r, err)
		}
	}
	close(w.adopted)
	select {
	case <-ctx.Done():
		return nil
	case <-w.listed:
	}
	for ctx.Err() == nil {
		txn := w.tables.DB.ReadTxn()
		_, pods := w.tables.Pods.AllWatch(txn)
		_, endpoints := w.tables.Endpoints.AllWatch(txn)
		left := w.reconcile(w.wanted(tables.All(txn, w.tables.Pods)))
		w.watchReadiness(ctx)
		w.once.Do(func() { close(w.settled) })
		var again <-chan time.Time
		if left > 0 {
			again = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
		case <-pods:
		case <-endpoints:
		case <-again:
		}
	}
	return nil
}

// wanted are the pods that belong on this node, by name.
func (w *workloads) wanted(pods []*tables.Pod) map[string]*corev1.Pod {
	out := map[string]*corev1.Pod{}
	for _, p := range pods {
		if p.Object != nil && p.Object.Spec.NodeName == w.node.name && !p.Object.Spec.HostNetwork {
			out[p.Key()] = p.Object
		}
	}
	return out
}

// reconcile removes what is gone, then brings what is new. It returns how many
// pods have to be tried again.
func (w *workloads) reconcile(want map[string]*corev1.Pod) (left int) {
	for key, r := range w.records {
		pod, ok := want[key]
		if ok && (string(pod.UID) == r.UID || r.UID == "") {
			continue
		}
		// A pod deleted and made anew under the same name is another pod.
		if err := w.remove(r); err != nil {
			w.fail(r, err)
			left++
		}
	}
	for key, pod := range want {
		if _, ok := w.records[key]; ok && w.failed[key] == 0 {
			continue
		}
		if err := w.create(pod); err != nil {
			r, ok := w.records[key]
			if !ok {
				r = endpoint.Record{Namespace: pod.Namespace, Pod: pod.Name, UID: string(pod.UID)}
			}
			w.fail(r, err)
			left++
			continue
		}
		delete(w.failed, key)
	}
	return left
}

func (w *workloads) create(pod *corev1.Pod) error {
	key := pod.Namespace + "/" + pod.Name
	r, ok := w.records[key]
	if !ok {
		ip, id, err := w.pool.Take()
		if err != nil {
			return err
		}
		r = endpoint.Record{Namespace: pod.Namespace, Pod: pod.Name, UID: string(pod.UID), IP: ip, ID: id}
		// Written before the kernel hears of it: what is made later can be found
		// and removed.
		if err := w.dir.Save(r); err != nil {
			w.pool.Return(r)
			return err
		}
		w.records[key] = r
	}
	return w.bring(r)
}

// bring makes a pod's network, or finds it. A pod that is new is held: its row
// and its programs are there before its first packet.
func (w *workloads) bring(r endpoint.Record) error {
	link, err := w.plumbing.Create(r)
	if err != nil {
		return err
	}
	addr := bpf.AddrOf(r.IP)
	row, ok, err := w.datapath.Maps().Endpoints.Lookup(addr)
	if err != nil {
		return err
	}
	if _, known := w.found[r.Key()]; !known {
		w.found[r.Key()] = ok && row.Ifindex == uint32(link.Ifindex) && row.Held == 0
	}
	if !ok || row.Ifindex != uint32(link.Ifindex) {
		row = bpf.Endpoint{Ifindex: uint32(link.Ifindex), ID: r.ID, Held: 1}
		copy(row.MAC[:], link.MAC)
		copy(row.HostMAC[:], link.HostMAC)
		if err := w.datapath.Maps().Endpoints.Update(addr, row); err != nil {
			return err
		}
	}
	if err := w.datapath.AttachPod(link.Ifindex); err != nil {
		return err
	}
	if err := w.plumbing.Up(link, r); err != nil {
		return err
	}
	w.change(r, func(e *tables.Endpoint) bool {
		if e.Ifindex == link.Ifindex {
			e.Why = ""
			return true
		}
		e.UID, e.ID, e.IP, e.Device, e.Ifindex = r.UID, r.ID, r.IP, link.Host, link.Ifindex
		copy(e.MAC[:], link.MAC)
		copy(e.HostMAC[:], link.HostMAC)
		e.Phase, e.Why, e.Ready = tables.Held, "", false
		if row.Held == 0 {
			e.Phase, e.Identity, e.Set = tables.Live, identity.Number(row.Identity), row.Set
		}
		return true
	})
	return nil
}

// remove takes a pod's network away, and its address last of all.
func (w *workloads) remove(r endpoint.Record) error {
	if p := w.probes[r.Key()]; p != nil {
		p.stop()
		delete(w.probes, r.Key())
	}
	w.change(r, func(e *tables.Endpoint) bool { e.Phase = tables.Removing; return true })
	if row, ok, err := w.datapath.Maps().Endpoints.Lookup(bpf.AddrOf(r.IP)); err == nil && ok {
		if err := w.datapath.Detach(int(row.Ifindex)); err != nil {
			w.log.Debug("detach", "pod", r.Key(), "error", err)
		}
	}
	if err := w.plumbing.Remove(r); err != nil {
		return err
	}
	if err := w.datapath.Maps().Endpoints.Delete(bpf.AddrOf(r.IP)); err != nil {
		return err
	}
	if err := w.dir.Remove(r); err != nil {
		return err
	}
	w.pool.Return(r)
	delete(w.records, r.Key())
	delete(w.failed, r.Key())
	delete(w.found, r.Key())
	w.change(r, func(*tables.Endpoint) bool { return false })
	w.log.Info("pod removed", "pod", r.Key(), "ip", r.IP)
	return nil
}

func (w *workloads) fail(r endpoint.Record, err error) {
	w.failed[r.Key()]++
	if w.failed[r.Key()] == 1 {
		w.log.Warn("pod has no network yet, trying again", "pod", r.Key(), "error", err)
	}
	w.change(r, func(e *tables.Endpoint) bool {
		if e.Phase == "" {
			e.Phase = tables.Creating
		}
		e.UID, e.ID, e.IP, e.Why = r.UID, r.ID, r.IP, err.Error()
		return true
	})
}

func (w *workloads) change(r endpoint.Record, f func(*tables.Endpoint) bool) {
	t := w.tables
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
	if before != nil && keep && compared(before) == compared(after) {
		txn.Abort() // nothing to tell anyone
		return
	}
	txn.Commit()
}

// visible is an endpoint without its labels, which nothing here changes.
type visible struct {
	uid, device, why, ip string
	id                   uint16
	ifindex              int
	phase                tables.Phase
	ready                bool
}

func compared(e *tables.Endpoint) visible {
	return visible{e.UID, e.Device, e.Why, e.IP.String(), e.ID, e.Ifindex, e.Phase, e.Ready}
}

// watchReadiness runs a check for every pod that can be reached.
func (w *workloads) watchReadiness(ctx context.Context) {
	txn := w.tables.DB.ReadTxn()
	for e := range w.tables.Endpoints.All(txn) {
		if p := w.probes[e.Key()]; p != nil && p.uid == e.UID || e.Phase != tables.Live {
			continue
		}
		pod := tables.Get(txn, w.tables.Pods, e.Key())
		if pod == nil || pod.Object == nil {
			continue
		}
		if p := w.probes[e.Key()]; p != nil {
			p.stop()
		}
		probe, err := endpoint.ReadProbe(pod.Object, e.IP)
		r := w.records[e.Key()]
		ctx, stop := context.WithCancel(ctx)
		w.probes[e.Key()] = &probing{uid: e.UID, stop: stop}
		switch {
		case err != nil:
			w.ready(r, false, err)
		case probe == nil:
			w.ready(r, true, nil)
		default:
			// What it was before the agent restarted, until asked.
			was := w.found[e.Key()] && pod.Endpoint != nil && pod.Endpoint.Ready && pod.Endpoint.IP == e.IP
			if was {
				w.ready(r, true, nil)
			}
			w.wg.Go(func() {
				probe.Watch(ctx, was, probe.Ask, func(ready bool, why error) { w.ready(r, ready, why) })
			})
		}
	}
}

func (w *workloads) ready(r endpoint.Record, ready bool, why error) {
	text := ""
	if why != nil {
		text = fmt.Sprintf("not ready: %v", why)
	}
	w.change(r, func(e *tables.Endpoint) bool {
		if e.UID != r.UID || e.Phase == "" {
			return e.Phase != "" // gone meanwhile
		}
		e.Ready, e.Why = ready, text
		return true
	})
}
