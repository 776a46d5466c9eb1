package kubernetes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/nodes"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

const (
	// gather is how long the first change of a burst waits for the others: they share one
	// transaction.
	gather = 20 * time.Millisecond
	// mostUnits and mostBytes are what one update takes.
	mostUnits = 2000
	mostBytes = 4 << 20
	// Pauses after a failure double from the first to the last.
	firstRetry = time.Second
	lastRetry  = 15 * time.Second
	// waitPause is the pause between two attempts to register nodes that could not be.
	waitPause = 2 * time.Second
)

// systemNamespace exists in each cluster for as long as the cluster does.
const systemNamespace = "kube-system"

// writer is the goroutine that writes.
type writer struct {
	*Source
	client *client
	// registered are the nodes, as of a turn of the register.
	registered map[string]registered
	turn       int64
	// uid is the cluster's that is followed, as far as it is known.
	uid string
	// told says that Peer objects were told once.
	told bool
}

// registered tells a node's registration apart from an earlier one.
type registered struct {
	uid   string
	began int64
}

// write writes what has changed until ctx ends.
func (s *Source) write(ctx context.Context, c *client) error {
	w := &writer{Source: s, client: c}
	var pause time.Duration
	for {
		var again <-chan time.Time
		switch {
		case pause > 0:
			again = time.After(pause)
		case s.waits():
			again = time.After(waitPause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.work:
		case <-again:
		}
		if !sleep(ctx, gather) {
			return nil
		}
		err := w.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			pause = 0
		} else {
			pause = min(max(2*pause, firstRetry), lastRetry)
		}
		s.note(func() { s.failing = err })
	}
}

// waits reports whether a node could not be registered.
func (s *Source) waits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unready) > 0
}

// step writes everything that has changed, if it can be believed.
func (w *writer) step(ctx context.Context) error {
	if !w.ready() {
		return nil
	}
	if ok, err := w.known(ctx); !ok || err != nil {
		return err
	}
	refs := w.take()
	w.tellPeers(refs)
	err := w.all(ctx, refs)
	w.note(func() {
		if err != nil {
			for _, ref := range refs {
				w.dirty[ref] = true // what was done is not done twice
			}
			return
		}
		if !w.begun {
			w.begun, w.looked = true, true
			w.conf.Log.Info("the objects of Kubernetes are applied", "server", w.host)
		}
	})
	return err
}

// ready starts and stops what follows custom resources, and reports whether all resources
// that there are were listed.
func (s *Source) ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := true
	for _, r := range resources {
		m := s.mirrors[r.plural]
		if r.custom && s.mirrors[definitions].listed {
			installed := s.mirrors[definitions].rows[name{"", r.definition()}] != nil
			stop, running := s.stop[r.plural]
			switch {
			case installed && !running:
				s.start[r.plural]()
			case !installed && running:
				stop()
				delete(s.stop, r.plural)
			}
			if !installed { // and so is no object of it
				m.listed, m.absent, m.err = false, false, nil
				for n := range m.rows {
					m.remove(n)
				}
				continue
			}
		}
		all = all && (m.listed || m.absent)
	}
	return all
}

// known reports whether this is the cluster that was followed before, if any was.
func (w *writer) known(ctx context.Context) (bool, error) {
	w.mu.Lock()
	uid := ""
	if r := w.mirrors[manifest.Namespaces].rows[name{"", systemNamespace}]; r != nil {
		uid = r.uid
	}
	w.mu.Unlock()
	foreign := ""
	switch {
	case uid == "":
		foreign = fmt.Sprintf("Kubernetes at %s lists no namespace %s, which every cluster has: nothing of it is believed", w.host, systemNamespace)
	case uid != w.uid:
		kv, err := w.conf.Store.Get(ctx, wire.KubernetesKey)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return false, err
		}
		switch was := string(kv.Value); {
		case was == uid:
			w.uid = uid
		case was == "" || w.conf.UID == uid:
			if err := store.Write(ctx, w.conf.Store, store.Put(wire.KubernetesKey, []byte(uid))); err != nil {
				return false, err
			}
			w.uid = uid
		default:
			foreign = fmt.Sprintf("Kubernetes at %s is another cluster than before: its namespace %s has the UID %s, and had %s; what came from the other one is kept", w.host, systemNamespace, uid, was)
		}
	}
	w.note(func() { w.foreign, w.looked = foreign, true })
	return foreign == "", nil
}

// take returns what has changed, in the order in which it is written.
func (s *Source) take() []registry.Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	refs := slices.SortedFunc(maps.Keys(s.dirty), func(a, b registry.Ref) int {
		return cmp.Or(s.mirrors[a.Plural].rank-s.mirrors[b.Plural].rank, cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	clear(s.dirty)
	return refs
}

// all writes the objects. In one update the registry orders them itself.
func (w *writer) all(ctx context.Context, refs []registry.Ref) error {
	if err := w.declare(ctx, refs); err != nil {
		return err
	}
	if err := w.readRegister(ctx); err != nil {
		return err
	}
	var puts []registry.Unit
	var gone []registry.Ref
	of := map[string]registry.Ref{}
	w.mu.Lock()
	for _, ref := range refs {
		if ref.Plural == machines || ref.Plural == definitions || ref.Plural == peers {
			continue
		}
		w.leave(ref)
		r := w.mirrors[ref.Plural].rows[name{ref.Namespace, ref.Name}]
		switch {
		case r == nil || r.text == nil:
			gone = append(gone, ref)
			continue
		case r.node != "" && w.registered[r.node] == registered{}:
			if w.homeless[r.node] == nil {
				w.homeless[r.node] = map[registry.Ref]bool{}
			}
			w.homeless[r.node][ref] = true
			gone = append(gone, ref) // an earlier one of its name
			continue
		}
		of[ref.Key()] = ref
		puts = append(puts, registry.Unit{Name: ref.Key(), Object: r.text})
	}
	w.mu.Unlock()
	// What no longer speaks for a pod goes before all else, and what no longer forbids after.
	first := func(ref registry.Ref) bool { return ref.Plural == manifest.Pods }
	delta := registry.Delta{Delete: slices.DeleteFunc(slices.Clone(gone), func(r registry.Ref) bool { return !first(r) })}
	later := slices.DeleteFunc(gone, first)
	for size := 0; ; {
		n := 0
		for n < len(puts) && n < mostUnits && size < mostBytes {
			size += len(puts[n].Object)
			n++
		}
		delta.Put, puts = puts[:n], puts[n:]
		if len(puts) == 0 {
			delta.Delete = append(delta.Delete, later...)
		}
		if err := w.update(ctx, delta, of); err != nil {
			return err
		}
		if len(puts) == 0 {
			return w.withdraw(ctx, refs)
		}
		delta, size = registry.Delta{}, 0
	}
}

// update writes a part, and notes what is wrong with it.
func (w *writer) update(ctx context.Context, d registry.Delta, of map[string]registry.Ref) error {
	if len(d.Put)+len(d.Delete) == 0 {
		return nil
	}
	out, err := w.conf.Registry.Update(ctx, d)
	if err != nil {
		return err
	}
	refused := map[string][]string{}
	for _, p := range out.Refused {
		if len(refused[p.File]) < 3 {
			refused[p.File] = append(refused[p.File], p.Message)
		}
	}
	for _, p := range out.Warnings {
		w.conf.Log.Debug("an object of Kubernetes is applied with a warning", "object", of[p.File].String(), "warning", p.Message)
	}
	w.note(func() {
		for _, ref := range d.Delete {
			delete(w.wrong, ref)
		}
		for _, u := range d.Put {
			ref := of[u.Name]
			m := w.mirrors[ref.Plural]
			r := m.rows[name{ref.Namespace, ref.Name}]
			if r == nil {
				continue // it has gone meanwhile, and is dirty
			}
			t := trouble{kind: m.kind, message: r.partly, partly: true}
			if why := refused[u.Name]; why != nil {
				t.message, t.partly = strings.Join(why, "; "), false
			}
			if t.message == "" {
				delete(w.wrong, ref)
				continue
			}
			if w.wrong[ref] != t {
				w.conf.Log.Warn("an object of Kubernetes is not applied as it is", "kind", m.kind, "object", ref.String(), "problem", t.message)
			}
			w.wrong[ref] = t
			w.reports.tell(m.resource, ref, r.uid, t)
		}
	})
	return nil
}

// leave forgets where an object was. What was wrong with it is so until it is written again.
// The mutex is held.
func (w *writer) leave(ref registry.Ref) {
	for node, pods := range w.homeless {
		if delete(pods, ref); len(pods) == 0 {
			delete(w.homeless, node)
		}
	}
}

// declare registers the nodes that have changed, and those that could not be before.
func (w *writer) declare(ctx context.Context, refs []registry.Ref) error {
	w.mu.Lock()
	due := map[string]bool{}
	for node := range w.unready {
		due[node] = true
	}
	for _, ref := range refs {
		if ref.Plural == machines {
			due[ref.Name] = true
		}
	}
	objects := map[string]*corev1.Node{}
	for node := range due {
		var object corev1.Node
		if r := w.mirrors[machines].rows[name{"", node}]; r != nil && r.text != nil && json.Unmarshal(r.text, &object) == nil {
			objects[node] = &object
		}
	}
	w.mu.Unlock()
	unready := map[string]unready{}
	var requests []api.NodeRequest
	for _, node := range slices.Sorted(maps.Keys(objects)) {
		request, err := nodes.FromKubernetes(objects[node], w.conf.IPAM)
		if err != nil {
			unready[node] = unreadyFor(err)
			continue
		}
		requests = append(requests, request)
	}
	if len(requests) > 0 {
		refused, err := w.conf.Nodes.Declare(ctx, requests, api.OwnerKubernetes, w.confirm)
		if err != nil {
			return err
		}
		for node, err := range refused {
			unready[node] = unreadyFor(err)
		}
	}
	w.note(func() {
		for node := range due {
			if w.unready[node] = unready[node]; w.unready[node].why == "" {
				delete(w.unready, node)
			}
		}
	})
	return nil
}

// confirm says whether Kubernetes still has the object that a request is for. What was heard
// of it may be older than what an agent has joined as.
func (w *writer) confirm(ctx context.Context, request api.NodeRequest) (bool, error) {
	uid, err := w.client.uidOf(ctx, request.Name)
	if err != nil {
		return false, api.Refuse(http.StatusServiceUnavailable, "it is tried again", "another node of its name is registered, and Kubernetes does not say whether that is gone: %v", cause(err))
	}
	return uid == request.UID, nil
}

// withdraw removes nodes that are gone. Their pods follow, by the register.
func (w *writer) withdraw(ctx context.Context, refs []registry.Ref) error {
	for _, ref := range refs {
		if ref.Plural != machines {
			continue
		}
		w.mu.Lock()
		uid := w.departed[ref.Name]
		gone := w.mirrors[machines].rows[name{"", ref.Name}] == nil
		w.mu.Unlock()
		if gone {
			if err := w.conf.Nodes.Withdraw(ctx, ref.Name, uid, api.OwnerKubernetes); err != nil {
				return err
			}
		}
		w.note(func() {
			if w.departed[ref.Name] == uid {
				delete(w.departed, ref.Name)
			}
		})
	}
	return nil
}

// readRegister reads which nodes are registered, if that has changed. Pods that have waited
// for one that is are written again, and so are those of nodes that are no longer registered,
// or again: their pods went with their registrations.
func (w *writer) readRegister(ctx context.Context) error {
	turn, err := w.conf.Registry.Turn(ctx)
	if err != nil {
		return err
	}
	at := int64(0)
	for _, c := range turn {
		if c.Key == wire.RegistrationsTurnKey {
			at = c.Modified
		}
	}
	if w.registered != nil && at == w.turn {
		return nil
	}
	register, err := w.conf.Nodes.Registered(ctx)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.registered
	w.registered, w.turn = make(map[string]registered, len(register)), at
	for node, reg := range register {
		w.registered[node] = registered{reg.UID, reg.Began}
		for ref := range w.homeless[node] {
			w.again(ref)
		}
	}
	lost := map[string]bool{}
	for node, was := range before {
		if w.registered[node] != was {
			lost[node] = true
		}
	}
	if len(lost) > 0 {
		for n, r := range w.mirrors[manifest.Pods].rows {
			if lost[r.node] {
				w.again(w.mirrors[manifest.Pods].ref(n))
			}
		}
	}
	w.declareAgain(register, lost)
	for ref := range w.wrong {
		if ref.Plural == manifest.Pods {
			w.again(ref)
		}
	}
	return nil
}

// declareAgain has nodes declared that somebody else has removed, or registered as an object
// that is not the one that Kubernetes has. The mutex is held.
func (w *writer) declareAgain(register map[string]nodes.Registered, changed map[string]bool) {
	for node := range changed {
		r := w.mirrors[machines].rows[name{"", node}]
		reg, there := register[node]
		if r != nil && r.text != nil && (!there || reg.Source == api.OwnerKubernetes && reg.UID != r.uid) {
			w.again(w.mirrors[machines].ref(name{"", node}))
		}
	}
}

// again has an object written again in the next step. The mutex is held.
func (w *writer) again(ref registry.Ref) {
	w.dirty[ref] = true
	signal(w.work)
}
