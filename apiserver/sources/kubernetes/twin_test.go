package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"k8s.io/client-go/rest"
)

// object is one of Kubernetes' objects.
type object = map[string]any

// twin is a Kubernetes API server in memory. It lists, watches and streams as a real one
// does, and can be away, behind or wrong.
type twin struct {
	mu      sync.Mutex // guards what follows
	version uint64
	objects map[string]map[name]object // by plural
	log     []event
	// compacted is the last revision that no watch can begin from.
	compacted uint64
	streams   bool // answers to sendInitialEvents
	away      error
	hangs     bool
	forbidden map[string]bool
	// lists, if not nil, changes what a list or a stream says.
	lists    func(plural string, items []object, version uint64, consistent bool) ([]object, uint64)
	watchers map[*watcher]bool
	events   []object // that were posted
	requests map[string]int
	back     chan struct{} // is closed when it no longer hangs
}

type event struct {
	version uint64
	kind    string
	plural  string
	object  object
}

type watcher struct {
	plural string
	wake   chan struct{}
	drop   chan struct{}
	at     uint64
}

func newTwin() *twin {
	k := &twin{version: 10, objects: map[string]map[name]object{}, streams: true, forbidden: map[string]bool{}, watchers: map[*watcher]bool{}, requests: map[string]int{}, back: make(chan struct{})}
	for _, r := range resources {
		if !r.custom {
			k.objects[r.plural] = map[name]object{}
		}
	}
	return k
}

// config is the access to the twin.
func (k *twin) config() (*rest.Config, error) {
	return &rest.Config{Host: "https://kube.test", Transport: k, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, nil
}

// set does something to the twin.
func (k *twin) set(do func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	do()
}

func clone(o object) object {
	var out object
	text, _ := json.Marshal(o)
	_ = json.Unmarshal(text, &out)
	return out
}

func metaOf(o object) object { return o["metadata"].(object) }

func nameOf(o object) name {
	m := metaOf(o)
	ns, _ := m["namespace"].(string)
	return name{ns, m["name"].(string)}
}

// install makes a custom resource known.
func (k *twin) install(plural string) {
	k.set(func() {
		if k.objects[plural] == nil {
			k.objects[plural] = map[name]object{}
		}
	})
	k.put(definitions, object{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": object{"name": plural + ".cilium.io"}})
}

// uninstall removes it with its objects.
func (k *twin) uninstall(plural string) {
	k.remove(definitions, name{"", plural + ".cilium.io"})
	k.set(func() { delete(k.objects, plural) })
}

// put creates or changes an object. A new one gets a UID.
func (k *twin) put(plural string, o object) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o = clone(o)
	k.version++
	m, kind := metaOf(o), "ADDED"
	m["resourceVersion"] = fmt.Sprint(k.version)
	m["managedFields"] = []any{object{"manager": "kubectl", "operation": "Update"}}
	if old := k.objects[plural][nameOf(o)]; old != nil {
		m["uid"], m["creationTimestamp"], kind = metaOf(old)["uid"], metaOf(old)["creationTimestamp"], "MODIFIED"
	} else if m["uid"] == nil {
		m["uid"], m["creationTimestamp"] = fmt.Sprintf("uid-%d", k.version), "2026-01-02T03:04:05Z"
	}
	k.objects[plural][nameOf(o)] = o
	k.tell(event{k.version, kind, plural, o})
}

// remove deletes an object.
func (k *twin) remove(plural string, n name) {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.objects[plural][n]
	if old == nil {
		return
	}
	delete(k.objects[plural], n)
	k.version++
	old = clone(old)
	metaOf(old)["resourceVersion"] = fmt.Sprint(k.version)
	k.tell(event{k.version, "DELETED", plural, old})
}

func (k *twin) tell(e event) {
	k.log = append(k.log, e)
	for w := range k.watchers {
		signal(w.wake)
	}
}

// cut ends all watches; compact also forgets what they missed.
func (k *twin) cut(compact bool) {
	k.set(func() {
		for w := range k.watchers {
			close(w.drop)
		}
		clear(k.watchers)
		if compact {
			k.version++
			k.compacted, k.log = k.version, nil
		}
	})
}

// leave makes the twin unreachable, and come back.
func (k *twin) leave() { k.set(func() { k.away = syscall.ECONNREFUSED }); k.cut(false) }
func (k *twin) hang() {
	k.set(func() { k.hangs = true })
	k.cut(false)
}
func (k *twin) comeBack() {
	k.set(func() {
		k.away = nil
		if k.hangs {
			k.hangs = false
			close(k.back)
			k.back = make(chan struct{})
		}
	})
}

// RoundTrip implements http.RoundTripper.
func (k *twin) RoundTrip(r *http.Request) (*http.Response, error) {
	k.mu.Lock()
	away, hangs, back := k.away, k.hangs, k.back
	k.mu.Unlock()
	if away != nil {
		return nil, away
	}
	if hangs {
		select {
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-back:
		}
	}
	q, p := r.URL.Query(), strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	plural := p[len(p)-1]
	switch {
	case plural == "readyz":
		return answer(200, "text/plain", []byte("ok")), nil
	case r.Method == http.MethodPost && plural == "events":
		text, err := io.ReadAll(r.Body)
		var o object
		if err == nil {
			err = json.Unmarshal(text, &o)
		}
		k.set(func() { k.events = append(k.events, o) })
		return answer(201, "application/json", text), err
	}
	if r.Method == http.MethodPatch {
		return k.patch(p, r)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if p[len(p)-2] == machines { // one of them
		k.requests["a node"]++
		o := k.objects[machines][name{"", plural}]
		if o == nil {
			return refusal(404, "NotFound", "nodes "+plural+" not found"), nil
		}
		text, err := json.Marshal(o)
		return answer(200, "application/json", text), err
	}
	k.requests[plural]++
	switch {
	case k.forbidden[plural]:
		return refusal(403, "Forbidden", plural+" is forbidden: User \"weft\" cannot list resource"), nil
	case k.objects[plural] == nil:
		return refusal(404, "NotFound", "the server could not find the requested resource"), nil
	case q.Get("watch") == "true" && q.Get("sendInitialEvents") == "true" && !k.streams:
		return refusal(422, "Invalid", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"), nil
	case q.Get("watch") == "true":
		return k.watchLocked(r.Context(), plural, q)
	}
	return k.listLocked(plural, q), nil
}

func (k *twin) itemsLocked(plural string, consistent bool) ([]object, uint64) {
	var items []object
	for _, n := range slices.SortedFunc(maps.Keys(k.objects[plural]), func(a, b name) int { return strings.Compare(a.namespace+"/"+a.name, b.namespace+"/"+b.name) }) {
		items = append(items, k.objects[plural][n])
	}
	if k.lists != nil {
		return k.lists(plural, items, k.version, consistent)
	}
	return items, k.version
}

// listLocked lists in pages.
func (k *twin) listLocked(plural string, q url.Values) *http.Response {
	items, version := k.itemsLocked(plural, q.Get("resourceVersion") == "")
	from, _ := strconv.Atoi(q.Get("continue"))
	limit, _ := strconv.Atoi(q.Get("limit"))
	if wanted, _ := strconv.ParseUint(q.Get("resourceVersion"), 10, 64); wanted > version {
		return refusal(504, "Timeout", "Too large resource version")
	}
	meta := object{"resourceVersion": fmt.Sprint(version)}
	items = items[min(from, len(items)):]
	if limit > 0 && len(items) > limit {
		items = items[:limit]
		meta["continue"] = strconv.Itoa(from + limit)
	}
	list := object{"apiVersion": "v1", "kind": "List", "metadata": meta}
	for _, r := range resources {
		if r.plural == plural {
			list["apiVersion"], list["kind"] = r.group.String(), r.kind+"List"
		}
	}
	all := []any{}
	for _, o := range items {
		all = append(all, shown(plural, o))
	}
	if plural == definitions {
		list["apiVersion"], list["kind"] = "meta.k8s.io/v1", "PartialObjectMetadataList"
	}
	list["items"] = all
	text, _ := json.Marshal(list)
	return answer(200, "application/json", text)
}

func shown(plural string, o object) object {
	if plural != definitions {
		return o
	}
	o = clone(o)
	o["apiVersion"], o["kind"] = "meta.k8s.io/v1", "PartialObjectMetadata"
	return o
}

// watchLocked watches, after a stream of what there is if that is asked for.
func (k *twin) watchLocked(ctx context.Context, plural string, q url.Values) (*http.Response, error) {
	at, _ := strconv.ParseUint(q.Get("resourceVersion"), 10, 64)
	w := &watcher{plural: plural, at: at, wake: make(chan struct{}, 1), drop: make(chan struct{})}
	var first []event
	if q.Get("sendInitialEvents") == "true" {
		items, version := k.itemsLocked(plural, at == 0)
		if at > version {
			return refusal(504, "Timeout", "Too large resource version"), nil
		}
		for _, o := range items {
			first = append(first, event{kind: "ADDED", object: shown(plural, o)})
		}
		mark := object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"resourceVersion": fmt.Sprint(version), "annotations": object{"k8s.io/initial-events-end": "true"}}}
		for _, r := range resources {
			if r.plural == plural {
				mark["apiVersion"], mark["kind"] = r.group.String(), r.kind
			}
		}
		first, w.at = append(first, event{kind: "BOOKMARK", object: shown(plural, mark)}), version
	} else if at < k.compacted {
		return refusal(410, "Expired", "too old resource version"), nil
	}
	k.watchers[w] = true
	out, in := io.Pipe()
	go k.feed(ctx, w, first, in)
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: out, Request: &http.Request{}}, nil
}

func (k *twin) feed(ctx context.Context, w *watcher, first []event, in *io.PipeWriter) {
	write := json.NewEncoder(in)
	stop := context.AfterFunc(ctx, func() { in.CloseWithError(ctx.Err()) })
	defer stop()
	defer in.Close()
	for {
		for _, e := range first {
			if write.Encode(object{"type": e.kind, "object": e.object}) != nil {
				return
			}
		}
		first = nil
		k.mu.Lock()
		for _, e := range k.log {
			if e.plural == w.plural && e.version > w.at {
				e.object = shown(e.plural, e.object)
				first, w.at = append(first, e), e.version
			}
		}
		k.mu.Unlock()
		if len(first) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-w.drop:
			return
		case <-w.wake:
		}
	}
}

func answer(code int, kind string, text []byte) *http.Response {
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(strings.NewReader(string(text))), Request: &http.Request{}}
}

func refusal(code int, reason, message string) *http.Response {
	status := object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
	if strings.HasPrefix(message, "Too large") {
		status["details"] = object{"causes": []any{object{"reason": "ResourceVersionTooLarge", "message": message}}}
	}
	text, _ := json.Marshal(status)
	return answer(code, "application/json", text)
}
