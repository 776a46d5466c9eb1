package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/nodes"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) {
	// One of them remembers when it was last called, by the clock of another bubble.
	utilruntime.ErrorHandlers = nil
	goleak.VerifyTestMain(m)
}

// users is a store without users.
type users struct{}

func (users) SetUser(context.Context, store.User) error       { return nil }
func (users) RemoveUser(context.Context, string) error        { return nil }
func (users) EnableAuth(context.Context) error                { return nil }
func (users) Users(context.Context) (out []string, err error) { return nil, nil }

// world is a cluster's registry that follows a Kubernetes cluster.
type world struct {
	*testing.T
	kube   *twin
	store  *storetest.Store
	hands  *registry.Registry // of operators
	nodes  *nodes.Registrar
	source *Source
	log    *logged
	counts Nodes // nil: nodes
	agents map[string]Agent
	joiner *joins
	stop   func()
}

// logged is what was logged.
type logged struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

// Write implements io.Writer.
func (l *logged) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(text)
}

// count is how often it was logged.
func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

// follow runs f while a source follows Kubernetes in virtual time.
func follow(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newTwin())
		w.kube.put(manifest.Namespaces, namespace("kube-system"))
		w.kube.put(manifest.Namespaces, namespace("default"))
		w.start("")
		w.settle()
		defer func() { w.stop() }()
		f(w)
	})
}

func newWorld(t *testing.T, k *twin) *world {
	w := &world{T: t, kube: k, store: storetest.New(), log: &logged{}, agents: map[string]Agent{}}
	w.hands = registry.New(w.store, registry.Config{Cluster: "east", ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16"), Kubernetes: true})
	w.nodes = nodes.New(nodes.Config{
		Cluster: wire.Cluster{Name: "east", ID: 1, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16")},
		Store:   w.store, Users: users{},
	})
	return w
}

// start begins a term.
func (w *world) start(uid string) {
	register := w.counts
	if register == nil {
		register = w.nodes
	}
	w.source = New(Config{
		IPAM: nodes.Kubernetes, Access: func() (*rest.Config, error) { return w.kube.config() }, UID: uid, Registry: w.hands.Owned(api.OwnerKubernetes),
		Nodes: register, Peers: w.peers(), Agents: w.agentsNow, Store: w.store, Name: "s1", Log: slog.New(slog.NewTextHandler(w.log, nil)),
	})
	ctx, cancel := context.WithCancel(w.Context())
	ended := make(chan error, 1)
	source := w.source
	go func() { ended <- source.Run(ctx) }()
	w.stop = func() {
		w.Helper()
		cancel()
		began := time.Now()
		if err := <-ended; err != nil {
			w.Error(err)
		}
		if d := time.Since(began); d > time.Second {
			w.Errorf("it took %v to stop", d)
		}
	}
}

// agentsNow is a copy of agents.
func (w *world) agentsNow() (all map[string]Agent) {
	w.kube.set(func() { all = maps.Clone(w.agents) })
	return all
}

// agent says what is known of an agent from now on.
func (w *world) agent(node string, is Agent) { w.kube.set(func() { w.agents[node] = is }) }

func (w *world) peers() Peers {
	if w.joiner == nil {
		return nil
	}
	return w.joiner
}

// after lets time pass.
func (w *world) after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// settle lets the source take in what has changed.
func (w *world) settle() { w.after(500 * time.Millisecond) }

// held are the objects in the store, as "plural/namespace/name".
func (w *world) held() map[string]string {
	w.Helper()
	kvs, _, err := w.store.List(context.WithoutCancel(w.Context()), wire.ObjectsPrefix)
	if err != nil {
		w.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range kvs {
		all[strings.TrimPrefix(kv.Key, wire.ObjectsPrefix)] = string(kv.Value)
	}
	return all
}

// has checks which objects there are, except for the two namespaces of the beginning.
func (w *world) has(when string, want ...string) {
	w.Helper()
	var got []string
	for key := range w.held() {
		if key != "namespaces/_/kube-system" && key != "namespaces/_/default" {
			got = append(got, key)
		}
	}
	want = slices.Sorted(slices.Values(want))
	if slices.Sort(got); !slices.Equal(got, want) {
		w.Errorf("%s: there are\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// lines are those of the status.
func (w *world) lines() (lines []string) {
	rows, _ := w.source.Problems()
	for _, c := range rows.Sources() {
		lines = append(lines, c.String())
	}
	return lines
}

// says checks the lines of the status.
func (w *world) says(when string, want ...string) {
	w.Helper()
	if _, looked := w.source.Problems(); !looked {
		w.Fatalf("%s: it has not looked yet", when)
	}
	lines := w.lines()
	if len(lines) != len(want) {
		w.Errorf("%s: it says %q, want %q", when, lines, want)
		return
	}
	for i := range want {
		if !strings.Contains(lines[i], want[i]) {
			w.Errorf("%s: it says %q, want %q", when, lines[i], want[i])
		}
	}
}

func parse(text string) (o object) {
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	return o
}

func namespace(name string) object {
	return object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": name}, "status": object{"phase": "Active"}}
}

func node(name string, n int) object {
	return parse(fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q,"labels":{"topology.kubernetes.io/zone":"z1","kubernetes.io/os":"linux"}},
		"spec":{"podCIDR":"10.1.%d.0/24","podCIDRs":["10.1.%d.0/24"],"taints":[{"key":"x","effect":"NoSchedule"}]},
		"status":{"addresses":[{"type":"Hostname","address":%q},{"type":"InternalIP","address":"172.16.1.%d"}],"images":[{"names":["x"]}]}}`, name, n, n, name, n))
}

func pod(name, on string, labels ...string) object {
	l := object{"app": name}
	for _, pair := range labels {
		k, v, _ := strings.Cut(pair, "=")
		l[k] = v
	}
	o := parse(fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"namespace":"default","annotations":{"kubectl.kubernetes.io/last-applied":"{}"},"finalizers":["x/y"]},
		"spec":{"nodeName":%q,"serviceAccountName":"default","containers":[{"name":"main","image":"nginx","env":[{"name":"SECRET","value":"hush"}],"command":["x","--token","hush"],"ports":[{"name":"http","containerPort":80,"protocol":"TCP"}]}],
		"volumes":[{"name":"v","emptyDir":{}}]},"status":{"phase":"Running","podIP":"10.1.1.9"}}`, name, on))
	metaOf(o)["labels"] = l
	return o
}

func svc(name, ip string) object {
	return parse(fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":%q,"namespace":"default"},
		"spec":{"type":"NodePort","selector":{"app":%q},"clusterIP":%q,"clusterIPs":[%q],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","ports":[{"port":80,"protocol":"TCP","targetPort":"http","nodePort":30080}]}}`, name, name, ip, ip))
}

func slice(name, of, ip string) object {
	return parse(fmt.Sprintf(`{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":%q,"namespace":"default","labels":{"kubernetes.io/service-name":%q,"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io"}},
		"addressType":"IPv4","endpoints":[{"addresses":[%q],"conditions":{"ready":true},"nodeName":"n1","targetRef":{"kind":"Pod","name":"x"}}],"ports":[{"name":"","port":8080,"protocol":"TCP"}]}`, name, of, ip))
}

func netpol(name string, spec string) object {
	return parse(fmt.Sprintf(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":%q,"namespace":"default"},"spec":%s}`, name, spec))
}

func cnp(name string, spec string) object {
	return parse(fmt.Sprintf(`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":%q,"namespace":"default"},"spec":%s,"status":{"conditions":[]}}`, name, spec))
}

const closed = `{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress"]}`

// populate gives Kubernetes one of each.
func (w *world) populate() {
	w.kube.put("nodes", node("n1", 1))
	w.kube.put(manifest.Pods, pod("web", "n1"))
	w.kube.put(manifest.Services, svc("web", "10.101.0.7"))
	w.kube.put(manifest.EndpointSlices, slice("web-x7", "web", "10.1.1.9"))
	w.kube.put(manifest.NetworkPolicies, netpol("closed", closed))
	w.settle()
}

var populated = []string{"pods/default/web", "services/default/web", "endpointslices/default/web-x7", "networkpolicies/default/closed"}
