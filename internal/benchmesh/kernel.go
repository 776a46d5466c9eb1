package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/benchmesh/peers"
	"github.com/weft-mesh/weft/lab"
)

// kernel is a node's BPF maps, read as packets do, without its agent.
type kernel struct {
	maps map[string]*ebpf.Map
}

// pins is where an agent keeps its maps.
const pins = "/sys/fs/bpf/weft"

// openKernel opens the maps of a node; an error if they are not there yet.
func openKernel(n *lab.Node) (_ *kernel, err error) {
	k := &kernel{maps: map[string]*ebpf.Map{}}
	defer func() {
		if err != nil {
			k.Close()
		}
	}()
	all, err := filepath.Glob(filepath.Join(n.Path(pins), "weft_*_v*"))
	if err != nil {
		return nil, err
	}
	// Of several layouts the newest is in use; names of equal length compare as numbers.
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	for _, path := range all {
		base := strings.TrimPrefix(filepath.Base(path), "weft_")
		name := base[:strings.LastIndex(base, "_v")]
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			continue // a link
		}
		if old := k.maps[name]; old != nil {
			old.Close()
		}
		k.maps[name] = m
	}
	for _, name := range []string{"ips", "classes", "settings", "services", "members", "nodes"} {
		if k.maps[name] == nil {
			return nil, fmt.Errorf("node %s has no map %s", n.Full(), name)
		}
	}
	return k, nil
}

// Close closes the maps.
func (k *kernel) Close() {
	for _, m := range k.maps {
		m.Close()
	}
}

func lookup[K, V any](m *ebpf.Map, key K) (v V, ok bool) {
	return v, m.Lookup(key, &v) == nil
}

// address returns the row of an address.
func (k *kernel) address(a netip.Addr) (bpf.IPInfo, bool) {
	return lookup[bpf.Addr, bpf.IPInfo](k.maps["ips"], bpf.AddrOf(a))
}

// holds reports whether the kernel has the row that a change calls for.
func (k *kernel) holds(c peers.Change, large netip.Addr) bool {
	switch c.Kind {
	case peers.Address:
		info, ok := k.address(c.Addr)
		return ok != c.Gone && (c.Gone || info.Identity == uint32(c.Identity))
	case peers.Identity:
		s, _ := lookup[uint32, bpf.Settings](k.maps["settings"], 0)
		_, ok := lookup[bpf.ClassKey, uint32](k.maps["classes"], bpf.ClassKey{Gen: s.PolicyGen, Identity: uint32(c.Identity)})
		return ok != c.Gone
	case peers.Backend:
		s, ok := lookup[bpf.ServiceKey, bpf.Service](k.maps["services"], bpf.ServiceKey{Addr: bpf.AddrOf(large), Port: bpf.PortOf(peers.Port), Proto: 6})
		if !ok {
			return false
		}
		_, ok = lookup[bpf.MemberKey, bpf.Member](k.maps["members"], bpf.MemberKey{Addr: bpf.AddrOf(c.Addr), Service: s.ID, Port: bpf.PortOf(peers.TargetPort)})
		return ok
	case peers.Node:
		info, ok := k.address(c.Addr)
		return ok && info.Node != 0
	}
	return false
}

// awaitPods waits until the kernel has the rows of all pods of a world. It returns how
// many it has found by then, and how many there are.
func (k *kernel) awaitPods(ctx context.Context, w *peers.World, patience time.Duration) (found, all int) {
	missing := w.Pods()
	all = len(missing)
	await(ctx, patience, func() bool {
		// One at a time they would take as long as the agent takes for a tenth of its work,
		// and that of its CPU time. So all are looked at once one of those missing is there.
		for a, who := range missing {
			if info, ok := k.address(a); !ok || info.Identity != uint32(who) {
				return false
			}
			break
		}
		err := k.walk(func(keys []bpf.Addr, values []bpf.IPInfo) {
			for i, key := range keys {
				if who, ok := missing[key.Netip()]; ok && values[i].Identity == uint32(who) {
					delete(missing, key.Netip())
				}
			}
		})
		return err == nil && len(missing) == 0
	})
	return all - len(missing), all
}

// backends is how many backends the large service has.
func (k *kernel) backends(large netip.Addr) (n int) {
	s, _ := lookup[bpf.ServiceKey, bpf.Service](k.maps["services"], bpf.ServiceKey{Addr: bpf.AddrOf(large), Port: bpf.PortOf(peers.Port), Proto: 6})
	for _, g := range s.Group[:min(int(s.Groups), len(s.Group))] {
		n += int(g.Count)
	}
	return n
}

// rows is the identity of every address in the kernel.
func (k *kernel) rows() (map[netip.Addr]identity.Number, error) {
	all := map[netip.Addr]identity.Number{}
	err := k.walk(func(keys []bpf.Addr, values []bpf.IPInfo) {
		for i, key := range keys {
			all[key.Netip()] = identity.Number(values[i].Identity)
		}
	})
	return all, err
}

// count is the number of addresses in the kernel. It costs little, so that what is measured
// meanwhile is not disturbed.
func (k *kernel) count() (n int, err error) {
	err = k.walk(func(keys []bpf.Addr, _ []bpf.IPInfo) { n += len(keys) })
	return n, err
}

// walk reads the row of every address, many at a time.
func (k *kernel) walk(do func([]bpf.Addr, []bpf.IPInfo)) error {
	const batch = 4096
	keys, values := make([]bpf.Addr, batch), make([]bpf.IPInfo, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := k.maps["ips"].BatchLookup(&cursor, keys, values, nil)
		do(keys[:n], values[:n])
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read map ips: %w", err)
		}
	}
}

// difference is how many rows differ between the pods of a world and what the kernel has
// for their clusters: absent, with another identity, or of pods that are gone. absent is
// how many of them are absent.
func difference(w *peers.World, have map[netip.Addr]identity.Number) (differ, absent int) {
	pods := w.Pods()
	for a, id := range pods {
		switch got, ok := have[a]; {
		case !ok:
			differ, absent = differ+1, absent+1
		case got != id:
			differ++
		}
	}
	for a, id := range have {
		// Nodes have reserved identities.
		if _, pod := pods[a]; !pod && !id.Reserved() && w.Holds(a) {
			differ++
		}
	}
	return differ, absent
}

// memory is the bytes that the maps take.
func (k *kernel) memory() (bytes uint64) {
	for _, m := range k.maps {
		if info, err := m.Info(); err == nil {
			n, _ := info.Memlock()
			bytes += n
		}
	}
	return bytes
}
