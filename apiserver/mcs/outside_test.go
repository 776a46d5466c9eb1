package mcs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// outside is a Kubernetes cluster: what is written there is read from there.
type outside struct {
	reg *registry.Owned

	mu      sync.Mutex // guards what follows
	down    bool
	imports map[Name]*mcs.ServiceImport
	status  map[Name]mcs.ServiceExportStatus
	writes  int
}

func (o *outside) asked() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writes++; o.down {
		return errors.New("no route to Kubernetes")
	}
	return nil
}

func (o *outside) update(ctx context.Context, d registry.Delta) error {
	if err := o.asked(); err != nil {
		return err
	}
	_, err := o.reg.Update(ctx, d)
	return err
}

func (o *outside) PutService(ctx context.Context, svc *corev1.Service) error {
	svc = svc.DeepCopy()
	if svc.UID, svc.CreationTimestamp = "u1", metav1.Unix(1, 0); svc.Spec.ClusterIP == "" {
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "10.101.0.50", []string{"10.101.0.50"}
	}
	return o.update(ctx, registry.Delta{Put: []registry.Unit{{Name: "x", Object: wire.Marshal(svc)}}})
}

func (o *outside) DeleteService(ctx context.Context, ns, name string) error {
	return o.update(ctx, registry.Delta{Delete: []registry.Ref{{Plural: "services", Namespace: ns, Name: name}}})
}

func (o *outside) PutImport(_ context.Context, i *mcs.ServiceImport) error {
	err := o.asked()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		o.imports[Name{i.Namespace, i.Name}] = i
	}
	return err
}

func (o *outside) DeleteImport(_ context.Context, ns, name string) error {
	err := o.asked()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		delete(o.imports, Name{ns, name})
	}
	return err
}

func (o *outside) Imports(context.Context) ([]Name, error) {
	return []Name{{"shop", "left"}}, o.asked()
}

func (o *outside) PutExportStatus(_ context.Context, ns, name string, s mcs.ServiceExportStatus) error {
	err := o.asked()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		o.status[Name{ns, name}] = s
	}
	return err
}

func (o *outside) set(down bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = down
}

func (o *outside) imported(n Name) *mcs.ServiceImport {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.imports[n]
}

// In a cluster of Kubernetes the service is made there, which gives it its address; while
// Kubernetes is away, what cannot be written is tried again.
func TestOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		log := slog.New(slog.DiscardHandler)
		st := storetest.New()
		reg := registry.New(st, registry.Config{Cluster: "east", ServiceCIDR: east.ServiceCIDR, Kubernetes: true})
		web := Name{"shop", "web"}
		o := &outside{reg: reg.Owned(api.OwnerKubernetes), down: true, imports: map[Name]*mcs.ServiceImport{{"shop", "left"}: {}}, status: map[Name]mcs.ServiceExportStatus{}}
		own := state.New(st, log)
		c := New(Config{Cluster: east, State: own, Store: st, Registry: reg.Owned(api.OwnerMCS), Outside: o, Log: log})
		done := make(chan error)
		go func() { done <- own.Run(ctx) }()
		go func() { done <- c.Run(ctx) }()
		defer func() { cancel(); <-done; <-done }()
		put := func(key string, v any) {
			t.Helper()
			if err := store.Write(ctx, st, store.Put(key, wire.Marshal(v))); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		put(wire.ObjectKey("namespaces", "", "other"), corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
		put(wire.ServiceExports.CachePrefix("west")+"shop/web", offer("west", 1, nil))
		if o.imported(web) != nil {
			t.Error("an import in a namespace that is not there")
		}
		put(wire.ObjectKey("namespaces", "", "shop"), corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		if rows, _ := c.Problems(); len(rows) == 0 {
			t.Error("nobody is told that Kubernetes is away")
		}
		o.set(false)
		time.Sleep(2 * retryAfter)
		synctest.Wait()
		i := o.imported(web)
		if i == nil || len(i.Spec.IPs) != 1 || i.Spec.IPs[0] != "10.101.0.50" {
			t.Fatalf("import %+v", i)
		}
		if o.imported(Name{"shop", "left"}) != nil {
			t.Error("an import that an earlier term has left stays")
		}
		if rows, _ := c.Problems(); len(rows) > 0 {
			t.Errorf("status says %s", rows)
		}
		// What is as it should be is not written again.
		o.mu.Lock()
		before := o.writes
		o.mu.Unlock()
		time.Sleep(time.Minute)
		put(wire.ObjectKey("services", "shop", "unrelated"), corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "unrelated"}})
		o.mu.Lock()
		if o.writes != before {
			t.Errorf("%d requests for nothing", o.writes-before)
		}
		o.mu.Unlock()
		// The last export goes.
		if err := store.Write(ctx, st, store.Delete(wire.ServiceExports.CachePrefix("west")+"shop/web")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if o.imported(web) != nil {
			t.Error("the import stays")
		}
		if _, err := st.Get(ctx, wire.ObjectKey("services", "shop", derivedWeb)); err == nil {
			t.Error("its service stays")
		}
	})
}
