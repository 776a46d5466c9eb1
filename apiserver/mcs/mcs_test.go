package mcs

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var east = wire.Cluster{Name: "east", ID: 1, ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16"), MaxConnectedClusters: 255}

// bench is a cluster's registry with a controller.
type bench struct {
	t   *testing.T
	st  *storetest.Store
	reg *registry.Registry
	c   *Controller
}

func run(t *testing.T, each func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		log := slog.New(slog.DiscardHandler)
		b := &bench{t: t, st: storetest.New()}
		b.reg = registry.New(b.st, registry.Config{Cluster: "east", ServiceCIDR: east.ServiceCIDR})
		own := state.New(b.st, log)
		b.c = New(Config{Cluster: east, State: own, Store: b.st, Registry: b.reg.Owned(api.OwnerMCS), Log: log})
		done := make(chan error)
		go func() { done <- own.Run(ctx) }()
		go func() { done <- b.c.Run(ctx) }()
		each(b)
		cancel()
		<-done
		<-done
	})
}

func (b *bench) apply(manifest string) {
	b.t.Helper()
	if _, err := b.reg.Apply(b.t.Context(), []byte(manifest), api.ManifestOptions{}); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

func (b *bench) delete(kind, name string) {
	b.t.Helper()
	if _, err := b.reg.Delete(b.t.Context(), kind, "shop", name, api.ManifestOptions{}); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

// peer has a peer export a service, or withdraw it.
func (b *bench) peer(cluster string, e *wire.ServiceExport) {
	b.t.Helper()
	key := wire.ServiceExports.CachePrefix(cluster) + "shop/web"
	op := store.Delete(key)
	if e != nil {
		op = store.Put(key, wire.Marshal(e))
	}
	if err := store.Write(b.t.Context(), b.st, op); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

func get[T any](b *bench, kind, name string) *T {
	b.t.Helper()
	list, err := b.reg.Get(b.t.Context(), kind, "shop", name)
	if err != nil {
		return nil
	}
	v := new(T)
	if err := json.Unmarshal(list.Items[0], v); err != nil {
		b.t.Fatal(err)
	}
	return v
}

func (b *bench) imported() *mcs.ServiceImport {
	return get[mcs.ServiceImport](b, "serviceimports", "web")
}
func (b *bench) derived() *corev1.Service { return get[corev1.Service](b, "services", derivedWeb) }
func (b *bench) exported() []metav1.Condition {
	e := get[mcs.ServiceExport](b, "serviceexports", "web")
	if e == nil {
		return nil
	}
	return e.Status.Conditions
}

func (b *bench) expect(of []metav1.Condition, typ, want string) {
	b.t.Helper()
	for _, c := range of {
		if c.Type == typ {
			if got := string(c.Status) + " " + c.Reason; got != want {
				b.t.Errorf("%s is %s, want %s (%s)", typ, got, want, c.Message)
			}
			return
		}
	}
	b.t.Errorf("there is no condition %s among %v", typ, of)
}

var derivedWeb = wire.DerivedName("shop", "web")

const (
	webService = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
`
	webExport = `
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: {name: web, namespace: shop}
`
	webSlice = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.1.9]}]
ports: [{name: http, port: 8080}, {name: admin, port: 9000}]
`
)

func TestExportAndImport(t *testing.T) {
	run(t, func(b *bench) {
		b.apply(webService + "---" + webSlice + "---" + webExport)
		i := b.imported()
		if i == nil {
			t.Fatal("no import")
		}
		svc := b.derived()
		if svc == nil || len(i.Spec.IPs) != 1 || svc.Spec.ClusterIP != i.Spec.IPs[0] {
			t.Fatalf("service %+v of import %+v", svc, i.Spec)
		}
		web := get[corev1.Service](b, "services", "web")
		if svc.Spec.ClusterIP == web.Spec.ClusterIP {
			t.Error("the service of the cluster set has the address of the cluster's own")
		}
		if len(svc.Spec.Selector) != 0 || svc.Annotations["service.cilium.io/global"] != "true" || svc.Annotations["service.cilium.io/shared"] != "true" {
			t.Errorf("derived %+v %+v", svc.Annotations, svc.Spec)
		}
		s := get[discoveryv1.EndpointSlice](b, "endpointslices", derivedWeb+"-web-1")
		if s == nil || s.Labels[discoveryv1.LabelServiceName] != derivedWeb || s.Labels[mcs.LabelSourceCluster] != "east" || len(s.Ports) != 1 || *s.Ports[0].Name != "http" || s.Endpoints[0].Addresses[0] != "10.1.1.9" {
			t.Errorf("slice %+v", s)
		}
		b.expect(i.Status.Conditions, "Ready", "True Ready")
		b.expect(b.exported(), "Valid", "True Valid")
		b.expect(b.exported(), "Conflict", "False NoConflicts")

		// Another cluster's export adds to it, and changes no address.
		b.peer("west", offer("west", 1<<40/1000, func(e *wire.ServiceExport) {
			e.Ports = append(e.Ports, mcs.ServicePort{Name: "admin", Protocol: "TCP", Port: 9000})
		}))
		both := b.imported()
		if len(both.Spec.Ports) != 2 || len(both.Status.Clusters) != 2 || !slices.Equal(both.Spec.IPs, i.Spec.IPs) {
			t.Errorf("import %+v %+v", both.Spec, both.Status)
		}
		b.expect(b.exported(), "Conflict", "True PortConflict")
		// What east's service does not export is not led to its pods.
		if s := get[discoveryv1.EndpointSlice](b, "endpointslices", derivedWeb+"-web-1"); len(s.Ports) != 1 {
			t.Errorf("ports %+v", s.Ports)
		}
		rows, _ := b.c.Problems()
		if text := fmt.Sprintf("%s", rows[wire.SourceProblemsKey(api.OwnerMCS)]); !strings.Contains(text, "conflicts with those of other clusters") {
			t.Errorf("status says %s", text)
		}

		// Without its own export, it still has west's.
		b.delete("serviceexport", "web")
		if i := b.imported(); i == nil || len(i.Status.Clusters) != 1 || i.Status.Clusters[0].Cluster != "west" {
			t.Fatalf("import %+v", i)
		}
		if s := get[discoveryv1.EndpointSlice](b, "endpointslices", derivedWeb+"-web-1"); s != nil {
			t.Errorf("slice %+v stays", s)
		}
		if svc := b.derived(); svc.Annotations["service.cilium.io/shared"] != "false" {
			t.Errorf("derived %+v", svc.Annotations)
		}

		// The last export takes it along, and its address is free.
		address := b.derived().Spec.ClusterIP
		b.peer("west", nil)
		if b.imported() != nil || b.derived() != nil {
			t.Error("something stays")
		}
		if _, err := b.st.Get(t.Context(), wire.ServiceIPKey(address)); err == nil {
			t.Errorf("address %s is still taken", address)
		}
		if rows, _ := b.c.Problems(); len(rows) > 0 {
			t.Errorf("status says %s", rows)
		}
	})
}

func TestServiceThatComesLater(t *testing.T) {
	run(t, func(b *bench) {
		b.apply(webExport)
		b.expect(b.exported(), "Valid", "False NoService")
		if b.imported() != nil {
			t.Error("an import of nothing")
		}
		since := b.exported()[0].LastTransitionTime
		time.Sleep(time.Minute)
		b.apply(webService)
		b.expect(b.exported(), "Valid", "True Valid")
		if at := b.exported()[0].LastTransitionTime; !at.After(since.Time) {
			t.Errorf("valid since %v, and before that since %v", at, since)
		}
		since = b.exported()[0].LastTransitionTime
		time.Sleep(time.Minute)
		b.peer("west", offer("west", 1, nil))
		if at := b.exported()[0].LastTransitionTime; !at.Equal(&since) {
			t.Errorf("valid since %v, after %v", at, since)
		}
		b.delete("service", "web")
		b.expect(b.exported(), "Valid", "False NoService")
		if i := b.imported(); i == nil || len(i.Status.Clusters) != 1 {
			t.Errorf("import %+v", i)
		}
	})
}

func TestNamespaceThatIsKept(t *testing.T) {
	run(t, func(b *bench) {
		b.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {clustermesh.cilium.io/global: \"false\"}}\n---" + webService + "---" + webExport)
		b.expect(b.exported(), "Valid", "False NamespaceNotGlobal")
		if b.imported() != nil {
			t.Error("an import")
		}
	})
}

// The older export says whether the service is headless; when it goes, the other one does.
func TestHeadless(t *testing.T) {
	run(t, func(b *bench) {
		b.apply(webService + "---" + webExport)
		b.peer("west", offer("west", 1, func(e *wire.ServiceExport) { e.Type = mcs.Headless }))
		if i := b.imported(); i.Spec.Type != mcs.Headless || len(i.Spec.IPs) != 0 {
			t.Errorf("import %+v", i.Spec)
		}
		if svc := b.derived(); svc == nil || svc.Spec.ClusterIP != corev1.ClusterIPNone {
			t.Errorf("derived %+v", svc)
		}
		b.expect(b.exported(), "Conflict", "True TypeConflict")
		b.peer("west", nil)
		if i := b.imported(); i.Spec.Type != mcs.ClusterSetIP || len(i.Spec.IPs) != 1 {
			t.Errorf("import %+v", i.Spec)
		}
	})
}

func TestFamilyThatIsNotThere(t *testing.T) {
	run(t, func(b *bench) {
		b.peer("west", offer("west", 1, func(e *wire.ServiceExport) { e.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }))
		i := b.imported()
		if i == nil || b.derived() != nil {
			t.Fatalf("import %+v, service %+v", i, b.derived())
		}
		b.expect(i.Status.Conditions, "Ready", "False IPFamilyNotSupported")
	})
}

// Nobody else writes imports, and what is made by hand under the name of a derived service stays.
func TestOthers(t *testing.T) {
	run(t, func(b *bench) {
		b.apply(strings.ReplaceAll(webService, "name: web,", "name: "+derivedWeb+","))
		b.apply(webService + "---" + webExport)
		if svc := b.derived(); svc.Spec.Selector["app"] != "web" {
			t.Errorf("service %+v", svc.Spec)
		}
		b.expect(b.imported().Status.Conditions, "Ready", "False Pending")
		_, err := b.reg.Apply(t.Context(), []byte("apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceImport\nmetadata: {name: x}\nspec: {type: Headless, ports: []}"), api.ManifestOptions{})
		if err == nil || !strings.Contains(fmt.Sprint(err), "refused") {
			t.Errorf("an import was applied: %v", err)
		}
		b.delete("service", derivedWeb)
		time.Sleep(retryAfter + time.Second)
		synctest.Wait()
		b.expect(b.imported().Status.Conditions, "Ready", "True Ready")
	})
}

// A change of one service costs what concerns it.
func TestCost(t *testing.T) {
	run(t, func(b *bench) {
		b.apply(webService + "---" + webExport)
		before := b.st.Dump("weft/state/objects/serviceimports/")
		b.apply(strings.ReplaceAll(webService, "name: web,", "name: other,"))
		if after := b.st.Dump("weft/state/objects/serviceimports/"); !slices.Equal(before, after) {
			t.Errorf("%v became %v", before, after)
		}
	})
}
