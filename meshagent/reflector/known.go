package reflector

import (
	"encoding/binary"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/internal/addrmap"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// known tells one value of each key from another. There is an entry for every key, so
// what keys have in common, all that comes before their last part, is kept once.
type known struct {
	folders map[string]*folder
	count   int
	// path is the folder that was put to last: a list comes in order.
	path string
	last *folder
}

// folder has the versions of keys that differ in their last part only. Most keys of a large
// mesh end in an address; beside its neighbours it takes a fifth of the memory.
type folder struct {
	addrs addrmap.Map[[16]byte, version]
	names map[string]version
}

// version tells one value of a key from another: a hash of it and its revision. The
// revision alone does not: in a store that went back in time, it stands for something
// else. It is bytes so that it takes no padding beside an address.
type version [8]byte

var seed = maphash.MakeSeed()

func versionOf(kv store.KV) (v version) {
	var h maphash.Hash
	h.SetSeed(seed)
	var revision [8]byte
	binary.LittleEndian.PutUint64(revision[:], uint64(kv.Modified))
	_, _ = h.Write(revision[:])
	_, _ = h.Write(kv.Value)
	binary.LittleEndian.PutUint64(v[:], h.Sum64())
	return v
}

func newKnown() *known { return &known{folders: map[string]*folder{}} }

// plain is the last part of a key that is an address, as netip writes it: no two texts stand
// for the same.
func plain(name string) (bytes [16]byte, ok bool) {
	if strings.Trim(name, "0123456789abcdef.:") != "" {
		return bytes, false
	}
	a, err := netip.ParseAddr(name)
	var text [64]byte
	if err != nil || a.Is4In6() || string(a.AppendTo(text[:0])) != name {
		return bytes, false
	}
	return a.As16(), true
}

func (f *folder) get(name string) (v version, ok bool) {
	if f == nil {
		return v, false
	}
	if a, is := plain(name); is {
		v, ok = f.addrs.Get(a)
	} else {
		v, ok = f.names[name]
	}
	return v, ok
}

func (f *folder) put(name string, v version) {
	if a, is := plain(name); is {
		f.addrs.Put(a, v)
	} else if _, ok := f.names[name]; ok {
		f.names[name] = v
	} else {
		f.names[strings.Clone(name)] = v // not a part of the key, which would stay as a whole
	}
}

func (f *folder) drop(name string) {
	if a, is := plain(name); is {
		f.addrs.Delete(a)
	} else {
		delete(f.names, name)
	}
}

func (f *folder) len() int { return f.addrs.Len() + len(f.names) }

func (f *folder) all(yield func(name string) bool) {
	for a := range f.addrs.All() {
		if !yield(netip.AddrFrom16(a).Unmap().String()) {
			return
		}
	}
	for name := range f.names {
		if !yield(name) {
			return
		}
	}
}

// peers are those of whose exports some of the keys are copies.
func (k *known) peers() []string {
	found := map[string]bool{}
	for path := range k.folders {
		if peer := wire.CopiedFrom(path); peer != "" {
			found[peer] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// split takes a key apart behind its last slash.
func split(key string) (folder, name string) {
	i := strings.LastIndexByte(key, '/') + 1
	return key[:i], key[i:]
}

func (k *known) get(key string) (v version, ok bool) {
	folder, name := split(key)
	return k.folders[folder].get(name)
}

// is says whether this is the key's value.
func (k *known) is(key string, v version) bool {
	have, ok := k.get(key)
	return ok && have == v
}

func (k *known) put(key string, v version) {
	path, name := split(key)
	in := k.last
	if in == nil || path != k.path {
		path = strings.Clone(path)
		if in = k.folders[path]; in == nil {
			in = &folder{names: map[string]version{}}
			k.folders[path] = in
		}
		k.path, k.last = path, in
	}
	before := in.len()
	in.put(name, v)
	k.count += in.len() - before
}

func (k *known) drop(key string) {
	path, name := split(key)
	in := k.folders[path]
	if in == nil {
		return
	}
	before := in.len()
	in.drop(name)
	k.count += in.len() - before
	if in.len() == 0 {
		delete(k.folders, path)
		k.last = nil
	}
}

// sweep turns a complete list into the changes against k, and makes it what k has:
// deletions last, so that something renamed exists at every moment. The changes take the
// place of the list. What k has and keeps says to keep, by its revision in the list and 0 if
// it is not listed, stays as it is.
func (k *known) sweep(all []store.Event, keeps func(key string, revision int64) bool) []store.Event {
	events := all[:0] // a list takes much memory, and is not needed any more
	next := newKnown()
	for _, e := range all {
		v := versionOf(e.KV)
		if !k.is(e.Key, v) {
			if had, ok := k.get(e.Key); keeps(e.Key, e.Modified) {
				if ok {
					next.put(e.Key, had)
				}
				continue
			}
			events = append(events, e)
		}
		next.put(e.Key, v)
	}
	for path, in := range k.folders {
		for name := range in.all {
			if _, listed := next.folders[path].get(name); listed {
				continue
			}
			if v, _ := in.get(name); keeps(path+name, 0) {
				next.put(path+name, v)
				continue
			}
			events = append(events, store.Event{KV: store.KV{Key: path + name}, Deleted: true})
		}
	}
	*k = *next
	return events
}
