package kubernetes

import (
	"bytes"
	"context"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/pager"

	"github.com/weft-mesh/weft/apiserver/registry"
)

// name is an object's in its resource.
type name struct{ namespace, name string }

// row is an object of Kubernetes.
type row struct {
	made
	uid     string
	version uint64 // of the resource; 0 if it is not known
}

// mirror is what Kubernetes has of a resource, as far as that is believed:
//
//	watched: added, changed, deleted ─► at once
//	missing in a new list ─► doubted ─► missing in lists read from etcd too ─► gone
//	a list that is older than what we have ─► doubted as a whole, in the same way
//
// So a server that answers with too little, or with what was true before, deletes nothing. At
// the beginning the rows are those that the registry has; they are believed like any other.
//
// The Source's mutex guards it. It implements cache.ReflectorStore.
type mirror struct {
	*resource
	source *Source
	rows   map[name]*row
	// listed is set once everything was listed; absent says that there is no such resource.
	listed, absent bool
	newest         uint64
	// err is why it cannot be listed or watched.
	err error

	// doubts are rows that the last list lacks. back says that the list was older than what
	// we have. Both are settled after need lists that agree; agreed counts those.
	doubts       map[name]bool
	back         bool
	need, agreed int
	since        time.Time
	wake         chan struct{} // for whoever settles them
}

func newMirror(s *Source, r *resource) *mirror {
	return &mirror{resource: r, source: s, rows: map[name]*row{}, doubts: map[name]bool{}, wake: make(chan struct{}, 1)}
}

func (m *mirror) ref(n name) registry.Ref {
	return registry.Ref{Plural: m.plural, Namespace: n.namespace, Name: n.name}
}

// Transformer implements cache.TransformingStore.
func (m *mirror) Transformer() cache.TransformFunc { return strip }

// Add implements cache.ReflectorStore.
func (m *mirror) Add(obj any) error {
	m.source.mu.Lock()
	defer m.source.mu.Unlock()
	m.heard()
	m.put(obj)
	return nil
}

// Update implements cache.ReflectorStore.
func (m *mirror) Update(obj any) error { return m.Add(obj) }

// Delete implements cache.ReflectorStore.
func (m *mirror) Delete(obj any) error {
	o, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	m.source.mu.Lock()
	defer m.source.mu.Unlock()
	m.heard()
	n := name{o.GetNamespace(), o.GetName()}
	m.newest = max(m.newest, version(o.GetResourceVersion()))
	// One of another UID has followed it.
	if have := m.rows[n]; have != nil && (have.uid == "" || have.uid == string(o.GetUID())) {
		m.remove(n)
	}
	return nil
}

// Bookmark implements cache.ReflectorBookmarkStore.
func (m *mirror) Bookmark(at string) error {
	m.source.mu.Lock()
	defer m.source.mu.Unlock()
	m.heard()
	m.newest = max(m.newest, version(at))
	return nil
}

// Resync implements cache.ReflectorStore.
func (m *mirror) Resync() error { return nil }

// Replace implements cache.ReflectorStore: the server says that these are all.
func (m *mirror) Replace(all []any, at string) error {
	m.source.mu.Lock()
	defer m.source.mu.Unlock()
	m.heard()
	seen := make(map[name]bool, len(all))
	for _, obj := range all {
		if n, ok := m.put(obj); ok {
			seen[n] = true
		}
	}
	// Doubts that this list confirms stay as old as they are: a watch that keeps breaking must
	// not keep for ever what is gone.
	fresh := len(m.doubts) == 0 && !m.back
	for n := range m.rows {
		if !seen[n] && !m.doubts[n] {
			m.doubts[n], fresh = true, true
		}
	}
	back := version(at) < m.newest
	m.newest = max(m.newest, version(at))
	m.listed, m.absent = true, false
	if fresh || back != m.back {
		m.agreed, m.need, m.since = 0, once, time.Time{}
	}
	if m.back = back; m.need != thrice && (back || many(len(m.doubts), len(m.rows))) {
		m.need, m.since = thrice, time.Now()
	}
	if m.back || len(m.doubts) > 0 {
		signal(m.wake)
	}
	m.source.changed(m.plural)
	return nil
}

// many reports whether a list lacks more than a day's work deletes between two lists.
func many(missing, have int) bool {
	return missing > max(fewest, have*3/10) || missing == have && have > 1
}

// heard notes that the server answers about the resource.
func (m *mirror) heard() { m.err = nil }

// put takes in an object, unless what we have is newer.
func (m *mirror) put(obj any) (n name, ok bool) {
	o, err := meta.Accessor(obj)
	if err != nil {
		return n, false
	}
	n = name{o.GetNamespace(), o.GetName()}
	delete(m.doubts, n)
	have, at := m.rows[n], version(o.GetResourceVersion())
	if have != nil && have.version > at && at > 0 {
		return n, true
	}
	m.newest = max(m.newest, at)
	next := &row{uid: string(o.GetUID()), version: at}
	_, _ = strip(obj)
	next.made = convert(o, m.resource)
	m.rows[n] = next
	if have == nil || have.uid != next.uid || !bytes.Equal(have.text, next.text) || have.partly != next.partly {
		m.source.dirt(m, n)
	}
	return n, true
}

func (m *mirror) remove(n name) {
	if r := m.rows[n]; r != nil && m.plural == machines {
		m.source.departed[n.name] = r.uid
	}
	delete(m.rows, n)
	delete(m.doubts, n)
	m.source.dirt(m, n)
}

// version reads a resource version; 0 if it is not a number.
func version(text string) uint64 {
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return v
}

const (
	// fewest objects may be missing in a list without suspicion, however few there are.
	fewest = 10
	// How many more lists decide what is gone: one for a few, three for many, with a pause
	// before each. A list that is read from etcd costs the API server what the first did.
	once, thrice = 1, 3
	fewPause     = 2 * time.Second
	manyPause    = 10 * time.Second
)

// settle settles doubts until ctx ends.
func (m *mirror) settle(ctx context.Context, from cache.ListerWithContext) error {
	for {
		pause := m.pause()
		if pause == 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-m.wake:
			}
			continue
		}
		if !sleep(ctx, pause) {
			return nil
		}
		// Without a revision: what etcd has, not what a server remembers.
		list, _, err := pager.New(pager.SimplePageFunc(func(opts metav1.ListOptions) (runtime.Object, error) {
			return from.ListWithContext(ctx, opts)
		})).ListWithAlloc(ctx, metav1.ListOptions{})
		if err == nil {
			err = m.judge(list)
		}
		if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) {
			m.source.failed(m, err)
		}
	}
}

// pause is how long to wait before the next list that decides; 0 if nothing is in doubt.
func (m *mirror) pause() time.Duration {
	m.source.mu.Lock()
	defer m.source.mu.Unlock()
	switch {
	case !m.back && len(m.doubts) == 0:
		m.since = time.Time{}
		return 0
	case m.need == once:
		return fewPause
	}
	return manyPause
}

// judge compares what is in doubt with a list read from etcd.
func (m *mirror) judge(list runtime.Object) error {
	of, err := meta.ListAccessor(list)
	if err != nil {
		return err
	}
	items, err := meta.ExtractListWithAlloc(list)
	if err != nil {
		return err
	}
	m.source.mu.Lock()
	defer m.source.mu.Unlock()
	if at := version(of.GetResourceVersion()); !m.back && at > 0 && at < m.newest {
		m.back, m.need, m.agreed, m.since = true, thrice, 0, time.Now() // not just a server is behind
	}
	m.agreed++
	decided := m.agreed >= m.need
	if m.back && version(of.GetResourceVersion()) >= m.newest {
		m.back = false // only the server that answered before was behind
	}
	if m.back && decided {
		// The store of Kubernetes itself went back in time: revisions begin again from here.
		m.back, m.newest = false, version(of.GetResourceVersion())
		for _, r := range m.rows {
			if r.version > m.newest {
				r.version = 0
			}
		}
	}
	for _, item := range items {
		// What is in the list is no longer in doubt. What we lack has been deleted since, or
		// is about to be heard of.
		if o, err := meta.Accessor(item); err == nil && m.rows[name{o.GetNamespace(), o.GetName()}] != nil {
			m.put(item)
		}
	}
	if decided && !m.back {
		for n := range m.doubts {
			m.remove(n)
		}
	}
	m.source.changed(m.plural)
	return nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is noted already
	}
}

// sleep waits, and reports whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
