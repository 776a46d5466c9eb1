package enroll

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
)

// What agents are told follows the cluster, and comes back when somebody takes it away.
func TestAgentsAreToldWhereTheAPIServersAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var mu sync.Mutex // guards servers, away and told
		servers, away := []string{"https://192.0.2.2:7443", "https://192.0.2.1:7443"}, false
		var told error
		set := func(change func()) {
			mu.Lock()
			defer mu.Unlock()
			change()
		}
		p := &Publisher{Cluster: followed(t, client), Namespace: "weft-system", Mesh: "east",
			Tell:     func(err error) { set(func() { told = err }) },
			Operator: func() ([]byte, error) { return []byte("contexts: []"), nil },
			Now: func() api.Bootstrap {
				mu.Lock()
				defer mu.Unlock()
				return api.Bootstrap{Servers: servers, CA: testCA}
			}}
		client.PrependReactor("get", "configmaps", func(k8stesting.Action) (bool, runtime.Object, error) {
			mu.Lock()
			defer mu.Unlock()
			return away, nil, errors.New("connection refused")
		})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		maps := client.CoreV1().ConfigMaps("weft-system")
		says := func(want int) {
			t.Helper()
			synctest.Wait()
			is, err := maps.Get(t.Context(), ConfigMap, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			b, err := api.ReadBootstrap([]byte(is.Data[BootstrapKey]))
			if err != nil || len(b.Servers) != want || b.Servers[0] != "https://192.0.2.1:7443" {
				t.Errorf("agents are told %+v, %v; want %d servers in order", b.Servers, err, want)
			}
		}
		says(2)
		writes := func() (n int) {
			for _, a := range client.Actions() {
				if a.GetVerb() != "get" {
					n++
				}
			}
			return n
		}
		secret, err := client.CoreV1().Secrets("weft-system").Get(t.Context(), OperatorSecret, metav1.GetOptions{})
		if err != nil || string(secret.Data[ContextKey]) != "contexts: []" {
			t.Errorf("operators are told %v, %v", secret, err)
		}
		before := writes()
		time.Sleep(10 * publishTurn)
		synctest.Wait()
		if n := writes(); n != before {
			t.Errorf("%d writes while nothing changes", n-before)
		}
		set(func() { servers = servers[1:] })
		time.Sleep(publishTurn)
		says(1)
		if err := maps.Delete(t.Context(), ConfigMap, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(publishTurn)
		says(1)

		set(func() { away = true })
		set(func() { servers = append(servers, "https://192.0.2.3:7443") })
		time.Sleep(2 * publishTurn)
		set(func() {
			if told == nil || !strings.Contains(told.Error(), "ConfigMap weft-system/weft-bootstrap: connection refused") {
				t.Errorf("while Kubernetes is away, it tells %v", told)
			}
			away = false
		})
		time.Sleep(publishTurn)
		says(2)
		set(func() {
			if told != nil {
				t.Errorf("it still tells %v", told)
			}
			away = true
		})
		time.Sleep(publishTurn)
		stop()
		if err := <-ended; err != nil || told != nil {
			t.Errorf("%v; who no longer publishes tells %v", err, told)
		}
	})
}

// An API server that was moved to another node finds no store there, and must not begin one.
func TestAMovedAPIServerDoesNotBeginAgain(t *testing.T) {
	secret := func(text string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "weft-system", Name: OperatorSecret}, Data: map[string][]byte{ContextKey: []byte(text)}}
	}
	contexts, err := yaml.Marshal(api.Config{Contexts: []api.Context{{Name: "east", Server: "https://192.0.2.1:7443", CA: testCA}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		objects []runtime.Object
		ca      string
		refused bool
	}{
		"a new cluster":         {nil, testCA, false},
		"its own store":         {[]runtime.Object{secret(string(contexts))}, testCA, false},
		"with a new CA as well": {[]runtime.Object{secret(string(contexts))}, strings.Repeat(testCA, 2), false},
		"an empty store":        {[]runtime.Object{secret(string(contexts))}, "", true},
		"a damaged Secret":      {[]runtime.Object{secret("contexts: [")}, "", false},
	} {
		client := fake.NewClientset(c.objects...)
		kube := followed(t, client)
		err := kube.CheckBeginning(t.Context(), "weft-system", "east", []byte(c.ca))
		if (err != nil) != c.refused || c.refused && !strings.Contains(err.Error(), "192.0.2.1") {
			t.Errorf("%s: %v", name, err)
		}
		// If Kubernetes did not say at the start, what it has is not overwritten later.
		before := len(client.Actions())
		p := &Publisher{Cluster: kube, Namespace: "weft-system", Mesh: "east", Operator: func() ([]byte, error) { return []byte("contexts: []"), nil },
			Now: func() api.Bootstrap { return api.Bootstrap{Servers: []string{"https://192.0.2.9:7443"}, CA: c.ca} }}
		if err := p.publish(t.Context()); (err != nil) != c.refused {
			t.Errorf("%s: published: %v", name, err)
		}
		for _, a := range client.Actions()[before:] {
			if c.refused && a.GetVerb() != "get" {
				t.Errorf("%s: %s of %s", name, a.GetVerb(), a.GetResource().Resource)
			}
		}
		// Another cluster's Secret says nothing about this one.
		kube.Followed = func(context.Context) (string, error) { return "k2", nil }
		if err := kube.CheckBeginning(t.Context(), "weft-system", "east", []byte(c.ca)); !errors.As(err, new(Unknown)) {
			t.Errorf("%s, in another cluster: %v", name, err)
		}
	}
	client := fake.NewClientset()
	client.PrependReactor("get", "secrets", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	})
	if err := followed(t, client).CheckBeginning(t.Context(), "weft-system", "east", nil); !errors.As(err, new(Unknown)) {
		t.Errorf("Kubernetes is away: %v", err)
	}
}

// testCA is a certificate of nobody's.
const testCA = `-----BEGIN CERTIFICATE-----
MIIBNDCB56ADAgECAhRFbSkMb3EhUE3TKDjalbqsHheqNzAFBgMrZXAwDzENMAsG
A1UEAwwEdGVzdDAgFw0yNjExMzAxODMyNTNaGA8yMTI2MTEwNjE4MzI1M1owDzEN
MAsGA1UEAwwEdGVzdDAqMAUGAytlcAMhACfjr6j4lxdbi3pwJySw4ysUUSBoQvTE
4bTho06xMxE6o1MwUTAdBgNVHQ4EFgQU1PLXV2VRV0zFUgTgYAQYSlirxOwwHwYD
VR0jBBgwFoAU1PLXV2VRV0zFUgTgYAQYSlirxOwwDwYDVR0TAQH/BAUwAwEB/zAF
BgMrZXADQQAI2GjdZbq6bR8Y7ascLwqtmgu5ap0ri9Yz16nE311eu+GDIvlVn4v7
sbyXLAaxS/7k5cXGUhW5RhcYnTl92OkO
-----END CERTIFICATE-----
`
