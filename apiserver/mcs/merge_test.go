package mcs

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/wire"
)

func offer(cluster string, second int, change func(*wire.ServiceExport)) *wire.ServiceExport {
	e := &wire.ServiceExport{
		Cluster: cluster, Namespace: "shop", Name: "web", Created: metav1.NewTime(time.Unix(int64(second), 0).UTC()),
		Type: mcs.ClusterSetIP, SessionAffinity: corev1.ServiceAffinityNone, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		Ports: []mcs.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
	}
	if change != nil {
		change(e)
	}
	return e
}

func ports(all []mcs.ServicePort) string {
	var out []string
	for _, p := range all {
		out = append(out, p.Name+":"+service80(p))
	}
	return strings.Join(out, " ")
}

func service80(p mcs.ServicePort) string {
	return strings.Join([]string{string(rune('0'+p.Port/10%10)) + string(rune('0'+p.Port%10)), string(p.Protocol)}, "/")
}

func TestMerge(t *testing.T) {
	family := func(f ...corev1.IPFamily) func(*wire.ServiceExport) {
		return func(e *wire.ServiceExport) { e.IPFamilies = f }
	}
	for name, c := range map[string]struct {
		second, third func(*wire.ServiceExport)
		ports         string
		typ           mcs.ServiceImportType
		families      []corev1.IPFamily
		reasons       string
	}{
		"alike": {ports: "http:80/TCP"},
		"ports are the union": {
			second: func(e *wire.ServiceExport) {
				e.Ports = append(e.Ports, mcs.ServicePort{Name: "dns", Protocol: "UDP", Port: 53})
			},
			ports:   "http:80/TCP dns:53/UDP",
			reasons: "PortConflict",
		},
		"the older name of a port counts": {
			second: func(e *wire.ServiceExport) { e.Ports[0].Name = "web" },
			ports:  "http:80/TCP", reasons: "PortConflict",
		},
		"the older port of a name counts": {
			second: func(e *wire.ServiceExport) { e.Ports[0].Port = 81 },
			ports:  "http:80/TCP", reasons: "PortConflict",
		},
		"a protocol that is left out is TCP": {
			second: func(e *wire.ServiceExport) { e.Ports[0].Protocol = "" },
			ports:  "http:80/TCP",
		},
		"appProtocol": {
			second: func(e *wire.ServiceExport) { e.Ports[0].AppProtocol = new("h2c") },
			ports:  "http:80/TCP", reasons: "PortConflict",
		},
		"type": {
			second: func(e *wire.ServiceExport) { e.Type = mcs.Headless },
			ports:  "http:80/TCP", reasons: "TypeConflict",
		},
		"several": {
			second: func(e *wire.ServiceExport) { e.Type, e.SessionAffinity = mcs.Headless, corev1.ServiceAffinityClientIP },
			ports:  "http:80/TCP", reasons: "TypeConflict,SessionAffinityConflict,SessionAffinityConfigConflict",
		},
		"labels and annotations": {
			second: func(e *wire.ServiceExport) {
				e.Labels, e.Annotations = map[string]string{"a": "b"}, map[string]string{"c": "d"}
			},
			ports: "http:80/TCP", reasons: "LabelsConflict,AnnotationsConflict",
		},
		"policy that is left out is Cluster": {
			second: func(e *wire.ServiceExport) { e.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyCluster) },
			ports:  "http:80/TCP",
		},
		"policy": {
			second: func(e *wire.ServiceExport) { e.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal) },
			ports:  "http:80/TCP", reasons: "InternalTrafficPolicyConflict",
		},
		"distribution": {
			second: func(e *wire.ServiceExport) { e.TrafficDistribution = new("PreferSameNode") },
			ports:  "http:80/TCP", reasons: "TrafficDistributionConflict",
		},
		"families that not all have": {
			third: family(corev1.IPv6Protocol), ports: "http:80/TCP", reasons: "IPFamilyConflict",
		},
		"an older Cilium does not say its families": {
			second: family(), ports: "http:80/TCP",
		},
	} {
		t.Run(name, func(t *testing.T) {
			// The order in which clusters are heard of does not matter.
			all := []*wire.ServiceExport{offer("west", 3, c.third), offer("east", 1, nil), offer("north", 2, c.second)}
			for range 2 {
				slices.Reverse(all)
				m := merge(all)
				if got := ports(m.Ports); got != c.ports {
					t.Errorf("ports %s, want %s", got, c.ports)
				}
				if got := strings.Join(m.conflict.reasons, ","); got != c.reasons {
					t.Errorf("conflict %s, want %s: %v", got, c.reasons, m.conflict.messages)
				}
				if m.Type != mcs.ClusterSetIP || m.Cluster != "east" {
					t.Errorf("type %s of %s", m.Type, m.Cluster)
				}
				if diff := cmp.Diff([]string{"east", "north", "west"}, m.clusters); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff([]corev1.IPFamily{corev1.IPv4Protocol}, m.IPFamilies); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// Of two exports of one second, all clusters choose the same.
func TestSameAge(t *testing.T) {
	a, b := offer("a", 1, nil), offer("b", 1, func(e *wire.ServiceExport) { e.Type = mcs.Headless })
	for _, all := range [][]*wire.ServiceExport{{a, b}, {b, a}} {
		if m := merge(all); m.Cluster != "a" {
			t.Errorf("%s counts", m.Cluster)
		}
	}
}
