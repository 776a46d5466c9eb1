package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/apiserver/journal"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// large is a manifest of n services, a policy for every tenth and a pod for every second,
// with the pods first and the policies last.
func large(n int) []byte {
	var text bytes.Buffer
	for i := 0; i < n; i += 2 {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-%d, namespace: shop, labels: {app: web-%d}}\nspec: {nodeName: n1, containers: [{name: web}]}\n", i, i)
	}
	for i := range n {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Service\nmetadata: {name: web-%d, namespace: shop}\nspec: {selector: {app: web-%d}, ports: [{port: 80}]}\n", i, i)
	}
	for i := 0; i < n; i += 10 {
		fmt.Fprintf(&text, "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web-%d, namespace: shop}\nspec: {endpointSelector: {matchLabels: {app: web-%d}}, ingress: [{}]}\n", i, i)
	}
	return text.Bytes()
}

// small is a store that takes few operations at once.
type small struct {
	*storetest.Store
	ops int
}

func (s small) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	if len(txn.If) > s.ops || len(txn.Then) > s.ops {
		return 0, false, store.ErrTooLarge
	}
	return s.Store.Commit(ctx, txn)
}

// Whatever the store takes at once, a manifest is applied whole. Whoever looks between two
// steps finds the policies before what they protect.
func TestALargeManifestIsAppliedPoliciesFirst(t *testing.T) {
	_, s := fixture(t)
	r := New(small{s, 16}, Config{Cluster: "east", ServiceCIDR: testCIDR})
	manifest := large(100)

	before := s.Dump("")
	planned, err := r.Apply(t.Context(), manifest, api.ManifestOptions{DryRun: true})
	if err != nil || !slices.Equal(before, s.Dump("")) {
		t.Fatalf("a dry run: %v", err)
	}
	_, from, err := s.List(t.Context(), wire.ObjectsPrefix)
	if err != nil {
		t.Fatal(err)
	}
	applied, err := r.Apply(t.Context(), manifest, api.ManifestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if planned.DryRun = false; summary(planned) != summary(applied) || len(applied.Objects) != 160 || applied.Objects[0].Kind != "Pod" {
		t.Errorf("planned %s\napplied %s", summary(planned), summary(applied))
	}
	revisions, last := map[int64]bool{}, ""
	kinds := []string{}
	ended := errors.New("all seen")
	err = s.Watch(t.Context(), wire.ObjectsPrefix, from, func(b store.Batch) error {
		for _, ev := range b.Events {
			revisions[ev.Modified] = true
			if plural, _, _, _ := wire.ParseObjectKey(ev.Key); plural != last {
				kinds, last = append(kinds, plural), plural
			}
		}
		return ended
	})
	if !errors.Is(err, ended) || !slices.Equal(kinds, []string{"ciliumnetworkpolicies", "services", "pods"}) || len(revisions) < 160/16 {
		t.Errorf("%v: %v in %d steps", err, kinds, len(revisions))
	}
	if l := leftOfChanges(s); len(l) > 0 {
		t.Errorf("left: %q", l)
	}

	// Again, nothing is written; and all of it is deleted, pods first.
	revision := s.Revision()
	if again := apply(t, r, string(manifest)); s.Revision() != revision || again.Objects[0].Action != api.Unchanged {
		t.Errorf("applied again: %s", summary(again))
	}
	if _, err := r.DeleteManifest(t.Context(), manifest, api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, withoutTurn(s.Dump(""))) {
		t.Errorf("left after deletion: %q", s.Dump(""))
	}
}

func leftOfChanges(s *storetest.Store) []string { return withoutTurn(s.Dump("weft/changes/")) }

func withoutTurn(lines []string) []string {
	return slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, wire.ChangeTurnKey+"=") })
}

// What kubectl prints of many objects is one list.
func TestALongListInJSON(t *testing.T) {
	r, _ := fixture(t)
	item := func(i int) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n%d","annotations":{"weft.example/note":"%s"}}}`, i, strings.Repeat("x", 1<<19))
	}
	items := []string{}
	for i := range 9 {
		items = append(items, item(i))
	}
	list := func() string {
		return `{"apiVersion":"v1","kind":"List","items":[` + strings.Join(items, ",\n") + `]}`
	}
	if got := apply(t, r, list()); len(got.Objects) != 9 || got.Objects[8].Name != "n8" {
		t.Error(summary(got))
	}
	items[7] = strings.Replace(items[7], `"name":"n7"`, `"name":"n7","name":"n8"`, 1)
	if _, err := r.Apply(t.Context(), []byte(list()), api.ManifestOptions{}); err == nil || !strings.Contains(err.Error(), "document 1, item 8: not valid YAML") || !strings.Contains(err.Error(), `key "name" already set in map`) {
		t.Errorf("a field twice: %.300v", err)
	}
}

// One mistake anywhere, and nothing is changed, however large the rest is.
func TestOneMistakeInALargeManifest(t *testing.T) {
	_, s := fixture(t)
	r := New(small{s, 16}, Config{Cluster: "east", ServiceCIDR: testCIDR})
	before := s.Dump("")
	manifest := append(large(100), strings.ReplaceAll(pod, "n1", "n7")...)
	var refused *api.Error
	if _, err := r.Apply(t.Context(), manifest, api.ManifestOptions{}); !errors.As(err, &refused) || refused.Status != http.StatusUnprocessableEntity || len(refused.Problems) != 1 {
		t.Error(err)
	}
	if !slices.Equal(before, s.Dump("")) {
		t.Error("something was altered")
	}
}

// A node that is removed while its pods are being applied decides: there are no pods on
// nodes that do not exist.
func TestAnObjectChangesWhileALargeManifestIsApplied(t *testing.T) {
	for name, c := range map[string]struct {
		op   store.Op
		want string
	}{
		"its node is removed":         {store.Delete(wire.RegistrationKey("n1")), `spec.nodeName "n1" is not a node`},
		"an object is created":        {store.Put(wire.ObjectKey("pods", "shop", "web-6"), []byte(`{"spec":{"nodeName":"n2"}}`)), "runs on node n2 and cannot move to n1"},
		"a service takes the address": {store.Put(wire.ServiceIPKey(freeOf("shop/web-7")), []byte("other/web")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, s := fixture(t)
			meanwhile := &interrupting{small: small{s, 16}, act: func() {
				turn := wire.ChangeTurnKey
				if strings.Contains(c.op.Key, "registrations") {
					turn = wire.RegistrationsTurnKey
				}
				if err := store.Write(t.Context(), s, c.op, store.Put(turn, []byte("somebody else"))); err != nil {
					t.Error(err)
				}
			}}
			r := New(meanwhile, Config{Cluster: "east", ServiceCIDR: testCIDR})
			result, err := r.Apply(t.Context(), large(100), api.ManifestOptions{})
			if !meanwhile.acted {
				t.Fatal("nothing happened meanwhile")
			}
			if c.want == "" {
				if err != nil || len(result.Objects) != 160 {
					t.Errorf("%v", err)
				}
			} else if err == nil || !strings.Contains(err.Error(), c.want) || len(s.Dump(wire.ObjectsPrefix)) > 1 {
				t.Errorf("%v; %d objects", err, len(s.Dump(wire.ObjectsPrefix)))
			}
			if l := leftOfChanges(s); len(l) > 0 {
				t.Errorf("left: %q", l)
			}
		})
	}
}

// freeOf is the address that a service gets in an empty cluster.
func freeOf(who string) string {
	ip, _ := freeAddress(testCIDR, who, func(netip.Addr) bool { return true })
	return ip.String()
}

// interrupting acts once before a change is committed.
type interrupting struct {
	small
	act   func()
	acted bool
}

func (s *interrupting) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	if !s.acted && len(txn.Then) > 0 && txn.Then[0].Key == wire.ChangeKey {
		s.acted = true
		s.act()
	}
	return s.small.Commit(ctx, txn)
}

// A change that is committed but not carried out is neither called made nor not made.
func TestACommittedChangeThatStallsSaysSo(t *testing.T) {
	_, s := fixture(t)
	r := New(small{s, 16}, Config{Cluster: "east", ServiceCIDR: testCIDR})
	full := func(call, key string) error {
		if call == "commit" && (strings.HasPrefix(key, wire.ObjectsPrefix+"services/") || strings.HasPrefix(key, wire.ServiceIPsPrefix)) {
			return fmt.Errorf("etcdserver: mvcc: database space exceeded: %w", store.ErrFull)
		}
		return nil
	}
	s.Fail(full)
	_, err := r.Apply(t.Context(), large(100), api.ManifestOptions{})
	var refused *api.Error
	if !errors.As(err, &refused) || !strings.Contains(refused.Message, "is committed, but only") || !strings.Contains(refused.Hint, "do not repeat") {
		t.Errorf("%v", err)
	}
	// Until it is, no other change is made.
	if _, err := r.Apply(t.Context(), []byte(pod), api.ManifestOptions{}); !errors.As(err, &refused) || refused.Status != http.StatusInsufficientStorage {
		t.Errorf("%v", err)
	}
	s.Fail(nil)
	// Whoever comes next carries it out.
	if got := summary(apply(t, r, pod)); got != "shop/web-1 created" {
		t.Error(got)
	}
	if n := len(s.Dump(wire.ObjectsPrefix)); n != 161 {
		t.Errorf("%d objects", n)
	}
}

func TestOrderOfSteps(t *testing.T) {
	was := store.KV{Modified: 7}
	deny := []byte(`{"spec":{"ingressDeny":[{}]}}`)
	of := func(word, name string, action api.Action, old store.KV, text []byte) change {
		kind, ok := FindKind(word)
		if !ok {
			t.Fatal(word)
		}
		return change{object: object{kind: kind, name: name}, action: action, old: old, writes: []wire.Write{{Key: "k", Value: text, Delete: action == api.Deleted}}}
	}
	for name, c := range map[string]struct {
		changes []change
		want    string
	}{
		"applied": {[]change{
			of("pod", "new pod", api.Created, store.KV{}, nil), of("pod", "labelled pod", api.Configured, was, nil),
			of("service", "service", api.Created, store.KV{}, nil), of("eps", "slice", api.Configured, was, nil),
			of("ns", "new namespace", api.Created, store.KV{}, nil), of("ns", "labelled namespace", api.Configured, was, nil),
			of("netpol", "changed policy", api.Configured, was, nil), of("ccnp", "new policy", api.Created, store.KV{}, nil),
			of("cnp", "changed denial", api.Configured, was, deny), of("ccnp", "new denial", api.Created, store.KV{}, []byte(`{"specs":[{"egressDeny":[{}]}]}`)),
			of("cnp", "no longer a denial", api.Configured, store.KV{Modified: 7, Value: deny}, []byte(`{"spec":{}}`)),
			of("ccg", "changed group", api.Configured, was, nil), of("ccg", "new group", api.Created, store.KV{}, nil),
		}, "new group, changed denial, new denial, new policy, changed policy, no longer a denial, changed group, labelled pod, labelled namespace, new namespace, service, slice, new pod"},
		"deleted": {[]change{
			of("ccg", "group", api.Deleted, was, nil), of("cnp", "denial", api.Deleted, store.KV{Modified: 7, Value: deny}, nil),
			of("cnp", "policy", api.Deleted, was, nil), of("ns", "namespace", api.Deleted, was, nil),
			of("service", "service", api.Deleted, was, nil), of("pod", "pod", api.Deleted, was, nil),
		}, "pod, service, namespace, policy, denial, group"},
		"exchanged": {[]change{
			of("cnp", "old policy", api.Deleted, was, nil), of("cnp", "old denial", api.Deleted, store.KV{Modified: 7, Value: deny}, nil), of("pod", "old pod", api.Deleted, was, nil),
			of("cnp", "new policy", api.Created, store.KV{}, nil), of("cnp", "new denial", api.Created, store.KV{}, deny), of("pod", "new pod", api.Created, store.KV{}, nil),
			of("ccg", "old group", api.Deleted, was, nil), of("netpol", "changed policy", api.Configured, was, nil), of("ccg", "new group", api.Created, store.KV{}, nil),
		}, "old pod, new group, new denial, new policy, changed policy, old policy, old denial, old group, new pod"},
	} {
		var got []string
		for _, c := range inOrder(c.changes) {
			got = append(got, c.name)
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %s\nwant %s", name, strings.Join(got, ", "), c.want)
		}
	}
}

// The first limit that is tried is the embedded etcd's: there, what fits is one
// transaction at once.
func TestTheEmbeddedEtcdTakesTheLargestChanges(t *testing.T) {
	if want := (journal.Limit{Ops: embedded.MaxTxnOps, Bytes: embedded.MaxRequestBytes}); journal.Largest != want {
		t.Errorf("journal.Largest is %+v, the embedded etcd takes %+v", journal.Largest, want)
	}
}

// ordinaryEtcd starts an etcd with its own limits: 128 operations and 1.5 MiB.
func ordinaryEtcd(t testing.TB) *store.Etcd {
	t.Helper()
	conf := embed.NewConfig()
	conf.Dir = t.TempDir()
	any, peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}, url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	conf.ListenClientUrls, conf.AdvertiseClientUrls = []url.URL{any}, []url.URL{any}
	conf.ListenPeerUrls, conf.AdvertisePeerUrls = []url.URL{any}, []url.URL{peer}
	conf.InitialCluster = conf.Name + "=" + peer.String()
	conf.TickMs, conf.ElectionMs = 20, 200
	conf.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	etcd, err := embed.StartEtcd(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	<-etcd.Server.ReadyNotify()
	s, err := store.Dial(store.DialConfig{Endpoints: []string{"http://" + etcd.Clients[0].Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// An ordinary etcd takes 128 operations and 1.5 MiB at once.
func TestTenThousandObjectsInAnOrdinaryEtcd(t *testing.T) {
	s := ordinaryEtcd(t)
	register(t, s)
	if _, _, err := s.Commit(t.Context(), store.Txn{Then: make([]store.Op, 200)}); !errors.Is(err, store.ErrTooLarge) {
		t.Fatalf("not an ordinary etcd: %v", err)
	}
	r := New(s, Config{Cluster: "east", ServiceCIDR: testCIDR})
	manifest := large(1000)
	for i := range 8400 {
		manifest = fmt.Appendf(manifest, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: n%d}\n", i)
	}
	began := time.Now()
	steps := 0
	ctx := By(t.Context(), Caller{User: "admin", Progress: func(made, of int) { steps++ }})
	result, err := r.Apply(ctx, manifest, api.ManifestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("applied %d objects in %v, %d steps", len(result.Objects), time.Since(began), steps)
	if n, _, err := s.Count(t.Context(), wire.ObjectsPrefix); err != nil || n != 10000 || len(result.Objects) != n {
		t.Errorf("%d objects, %v", n, err)
	}
	began = time.Now()
	if _, err := r.DeleteManifest(ctx, manifest, api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("deleted in %v", time.Since(began))
	for _, prefix := range []string{wire.ObjectsPrefix, wire.ServiceIPsPrefix, "weft/changes/parts/", wire.ChangeDraftsPrefix, wire.ChangeKey} {
		if n, _, err := s.Count(t.Context(), prefix); err != nil || n != 0 {
			t.Errorf("%s: %d left, %v", prefix, n, err)
		}
	}
}

// An object of nearly a mebibyte, and many of them, fit into the requests of an ordinary
// etcd.
func TestTheLargestObjectsInAnOrdinaryEtcd(t *testing.T) {
	s := ordinaryEtcd(t)
	r := New(s, Config{Cluster: "east", ServiceCIDR: testCIDR})
	var text strings.Builder
	for i := range 12 {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: n%d, annotations: {weft.example/note: %s}}\n", i, strings.Repeat("x", maxObjectBytes-1000))
	}
	result, err := r.Apply(t.Context(), []byte(text.String()), api.ManifestOptions{})
	if err != nil || len(result.Objects) != 12 {
		t.Fatal(err)
	}
	if n, _, err := s.Count(t.Context(), wire.ObjectsPrefix); err != nil || n != 12 {
		t.Errorf("%d objects, %v", n, err)
	}
}
