package manifest

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

func TestNearest(t *testing.T) {
	known := []string{"observe", "status", "service", "services", "pods", "apply", "delete"}
	for word, want := range map[string]string{
		"observ": "observe", "obsevre": "observe", "stauts": "status", "servics": "service", "pod": "pods", "po": "",
		"aply": "apply", "x": "", "": "", "delete": "delete", "kubernetes": "", "Status": "status",
	} {
		if got := Nearest(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestUnknownField(t *testing.T) {
	pod, netpol := reflect.TypeFor[corev1.Pod](), reflect.TypeFor[*networkingv1.NetworkPolicy]()
	for name, c := range map[string]struct {
		of          reflect.Type
		place, want string
	}{
		"a letter too few":            {pod, "spec.nodName", "did you mean nodeName?"},
		"another case":                {pod, "spec.containers[0].Image", "did you mean image?"},
		"inside of a list":            {netpol, "spec.ingress[0].form", "did you mean from?"},
		"inside of embedded metadata": {pod, "metadata.labls", "did you mean labels?"},
		"beside spec":                 {netpol, "podSelector", "it belongs under spec: indent it"},
		"labels without matchLabels":  {netpol, "spec.podSelector.app", "labels belong under matchLabels"},
		"a misspelt matchLabels":      {netpol, "spec.podSelector.matchLables", "did you mean matchLabels?"},
		"nothing near":                {netpol, "spec.ingress[0].podSelector", "remove it or correct its spelling"},
		"a place that is not there":   {netpol, "spec.x.y", "remove it or correct its spelling"},
		"below a scalar":              {pod, "spec.nodeName.x", "remove it or correct its spelling"},
		"below a map":                 {pod, "metadata.labels.x.y", "remove it or correct its spelling"},
		"at the top":                  {pod, "knd", "did you mean kind?"},
		"empty":                       {pod, "", "remove it or correct its spelling"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := UnknownField(c.place, c.of); got != c.want {
				t.Errorf("%q: %q, want %q", c.place, got, c.want)
			}
		})
	}
}

// FuzzUnknownField: places come from manifests.
func FuzzUnknownField(f *testing.F) {
	f.Add("spec.containers[0].Image")
	f.Add("..[")
	f.Fuzz(func(t *testing.T, place string) {
		if UnknownField(place, reflect.TypeFor[corev1.Pod]()) == "" {
			t.Error("no advice")
		}
	})
}
