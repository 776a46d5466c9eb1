package kubernetes

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/wire"
)

func TestObjectsFollowKubernetes(t *testing.T) {
	for how, streams := range map[string]bool{"streamed": true, "listed": false} {
		t.Run(how, func(t *testing.T) {
			follow(t, func(w *world) {
				w.kube.set(func() { w.kube.streams = streams })
				w.kube.cut(true)
				w.after(5 * time.Second)
				w.populate()
				w.has("at first", populated...)
				w.says("at first")
				held := w.held()
				if p := held["pods/default/web"]; strings.Contains(p, "hush") || strings.Contains(p, "nginx") || strings.Contains(p, "volumes") || !strings.Contains(p, `"uid":"uid-`) || !strings.Contains(p, `"containerPort":80`) {
					t.Errorf("the pod is %s", p)
				}
				if s := held["services/default/web"]; !strings.Contains(s, `"clusterIP":"10.101.0.7"`) || !strings.Contains(s, `"nodePort":30080`) {
					t.Errorf("the service is %s", s)
				}
				if owner := api.OwnerOf([]byte(held["networkpolicies/default/closed"])); owner != api.OwnerKubernetes {
					t.Errorf("the policy is %s's", owner)
				}
				if got := append(w.store.Dump(wire.ServiceIPsPrefix), w.store.Dump(wire.NodePortsPrefix)...); len(got) > 0 {
					t.Errorf("allocated here: %v", got)
				}
				register, err := w.nodes.Register(t.Context())
				if reg := register["n1"]; err != nil || reg.Source != api.OwnerKubernetes || reg.Zone() != "z1" || len(reg.Labels) != 1 || reg.Addresses[0].String() != "172.16.1.1" || reg.PodCIDRs[0].String() != "10.1.1.0/24" {
					t.Errorf("registered as %+v, %v", reg, err)
				}

				// What changes nothing that is used writes nothing.
				before := w.store.Revision()
				busy := pod("web", "n1")
				busy["status"] = object{"phase": "Running", "podIP": "10.1.1.10", "conditions": []any{}}
				w.kube.put(manifest.Pods, busy)
				w.settle()
				if at := w.store.Revision(); at != before {
					t.Errorf("a status was written: %d to %d", before, at)
				}

				// Labels take effect; another pod of the same name is another one.
				w.kube.put(manifest.Pods, pod("web", "n1", "tier=front"))
				w.settle()
				was := w.held()["pods/default/web"]
				if !strings.Contains(was, `"tier":"front"`) {
					t.Errorf("without its label: %s", was)
				}
				w.kube.remove(manifest.Pods, nameOf(pod("web", "")))
				w.kube.put(manifest.Pods, pod("web", "n1"))
				w.settle()
				if is := w.held()["pods/default/web"]; is == was || strings.Contains(is, "tier") {
					t.Errorf("still %s", is)
				}

				// A static pod is the one that its node's runtime knows; told of it is its object.
				static := pod("static", "n1")
				metaOf(static)["annotations"] = object{"kubernetes.io/config.mirror": "of-the-file", "kubernetes.io/config.source": "file"}
				w.kube.put(manifest.Pods, static)
				w.settle()
				if s := w.held()["pods/default/static"]; !strings.Contains(s, `"uid":"of-the-file"`) || strings.Contains(s, "config.") {
					t.Errorf("the static pod is %s", s)
				}
				w.kube.remove(manifest.Pods, nameOf(static))
				w.settle()
				w.has("without the static pod", populated...)

				// Pods without an address of their own are left out.
				host := pod("host", "n1")
				host["spec"].(object)["hostNetwork"] = true
				w.kube.put(manifest.Pods, host)
				w.kube.put(manifest.Pods, pod("pending", ""))
				w.kube.put(manifest.Pods, pod("job", "n1"))
				w.settle()
				w.has("with others", append([]string{"pods/default/job"}, populated...)...)
				done := pod("job", "n1")
				done["status"] = object{"phase": "Succeeded"}
				w.kube.put(manifest.Pods, done)
				w.kube.put(manifest.Pods, pod("pending", "n1"))
				w.settle()
				w.has("a job has come to its end", append([]string{"pods/default/pending"}, populated...)...)

				// A service that is created again has another address.
				w.kube.remove(manifest.Services, nameOf(svc("web", "")))
				w.kube.put(manifest.Services, svc("web", "10.101.0.8"))
				w.kube.remove(manifest.NetworkPolicies, nameOf(netpol("closed", closed)))
				w.kube.remove(manifest.Pods, nameOf(pod("pending", "")))
				w.settle()
				if s := w.held()["services/default/web"]; !strings.Contains(s, `"clusterIP":"10.101.0.8"`) {
					t.Errorf("the service is %s", s)
				}
				w.has("deleted", populated[:3]...)

				// A node that is gone takes along its registration.
				w.kube.remove(manifest.Pods, nameOf(pod("web", "")))
				w.kube.remove("nodes", name{"", "n1"})
				w.settle()
				if register, _ := w.nodes.Register(t.Context()); len(register) > 0 {
					t.Errorf("registered: %v", register)
				}
				w.says("at the end")
			})
		})
	}
}

func TestOthersMayNotWriteWhatKubernetesHas(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		for what, text := range map[string]string{
			"is Kubernetes' to have in this cluster: apply it there, with `kubectl apply`": `{"apiVersion":"v1","kind":"Service","metadata":{"name":"other"},"spec":{"ports":[{"port":80}]}}`,
			"comes from Kubernetes: change it there, with `kubectl apply`":                 `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"closed"},"spec":{"podSelector":{}}}`,
		} {
			for _, force := range []bool{false, true} {
				_, err := w.hands.Apply(w.Context(), []byte(text), api.ManifestOptions{TakeOver: force})
				if err == nil || !strings.Contains(fmt.Sprint(err.(*api.Error).Problems), what) {
					t.Errorf("%s, force %v: %v", text, force, err)
				}
			}
		}
		if _, err := w.hands.Delete(w.Context(), "service", "default", "web", api.ManifestOptions{TakeOver: true}); err == nil {
			t.Error("deleted")
		}
		// Policies of one's own may be applied; Kubernetes does not overwrite them.
		own := `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"mine"},"spec":{"podSelector":{}}}`
		if _, err := w.hands.Apply(w.Context(), []byte(own), api.ManifestOptions{}); err != nil {
			t.Error(err)
		}
		w.kube.put(manifest.NetworkPolicies, netpol("mine", closed))
		w.settle()
		w.says("of the same name", "NetworkPolicy default/mine of Kubernetes is not applied: was applied here with `weft apply`: `weft delete` it")
		w.kube.remove(manifest.NetworkPolicies, name{"default", "mine"})
		w.settle()
		w.has("at the end", append([]string{"networkpolicies/default/mine"}, populated...)...)
		w.says("at the end")
	})
}

func TestCustomResourcesComeAndGo(t *testing.T) {
	const spec = `{"endpointSelector":{"matchLabels":{"app":"web"}},"ingress":[{"fromEndpoints":[{"matchLabels":{"app":"client"}}]}]}`
	follow(t, func(w *world) {
		w.populate()
		w.kube.install(manifest.Policies)
		w.kube.put(manifest.Policies, cnp("web", spec))
		w.settle()
		w.after(10 * time.Second)
		with := append([]string{"ciliumnetworkpolicies/default/web"}, populated...)
		w.has("installed", with...)
		w.says("installed")
		// A list of definitions that lacks it does not take the policies away.
		w.kube.set(func() {
			w.kube.lists = func(plural string, items []object, version uint64, consistent bool) ([]object, uint64) {
				if plural == definitions && !consistent {
					items = nil
				}
				return items, version
			}
		})
		w.kube.cut(true)
		w.after(time.Minute)
		w.has("not listed once", with...)
		w.stop()
		first := true
		w.kube.set(func() {
			w.kube.lists = func(plural string, items []object, version uint64, _ bool) ([]object, uint64) {
				if plural == definitions && first {
					items, first = nil, false
				}
				return items, version
			}
		})
		w.start("")
		w.after(time.Minute)
		w.has("not listed at the start of a term", with...)
		w.kube.set(func() { w.kube.lists = nil })
		w.kube.remove(manifest.Policies, name{"default", "web"})
		w.kube.uninstall(manifest.Policies)
		w.after(10 * time.Second)
		w.has("removed", populated...)
		w.says("removed")
		w.kube.install(manifest.Policies)
		w.kube.put(manifest.Policies, cnp("web", spec))
		w.after(10 * time.Second)
		w.has("installed again", with...)
		w.says("installed again")
	})
}

// What cannot be applied is told where people look: in the status, and at the object.
func TestWhatIsRefusedIsTold(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		bad := svc("bad", "10.99.0.1")
		w.kube.put(manifest.Services, bad)
		odd := pod("odd", "n1")
		odd["spec"].(object)["containers"].([]any)[0].(object)["ports"].([]any)[0].(object)["hostPort"] = 30001
		w.kube.put(manifest.Pods, odd)
		w.after(5 * time.Second)
		w.has("refused", append([]string{"pods/default/odd"}, populated...)...)
		w.says("refused",
			"Pod default/odd of Kubernetes is applied in part: hostPort 30001 of container main is not served: ports 30000-32767 are for services",
			"Service default/bad of Kubernetes is not applied: spec.clusterIPs[0] 10.99.0.1 is outside of the service CIDR 10.101.0.0/16")
		told := func() (out []string) {
			w.kube.set(func() {
				for _, e := range w.kube.events {
					of := e["involvedObject"].(object)
					out = append(out, fmt.Sprint(of["kind"], " ", of["name"], " ", e["reason"], " ", e["type"]))
				}
			})
			slices.Sort(out)
			return out
		}
		want := []string{"Pod odd AppliedInPart Warning", "Service bad NotApplied Warning"}
		if got := told(); !slices.Equal(got, want) {
			t.Errorf("events %q", got)
		}
		// It is not told again with each change that leaves it so.
		for i := range 20 {
			bad["metadata"].(object)["labels"] = object{"n": fmt.Sprint(i)}
			w.kube.put(manifest.Services, bad)
			w.settle()
		}
		if got := told(); len(got) != 2 {
			t.Errorf("events %q", got)
		}
		if n := w.log.count("is not applied as it is"); n != 2 {
			t.Errorf("logged %d times, want once for each object", n)
		}
		// What was wrong is so while nothing can be written, too.
		before := w.lines()
		w.store.Fail(func(call, _ string) error {
			if call == "commit" {
				return errors.New("out of space")
			}
			return nil
		})
		bad["metadata"].(object)["labels"] = object{"n": "last"}
		w.kube.put(manifest.Services, bad)
		w.kube.put(manifest.Pods, pod("web", "n1", "tier=front"))
		w.settle()
		if now := w.lines(); len(now) != len(before)+1 || !strings.Contains(now[0], "are not applied: ") || !slices.Equal(now[1:], before) {
			t.Errorf("while nothing can be written it says %q, before %q", now, before)
		}
		w.store.Fail(nil)
		w.after(lastRetry)
		if now := w.lines(); !slices.Equal(now, before) {
			t.Errorf("after that it says %q, before %q", now, before)
		}
		// Before Kubernetes forgets it, it is.
		w.after(time.Hour)
		if got := told(); len(got) != 4 {
			t.Errorf("events an hour later: %q", got)
		}
		w.kube.remove(manifest.Services, name{"default", "bad"})
		w.kube.remove(manifest.Pods, name{"default", "odd"})
		w.settle()
		w.says("mended")

		// Pods wait for their node, and nodes for their pod CIDR.
		w.kube.put(manifest.Pods, pod("away", "n2"))
		late := node("n2", 2)
		late["spec"] = object{}
		w.kube.put("nodes", late)
		w.settle()
		w.has("no node", populated...)
		w.says("no node", "node n2 of Kubernetes is not registered: node n2 has no pod CIDR from Kubernetes")
		if rows, _ := w.source.Problems(); !strings.Contains(rows.Sources()[0].Next, "--allocate-node-cidrs") {
			t.Errorf("what to do next: %q", rows.Sources()[0].Next)
		}
		w.kube.put("nodes", node("n2", 2))
		w.settle()
		w.has("with its node", append([]string{"pods/default/away"}, populated...)...)
		w.says("with its node")
		w.kube.put(manifest.EndpointSlices, slice("at-node", "web", "172.16.1.2"))
		w.settle()
		w.says("a slice that leads to a node")
		w.has("a slice that leads to a node", append([]string{"endpointslices/default/at-node", "pods/default/away"}, populated...)...)
		w.kube.remove(manifest.EndpointSlices, name{"default", "at-node"})
		w.kube.set(func() { w.kube.forbidden[manifest.Pods] = true })
		w.kube.cut(true)
		w.after(20 * time.Second)
		w.says("forbidden", "pods of Kubernetes cannot be read: pods is forbidden")
		w.has("forbidden", append([]string{"pods/default/away"}, populated...)...)
	})
}

// The chart gives the API server's account the right to read all that is read, and to write
// events.
func TestTheChartLetsItRead(t *testing.T) {
	text, err := os.ReadFile("../../../deploy/chart/templates/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	may := func(plural string, verbs ...string) bool {
		for _, rule := range strings.Split(string(text), "- apiGroups:")[1:] {
			has := func(field, word string) bool {
				m := regexp.MustCompile(field + `: \[([^]]*)\]`).FindStringSubmatch(rule)
				return m != nil && slices.Contains(strings.Split(m[1], ", "), word)
			}
			if has("resources", plural) && !slices.ContainsFunc(verbs, func(v string) bool { return !has("verbs", v) }) {
				return true
			}
		}
		return false
	}
	for _, r := range resources {
		if !may(r.plural, "list", "watch") {
			t.Errorf("it may not list and watch %s", r.plural)
		}
	}
	if !may("events", "create") || may("secrets", "list") {
		t.Error("it may not create events, or may list secrets")
	}
}
