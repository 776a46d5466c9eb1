package kubernetes

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/manifest"
)

// Whatever happens to the API server of Kubernetes, nothing vanishes that is there, and once it
// is well again, the registry is what it would be from scratch.
func TestRandomChangesAndFaults(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { random(t, seed) }) })
	}
}

func random(t *testing.T, seed uint64) {
	draw := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, newTwin())
	w.kube.streams = seed%2 == 0
	for _, ns := range []string{"kube-system", "default"} {
		w.kube.put(manifest.Namespaces, namespace(ns))
	}
	w.start("")
	defer func() { w.stop() }()
	w.kube.put("nodes", node("n1", 1))
	w.kube.put("nodes", node("n2", 2))
	w.kube.install(manifest.Policies)
	// These stay, whatever happens.
	lasting := []string{"pods/default/lasting", "services/default/lasting", "networkpolicies/default/lasting", "namespaces/_/default"}
	w.kube.put(manifest.Pods, pod("lasting", "n1"))
	w.kube.put(manifest.Services, svc("lasting", "10.101.9.9"))
	w.kube.put(manifest.NetworkPolicies, netpol("lasting", closed))
	w.after(15 * time.Second)

	version := map[string]uint64{}
	change := func() {
		n := draw.IntN(8)
		at := name{"default", fmt.Sprint("x", n)}
		var o object
		var plural string
		switch draw.IntN(5) {
		case 0:
			plural, o = manifest.Pods, pod(at.name, fmt.Sprint("n", 1+draw.IntN(3)), fmt.Sprint("v=", draw.IntN(3)))
			o["status"] = object{"phase": []string{"Running", "Running", "Succeeded"}[draw.IntN(3)]}
			delete(o["spec"].(object), "x")
		case 1:
			plural, o = manifest.Services, svc(at.name, fmt.Sprintf("10.101.1.%d", 1+n))
		case 2:
			plural, o = manifest.EndpointSlices, slice(at.name, at.name, fmt.Sprintf("10.1.1.%d", 1+draw.IntN(9)))
		case 3:
			plural, o = manifest.NetworkPolicies, netpol(at.name, closed)
			metaOf(o)["labels"] = object{"v": fmt.Sprint(draw.IntN(3))}
		case 4:
			plural, o = manifest.Policies, cnp(at.name, `{"endpointSelector":{},"ingress":[{}]}`)
		}
		if draw.IntN(3) == 0 {
			w.kube.remove(plural, at)
		} else {
			w.kube.put(plural, o)
		}
	}
	fault := func() {
		switch draw.IntN(7) {
		case 0:
			w.kube.cut(false)
		case 1:
			w.kube.cut(true)
		case 2:
			w.kube.leave()
		case 3:
			w.kube.hang()
		case 4:
			w.kube.comeBack()
		case 5: // what servers remember is short or old; what etcd has is right
			short := draw.IntN(2) == 0
			frozen := map[string][]object{}
			w.kube.set(func() {
				for plural, all := range w.kube.objects {
					for _, o := range all {
						frozen[plural] = append(frozen[plural], clone(o))
					}
					version[plural] = w.kube.version
				}
				w.kube.lists = func(plural string, items []object, at uint64, consistent bool) ([]object, uint64) {
					switch {
					case consistent:
					case short:
						items = items[:len(items)/2]
					default:
						return frozen[plural], version[plural]
					}
					return items, at
				}
			})
			w.kube.cut(true)
		case 6:
			w.kube.set(func() { w.kube.lists = nil })
		}
	}
	for range 60 {
		for range draw.IntN(4) {
			change()
		}
		if draw.IntN(3) == 0 {
			fault()
		}
		if draw.IntN(20) == 0 {
			w.stop()
			w.start("")
		}
		w.after(time.Duration(draw.IntN(8000)) * time.Millisecond)
		held := w.held()
		for _, key := range lasting {
			if held[key] == "" {
				t.Fatalf("%s has vanished", key)
			}
		}
	}
	w.kube.set(func() { w.kube.lists = nil })
	w.kube.comeBack()
	w.kube.cut(true)
	w.after(3 * time.Minute)

	scratch := newWorld(t, w.kube)
	scratch.start("")
	defer func() { scratch.stop() }()
	scratch.after(time.Minute)
	got, want := w.held(), scratch.held()
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if got[key] != want[key] {
			t.Errorf("%s is\n%s\nand from scratch\n%s", key, got[key], want[key])
		}
		delete(got, key)
	}
	if len(got) > 0 {
		t.Errorf("it also has %s", strings.Join(slices.Sorted(maps.Keys(got)), ", "))
	}
	if len(want) < 8 {
		t.Errorf("there is little to compare: %d", len(want))
	}
}
