// Package registry keeps the objects that operators apply: it reads and checks manifests,
// and stores all objects of a manifest or none.
//
// What is derived from them is made elsewhere: endpoints in package endpoints, exports in
// package export, kernel state in the agents.
package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/journal"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Limits of one manifest.
const (
	// MaxManifestBytes bounds the memory of one that is applied, which takes some 35 times
	// its size.
	MaxManifestBytes = 16 << 20
	// maxDocumentBytes bounds one YAML document with its aliases written out. A larger one
	// costs many times its size while it is parsed.
	maxDocumentBytes = 4 << 20
	maxProblems      = 100 // reported of one manifest
	maxObjectBytes   = 1 << 20
)

// attempts is how often an apply starts over when somebody else changes the same objects
// at the same time.
const attempts = 16

// Config says whose objects these are.
type Config struct {
	Cluster     string
	ServiceCIDR netip.Prefix
	// IPv6ServiceCIDR is where services' IPv6 addresses are from; invalid: they have none.
	IPv6ServiceCIDR netip.Prefix
	// Kubernetes says that the cluster's pods, services, endpoint slices and namespaces come
	// from Kubernetes, so that nobody else may write any.
	Kubernetes bool
	// Waits is called once per listing with pods that are not ready, and the function it
	// returns once per such pod. That returns why the pod waits: a word in CamelCase and a
	// sentence. Waits may be nil.
	Waits func(context.Context) (func(node, namespace, pod string) (reason, message string), error)
	// Audit is called for each object that this server has created, changed or deleted;
	// it may be nil.
	Audit func(user string, o api.AppliedObject)
	// Log may be nil.
	Log *slog.Logger
}

// Registry holds the objects of a cluster. Several goroutines, in several API servers, may
// use it.
type Registry struct {
	conf    Config
	store   store.Store
	journal *journal.Journal
	now     func() time.Time
}

// New creates a registry on a store.
func New(s store.Store, conf Config) *Registry {
	r := &Registry{conf: conf, store: s, now: time.Now}
	r.journal = journal.New(journal.Config{Store: s, Turns: []string{wire.RegistrationsTurnKey}, Audit: r.audit, Log: conf.Log})
	return r
}

// Run completes changes that their API server has committed but not carried out, until
// ctx ends.
func (r *Registry) Run(ctx context.Context) error { return r.journal.Run(ctx) }

// Concerns says what of the objects cannot be stored.
func (r *Registry) Concerns() []api.Concern { return r.journal.Concerns(r.conf.Cluster) }

// Apply stores a manifest's objects, all of them or none. A refusal is an *api.Error that
// lists every mistake. A dry run stores nothing and returns what would have happened.
//
// If one transaction does not take them, readers may see some objects before others; see
// inOrder.
func (r *Registry) Apply(ctx context.Context, manifest []byte, opts api.ManifestOptions) (*api.ApplyResult, error) {
	for range attempts {
		// A plan completes the objects, so another attempt reads them again.
		objects, problems := readManifest(manifest, opts, false)
		if len(problems) > 0 {
			return nil, refusal(problems)
		}
		result, done, err := r.change(ctx, opts.DryRun, func() ([]change, error) {
			return accepted(r.plan(ctx, objects, r.operator(opts)))
		})
		if err != nil || done {
			return result, err
		}
	}
	return nil, busy()
}

// change makes what plan returns. It is not done if somebody else changed the same objects
// meanwhile.
func (r *Registry) change(ctx context.Context, dryRun bool, plan func() ([]change, error)) (*api.ApplyResult, bool, error) {
	turn, err := r.journal.Turn(ctx)
	if err != nil {
		return nil, false, storeError(err)
	}
	changes, err := plan()
	if err != nil {
		return nil, false, err
	}
	by := callerOf(ctx)
	all := journal.Change{User: by.User, Since: turn, Progress: by.Progress}
	result := &api.ApplyResult{Cluster: r.conf.Cluster, DryRun: dryRun, Objects: make([]api.AppliedObject, len(changes))}
	for i, c := range changes {
		result.Objects[i] = r.applied(&c.object, c.action)
		result.Warnings = append(result.Warnings, c.warnings...)
	}
	result.Warnings = tellable(result.Warnings, "there are more warnings than these")
	for _, c := range inOrder(changes) {
		all.Then = append(all.Then, c.writes...)
		all.If = append(all.If, c.conds...)
	}
	if dryRun || len(all.Then) == 0 {
		return result, true, nil
	}
	done, err := r.journal.Make(ctx, all)
	if err != nil {
		return nil, false, commitError(err)
	}
	return result, done, nil
}

// Caller is who makes a change.
type Caller struct {
	User string
	// Progress, if not nil, is called while a large change is made.
	Progress func(made, of int)
}

type callerKey struct{}

// By returns a context in which a Caller makes changes.
func By(ctx context.Context, c Caller) context.Context { return context.WithValue(ctx, callerKey{}, c) }

func callerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// audit tells who has changed an object.
func (r *Registry) audit(user string, w wire.Write) {
	plural, namespace, name, ok := wire.ParseObjectKey(w.Key)
	if kind, known := FindKind(plural); ok && known && r.conf.Audit != nil {
		r.conf.Audit(user, r.applied(&object{kind: kind, namespace: namespace, name: name}, api.Action(w.Action)))
	}
}

func busy() error {
	return api.Conflict("try again", "somebody else is changing the same objects")
}

func (r *Registry) applied(o *object, action api.Action) api.AppliedObject {
	return api.AppliedObject{Cluster: r.conf.Cluster, Kind: o.kind.Name, Namespace: o.namespace, Name: o.name, Action: action}
}

// Get reads one object. word is any word for its kind that FindKind knows.
func (r *Registry) Get(ctx context.Context, word, namespace, name string) (*api.ObjectList, error) {
	kind, namespace, err := r.place(word, namespace)
	if err != nil {
		return nil, err
	}
	kv, err := r.store.Get(ctx, wire.ObjectKey(kind.Plural, namespace, name))
	if errors.Is(err, store.ErrNotFound) {
		return nil, r.absent(kind, namespace, name)
	}
	if err != nil {
		return nil, storeError(err)
	}
	item, err := r.showOneStatus(ctx, kind, namespace, name, kv.Value)
	if err != nil {
		return nil, err
	}
	return &api.ObjectList{Cluster: r.conf.Cluster, Kind: kind.Name, Revision: kv.Modified, Items: []json.RawMessage{item}}, nil
}

// List reads the objects of a kind; an empty namespace means every namespace.
func (r *Registry) List(ctx context.Context, word, namespace string) (*api.ObjectList, error) {
	kind, err := findKind(word)
	if err != nil {
		return nil, err
	}
	kvs, at, err := r.store.List(ctx, listPrefix(kind, namespace))
	if err != nil {
		return nil, storeError(err)
	}
	list := &api.ObjectList{Cluster: r.conf.Cluster, Kind: kind.Name, Revision: at.Revision, Items: make([]json.RawMessage, len(kvs))}
	for i, kv := range kvs {
		list.Items[i] = kv.Value
	}
	if err := r.showStatus(ctx, kind, namespace, list.Items); err != nil {
		return nil, err
	}
	return list, nil
}

// Watch calls each with the existing objects, then with "synced", then with changes, until
// ctx ends or each returns an error. After a gap in the store's history, what was deleted in
// it is told as deleted, and all other objects follow again.
func (r *Registry) Watch(ctx context.Context, word, namespace string, each func(api.WatchEvent) error) error {
	kind, err := findKind(word)
	if err != nil {
		return err
	}
	told, synced := map[string]bool{}, false // told are the keys of the objects that each knows
	tell := func(ev store.Event) error {
		_, ns, name, ok := wire.ParseObjectKey(ev.Key)
		if !ok {
			return nil
		}
		out := api.WatchEvent{Cluster: r.conf.Cluster, Type: "put", Kind: kind.Name, Namespace: ns, Name: name, Revision: ev.Modified, Object: ev.Value}
		if ev.Deleted {
			out.Type, out.Object = "delete", nil
			delete(told, ev.Key)
		} else {
			told[ev.Key] = true
		}
		return each(out)
	}
	return store.Follow(ctx, r.store, listPrefix(kind, namespace), func(b store.Batch) error {
		if b.Complete {
			for _, key := range missing(told, b.Events) {
				if err := tell(store.Event{KV: store.KV{Key: key, Modified: b.Revision}, Deleted: true}); err != nil {
					return err
				}
			}
		}
		for _, ev := range b.Events {
			if err := tell(ev); err != nil {
				return err
			}
		}
		if synced || !b.Complete {
			return nil
		}
		synced = true
		return each(api.WatchEvent{Cluster: r.conf.Cluster, Type: "synced", Kind: kind.Name, Revision: b.Revision})
	})
}

// missing returns the keys that a complete list lacks, in order.
func missing(keys map[string]bool, all []store.Event) []string {
	left := maps.Clone(keys)
	for _, ev := range all {
		delete(left, ev.Key)
	}
	return slices.Sorted(maps.Keys(left))
}

func listPrefix(kind Kind, namespace string) string {
	prefix := wire.ObjectsPrefix + kind.Plural + "/"
	if namespace != "" && kind.Namespaced {
		prefix += namespace + "/"
	}
	return prefix
}

func findKind(word string) (Kind, error) {
	kind, ok := FindKind(word)
	if !ok {
		return Kind{}, api.NotFound("", "unknown kind %q; known are %s", word, knownPlurals())
	}
	return kind, nil
}

// place finds the kind and the namespace of an object.
func (r *Registry) place(word, namespace string) (Kind, string, error) {
	kind, err := findKind(word)
	if err != nil {
		return Kind{}, "", err
	}
	if namespace == "_" {
		namespace = ""
	}
	switch {
	case !kind.Namespaced:
		return kind, "", nil
	case namespace == "":
		return kind, DefaultNamespace, nil
	}
	return kind, namespace, nil
}

func (r *Registry) absent(kind Kind, namespace, name string) error {
	if namespace != "" {
		name = namespace + "/" + name
	}
	return api.NotFound(fmt.Sprintf("`weft get %s` lists them", kind.Plural), "cluster %s has no %s %s", r.conf.Cluster, kind.Name, name)
}

// accepted refuses changes if there are problems.
func accepted(changes []change, problems []api.Problem, err error) ([]change, error) {
	if err == nil && len(problems) > 0 {
		err = refusal(problems)
	}
	return changes, err
}

// refusal is the error for a manifest with mistakes.
func refusal(problems []api.Problem) error {
	e := api.Invalid("correct the manifest and apply it again", "the manifest is refused, nothing was changed:")
	e.Problems = tellable(problems, "there are more mistakes than these")
	return e
}

// tellable sorts problems by file and document and cuts them to what fits into one answer.
// rest is the last of them if some are left out.
func tellable(problems []api.Problem, rest string) []api.Problem {
	slices.SortStableFunc(problems, func(a, b api.Problem) int { return cmp.Or(cmp.Compare(a.File, b.File), a.Document-b.Document) })
	if len(problems) > maxProblems {
		problems = append(problems[:maxProblems:maxProblems], api.Problem{Message: rest})
	}
	for i := range problems {
		p := &problems[i]
		p.Namespace, p.Name, p.Message = shorten(p.Namespace, maxNameTold), shorten(p.Name, maxNameTold), shorten(p.Message, maxSentenceTold)
	}
	return problems
}

// How many bytes of a mistake are reported: the longest valid name, and a long sentence.
// JSON may write 6 bytes for one of them (\u003c for <); 200 are enough for the ellipses,
// the other fields and the field names. All mistakes of a manifest must fit into one
// answer:
//
//	(maxProblems + 1) × (6 × (2 × maxNameTold + maxSentenceTold) + 200) = 932,836 < api.MaxErrorBytes
const (
	maxNameTold     = 253
	maxSentenceTold = 1000
)

// shorten cuts a text that quotes a manifest to what a person would read.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// storeError explains a failure of the store to an operator. An *api.Error is returned
// unchanged.
func storeError(err error) error {
	var answer *api.Error
	switch {
	case errors.As(err, &answer):
		return err
	case errors.Is(err, store.ErrFull):
		return api.StoreFull()
	case errors.Is(err, store.ErrTooLarge):
		return api.Refuse(http.StatusRequestEntityTooLarge, "make it smaller, or raise the store's limit on requests (--max-request-bytes of etcd)",
			"an object is larger than the store takes, nothing was changed: %v", err)
	case errors.Is(err, store.ErrUnavailable):
		return api.Refuse(http.StatusServiceUnavailable, "look at the API server's log", "the store cannot be reached: %v", err)
	}
	return err
}

// damaged is the problem of an object that cannot be read in the store.
func damaged(err error) string {
	return fmt.Sprintf("is damaged in the store (%v); delete it with `weft delete`, then apply it again", err)
}

// commitError is storeError for a change. A store that does not answer may have made it.
func commitError(err error) error {
	var unfinished *journal.Unfinished
	var notMade *journal.NotMade
	switch {
	case errors.As(err, &unfinished):
		return api.Refuse(http.StatusServiceUnavailable, "do not repeat the command: the API servers carry out the rest once the store takes it; until then, no other change is made",
			"%v", err)
	case errors.As(err, &notMade) && errors.Is(err, store.ErrUnavailable):
		return api.Refuse(http.StatusServiceUnavailable, "repeat the command once the store answers again", "%v", err)
	case errors.As(err, &notMade):
		return storeError(notMade.Err)
	case errors.Is(err, store.ErrUnavailable):
		return api.Refuse(http.StatusServiceUnavailable, "repeat the command once the store answers again: what was done is not done twice",
			"the store did not confirm the change, which may or may not have been made: %v", err)
	}
	return storeError(err)
}
