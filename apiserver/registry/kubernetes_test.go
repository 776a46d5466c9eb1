package registry

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

// Services as kubectl prints them: what they have beyond a cluster IP is kept,
// and each field that does nothing is named.
func TestServicesAsKubectlPrintsThem(t *testing.T) {
	const printed = `
apiVersion: v1
kind: Service
metadata:
  creationTimestamp: "2026-01-02T03:04:05Z"
  name: web
  namespace: shop
  resourceVersion: "4711"
  uid: 5f0c2a58-6cbe-4a83-9a77-0d4b6a1d2f10
spec:
  allocateLoadBalancerNodePorts: true
  clusterIP: 10.96.12.7
  clusterIPs: [10.96.12.7, "fd00:96::7"]
  externalIPs: [192.0.2.9]
  externalTrafficPolicy: Local
  healthCheckNodePort: 31234
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  loadBalancerClass: example.com/lb
  loadBalancerIP: 192.0.2.8
  loadBalancerSourceRanges: [198.51.100.0/24]
  ports:
  - {name: http, nodePort: 30080, port: 80, protocol: TCP, targetPort: http}
  selector: {app: web}
  sessionAffinity: None
  trafficDistribution: PreferClose
  type: LoadBalancer
status:
  loadBalancer: {ingress: [{ip: 192.0.2.8}]}
`
	r, s := fixture(t)
	result := apply(t, r, printed)
	if got := summary(result); got != "shop/web created" {
		t.Error(got)
	}
	var fields []string
	for _, w := range result.Warnings {
		if w.Kind != "Service" || w.Namespace != "shop" || w.Name != "web" {
			t.Errorf("warning about %s %s/%s", w.Kind, w.Namespace, w.Name)
		}
		fields = append(fields, strings.TrimSuffix(strings.Fields(w.Message)[0], ":"))
	}
	slices.Sort(fields)
	if got, want := strings.Join(fields, " "), "spec.clusterIP spec.ipFamilies status.loadBalancer"; got != want {
		t.Errorf("warned of %s\nwant      %s", got, want)
	}
	kv, err := s.Get(t.Context(), wire.ObjectKey("services", "shop", "web"))
	if err != nil {
		t.Fatal(err)
	}
	svc, err := wire.Unmarshal[corev1.Service](kv.Value)
	if ip, perr := netip.ParseAddr(svc.Spec.ClusterIP); err != nil || perr != nil || !r.conf.ServiceCIDR.Contains(ip) || svc.Spec.Type != "LoadBalancer" || len(svc.Spec.ClusterIPs) != 1 {
		t.Errorf("stored %s", kv.Value)
	}
	if got := summary(apply(t, r, printed)); got != "shop/web unchanged" {
		t.Error("again:", got)
	}
	if got := apply(t, r, webService); len(got.Warnings) != 0 {
		t.Errorf("a plain service is warned of: %v", got.Warnings)
	}
}

// An annotation that only looks like one of ours is named: the service would silently stay
// in its cluster.
func TestAnnotationsWithoutEffectAreNamed(t *testing.T) {
	r, _ := fixture(t)
	const (
		typo    = "annotation service.cilium.io/globl has no effect; did you mean service.cilium.io/global?"
		unknown = "annotation service.cilium.io/forwarding-mode has no effect"
	)
	for name, c := range map[string]struct {
		annotations string
		want        []string
	}{
		"one letter short":       {`service.cilium.io/globl: "true"`, []string{typo}},
		"of Cilium, not of Weft": {"service.cilium.io/forwarding-mode: dsr", []string{unknown}},
		"ours":                   {`service.cilium.io/global: "true", io.cilium/shared-service: "true", service.cilium.io/affinity: local`, nil},
		"somebody else's":        {"example.com/global: x, kubectl.kubernetes.io/last-applied-configuration: x", nil},
	} {
		t.Run(name, func(t *testing.T) {
			result := apply(t, r, strings.Replace(webService, `service.cilium.io/global: "true"`, c.annotations, 1))
			var got []string
			for _, w := range result.Warnings {
				got = append(got, w.Message)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("warned %q, want %q", got, c.want)
			}
		})
	}
}

// Kinds that are not known are refused, or skipped where that is asked for.
func TestUnknownKindsAreSkippedOnRequest(t *testing.T) {
	r, s := fixture(t)
	const others = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web-1, namespace: shop}\nspec: {whatever: [1]}\n" +
		"---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n" +
		"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: web-1, namespace: shop}\n"
	opts := api.ManifestOptions{IgnoreUnknown: true}
	result, err := r.Apply(t.Context(), []byte(pod+others+"---\n"+webService), opts)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := summary(result), "shop/web-1 created, shop/web-1 skipped, shop/web skipped, shop/web-1 skipped, shop/web created"; got != want {
		t.Errorf("applied: %s\nwant:    %s", got, want)
	}
	if result.Objects[1].Kind != "Deployment" {
		t.Errorf("%+v", result.Objects[1])
	}
	result, err = r.DeleteManifest(t.Context(), []byte(pod+others), opts)
	if err != nil || summary(result) != "shop/web-1 deleted, shop/web-1 skipped, shop/web skipped, shop/web-1 skipped" {
		t.Errorf("deleted: %s, %v", summary(result), err)
	}
	before := s.Dump("")
	if _, err := r.Apply(t.Context(), []byte(strings.Replace(pod, "8080", "0", 1)+others), opts); err == nil {
		t.Error("a mistake in a known kind is passed over")
	}
	if !slices.Equal(before, s.Dump("")) {
		t.Error("something was altered")
	}
}

func TestPodSaysThatItsImageIsNotRun(t *testing.T) {
	r, _ := fixture(t)
	result := apply(t, r, strings.Replace(pod, "image: weft", "image: nginx:1.29", 1))
	if len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0].Message, `spec.containers[0].image "nginx:1.29" is not run`) {
		t.Errorf("%v", result.Warnings)
	}
	r, _ = fixture(t)
	if got := apply(t, r, pod); len(got.Warnings) != 0 {
		t.Errorf("%v", got.Warnings)
	}
}
