package keeping

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

const namespace = "weft-system"

func newAuthority(t *testing.T) authority.Secret {
	t.Helper()
	a, err := authority.Open(t.TempDir(), "east")
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Secret()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func labels(n int) string { return fmt.Sprintf("k8s:app=a%d;", n) }

// fill writes a cluster's state: identities, a peer, and objects of both owners.
func fill(t *testing.T, s store.Store, a authority.Secret, identities int) {
	t.Helper()
	ops := []store.Op{
		store.Put(wire.AuthorityKey, wire.Marshal(a)), store.Put(wire.PeerKey("west"), []byte(`{"name":"west"}`)), store.Put(wire.PeerSecretKey("west"), []byte(`{}`)),
		store.Put(wire.ObjectKey("networkpolicies", "default", "ours"), []byte(`{"metadata":{"name":"ours"}}`)),
		store.Put(wire.ObjectKey("networkpolicies", "default", "theirs"), []byte(`{"metadata":{"name":"theirs","managedFields":[{"manager":"kubernetes"}]}}`)),
		store.Put(wire.ObjectKey("pods", "default", "p"), []byte(`{}`)), store.Put(wire.EndpointKey("default", "p"), []byte(`{}`)),
	}
	for n := range identities {
		ops = append(ops, store.Put(wire.IdentityIDKey(identity.Number(65536+n)), []byte(labels(n))), store.Put(wire.IdentityTextKey(labels(n)), wire.NumberText(identity.Number(65536+n))))
	}
	if err := store.Write(t.Context(), s, ops...); err != nil {
		t.Fatal(err)
	}
}

func keeper(client kubernetes.Interface, s store.Store, a authority.Secret, tell func(error)) *Keeper {
	return &Keeper{
		Client:    func(context.Context) (kubernetes.Interface, error) { return client, nil },
		Namespace: namespace, Mesh: "east", ID: 1, CA: func() []byte { return a.Bundle }, Store: s, Log: slog.New(slog.DiscardHandler), Tell: tell,
	}
}

// What is kept fills an empty store so that it has the same numbers and peers, and nothing of
// what comes back by itself.
func TestWhatIsKeptComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, s, a := fake.NewClientset(), storetest.New(), newAuthority(t)
		fill(t, s, a, 200)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- keeper(client, s, a, func(error) {}).Run(ctx) }()
		writes := func() (n int) {
			for _, action := range client.Actions() {
				if action.GetVerb() != "get" {
					n++
				}
			}
			return n
		}
		settle := func() { time.Sleep(3 * gather); synctest.Wait() }
		settle()
		if n := writes(); n != 1+shards {
			t.Errorf("%d writes of everything, want one for each Secret", n)
		}
		// A new identity, and one that is gone, cost a write for each of their shards.
		before := writes()
		if err := store.Write(t.Context(), s, store.Put(wire.IdentityIDKey(70000), []byte("k8s:app=new;")), store.Delete(wire.IdentityIDKey(65537))); err != nil {
			t.Fatal(err)
		}
		settle()
		if n := writes() - before; n != 2 {
			t.Errorf("%d writes of two identities, want 2", n)
		}
		before = writes()
		time.Sleep(3 * look)
		synctest.Wait()
		if n := writes() - before; n != 0 {
			t.Errorf("%d writes while nothing changes", n)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		k, err := Read(t.Context(), client, namespace, "east", 1)
		if err != nil {
			t.Fatal(err)
		}
		if k.Identities != 200 || string(k.Authority.Key) != string(a.Key) {
			t.Errorf("%d identities are kept, want 200 and the same authority", k.Identities)
		}
		again := storetest.New()
		if err := store.Write(t.Context(), again, k.Writes...); err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string]string{
			wire.IdentityIDKey(65536): labels(0), wire.IdentityTextKey(labels(0)): "65536", wire.IdentityIDKey(70000): "k8s:app=new;", wire.IdentityTextKey("k8s:app=new;"): "70000",
			wire.IdentityIDKey(65537): "", wire.IdentityTextKey(labels(1)): "", wire.PeerKey("west"): `{"name":"west"}`, wire.PeerSecretKey("west"): `{}`,
			wire.ObjectKey("networkpolicies", "default", "ours"): `{"metadata":{"name":"ours"}}`, wire.ObjectKey("networkpolicies", "default", "theirs"): "",
			wire.ObjectKey("pods", "default", "p"): "", wire.EndpointKey("default", "p"): "",
		} {
			kvs, err := again.GetMany(t.Context(), key)
			if err != nil || string(kvs[0].Value) != want {
				t.Errorf("%s is %q in the store that began again, want %q (%v)", key, kvs[0].Value, want, err)
			}
		}
	})
}

// A store with another authority does not overwrite what is kept of the one that is lost.
func TestAnotherStoreIsNotOverwritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, a, b := fake.NewClientset(), newAuthority(t), newAuthority(t)
		var mu sync.Mutex // guards told
		var told error
		run := func(a authority.Secret, identities int) {
			s := storetest.New()
			fill(t, s, a, identities)
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				ended <- keeper(client, s, a, func(err error) {
					mu.Lock()
					defer mu.Unlock()
					if err != nil || ctx.Err() == nil {
						told = err
					}
				}).Run(ctx)
			}()
			time.Sleep(10 * gather)
			synctest.Wait()
			stop()
			<-ended
		}
		run(a, 20)
		all := func() map[string]string {
			out := map[string]string{}
			list, err := client.CoreV1().Secrets(namespace).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list.Items {
				out[s.Name] = string(s.Data[dataKey])
			}
			return out
		}
		before := all()
		if told != nil || len(before) != 1+shards {
			t.Fatalf("%d Secrets, told %v", len(before), told)
		}
		run(b, 100)
		if told == nil || !strings.Contains(told.Error(), "another certificate authority") {
			t.Errorf("told %v", told)
		}
		if !maps.Equal(all(), before) {
			t.Error("what was kept has changed")
		}
	})
}

func TestWhatIsNotOursIsRefused(t *testing.T) {
	if k, err := Read(t.Context(), fake.NewClientset(), namespace, "east", 1); k != nil || err != nil {
		t.Errorf("of nothing: %v, %v", k, err)
	}
	secret := func(cluster, id string, data []byte) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: Secret, Namespace: namespace}, Data: map[string][]byte{clusterKey: []byte(cluster), idKey: []byte(id), dataKey: data}}
	}
	empty, err := pack(map[string][]byte{})
	if err != nil {
		t.Fatal(err)
	}
	for want, s := range map[string]*corev1.Secret{
		"is of cluster west":       secret("west", "1", empty),
		"(ID 2)":                   secret("east", "2", empty),
		"is damaged":               secret("east", "1", []byte("no gzip")),
		"no certificate authority": secret("east", "1", empty),
	} {
		if k, err := Read(t.Context(), fake.NewClientset(s), namespace, "east", 1); k != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", want, k, err)
		}
	}
}
