package wire

import (
	"strings"
	"testing"
)

func TestServiceExportIsRefused(t *testing.T) {
	const good = `{"cluster":"west","name":"web","namespace":"shop","exportCreationTimestamp":"2026-01-02T15:04:05Z","ports":[{"name":"http","protocol":"TCP","port":80}],"type":"Headless","sessionAffinity":"None"}`
	ref := CacheRef{Resource: ServiceExports, Cluster: "west", Namespace: "shop", Name: "web"}
	if _, err := ParseServiceExport(ref, []byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ old, new, why string }{
		"another cluster's": {`"west"`, `"east"`, "the key says"},
		"another name":      {`"web"`, `"db"`, "the key says"},
		"no age":            {`"2026-01-02T15:04:05Z"`, `null`, "exportCreationTimestamp is missing"},
		"type":              {`"Headless"`, `"Other"`, "neither ClusterSetIP nor Headless"},
		"affinity":          {`"None"`, `"Other"`, "neither None nor ClientIP"},
		"protocol":          {`"TCP"`, `"ICMP"`, "not TCP, UDP or SCTP"},
		"port":              {`80`, `70000`, "out of range"},
		"policy":            {`"type"`, `"internalTrafficPolicy":"Other","type"`, "neither Cluster nor Local"},
		"distribution":      {`"type"`, `"trafficDistribution":"Other","type"`, "not known"},
		"family":            {`"type"`, `"ipFamilies":["IPX"],"type"`, "neither IPv4 nor IPv6"},
		"many ports":        {`{"name":"http","protocol":"TCP","port":80}`, strings.Repeat(`{"port":80},`, 256) + `{"port":80}`, "at most 256"},
		"long labels":       {`"type"`, `"labels":{"a":"` + strings.Repeat("x", 65536) + `"},"type"`, "at most 65536"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseServiceExport(ref, []byte(strings.Replace(good, c.old, c.new, 1)))
			if err == nil || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%v; want %q", err, c.why)
			}
		})
	}
}

// Clusters find each other's backends under this name, so it must be Cilium's.
func TestDerivedName(t *testing.T) {
	if got, want := DerivedName("default", "full"), "derived-9jo8ljlgl7"; got != want {
		t.Errorf("%s, but Cilium's is %s", got, want)
	}
}

func FuzzParseServiceExport(f *testing.F) {
	f.Add([]byte(`{"cluster":"west","name":"web","namespace":"shop","exportCreationTimestamp":"2026-01-02T15:04:05Z","ports":[],"type":"Headless","sessionAffinity":"None"}`))
	ref := CacheRef{Resource: ServiceExports, Cluster: "west", Namespace: "shop", Name: "web"}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseServiceExport(ref, b)
		if err != nil {
			return
		}
		// What is accepted is accepted again as it is written.
		if _, err := ParseServiceExport(ref, Marshal(e)); err != nil {
			t.Errorf("%s: %v", Marshal(e), err)
		}
	})
}
