package kubernetes

import (
	"context"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/nodes"
	"github.com/weft-mesh/weft/manifest"
)

// joins registers a node as its agent does, as an object of that UID; "": of the one that is
// registered.
func (w *world) joins(uid string) {
	w.Helper()
	register, err := w.nodes.Register(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	is := register["n1"]
	request := api.NodeRequest{Name: "n1", UID: uid, Addresses: is.Addresses, PodCIDRs: is.PodCIDRs, Labels: is.Labels, Replace: true}
	if uid == "" {
		request.UID = is.UID
		if _, err := w.nodes.Remove(w.Context(), "n1"); err != nil {
			w.Fatal(err)
		}
	}
	yes := func(context.Context, api.NodeRequest) (bool, error) { return true, nil }
	if refused, err := w.nodes.Declare(w.Context(), []api.NodeRequest{request}, api.OwnerKubernetes, yes); err != nil || len(refused) > 0 {
		w.Fatal(refused, err)
	}
}

// registeredAs is the UID that n1 is registered with; "" if it is not.
func (w *world) registeredAs() string {
	w.Helper()
	register, err := w.nodes.Register(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	return register["n1"].UID
}

// The pods of a node that somebody removed are written again once it is registered again, and
// at once: nobody waits for the clock.
func TestANodeIsRemovedAndJoinsAgain(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		uid := w.registeredAs()
		w.joins("")
		w.settle()
		w.has("it joined again", populated...)
		if _, err := w.nodes.Remove(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if is := w.registeredAs(); is != uid {
			t.Errorf("removed here, it is registered as %q, want %q", is, uid)
		}
		w.has("removed here", populated...)
		w.says("removed here")

		w.kube.remove("nodes", name{"", "n1"})
		w.settle()
		w.has("its node is gone", populated[1:]...)
		before := w.store.Revision()
		w.after(time.Minute)
		if at := w.store.Revision(); at != before {
			t.Errorf("something was written: %d to %d", before, at)
		}
		w.kube.put("nodes", node("n1", 1))
		w.settle()
		w.has("its node is back", populated...)
		w.says("its node is back")
	})
}

// An agent asks Kubernetes itself, and may know its node before it was heard of here.
func TestAnAgentKnowsItsNodeFirst(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		w.kube.leave()
		w.joins("second")
		w.after(time.Minute)
		if is := w.registeredAs(); is != "second" {
			t.Errorf("it is registered as %q", is)
		}
		w.says("while Kubernetes is away", "not reachable", "node n1 of Kubernetes is not registered: another node of its name is registered, and Kubernetes does not say whether that is gone: connection refused")
		w.kube.remove("nodes", name{"", "n1"})
		second := node("n1", 1)
		metaOf(second)["uid"] = "second"
		w.kube.put("nodes", second)
		w.kube.comeBack()
		w.after(15 * time.Second)
		if is := w.registeredAs(); is != "second" {
			t.Errorf("it is registered as %q", is)
		}
		w.has("heard of", populated...)
		w.says("heard of")

		// A server that is behind has nothing put back, and nothing asked again and again.
		var old []object
		var at uint64
		w.kube.set(func() { old, at = []object{clone(w.kube.objects[machines][name{"", "n1"}])}, w.kube.version })
		w.kube.leave()
		w.kube.remove("nodes", name{"", "n1"})
		third := node("n1", 1)
		metaOf(third)["uid"] = "third"
		w.kube.put("nodes", third)
		w.kube.set(func() {
			w.kube.lists = func(plural string, items []object, version uint64, _ bool) ([]object, uint64) {
				if plural == machines {
					return old, at
				}
				return items, version
			}
		})
		w.kube.cut(true)
		w.kube.comeBack()
		w.joins("third")
		w.after(4 * time.Second)
		asked := 0
		w.kube.set(func() { asked = w.kube.requests["a node"] })
		w.after(time.Minute)
		if is := w.registeredAs(); is != "third" {
			t.Errorf("it is registered as %q", is)
		}
		w.kube.set(func() { asked = w.kube.requests["a node"] - asked })
		if asked > 1 {
			t.Errorf("asked %d times", asked)
		}
		w.has("a server is behind", populated...)
		w.kube.set(func() { w.kube.lists = nil })
		w.kube.cut(true)
		w.after(15 * time.Second)
		w.has("at the end", populated...)
		w.says("at the end")
	})
}

// A thousand nodes are a thousand nodes' work, at each start too.
func TestNodesAreDeclaredTogether(t *testing.T) {
	follow(t, func(w *world) {
		asked := &counting{Nodes: w.nodes}
		w.stop()
		for i := range 100 {
			n := node(string(rune('a'+i/10))+string(rune('a'+i%10)), 1+i)
			w.kube.put("nodes", n)
		}
		w.counts = asked
		w.start("")
		w.settle()
		register, err := w.nodes.Register(t.Context())
		if err != nil || len(register) != 100 || asked.declared > 2 || asked.read > 4 {
			t.Errorf("%d nodes, %v, by %d declarations and %d looks at the register", len(register), err, asked.declared, asked.read)
		}
		w.kube.put(manifest.Pods, pod("web", "ab"))
		w.settle()
		w.has("on one of them", "pods/default/web")
	})
}

// counting counts what the register is asked.
type counting struct {
	Nodes
	declared, read int
}

// Registered implements Nodes.
func (c *counting) Registered(ctx context.Context) (map[string]nodes.Registered, error) {
	c.read++
	return c.Nodes.Registered(ctx)
}

// Declare implements Nodes.
func (c *counting) Declare(ctx context.Context, all []api.NodeRequest, source string, confirm func(context.Context, api.NodeRequest) (bool, error)) (map[string]error, error) {
	c.declared++
	return c.Nodes.Declare(ctx, all, source, confirm)
}
