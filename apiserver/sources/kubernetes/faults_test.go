package kubernetes

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/manifest"
)

// While Kubernetes is away, everything stays.
func TestOutage(t *testing.T) {
	for name, leave := range map[string]func(*twin){"refused": (*twin).leave, "silent": (*twin).hang} {
		t.Run(name, func(t *testing.T) {
			follow(t, func(w *world) {
				w.populate()
				leave(w.kube)
				before := w.store.Revision()
				w.after(10 * time.Minute)
				w.has("away", populated...)
				if at := w.store.Revision(); at != before {
					t.Errorf("something was written: %d to %d", before, at)
				}
				w.says("away", "Kubernetes API server https://kube.test not reachable for {age}: ")
				rows, _ := w.source.Problems()
				if c := problems.Rows(rows).Sources()[0]; time.Since(c.Since) < 9*time.Minute {
					t.Errorf("since %v", c.Since)
				}
				if strings.Contains(name, "silent") {
					w.stop() // also when nothing answers
					w.start("")
					w.after(time.Minute)
					w.has("another term", populated...)
				}
				w.kube.remove(manifest.Pods, nameOf(pod("web", "")))
				w.kube.put(manifest.Services, svc("new", "10.101.0.9"))
				w.kube.comeBack()
				w.after(15 * time.Second)
				w.has("back", append([]string{"services/default/new"}, populated[1:]...)...)
				w.says("back")
			})
		})
	}
}

// A watch that expired lists again. What is gone meanwhile is gone; a list that has too little
// deletes nothing.
func TestListsThatLack(t *testing.T) {
	follow(t, func(w *world) {
		w.kube.put("nodes", node("n1", 1))
		var all []string
		for i := range 30 {
			w.kube.put(manifest.Pods, pod(fmt.Sprintf("p%02d", i), "n1"))
			all = append(all, fmt.Sprintf("pods/default/p%02d", i))
		}
		w.settle()
		w.has("at first", all...)

		for name, lie := range map[string]func(items []object) []object{
			"an empty list":         func([]object) []object { return nil },
			"a truncated list":      func(items []object) []object { return items[:min(len(items), 7)] },
			"a list that lacks one": func(items []object) []object { return items[:len(items)-1] },
		} {
			w.kube.set(func() {
				w.kube.lists = func(plural string, items []object, version uint64, consistent bool) ([]object, uint64) {
					if plural == manifest.Pods && !consistent {
						items = lie(items)
					}
					return items, version
				}
			})
			w.kube.cut(true)
			for range 40 {
				w.after(time.Second)
				w.has(name, all...)
			}
			w.kube.set(func() { w.kube.lists = nil })
			w.says(name)
		}

		// All lists lack them, for as long as nobody would believe a mistake.
		w.kube.set(func() {
			w.kube.lists = func(plural string, items []object, version uint64, _ bool) ([]object, uint64) {
				if plural == manifest.Pods {
					items = nil
				}
				return items, version
			}
		})
		w.kube.cut(true)
		w.after(15 * time.Second)
		w.has("doubted", all...)
		w.says("doubted", "Kubernetes no longer lists 30 of 30 pods: they are kept until 2 more lists lack them too")
		w.kube.set(func() { w.kube.lists = nil })
		w.after(time.Minute)
		w.has("no longer", all...)
		w.says("no longer")

		// They were deleted while no watch saw it: one is gone soon, many a little later.
		w.kube.leave()
		w.kube.remove(manifest.Pods, name{"default", "p00"})
		w.kube.cut(true)
		w.kube.comeBack()
		w.after(10 * time.Second)
		w.has("one is gone", all[1:]...)
		w.kube.leave()
		for i := range 30 {
			w.kube.remove(manifest.Pods, name{"default", fmt.Sprintf("p%02d", i)})
		}
		w.kube.cut(true)
		w.kube.comeBack()
		w.after(15 * time.Second)
		w.has("many are in doubt", all[1:]...)
		w.after(40 * time.Second)
		w.has("many are gone")
		w.says("many are gone")
	})
}

// A watch that breaks again and again does not keep for ever what is gone.
func TestListsThatLackWhileWatchesBreak(t *testing.T) {
	follow(t, func(w *world) {
		w.kube.put("nodes", node("n1", 1))
		var all []string
		for i := range 30 {
			w.kube.put(manifest.Pods, pod(fmt.Sprintf("p%02d", i), "n1"))
			all = append(all, fmt.Sprintf("pods/default/p%02d", i))
		}
		w.settle()
		w.has("at first", all...)
		w.kube.leave()
		for i := range 30 {
			w.kube.remove(manifest.Pods, name{"default", fmt.Sprintf("p%02d", i)})
		}
		w.kube.cut(true)
		w.kube.comeBack()
		for range 4 {
			w.after(4 * time.Second)
			w.has("in doubt", all...)
			w.kube.cut(true)
		}
		for range 12 {
			w.after(4 * time.Second)
			w.kube.cut(true)
		}
		w.has("gone")
	})
}

// What a list lacks that the ones before had is doubted from then on.
func TestAnotherDoubtBeginsTheCountAgain(t *testing.T) {
	s := New(Config{})
	m := s.mirrors[manifest.Pods]
	var all []any
	for i := range 30 {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("p", i), UID: "u", ResourceVersion: "5"}}
		all = append(all, p)
		if err := m.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	replace := func(items ...any) {
		t.Helper()
		if err := m.Replace(items, "6"); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		what   string
		do     func()
		agreed int
	}{
		{"a list without any", func() { replace() }, 0},
		{"one from etcd", func() {
			if err := m.judge(&corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "6"}}); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"the same again", func() { replace() }, 1},
		{"one is back", func() { replace(all[0]) }, 1},
		{"and missing again", func() { replace() }, 0},
	} {
		if step.do(); m.agreed != step.agreed || m.need != thrice || len(m.rows) != 30 {
			t.Errorf("%s: %d of %d lists agree, %d rows; want %d", step.what, m.agreed, m.need, len(m.rows), step.agreed)
		}
	}
}

// A server that is behind takes nothing back; a store that was restored does, in the end.
func TestOldLists(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		var old []object
		var at uint64
		w.kube.set(func() {
			for _, o := range w.kube.objects[manifest.Pods] {
				old = append(old, clone(o))
			}
			at = w.kube.version
		})
		w.kube.put(manifest.Pods, pod("web", "n1", "tier=front"))
		w.kube.put(manifest.Pods, pod("new", "n1"))
		w.settle()
		now := append([]string{"pods/default/new"}, populated...)
		w.has("at first", now...)
		labelled := func() bool { return strings.Contains(w.held()["pods/default/web"], `"tier":"front"`) }
		behind := func(always bool) func(string, []object, uint64, bool) ([]object, uint64) {
			return func(plural string, items []object, version uint64, consistent bool) ([]object, uint64) {
				if plural == manifest.Pods && (always || !consistent) {
					return old, at
				}
				return items, version
			}
		}
		w.kube.set(func() { w.kube.lists = behind(false) })
		w.kube.cut(true)
		for range 40 {
			w.after(time.Second)
			w.has("a server is behind", now...)
			if !labelled() {
				t.Fatal("a label was taken back")
			}
		}
		w.kube.set(func() {
			w.kube.lists = behind(true)
			w.kube.objects[manifest.Pods] = map[name]object{{"default", "web"}: old[0]}
		})
		w.kube.cut(true)
		w.after(10 * time.Second)
		w.has("all are behind", now...)
		w.after(time.Minute)
		w.has("it went back", populated...)
		if labelled() {
			t.Error("it kept the label of a store that is gone")
		}
		w.kube.set(func() { w.kube.lists = nil })
		w.kube.cut(true)
		w.kube.put(manifest.Pods, pod("web", "n1", "tier=back"))
		w.after(10 * time.Second)
		if !strings.Contains(w.held()["pods/default/web"], `"tier":"back"`) {
			t.Error("it no longer follows")
		}
	})
}

// Another cluster is not the one that was followed.
func TestAnotherCluster(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		w.stop()
		first := w.kube
		w.kube = newTwin()
		w.kube.put(manifest.Namespaces, namespace("default"))
		w.start("")
		w.after(2 * time.Minute)
		w.has("without a system namespace", populated...)
		w.says("without a system namespace", "Kubernetes at https://kube.test lists no namespace kube-system")
		w.kube.set(func() { w.kube.version += 100 })
		w.kube.put(manifest.Namespaces, namespace("kube-system"))
		w.after(2 * time.Minute)
		w.has("another", populated...)
		w.says("another", "is another cluster than before: its namespace kube-system has the UID uid-112, and had uid-11; what came from the other one is kept")
		w.stop()
		w.start("uid-112")
		w.after(2 * time.Minute)
		w.has("adopted")
		w.says("adopted")
		w.stop()
		w.kube = first
		w.start("")
		w.after(2 * time.Minute)
		w.has("the first again")
		w.says("the first again", "is another cluster than before")
	})
}

// What was deleted between two terms is deleted by the next.
func TestANewTerm(t *testing.T) {
	follow(t, func(w *world) {
		w.populate()
		w.stop()
		w.kube.remove(manifest.Pods, nameOf(pod("web", "")))
		w.kube.put(manifest.Services, svc("new", "10.101.0.9"))
		before := w.store.Revision()
		w.start("")
		w.after(time.Second)
		w.has("not yet sure", append([]string{"services/default/new"}, populated...)...)
		w.after(5 * time.Second)
		w.has("sure", append([]string{"services/default/new"}, populated[1:]...)...)
		if n := w.store.Revision() - before; n > 3 {
			t.Errorf("%d writes", n)
		}
	})
}
