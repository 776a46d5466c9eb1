package state_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// heard is what a follower was given.
type heard struct {
	rows     map[string]any
	complete int
	events   int
	fail     error
}

func (h *heard) take(b state.Batch) error {
	if b.Complete {
		h.complete++
		h.rows = map[string]any{}
	}
	for _, ev := range b.Events {
		h.events++
		if h.rows[ev.Key] = ev.Object; ev.Deleted {
			delete(h.rows, ev.Key)
		}
	}
	return h.fail
}

func (h *heard) keys() string {
	var out []string
	for key := range h.rows {
		out = append(out, strings.TrimPrefix(key, wire.StatePrefix))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestFollowersShareWhatIsReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		put := func(key string, v any) {
			t.Helper()
			if err := store.Write(t.Context(), s, store.Put(key, wire.Marshal(v))); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		lists := 0
		s.Fail(func(call, key string) error {
			if call == "list" {
				lists++
			}
			return nil
		})
		endpoint := wire.EndpointKey("shop", "web")
		put(endpoint, wire.Endpoint{Namespace: "shop", Pod: "web", IP: netip.MustParseAddr("10.1.1.5")})
		put(wire.ObjectKey("ciliumnetworkpolicies", "shop", "web"), map[string]string{}) // nobody derives anything from it

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 8)
		c := state.New(s, slog.New(slog.DiscardHandler))
		early, late := new(heard), new(heard)
		follow := func(h *heard) { go func() { done <- c.Follow(ctx, h.take) }() }
		follow(early)
		synctest.Wait()
		if early.complete != 0 {
			t.Error("something is complete before the store was read")
		}
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		follow(late)
		synctest.Wait()
		for name, h := range map[string]*heard{"early": early, "late": late} {
			if h.complete != 1 || h.keys() != "endpoints/shop/web" {
				t.Errorf("%s: %d complete, %s", name, h.complete, h.keys())
			}
		}
		if lists != 1 || early.rows[endpoint] != late.rows[endpoint] {
			t.Errorf("%d lists; shared: %v", lists, early.rows[endpoint] == late.rows[endpoint])
		}

		put(wire.NodeKey("n1"), wire.NodeState{Name: "n1"})
		if err := store.Write(t.Context(), s, store.Delete(endpoint)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for _, h := range []*heard{early, late} {
			if h.complete != 1 || h.keys() != "nodes/n1/node" {
				t.Errorf("%d complete, %s", h.complete, h.keys())
			}
		}

		// One that fails does not disturb the other, and begins again with everything.
		late.fail = fmt.Errorf("no")
		put(wire.NodeKey("n2"), wire.NodeState{Name: "n2"})
		if err := <-done; err == nil || err.Error() != "no" {
			t.Error(err)
		}
		late.fail = nil
		follow(late)
		synctest.Wait()
		if early.complete != 1 || late.complete != 2 || early.keys() != late.keys() || lists != 1 {
			t.Errorf("%d and %d complete, %s and %s, %d lists", early.complete, late.complete, early.keys(), late.keys(), lists)
		}

		// A store that went back in time is listed again, for both.
		before := s.Copy()
		put(wire.NodeKey("n3"), wire.NodeState{Name: "n3"})
		s.PutBack(before)
		synctest.Wait()
		for _, h := range []*heard{early, late} {
			if h.keys() != "nodes/n1/node nodes/n2/node" {
				t.Error(h.keys())
			}
		}
		cancel()
		for range 3 {
			<-done
		}
	})
}

func TestDecode(t *testing.T) {
	decode := func(key, value string) state.Event {
		t.Helper()
		ev, ok := state.Decode(store.Event{KV: store.KV{Key: key, Value: []byte(value)}})
		if !ok {
			t.Errorf("%s is not read", key)
		}
		return ev
	}
	for _, key := range []string{
		wire.ObjectKey("pods", "a", "b"), wire.ObjectKey("services", "a", "b"), wire.ObjectKey("namespaces", "", "a"), wire.ObjectKey("endpointslices", "a", "b"),
		wire.NodeKey("n1"), wire.NodeEndpointKey("n1", "a", "b"), wire.EndpointKey("a", "b"), wire.IdentityIDKey(65538),
	} {
		if ev := decode(key, "{"); ev.Wrong == nil || ev.Object != nil {
			t.Errorf("%s: %v, %v", key, ev.Object, ev.Wrong)
		}
		if ev, _ := state.Decode(store.Event{KV: store.KV{Key: key}, Deleted: true}); ev.Wrong != nil || ev.Object != nil {
			t.Errorf("%s deleted: %v, %v", key, ev.Object, ev.Wrong)
		}
	}
	for _, key := range []string{wire.ClusterKey, wire.NodeProblemsKey("n1"), wire.PeerKey("west"), wire.ObjectKey("networkpolicies", "a", "b"), "weft/state/identities/value/x"} {
		if _, ok := state.Decode(store.Event{KV: store.KV{Key: key}}); ok {
			t.Errorf("%s is read", key)
		}
	}
	pod := decode(wire.ObjectKey("pods", "a", "b"), `{"metadata": {"uid": "u", "labels": {"app": "web"}}, "spec": {"nodeName": "n1", "serviceAccountName": "s", "hostname": "h", "subdomain": "d",
		"containers": [{"ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}, {"containerPort": 81}]}],
		"initContainers": [{"ports": [{"name": "once", "containerPort": 1}]}, {"restartPolicy": "Always", "ports": [{"name": "sidecar", "containerPort": 2}]}]}}`)
	p, ok := pod.Object.(*state.Pod)
	if !ok || p.UID != "u" || p.Node != "n1" || p.Labels["app"] != "web" || p.Account != "s" || p.Hostname != "h" || p.Subdomain != "d" {
		t.Errorf("%+v", pod.Object)
	}
	if want := []wire.NamedPort{{Name: "http", Port: 80, Protocol: "TCP"}, {Name: "sidecar", Port: 2}}; !slices.Equal(p.NamedPorts, want) {
		t.Errorf("ports %+v", p.NamedPorts)
	}
	if pod.Value != nil {
		t.Error("the text of a pod is kept beside it")
	}
	slice := decode(wire.ObjectKey("endpointslices", "a", "b"), `{"addressType": "IPv4"}`)
	if v, ok := slice.Object.(*discoveryv1.EndpointSlice); !ok || v.AddressType != "IPv4" || string(slice.Value) != `{"addressType": "IPv4"}` {
		t.Errorf("%+v", slice)
	}
	if svc := decode(wire.ObjectKey("services", "a", "b"), `{"spec": {"ports": [{"port": 99999}]}}`); svc.Wrong != nil || svc.Object.(*state.Service).Wrong == nil {
		t.Errorf("a service that has no form here: %+v", svc)
	}
}
