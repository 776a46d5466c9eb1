package reflector

import (
	"encoding/binary"
	"hash/maphash"
	"strings"

	"github.com/weft-mesh/weft/store"
)

// known tells one value of each key from another. There is an entry for every key, so
// what keys have in common, all that comes before their last part, is kept once.
type known struct {
	folders map[string]map[string]version
	count   int
}

// version tells one value of a key from another: a hash of it and its revision. The
// revision alone does not: in a store that went back in time, it stands for something
// else.
type version uint64

var seed = maphash.MakeSeed()

func versionOf(kv store.KV) version {
	var h maphash.Hash
	h.SetSeed(seed)
	var revision [8]byte
	binary.LittleEndian.PutUint64(revision[:], uint64(kv.Modified))
	_, _ = h.Write(revision[:])
	_, _ = h.Write(kv.Value)
	return version(h.Sum64())
}

func newKnown() *known { return &known{folders: map[string]map[string]version{}} }

// split takes a key apart behind its last slash.
func split(key string) (folder, name string) {
	i := strings.LastIndexByte(key, '/') + 1
	return key[:i], key[i:]
}

// is says whether this is the key's value.
func (k *known) is(key string, v version) bool {
	folder, name := split(key)
	have, ok := k.folders[folder][name]
	return ok && have == v
}

func (k *known) put(key string, v version) {
	folder, name := split(key)
	in := k.folders[folder]
	if in == nil {
		in = map[string]version{}
		k.folders[strings.Clone(folder)] = in
	}
	if _, ok := in[name]; ok {
		in[name] = v
		return
	}
	in[strings.Clone(name)] = v // not a part of the key, which would stay as a whole
	k.count++
}

func (k *known) drop(key string) {
	folder, name := split(key)
	in := k.folders[folder]
	if _, ok := in[name]; !ok {
		return
	}
	k.count--
	if delete(in, name); len(in) == 0 {
		delete(k.folders, folder)
	}
}

// sweep turns a complete list into the changes against k, and makes it what k has:
// deletions last, so that something renamed exists at every moment.
func (k *known) sweep(all []store.Event) []store.Event {
	var events []store.Event
	next := newKnown()
	for _, e := range all {
		v := versionOf(e.KV)
		if !k.is(e.Key, v) {
			events = append(events, e)
		}
		next.put(e.Key, v)
	}
	for folder, names := range k.folders {
		for name := range names {
			if _, listed := next.folders[folder][name]; !listed {
				events = append(events, store.Event{KV: store.KV{Key: folder + name}, Deleted: true})
			}
		}
	}
	*k = *next
	return events
}
