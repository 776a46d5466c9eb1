package endpoint

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netns"

	"github.com/weft-mesh/weft/bpf"
)

// EndConnections ends open connections of pods over TCP, given as the pods know them, and says how
// many: only in the namespaces of those pods, and if still says so once the socket is known.
// Connections of pods that are gone are left out.
func (e *Endpoints) EndConnections(all []bpf.FlowKey, still func(bpf.FlowKey) (bool, error)) (ended int, err error) {
	if len(all) == 0 {
		return 0, nil
	}
	pods, connections := map[bpf.Addr]Record{}, map[Record][]bpf.FlowKey{}
	for _, r := range e.Records() {
		for _, ip := range r.IPs() {
			pods[bpf.AddrOf(ip)] = r
		}
	}
	for _, key := range all {
		if r, ok := pods[key.Local]; ok {
			connections[r] = append(connections[r], key)
		}
	}
	var errs []error
	for r, keys := range connections {
		n, err := e.cfg.Plumbing.End(r, keys, still)
		ended += n
		errs = append(errs, err)
	}
	return ended, errors.Join(errs...)
}

// End implements Plumbing.
func (k Kernel) End(r Record, connections []bpf.FlowKey, still func(bpf.FlowKey) (bool, error)) (int, error) {
	path := k.Netns(r)
	if !isNamespace(path) {
		return 0, nil
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return 0, fmt.Errorf("end connections of pod %s: open namespace %s: %w", r.Key(), path, err)
	}
	defer ns.Close()
	ended, err := bpf.EndConnections(ns, connections, still)
	if err != nil {
		err = fmt.Errorf("end connections of pod %s: %w", r.Key(), err)
	}
	return ended, err
}
