package endpoint

import (
	"cmp"

	"github.com/weft-mesh/weft/bpf"
)

// openNamespace lets sockets in a pod's network namespace be given the backends of services, if
// that is wanted.
func (e *Endpoints) openNamespace(r Record, link Link) error {
	if err := e.closeNamespace(r.Key(), link.Netns); err != nil { // of an earlier life
		return err
	}
	if !e.cfg.Sockets {
		return nil
	}
	var row bpf.Namespace
	for _, ip := range r.IPs() {
		family := 0
		if ip.Is6() {
			family = 1
		}
		row.Addr[family] = bpf.AddrOf(ip)
	}
	e.mu.Lock()
	e.namespaces[r.Key()] = link.Netns
	e.mu.Unlock()
	return e.cfg.Datapath.Maps().Namespaces.Update(link.Netns, row)
}

// closeNamespace ends that for the namespace that a pod had, unless it is this one.
func (e *Endpoints) closeNamespace(pod string, now uint64) error {
	e.mu.Lock()
	before, ok := e.namespaces[pod]
	e.mu.Unlock()
	if !ok || before == now {
		return nil
	}
	if err := e.cfg.Datapath.Maps().Namespaces.Delete(before); err != nil {
		return err
	}
	e.mu.Lock()
	delete(e.namespaces, pod)
	e.mu.Unlock()
	return nil
}

// pruneNamespaces removes the rows of namespaces that a previous agent left and no pod has now. A
// pod that could not be brought up yet keeps its row: its sockets go on as they are.
func (e *Endpoints) pruneNamespaces() {
	rows, failed := e.cfg.Datapath.Maps().Namespaces.All()
	left := map[uint64]bpf.Namespace{}
	for cookie, row := range rows {
		left[cookie] = row
	}
	err := failed()
	for _, cookie := range e.adoptNamespaces(left) {
		if err == nil {
			err = e.cfg.Datapath.Maps().Namespaces.Delete(cookie)
		}
	}
	if err != nil {
		e.cfg.Log.Warn("network namespaces of pods that are gone stay in the kernel's table", "error", err)
	}
}

// adoptNamespaces takes over the rows of pods that have a record and no namespace yet, and returns
// those that are nobody's.
func (e *Endpoints) adoptNamespaces(rows map[uint64]bpf.Namespace) (stale []uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	kept, waiting := map[uint64]bool{}, map[bpf.Addr]string{}
	for _, cookie := range e.namespaces {
		kept[cookie] = true
	}
	for key, r := range e.records {
		if _, has := e.namespaces[key]; has || !e.cfg.Sockets {
			continue
		}
		for _, ip := range r.IPs() {
			waiting[bpf.AddrOf(ip)] = key
		}
	}
	for cookie, row := range rows {
		if kept[cookie] {
			continue
		}
		pod := cmp.Or(waiting[row.Addr[0]], waiting[row.Addr[1]])
		if _, has := e.namespaces[pod]; pod == "" || has {
			stale = append(stale, cookie)
			continue
		}
		e.namespaces[pod] = cookie
	}
	return stale
}
