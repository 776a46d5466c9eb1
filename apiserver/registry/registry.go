// Package registry keeps the objects that operators apply: it reads and checks manifests,
// and stores all objects of a manifest or none.
//
// What is derived from them is made elsewhere: endpoints in package endpoints, exports in
// package export, kernel state in the agents.
package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Limits of one manifest. The store takes transactions of 8 MiB and 4096
// operations; a service takes up to two.
const (
	MaxManifestBytes = 4 << 20
	maxObjects       = 1000
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
	// Waits is called once per listing with pods that are not ready, and the function it
	// returns once per such pod. That returns why the pod waits: a word in CamelCase and a
	// sentence. Waits may be nil.
	Waits func(context.Context) (func(node, namespace, pod string) (reason, message string), error)
}

// Registry holds the objects of a cluster. Several goroutines, in several API servers, may
// use it.
type Registry struct {
	conf  Config
	store store.Store
	now   func() time.Time
}

// New creates a registry on a store.
func New(s store.Store, conf Config) *Registry {
	return &Registry{conf: conf, store: s, now: time.Now}
}

// change is what happens to one object.
type change struct {
	object
	old    store.KV // Modified is 0 if there is none
	text   []byte   // new JSON
	action api.Action
	ops    []store.Op
	conds  []store.Cond
	groups []string // of prefixes, in the same manifest
}

// Apply stores a manifest's objects in one transaction: all of them or none. A refusal is
// an *api.Error that lists every mistake. A dry run stores nothing and returns what would
// have happened.
func (r *Registry) Apply(ctx context.Context, manifest []byte, opts api.ManifestOptions) (*api.ApplyResult, error) {
	for range attempts {
		// A plan completes the objects, so another attempt reads them again.
		objects, problems := readManifest(manifest, opts, false)
		if len(problems) > 0 {
			return nil, refusal(problems)
		}
		if err := tooMany(objects); err != nil {
			return nil, err
		}
		changes, err := r.plan(ctx, objects)
		if err != nil {
			return nil, err
		}
		result := &api.ApplyResult{Cluster: r.conf.Cluster, DryRun: opts.DryRun}
		var txn store.Txn
		for _, c := range changes {
			result.Objects = append(result.Objects, r.applied(&c.object, c.action))
			result.Warnings = append(result.Warnings, c.warnings...)
			txn.Then = append(txn.Then, c.ops...)
			txn.If = append(txn.If, c.conds...)
		}
		result.Warnings = tellable(result.Warnings, "there are more warnings than these")
		if opts.DryRun || len(txn.Then) == 0 {
			return result, nil
		}
		_, done, err := r.store.Commit(ctx, txn)
		if err != nil {
			return nil, commitError(err)
		}
		if done {
			return result, nil
		}
	}
	return nil, busy()
}

// tooMany refuses more objects than one transaction takes.
func tooMany(objects []object) error {
	if len(objects) <= maxObjects {
		return nil
	}
	return api.Refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("split it into manifests of up to %d objects", maxObjects),
		"the manifest has %d objects, which is too many for one transaction", len(objects))
}

func busy() error {
	return api.Conflict("try again", "somebody else is changing the same objects")
}

func (r *Registry) applied(o *object, action api.Action) api.AppliedObject {
	return api.AppliedObject{Cluster: r.conf.Cluster, Kind: o.kind.Name, Namespace: o.namespace, Name: o.name, Action: action}
}

// plan compares the objects with the store and returns what to write.
func (r *Registry) plan(ctx context.Context, objects []object) ([]change, error) {
	changes := make([]change, len(objects))
	var problems []api.Problem
	ips := serviceIPs{registry: r}
	var groups []string
	for _, o := range objects {
		if o.kind.Name == policy.KindCIDRGroup {
			groups = append(groups, o.name)
		}
	}
	for i, o := range objects {
		c := &changes[i]
		c.object, c.groups = o, groups
		if o.skipped {
			c.action = api.Skipped
			continue
		}
		old, err := r.store.Get(ctx, o.key())
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, storeError(err)
		}
		c.old = old
		problem, err := r.fit(ctx, c, &ips)
		if err != nil {
			return nil, storeError(err)
		}
		if problem != "" {
			problems = append(problems, o.problem("%s", problem))
			continue
		}
		if c.text, err = o.encode(); err != nil {
			return nil, fmt.Errorf("encode %s: %w", o.key(), err)
		}
		if len(c.text) > maxObjectBytes {
			problems = append(problems, o.problem("has %d bytes; an object may have %d", len(c.text), maxObjectBytes))
			continue
		}
		switch {
		case old.Modified == 0:
			c.action = api.Created
		case bytes.Equal(old.Value, c.text):
			c.action, c.ops, c.conds = api.Unchanged, nil, nil
			continue
		default:
			c.action = api.Configured
		}
		c.ops = append(c.ops, store.Put(o.key(), c.text))
		c.conds = append(c.conds, store.Cond{Key: o.key(), Modified: old.Modified})
	}
	if len(problems) > 0 {
		return nil, refusal(problems)
	}
	return changes, nil
}

// fit checks an object against the store and completes it. A problem is for the operator
// to correct, an error is the store's.
func (r *Registry) fit(ctx context.Context, c *change, ips *serviceIPs) (problem string, err error) {
	if err := r.identify(c.meta(), c.old); err != nil {
		return "", err
	}
	switch v := c.value.(type) {
	case *policy.Policy:
		return "", r.warnOfGroups(ctx, c, v)
	case *corev1.Pod:
		return r.fitPod(ctx, c, v)
	case *corev1.Service:
		return ips.fit(ctx, c, v)
	case *discoveryv1.EndpointSlice:
		var old discoveryv1.EndpointSlice
		if c.old.Modified != 0 && json.Unmarshal(c.old.Value, &old) == nil && old.Labels[discoveryv1.LabelManagedBy] == wire.ManagedBy {
			return "is derived from service " + old.Labels[discoveryv1.LabelServiceName] + "; choose another name", nil
		}
		return r.fitSlice(ctx, v)
	}
	return "", nil
}

// warnOfGroups warns if a policy refers to groups that are neither in the store nor in the
// manifest. They may be applied later.
func (r *Registry) warnOfGroups(ctx context.Context, c *change, p *policy.Policy) (err error) {
	missing := p.MissingGroups(func(name string) bool {
		kind, _ := FindKind(policy.KindCIDRGroup)
		_, e := r.store.Get(ctx, wire.ObjectKey(kind.Plural, "", name))
		if e != nil && !errors.Is(e, store.ErrNotFound) {
			err = e
		}
		return e == nil || slices.Contains(c.groups, name)
	})
	for _, name := range missing {
		c.warn("there is no %s %q: what refers to it selects nobody until there is one", policy.KindCIDRGroup, name)
	}
	return err
}

// identify keeps an object's UID and creation time when it changes. A new object of the
// same name gets a new UID.
func (r *Registry) identify(meta metav1.Object, old store.KV) error {
	if old.Modified == 0 {
		meta.SetUID(uuid.NewUUID())
		meta.SetCreationTimestamp(metav1.NewTime(r.now().UTC().Truncate(time.Second)))
		return nil
	}
	var was metav1.PartialObjectMetadata
	if err := json.Unmarshal(old.Value, &was); err != nil {
		return damaged(old.Key, err)
	}
	meta.SetUID(was.UID)
	meta.SetCreationTimestamp(metav1.NewTime(was.CreationTimestamp.UTC()))
	return nil
}

func (r *Registry) fitPod(ctx context.Context, c *change, pod *corev1.Pod) (string, error) {
	node := pod.Spec.NodeName
	key := wire.RegistrationKey(node)
	kv, err := r.store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return r.unknownNode(ctx, node)
	}
	if err != nil {
		return "", err
	}
	c.conds = append(c.conds, store.Cond{Key: key, Modified: kv.Modified})
	if c.old.Modified == 0 {
		return "", nil
	}
	var old corev1.Pod
	if err := json.Unmarshal(c.old.Value, &old); err != nil {
		return "", damaged(c.old.Key, err)
	}
	if old.Spec.NodeName != node {
		return fmt.Sprintf("runs on node %s and cannot move to %s; delete it first", old.Spec.NodeName, node), nil
	}
	was, errWas := json.Marshal(old.Spec)
	is, errIs := json.Marshal(pod.Spec)
	if err := errors.Join(errWas, errIs); err != nil {
		return "", err
	}
	if !bytes.Equal(was, is) {
		return "its spec cannot change while it runs (labels and annotations can); delete it first", nil
	}
	return "", nil
}

func (r *Registry) unknownNode(ctx context.Context, node string) (string, error) {
	kvs, _, err := r.store.List(ctx, wire.RegistrationsPrefix)
	if err != nil {
		return "", err
	}
	if len(kvs) == 0 {
		return fmt.Sprintf("spec.nodeName %q is not a node of cluster %s, which has none yet; add it with `weft node add`", node, r.conf.Cluster), nil
	}
	names := make([]string, 0, len(kvs))
	for _, kv := range kvs {
		if name, ok := wire.ParseRegistrationKey(kv.Key); ok {
			names = append(names, name)
		}
	}
	if len(names) > 10 {
		names = append(names[:10], "…")
	}
	return fmt.Sprintf("spec.nodeName %q is not a node of cluster %s; its nodes are %s", node, r.conf.Cluster, strings.Join(names, ", ")), nil
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
// ctx ends or each returns an error. After a gap in the store's history, all objects and
// another "synced" follow: objects that are not among them no longer exist.
func (r *Registry) Watch(ctx context.Context, word, namespace string, each func(api.WatchEvent) error) error {
	kind, err := findKind(word)
	if err != nil {
		return err
	}
	return store.Follow(ctx, r.store, listPrefix(kind, namespace), func(b store.Batch) error {
		for _, ev := range b.Events {
			_, ns, name, ok := wire.ParseObjectKey(ev.Key)
			if !ok {
				continue
			}
			out := api.WatchEvent{Cluster: r.conf.Cluster, Type: "put", Kind: kind.Name, Namespace: ns, Name: name, Revision: ev.Modified, Object: ev.Value}
			if ev.Deleted {
				out.Type, out.Object = "delete", nil
			}
			if err := each(out); err != nil {
				return err
			}
		}
		if b.Complete {
			return each(api.WatchEvent{Cluster: r.conf.Cluster, Type: "synced", Kind: kind.Name, Revision: b.Revision})
		}
		return nil
	})
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

// refusal is the error for a manifest with mistakes.
func refusal(problems []api.Problem) error {
	e := api.Invalid("correct the manifest and apply it again", "the manifest is refused, nothing was changed:")
	e.Problems = tellable(problems, "there are more mistakes than these")
	return e
}

// tellable sorts problems by document and cuts them to what fits into one answer. rest is
// the last of them if some are left out.
func tellable(problems []api.Problem, rest string) []api.Problem {
	slices.SortStableFunc(problems, func(a, b api.Problem) int { return a.Document - b.Document })
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
		return api.Refuse(http.StatusRequestEntityTooLarge, "split it into several manifests", "the manifest is too large for one transaction, nothing was changed")
	case errors.Is(err, store.ErrUnavailable):
		return api.Refuse(http.StatusServiceUnavailable, "look at the API server's log", "the store cannot be reached: %v", err)
	}
	return err
}

// damaged says that an object in the store cannot be read.
func damaged(key string, err error) error {
	return api.Conflict("delete it with `weft delete`, then apply it again", "the stored object %s is damaged: %v", strings.TrimPrefix(key, wire.ObjectsPrefix), err)
}

// commitError is storeError for a write. A store that does not answer may have made it.
func commitError(err error) error {
	if errors.Is(err, store.ErrUnavailable) {
		return api.Refuse(http.StatusServiceUnavailable, "repeat the command once the store answers again: what was done is not done twice",
			"the store did not confirm the change, which may or may not have been made: %v", err)
	}
	return storeError(err)
}
