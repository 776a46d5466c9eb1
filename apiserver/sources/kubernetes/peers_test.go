package kubernetes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/apiserver/declared"
	"github.com/weft-mesh/weft/manifest"
)

// joins is who joins clusters.
type joins struct {
	mu   sync.Mutex // guards what follows
	held []string
	told [][]string
}

// Held implements Peers.
func (j *joins) Held(context.Context) ([]string, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.held, nil
}

// Want implements Peers.
func (j *joins) Want(objects []declared.Object) {
	j.mu.Lock()
	defer j.mu.Unlock()
	names := []string{}
	for _, o := range objects {
		names = append(names, fmt.Sprintf("%s at %s by %s", o.Name, strings.Join(o.Servers, "+"), o.Secret))
	}
	j.told = append(j.told, names)
}

func (j *joins) is(t *testing.T, when string, want ...string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.told) == 0 || !slices.Equal(j.told[len(j.told)-1], want) {
		t.Errorf("%s: it is told %q, want %q", when, j.told, want)
	}
}

func peer(name, secret string) object {
	return parse(fmt.Sprintf(`{"apiVersion":"weft.io/v1alpha1","kind":"Peer","metadata":{"name":%q},"spec":{"servers":["192.0.2.1"],"secretRef":{"name":%q}},"status":{"id":7}}`, name, secret))
}

func (k *twin) define(plural string) {
	k.set(func() {
		if k.objects[plural] == nil {
			k.objects[plural] = map[name]object{}
		}
	})
	k.put(definitions, object{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": object{"name": plural + ".weft.io"}})
}

// Peer objects are told as they are, and what a list lacks is believed only when others agree.
func TestPeerObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, newTwin())
		w.joiner = &joins{held: []string{"north", "west"}}
		w.kube.put(manifest.Namespaces, namespace("kube-system"))
		w.kube.define(peers)
		w.kube.put(peers, peer("west", "mesh"))
		w.kube.put(peers, peer("south", "mesh"))
		lists := 0
		w.kube.set(func() {
			w.kube.lists = func(plural string, items []object, version uint64, consistent bool) ([]object, uint64) {
				if plural == peers {
					if lists++; !consistent {
						return nil, version // a server that lacks them all
					}
				}
				return items, version
			}
		})
		w.start("")
		w.settle()
		w.joiner.mu.Lock()
		for _, names := range w.joiner.told {
			if !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "west at ") }) {
				t.Errorf("told without west, which is there: %q", names)
			}
		}
		w.joiner.mu.Unlock()
		w.kube.set(func() { w.kube.lists = nil })
		w.after(time.Minute)
		w.joiner.is(t, "at first", "south at 192.0.2.1 by mesh", "west at 192.0.2.1 by mesh") // north is gone

		w.kube.put(peers, peer("west", "other"))
		w.settle()
		w.joiner.is(t, "changed", "south at 192.0.2.1 by mesh", "west at 192.0.2.1 by other")
		w.joiner.mu.Lock()
		n := len(w.joiner.told)
		w.joiner.mu.Unlock()
		status := peer("west", "other")
		status["status"] = object{"id": 8}
		w.kube.put(peers, status) // what we write ourselves is no news
		w.kube.put(manifest.Namespaces, namespace("shop"))
		w.settle()
		w.joiner.mu.Lock()
		if len(w.joiner.told) != n {
			t.Errorf("told again: %q", w.joiner.told[n:])
		}
		w.joiner.mu.Unlock()

		w.kube.leave()
		w.after(time.Hour)
		w.joiner.is(t, "while Kubernetes is away", "south at 192.0.2.1 by mesh", "west at 192.0.2.1 by other")
		w.kube.comeBack()
		w.after(time.Minute)
		w.kube.remove(peers, name{"", "south"})
		w.settle()
		w.joiner.is(t, "one deleted", "west at 192.0.2.1 by other")
		w.stop()
	})
}
