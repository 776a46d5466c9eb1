package lab

import (
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
)

func TestPodsStartAgainOrNot(t *testing.T) {
	const before, now = 1, 2 // networks
	for name, test := range map[string]struct {
		policy  corev1.RestartPolicy
		entered uint64
		over    bool
	}{
		"always":                         {corev1.RestartPolicyAlways, now, false},
		"never":                          {corev1.RestartPolicyNever, now, true},
		"never, but a predecessor ended": {corev1.RestartPolicyNever, before, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &podState{spec: corev1.PodSpec{RestartPolicy: test.policy}, entered: test.entered}
			if got := s.over(now); got != test.over {
				t.Errorf("over = %v, want %v", got, test.over)
			}
		})
	}
}

func TestPodsEndWhenTheyAreWithdrawn(t *testing.T) {
	list := func(store string) PodEvent { return PodEvent{Cluster: "east", Restart: true, Store: store} }
	event := func(kind, name string) PodEvent {
		return PodEvent{Cluster: "east", Event: &api.WatchEvent{Type: kind, Namespace: "default", Name: name, Object: []byte("{}")}}
	}
	before := []PodEvent{list("first"), event("put", "a"), event("put", "b"), event("synced", "")}
	for name, test := range map[string]struct {
		then []PodEvent
		gone []string
	}{
		"deleted":                    {[]PodEvent{event("delete", "a")}, []string{"a"}},
		"missing from the next list": {[]PodEvent{list("first"), event("put", "b"), event("synced", "")}, []string{"a"}},
		"put again by the same watch, as after a compaction": {[]PodEvent{event("put", "a"), event("put", "b")}, nil},
		"an incomplete list":           {[]PodEvent{list("first"), event("put", "b")}, nil},
		"missing from a rebuilt store": {[]PodEvent{list("second"), event("put", "b"), event("synced", "")}, nil},
		"deleted in the rebuilt store": {[]PodEvent{list("second"), event("put", "b"), event("synced", ""), event("delete", "b")}, []string{"b"}},
		"listed by the rebuilt store, then missing": {[]PodEvent{list("second"), event("put", "b"), event("synced", ""),
			list("second"), event("synced", "")}, []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := &Lab{pods: map[string]*podState{}, nodes: map[string]*Node{}}
			var pods podList
			for _, e := range append(slices.Clone(before), test.then...) {
				l.notePod(e, &pods)
			}
			var gone []string
			for _, key := range slices.Sorted(maps.Keys(l.pods)) {
				if l.pods[key].gone {
					gone = append(gone, l.pods[key].Name)
				}
			}
			if !slices.Equal(gone, test.gone) {
				t.Errorf("gone are %v, want %v", gone, test.gone)
			}
		})
	}
}
