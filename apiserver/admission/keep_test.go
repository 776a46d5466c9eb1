package admission

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: Configuration, Labels: map[string]string{"a": "b"}}})
		all := client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
		var mu sync.Mutex // guards what follows
		bundle, told := "old", errors.New("nothing yet")
		var away error
		set := func(do func()) { mu.Lock(); defer mu.Unlock(); do() }
		k := &Keeper{
			Client: func(context.Context) (_ kubernetes.Interface, err error) {
				set(func() { err = away })
				return client, err
			},
			Failure: "Ignore", URL: "https://192.0.2.1:7443",
			Bundle: func() (out []byte) { set(func() { out = []byte(bundle) }); return out },
			Tell:   func(err error) { set(func() { told = err }) },
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		after := func(d time.Duration) { time.Sleep(d); synctest.Wait() } // in virtual time
		is := func(when, url, ca string) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			c, err := all.Get(t.Context(), Configuration, metav1.GetOptions{})
			if err != nil || told != nil || len(c.Webhooks) != 1 || c.Labels["a"] != "b" {
				t.Fatalf("%s: %+v, %v, told %v", when, c, err, told)
			}
			w := c.Webhooks[0]
			if *w.ClientConfig.URL != url || string(w.ClientConfig.CABundle) != ca || *w.FailurePolicy != "Ignore" {
				t.Errorf("%s: %+v", when, w)
			}
		}
		after(time.Second)
		is("at first", "https://192.0.2.1:7443/v1/validate", "old")
		writes := len(client.Actions())
		after(10 * keepTurn)
		for _, a := range client.Actions()[writes:] {
			if a.GetVerb() != "get" {
				t.Errorf("it is as it should be, and gets %v", a)
			}
		}
		set(func() { bundle = "old new" }) // the authority is being replaced
		after(keepTurn)
		is("another authority", "https://192.0.2.1:7443/v1/validate", "old new")
		changed, _ := all.Get(t.Context(), Configuration, metav1.GetOptions{})
		changed.Webhooks[0].ClientConfig.CABundle = []byte("somebody's")
		if _, err := all.Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		after(keepTurn)
		is("changed by somebody", "https://192.0.2.1:7443/v1/validate", "old new")
		set(func() { away = errors.New("Kubernetes is away") })
		after(keepTurn)
		set(func() {
			if !errors.Is(told, away) {
				t.Errorf("away: told %v", told)
			}
			away = nil
		})
		after(keepRetry)
		is("back", "https://192.0.2.1:7443/v1/validate", "old new")
		if err := all.Delete(t.Context(), Configuration, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		after(keepTurn)
		set(func() {
			if told == nil {
				t.Error("it is gone, and nobody is told")
			}
		})
		cancel()
		if err := <-done; err != nil || told != nil {
			t.Errorf("ended with %v, told %v", err, told)
		}
	})
}
