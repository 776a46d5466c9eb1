package meshagent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// workloads gives this node's pods their network and watches their readiness. A pod
// is removed only when a complete list lacks its object.
type workloads struct {
	node     node
	tables   *tables.Tables
	datapath Datapath
	plumbing endpoint.Plumbing
	dir      endpoint.Dir
	// listed is closed once all sources have been read.
	listed <-chan struct{}
	log    *slog.Logger

	// adopted is closed once the pods of the previous agent have been taken over.
	adopted chan struct{}
	// settled is closed once the table holds exactly the wanted pods.
	settled chan struct{}
	once    sync.Once

	// Of the loop alone.
	pool    *endpoint.Pool
	records map[string]endpoint.Record
	busy    map[string]bool // a plumber is working on it
	failed  map[string]int
	why     map[string]string    // of those that failed
	again   map[string]time.Time // of those that failed: when to try again
	probes  map[string]*probing
	// found says of the previous agent's pods whether they kept running without it. A
	// pod whose machine has rebooted did not, and its old readiness means nothing.
	found map[string]bool
	wg    sync.WaitGroup

	// free has a place for each plumber; results arrive on done.
	free chan struct{}
	done chan plumbed
}

// plumbed is the result of one plumber's work.
type plumbed struct {
	endpoint.Record
	removed bool // the task was to remove the network
	saved   bool // the address is on disk
	looked  bool // running is known
	running bool // the pod was there already, and not held
	err     error
}

const (
	// plumbers is how many pods are worked on at the same time. Most of that time is
	// spent waiting for the kernel and the disk.
	plumbers = 8
	// plumbAgain is the pause before a failed pod is tried again.
	plumbAgain = time.Second
)

// probing is the readiness check of one pod.
type probing struct {
	uid  string
	stop context.CancelFunc
}

func newWorkloads(n node, t *tables.Tables, d Datapath, p endpoint.Plumbing, dir endpoint.Dir, listed <-chan struct{}, log *slog.Logger) (*workloads, error) {
	records, lost, err := dir.Load()
	if err != nil {
		return nil, err
	}
	for _, r := range lost {
		if r, ok := recovered(r, d, p); ok {
			log.Warn("a pod's record was damaged; recovered it from the kernel", "pod", r.Key(), "ip", r.IP)
			records = append(records, r)
		} else {
			log.Warn("a pod's record was damaged and the kernel does not know the pod: it gets a new address", "pod", r.Key())
		}
	}
	released, err := dir.Released()
	if err != nil {
		return nil, err
	}
	w := &workloads{
		node: n, tables: t, datapath: d, plumbing: p, dir: dir, listed: listed, log: log,
		adopted: make(chan struct{}), settled: make(chan struct{}),
		pool: endpoint.NewPool(n.cidr, records, released, time.Now()), records: map[string]endpoint.Record{}, busy: map[string]bool{}, failed: map[string]int{}, why: map[string]string{}, again: map[string]time.Time{}, probes: map[string]*probing{}, found: map[string]bool{},
		free: make(chan struct{}, plumbers), done: make(chan plumbed),
	}
	for _, r := range records {
		w.records[r.Key()] = r
	}
	return w, nil
}

// recovered rebuilds the lost record of a pod from what the kernel has. It returns
// false if the kernel has nothing.
func recovered(lost endpoint.Record, d Datapath, p endpoint.Plumbing) (endpoint.Record, bool) {
	ifindex, ok := p.Find(lost)
	if !ok {
		return lost, false
	}
	rows, _ := d.Maps().Endpoints.All()
	for addr, row := range rows {
		if row.Ifindex == uint32(ifindex) && row.ID != 0 {
			lost.IP, lost.ID = addr.Netip(), row.ID
			return lost, true
		}
	}
	return lost, false
}

// Run works until ctx ends. Pods keep their network.
func (w *workloads) Run(ctx context.Context) error {
	defer w.wg.Wait()
	defer func() {
		for _, p := range w.probes {
			p.stop()
		}
	}()
	for _, r := range w.records {
		w.plumb(ctx, r, w.bring)
	}
	w.finishAll(ctx)
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
		w.reconcile(ctx, w.wanted(tables.All(txn, w.tables.Pods)))
		if !closed(w.settled) {
			w.finishAll(ctx)
		}
		w.watchReadiness(ctx)
		w.once.Do(func() { close(w.settled) })
		writeProblems(w.tables, wire.ProblemPods, w.why)
		var again <-chan time.Time
		if len(w.failed) > 0 {
			again = time.After(plumbAgain)
		}
		select {
		case <-ctx.Done():
		case <-pods:
		case <-endpoints:
		case done := <-w.done:
			w.finish(done)
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

// reconcile starts removing pods that are gone and creating new ones. It does not
// wait: a slow pod must not hold up the others or their readiness.
func (w *workloads) reconcile(ctx context.Context, want map[string]*corev1.Pod) {
	now := time.Now()
	for key, r := range w.records {
		// A pod deleted and created again under the same name is another pod.
		if pod, ok := want[key]; (!ok || string(pod.UID) != r.UID && r.UID != "") && w.due(key, now) {
			w.remove(ctx, r)
		}
	}
	// In order of name, so that pods applied together get addresses in that order.
	for _, key := range slices.Sorted(maps.Keys(want)) {
		pod := want[key]
		// A record without a UID was recovered from the kernel and is not saved yet.
		if r, ok := w.records[key]; (!ok || r.UID == "" || w.failed[key] > 0) && w.due(key, now) {
			w.create(ctx, r, pod)
		}
	}
	for key := range w.failed {
		// It never got an address and is no longer wanted.
		if _, ok := w.records[key]; !ok && want[key] == nil && !w.busy[key] {
			namespace, pod, _ := strings.Cut(key, "/")
			w.forget(endpoint.Record{Namespace: namespace, Pod: pod})
		}
	}
}

// due reports whether a plumber may start on a pod: no other one is working on it, and
// its last failure is long enough ago.
func (w *workloads) due(key string, now time.Time) bool {
	return !w.busy[key] && !now.Before(w.again[key])
}

// create gives a pod its network, and first an address if it has none.
func (w *workloads) create(ctx context.Context, r endpoint.Record, pod *corev1.Pod) {
	has := r.IP.IsValid()
	r.Namespace, r.Pod, r.UID = pod.Namespace, pod.Name, cmp.Or(r.UID, string(pod.UID))
	if !has {
		ip, id, err := w.pool.Take(time.Now())
		if err != nil {
			w.fail(r, err)
			return
		}
		r.IP, r.ID = ip, id
	}
	w.plumb(ctx, r, func(r endpoint.Record) plumbed {
		// Saved before anything is created in the kernel, so that whatever is created can
		// be found and removed.
		if err := w.dir.Save(r); err != nil {
			return plumbed{saved: has, err: err}
		}
		if err := w.dir.Taken(r.IP); err != nil {
			return plumbed{saved: true, err: err}
		}
		return w.bring(r)
	})
}

// plumb runs do for a pod as soon as a plumber is free.
func (w *workloads) plumb(ctx context.Context, r endpoint.Record, do func(endpoint.Record) plumbed) {
	w.busy[r.Key()] = true
	w.wg.Go(func() {
		select {
		case w.free <- struct{}{}:
			defer func() { <-w.free }()
		case <-ctx.Done():
			return
		}
		done := do(r)
		done.Record = r
		select {
		case w.done <- done:
		case <-ctx.Done():
		}
	})
}

// finishAll waits until no plumber is working.
func (w *workloads) finishAll(ctx context.Context) {
	for len(w.busy) > 0 {
		select {
		case done := <-w.done:
			w.finish(done)
		case <-ctx.Done():
			return
		}
	}
}

// finish handles the result of a plumber's work.
func (w *workloads) finish(done plumbed) {
	r, key := done.Record, done.Key()
	delete(w.busy, key)
	switch {
	case done.removed && done.err == nil:
		w.pool.Release(r, time.Now())
		delete(w.records, key)
		delete(w.found, key)
		w.forget(r)
		w.log.Info("pod removed", "pod", key, "ip", r.IP)
		return
	case done.removed:
	case !done.saved:
		w.pool.Return(r)
	default:
		w.records[key] = r
		if _, known := w.found[key]; !known && done.looked {
			w.found[key] = done.running
		}
	}
	if done.err != nil {
		w.fail(r, done.err)
		return
	}
	delete(w.failed, key)
	delete(w.why, key)
	delete(w.again, key)
}

// forget drops a pod that has nothing left on this node.
func (w *workloads) forget(r endpoint.Record) {
	delete(w.failed, r.Key())
	delete(w.why, r.Key())
	delete(w.again, r.Key())
	w.change(r, func(*tables.Endpoint) bool { return false })
}

// bring creates a pod's network, or finds it. A new pod is held: its row and its
// programs are in place before its first packet. It may run concurrently for
// different pods.
func (w *workloads) bring(r endpoint.Record) plumbed {
	done := plumbed{saved: true}
	link, err := w.plumbing.Create(r)
	if done.err = err; err != nil {
		return done
	}
	addr := bpf.AddrOf(r.IP)
	row, ok, err := w.datapath.Maps().Endpoints.Lookup(addr)
	if done.err = err; err != nil {
		return done
	}
	done.looked, done.running = true, ok && row.Ifindex == uint32(link.Ifindex) && row.Held == 0
	if !ok || row.Ifindex != uint32(link.Ifindex) {
		row = bpf.Endpoint{Ifindex: uint32(link.Ifindex), ID: r.ID, Held: 1}
		copy(row.MAC[:], link.MAC)
		copy(row.HostMAC[:], link.HostMAC)
		if done.err = w.datapath.Maps().Endpoints.Update(addr, row); done.err != nil {
			return done
		}
	}
	if done.err = w.datapath.AttachPod(link.Ifindex); done.err != nil {
		return done
	}
	if done.err = w.plumbing.Up(link, r); done.err != nil {
		return done
	}
	w.change(r, func(e *tables.Endpoint) bool {
		if e.Ifindex == link.Ifindex {
			e.UID, e.Why = r.UID, "" // a recovered record had no UID
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
	return done
}

// remove takes a pod's network away. The node stops reporting the pod first, and gives
// up its address last.
func (w *workloads) remove(ctx context.Context, r endpoint.Record) {
	if p := w.probes[r.Key()]; p != nil {
		p.stop()
		delete(w.probes, r.Key())
	}
	addr, ifindex := bpf.AddrOf(r.IP), 0
	if row, ok, err := w.datapath.Maps().Endpoints.Lookup(addr); err == nil && ok {
		ifindex = int(row.Ifindex)
	}
	w.change(r, func(e *tables.Endpoint) bool {
		e.Phase = tables.Removing
		ifindex = cmp.Or(e.Ifindex, ifindex)
		return true
	})
	w.plumb(ctx, r, func(r endpoint.Record) plumbed { return plumbed{removed: true, err: w.unplumb(r, addr, ifindex)} })
}

// unplumb takes a pod's network away. Its programs go after its device, because until
// then they filter what the pod sends.
func (w *workloads) unplumb(r endpoint.Record, addr bpf.Addr, ifindex int) error {
	if err := w.plumbing.Remove(r); err != nil {
		return err
	}
	if ifindex != 0 {
		if err := w.datapath.Detach(ifindex); err != nil {
			w.log.Debug("detach", "pod", r.Key(), "error", err)
		}
	}
	if err := w.datapath.Maps().Endpoints.Delete(addr); err != nil {
		return err
	}
	return w.dir.Release(r, time.Now())
}

func (w *workloads) fail(r endpoint.Record, err error) {
	w.failed[r.Key()]++
	w.why[r.Key()] = err.Error()
	w.again[r.Key()] = time.Now().Add(plumbAgain)
	if w.failed[r.Key()] == 1 {
		w.log.Warn("pod has no network yet; retrying", "pod", r.Key(), "error", err)
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
		txn.Abort() // nothing changed
		return
	}
	txn.Commit()
}

// visible is the part of an endpoint that workloads changes.
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

// watchReadiness runs the probes of every pod that can be reached.
func (w *workloads) watchReadiness(ctx context.Context) {
	txn := w.tables.DB.ReadTxn()
	for e := range w.tables.Endpoints.All(txn) {
		r, there := w.records[e.Key()]
		if p := w.probes[e.Key()]; p != nil && p.uid == e.UID || e.Phase != tables.Live || !there {
			continue
		}
		pod := tables.Get(txn, w.tables.Pods, e.Key())
		if pod == nil || pod.Object == nil {
			continue
		}
		if p := w.probes[e.Key()]; p != nil {
			p.stop()
		}
		probes, err := endpoint.ReadProbes(pod.Object, e.IP)
		ctx, stop := context.WithCancel(ctx)
		w.probes[e.Key()] = &probing{uid: e.UID, stop: stop}
		switch {
		case err != nil:
			w.ready(r, false, err)
		case len(probes) == 0:
			w.ready(r, true, nil)
		default:
			// Until its first probe, a pod stays as it was before the agent restarted.
			was := w.found[e.Key()] && pod.Endpoint != nil && pod.Endpoint.Ready && pod.Endpoint.IP == e.IP
			if was {
				w.ready(r, true, nil)
			}
			w.wg.Go(func() {
				endpoint.WatchAll(ctx, probes, was, func(ready bool, why error) { w.ready(r, ready, why) })
			})
		}
	}
}

func (w *workloads) ready(r endpoint.Record, ready bool, why error) {
	text := ""
	if why != nil {
		text = fmt.Sprintf("readiness probe: %v", why)
	}
	w.change(r, func(e *tables.Endpoint) bool {
		if e.UID != r.UID || e.Phase == "" {
			return e.Phase != "" // gone meanwhile
		}
		e.Ready, e.Why = ready, text
		return true
	})
}
