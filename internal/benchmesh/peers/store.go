package peers

import (
	"slices"
	"sort"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Store is what one cluster's etcd holds, with the history of its changes. It is kept in
// this process: hundreds of real etcds on one machine would be measured instead of the
// cluster that reads them. Serve makes it look like one. Several goroutines may use it.
type Store struct {
	mu       sync.RWMutex // guards what follows
	revision int64
	versions map[string][]version
	keys     []string // of versions, sorted unless stale
	stale    bool
	// log holds the changes after revision begun, in order; each change also has its
	// place in versions.
	log     []*mvccpb.Event
	begun   int64
	changed chan struct{} // closed and replaced at every change
}

// version is what a key held from a revision on; kv is nil once it was deleted.
type version struct {
	revision int64
	kv       *mvccpb.KeyValue
}

// NewStore returns an empty store at revision 1, as a new etcd.
func NewStore() *Store {
	return &Store{revision: 1, begun: 1, versions: map[string][]version{}, changed: make(chan struct{})}
}

// writer collects the writes of one transaction. Of two writes to a key, the later counts.
type writer struct {
	store *Store
	order []string
	puts  map[string][]byte // nil: delete
	bytes int
}

func (s *Store) begin() *writer { return &writer{store: s, puts: map[string][]byte{}} }

func (w *writer) put(key string, value []byte) {
	if _, there := w.puts[key]; !there {
		w.order = append(w.order, key)
	}
	w.puts[key] = value
}

func (w *writer) delete(key string) { w.put(key, nil) }

// end makes the writes visible under one new revision. What an empty store is filled with
// is not part of its history.
func (w *writer) end() {
	s := w.store
	s.mu.Lock()
	defer s.mu.Unlock()
	first := len(s.versions) == 0
	s.revision++
	for _, key := range w.order {
		s.writeLocked(key, w.puts[key])
	}
	if first {
		s.log, s.begun = nil, s.revision
		s.revision++ // so that a watch from now on begins after it
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Store) writeLocked(key string, value []byte) {
	all := s.versions[key]
	var old *mvccpb.KeyValue
	if len(all) > 0 {
		old = all[len(all)-1].kv
	} else {
		s.keys, s.stale = append(s.keys, key), true
	}
	event := &mvccpb.Event{}
	switch {
	case value != nil:
		event.Kv = &mvccpb.KeyValue{Key: []byte(key), Value: value, CreateRevision: s.revision, ModRevision: s.revision, Version: 1}
		if old != nil {
			event.Kv.CreateRevision, event.Kv.Version = old.CreateRevision, old.Version+1
		}
		s.versions[key] = append(all, version{s.revision, event.Kv})
	case old == nil:
		return // nothing to delete
	default:
		event.Type = mvccpb.Event_DELETE
		event.Kv = &mvccpb.KeyValue{Key: []byte(key), ModRevision: s.revision}
		s.versions[key] = append(all, version{revision: s.revision})
	}
	s.log = append(s.log, event)
}

// Get returns a key's present value; nil if it has none.
func (s *Store) Get(key string) []byte {
	kvs, _, _, _ := s.list(key, "", 0, 0)
	if len(kvs) == 0 {
		return nil
	}
	return kvs[0].Value
}

// Size is how many keys there are, and how long they and their values are together.
func (s *Store) Size() (keys, bytes int) {
	kvs, _, _, _ := s.list("\x00", "\x00", 0, 0)
	for _, kv := range kvs {
		bytes += len(kv.Key) + len(kv.Value)
	}
	return len(kvs), bytes
}

// list returns what the keys from key to end, in etcd's notation, held at a revision, in
// order: at most limit of them, if that is not 0, and how many there are. Revision 0 is
// the present one, which is returned too. ok is false if the revision is too old.
func (s *Store) list(key, end string, revision int64, limit int) (kvs []*mvccpb.KeyValue, count int, present int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	present = s.revision
	if revision == 0 {
		revision = present
	}
	if revision < s.begun || revision > present {
		return nil, 0, present, false
	}
	for _, k := range s.rangeLocked(key, end) {
		all := s.versions[k]
		i := sort.Search(len(all), func(i int) bool { return all[i].revision > revision })
		if i == 0 || all[i-1].kv == nil {
			continue
		}
		if count++; limit == 0 || count <= limit {
			kvs = append(kvs, all[i-1].kv)
		}
	}
	return kvs, count, present, true
}

func (s *Store) rangeLocked(key, end string) []string {
	if end == "" { // a single key
		if _, there := s.versions[key]; there {
			return []string{key}
		}
		return nil
	}
	if s.stale {
		slices.Sort(s.keys)
		s.stale = false
	}
	from, _ := slices.BinarySearch(s.keys, key)
	to := len(s.keys)
	if end != "\x00" {
		to, _ = slices.BinarySearch(s.keys, end)
	}
	return s.keys[from:max(from, to)]
}

// now returns the present revision, and a channel that is closed at the next change.
func (s *Store) now() (revision int64, changed <-chan struct{}) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revision, s.changed
}

// since returns the changes from a revision on whose keys are in a range, and the present
// revision. ok is false if the revision is too old.
func (s *Store) since(revision int64, key, end string) (events []*mvccpb.Event, present int64, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if revision < s.begun {
		return nil, s.revision, false
	}
	from := sort.Search(len(s.log), func(i int) bool { return s.log[i].Kv.ModRevision >= revision })
	for _, e := range s.log[from:] {
		if within(string(e.Kv.Key), key, end) {
			events = append(events, e)
		}
	}
	return events, s.revision, true
}

// oldest is the first revision that history has.
func (s *Store) oldest() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.begun
}

// within reports whether a key is in a range in etcd's notation.
func within(k, key, end string) bool {
	switch end {
	case "":
		return k == key
	case "\x00":
		return k >= key
	}
	return k >= key && k < end
}
