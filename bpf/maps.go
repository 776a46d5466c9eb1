package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ownFlags are the flags of a map that we choose; the kernel may set others.
const ownFlags = unix.BPF_F_MMAPABLE | unix.BPF_F_NO_PREALLOC

// resized is a map that is being replaced by one with another size or other flags, or by
// one of the next version, beside which it stays.
type resized struct {
	old, new *ebpf.Map
	former   bool
	since    uint64 // when the rows were copied, see Now
	rows     uint32 // that a row of old may need; 0: one
}

// smaller says whether rows may be left behind.
func (r resized) smaller() bool {
	return r.new.MaxEntries() < r.old.MaxEntries()*max(r.rows, 1)
}

// openMaps opens the pinned maps of spec, creates those that are absent, and copies
// those whose size changed or that were created with other flags. moved are
// the copied ones, whose pins still name the old maps. The caller closes all. A map of the
// agent's whose rows do not fit keeps its size, also in spec: see carry.
func openMaps(spec *ebpf.CollectionSpec, dir string, log *slog.Logger) (maps map[string]*ebpf.Map, moved map[string]resized, err error) {
	maps, moved = map[string]*ebpf.Map{}, map[string]resized{}
	defer func() {
		if err != nil {
			closeMaps(maps)
			for _, r := range moved {
				r.old.Close()
			}
		}
	}()
	for _, d := range described {
		name := d.name
		ms, ok := spec.Maps[name]
		if !ok {
			return maps, moved, fmt.Errorf("map %s is not in the object; run go generate ./bpf", name)
		}
		ms.Name = "weft_" + name
		if ms.Type == ebpf.Array {
			ms.Flags |= unix.BPF_F_MMAPABLE // see walkMapped
		}
		path := filepath.Join(dir, d.pin())
		m, err := ebpf.LoadPinnedMap(path, nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if m, err = ebpf.NewMap(ms); err != nil {
				return maps, moved, fmt.Errorf("create map %s: %w", name, err)
			}
			maps[name] = m
			former, err := d.former(dir)
			if err != nil {
				return maps, moved, fmt.Errorf("open map %s of the version before: %w", name, err)
			}
			takesOver := former != nil && former.KeySize() == m.KeySize() && former.ValueSize() <= m.ValueSize()
			if takesOver { // and is pinned once it has the rows
				moved[name] = resized{old: former, new: m, former: true}
				if name == "flows" { // their answers had another map
					moved[name] = resized{old: former, new: m, former: true, rows: rowsPerFlow}
				}
				continue
			}
			if former != nil {
				former.Close()
			}
			if err := m.Pin(path); err != nil {
				return maps, moved, fmt.Errorf("pin map %s: %w", name, err)
			}
			continue
		case err != nil:
			return maps, moved, fmt.Errorf("open map %s: %w", name, err)
		}
		if m.Type() != ms.Type || m.KeySize() != keySize(ms) || m.ValueSize() != ms.ValueSize {
			m.Close()
			return maps, moved, fmt.Errorf("map %s has an unexpected layout: stop the agent, remove %s and start it again; in a development build, raise the map's version", name, path)
		}
		if m.MaxEntries() == ms.MaxEntries && m.Flags()&ownFlags == ms.Flags&ownFlags {
			maps[name] = m
			continue
		}
		r := resized{old: m, since: Now()}
		n, err := ebpf.NewMap(ms)
		if r.new = n; err == nil && !d.volatile() {
			err = carry(name, r, maps, moved, log)
		}
		if n != nil && isFull(err) {
			log.Warn("a map keeps its size, because its rows do not fit: raise its limit, or start again once it has fewer", "map", name, "size", m.MaxEntries(), "limit", ms.MaxEntries)
			n.Close()
			ms.MaxEntries, ms.Flags = m.MaxEntries(), ms.Flags&^ownFlags|m.Flags()&ownFlags
			maps[name] = m
			continue
		}
		if err != nil {
			m.Close()
			if n != nil {
				n.Close()
			}
			return maps, moved, fmt.Errorf("copy map %s of %d rows to one of %d: %w", name, m.MaxEntries(), ms.MaxEntries, err)
		}
		maps[name], moved[name] = n, r
	}
	return maps, moved, nil
}

// keySize is the key size that the kernel reports: 0 for a ring buffer.
func keySize(ms *ebpf.MapSpec) uint32 {
	if ms.Type == ebpf.RingBuf {
		return 0
	}
	return ms.KeySize
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}

// repin replaces the pin of a resized map by one of the new map, in one step.
func repin(dir string, d description, r resized) error {
	path := filepath.Join(dir, d.pin())
	aside := path + "_new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old pin: %w", err)
	}
	if err := r.new.Pin(aside); err != nil {
		return fmt.Errorf("pin resized map %s: %w", d.name, err)
	}
	if err := unix.Rename(aside, path); err != nil {
		return fmt.Errorf("rename pin of map %s: %w", d.name, err)
	}
	return nil
}

// table is a Table in the kernel.
type table[K, V comparable] struct {
	name string
	m    *ebpf.Map
}

func (t *table[K, V]) Name() string    { return t.name }
func (t *table[K, V]) MaxEntries() int { return int(t.m.MaxEntries()) }
func (t *table[K, V]) array() bool     { return t.m.Type() == ebpf.Array }

// wrote turns the error of a write into one that says what to do.
func (t *table[K, V]) wrote(err error) error {
	switch {
	case err == nil:
		return nil
	case isFull(err):
		err = &FullError{Table: t.name, Limit: t.MaxEntries()}
	case errors.Is(err, unix.ENOMEM):
		err = fmt.Errorf("the kernel has no memory for another row: %w", err)
	}
	return fmt.Errorf("update %s: %w", t.name, err)
}

func (t *table[K, V]) Update(k K, v V) error { return t.wrote(t.m.Put(k, v)) }

// batch is the number of rows per system call.
const batch = 4096

// firstBatch is that of the first when a map is read: some that have few rows are read all
// the time.
const firstBatch = 256

func (t *table[K, V]) UpdateBatch(rows map[K]V) error {
	keys, values := make([]K, 0, min(len(rows), batch)), make([]V, 0, min(len(rows), batch))
	flush := func() error {
		if len(keys) == 0 {
			return nil
		}
		_, err := t.m.BatchUpdate(keys, values, nil)
		keys, values = keys[:0], values[:0]
		return t.wrote(err)
	}
	for k, v := range rows {
		keys, values = append(keys, k), append(values, v)
		if len(keys) == batch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (t *table[K, V]) Delete(k K) error {
	if t.array() {
		var zero V
		return t.Update(k, zero)
	}
	if err := t.m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from %s: %w", t.name, err)
	}
	return nil
}

func (t *table[K, V]) DeleteBatch(keys []K) error {
	if t.array() {
		zeros := make(map[K]V, len(keys))
		for _, k := range keys {
			var zero V
			zeros[k] = zero
		}
		return t.UpdateBatch(zeros)
	}
	for len(keys) > 0 {
		n, err := t.m.BatchDelete(keys[:min(len(keys), batch)], nil)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			n++ // the batch stops at an absent key: continue after it
		case err != nil:
			return fmt.Errorf("delete from %s: %w", t.name, err)
		}
		keys = keys[min(n, len(keys)):]
	}
	return nil
}

func (t *table[K, V]) Lookup(k K) (v V, ok bool, err error) {
	// A trie returns the longest matching prefix, not the row with this key.
	if t.m.Type() == ebpf.LPMTrie {
		rows, failed := t.All()
		for key, value := range rows {
			if key == k {
				return value, true, nil
			}
		}
		return v, false, failed()
	}
	return t.Match(k)
}

func (t *table[K, V]) Match(k K) (v V, ok bool, err error) {
	switch err := t.m.Lookup(k, &v); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return v, false, nil
	case err != nil:
		return v, false, fmt.Errorf("look up in %s: %w", t.name, err)
	}
	var zero V
	return v, !t.array() || v != zero, nil
}

func (t *table[K, V]) All() (iter.Seq2[K, V], func() error) {
	var failed error
	rows := func(yield func(K, V) bool) {
		failed = t.walk(yield)
		if failed != nil {
			failed = fmt.Errorf("read %s: %w", t.name, failed)
		}
	}
	return rows, func() error { return failed }
}

func (t *table[K, V]) walk(yield func(K, V) bool) error {
	if t.m.Type() == ebpf.LPMTrie { // batch lookups would start over at every call
		var k K
		var v V
		rows := t.m.Iterate()
		for rows.Next(&k, &v) {
			if !yield(k, v) {
				return nil
			}
		}
		return rows.Err()
	}
	if t.array() {
		return t.walkMapped(yield)
	}
	var cursor ebpf.MapBatchCursor
	size := firstBatch
	keys, values := make([]K, size), make([]V, size)
	for {
		n, err := t.m.BatchLookup(&cursor, keys, values, nil)
		// The kernel returns whole buckets only: this one needs more room.
		if errors.Is(err, unix.ENOSPC) && n == 0 {
			size *= 2
			keys, values = make([]K, size), make([]V, size)
			continue
		}
		for i := range n {
			if !yield(keys[i], values[i]) {
				return nil
			}
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case err != nil:
			return err
		}
		if size < batch {
			size *= 4
			keys, values = make([]K, size), make([]V, size)
		}
	}
}

// walkMapped reads an array through a memory mapping. An array always has all its
// rows, and copying the ports' half a million one by one took a quarter of the
// time that an agent needs to start.
func (t *table[K, V]) walkMapped(yield func(K, V) bool) error {
	var zero V
	if size := unsafe.Sizeof(zero); size != uintptr(t.m.ValueSize()) {
		return fmt.Errorf("its values are %d bytes long, not %d", t.m.ValueSize(), size)
	}
	stride := (int(t.m.ValueSize()) + 7) &^ 7 // as the kernel lays them out
	rows, err := unix.Mmap(t.m.FD(), 0, t.MaxEntries()*stride, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map into memory: %w", err)
	}
	defer unix.Munmap(rows)
	for i := range t.MaxEntries() {
		v := *(*V)(unsafe.Pointer(&rows[i*stride]))
		if v != zero && !yield(any(uint32(i)).(K), v) {
			return nil
		}
	}
	return nil
}

func (t *table[K, V]) Len() (n int, err error) {
	rows, failed := t.All()
	for range rows {
		n++
	}
	return n, failed()
}
