package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func fixture(t *testing.T) (*Registry, *storetest.Store) {
	t.Helper()
	s := storetest.New()
	register(t, s)
	return New(s, Config{Cluster: "east", ServiceCIDR: testCIDR}), s
}

var testCIDR = netip.MustParsePrefix("10.101.0.0/16")

// register registers nodes n1 and n2.
func register(t *testing.T, s store.Store) {
	t.Helper()
	for _, node := range []string{"n1", "n2"} {
		reg := wire.Registration{Name: node, Addresses: []netip.Addr{netip.MustParseAddr("172.16.1." + node[1:])}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1." + node[1:] + ".0/24")}}
		if err := store.Write(t.Context(), s, store.Put(wire.RegistrationKey(node), wire.Marshal(reg))); err != nil {
			t.Fatal(err)
		}
	}
}

func apply(t *testing.T, r *Registry, manifest string) *api.ApplyResult {
	t.Helper()
	result, err := r.Apply(t.Context(), []byte(manifest), api.ManifestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func summary(result *api.ApplyResult) string {
	var out []string
	for _, o := range result.Objects {
		out = append(out, strings.TrimPrefix(o.Namespace+"/"+o.Name+" "+string(o.Action), "/"))
	}
	return strings.Join(out, ", ")
}

const pod = `
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec:
  nodeName: n1
  containers:
  - {name: web, image: weft, command: [serve], ports: [{name: http, containerPort: 8080}]}
`

const webService = `
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  annotations: {service.cilium.io/global: "true"}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
`

const cnp = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: only-frontend}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: frontend}}]
`

func TestApply(t *testing.T) {
	r, s := fixture(t)
	all := pod + "---\n" + webService + "---\n" + cnp + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
	if got, want := summary(apply(t, r, all)), "shop/web-1 created, shop/web created, default/only-frontend created, shop created"; got != want {
		t.Errorf("first: %s", got)
	}
	before := s.Revision()
	if got, want := summary(apply(t, r, all)), "shop/web-1 unchanged, shop/web unchanged, default/only-frontend unchanged, shop unchanged"; got != want {
		t.Errorf("again: %s", got)
	}
	if s.Revision() != before {
		t.Error("an unchanged manifest was written")
	}
	if got := summary(apply(t, r, strings.Replace(pod, "app: web", "app: web, tier: front", 1))); got != "shop/web-1 configured" {
		t.Errorf("changed: %s", got)
	}

	list, err := r.Get(t.Context(), "svc", "shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	var svc corev1.Service
	if err := json.Unmarshal(list.Items[0], &svc); err != nil {
		t.Fatal(err)
	}
	if ip, err := netip.ParseAddr(svc.Spec.ClusterIP); err != nil || !r.conf.ServiceCIDR.Contains(ip) || svc.UID == "" || svc.Kind != "Service" {
		t.Errorf("stored service: %s", list.Items[0])
	}

	// What one cluster shows is a manifest for another.
	exported, _ := json.Marshal(svc)
	if got := summary(apply(t, r, string(exported))); got != "shop/web unchanged" {
		t.Errorf("exported and applied: %s", got)
	}
}

// slice is a hand-written one with an address.
func slice(address string) string {
	return "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints: [{addresses: [" + address + "]}]\n"
}

func TestApplyRefuses(t *testing.T) {
	for name, c := range map[string]struct{ manifest, want string }{
		"no yaml":                      {"a: [", "document 1: not valid YAML"},
		"nothing":                      {"---\n---\n", "holds no object"},
		"a list":                       {"- a\n", "document 1, item 1: not an object"},
		"an item":                      {"- " + strings.ReplaceAll(strings.TrimSpace(webService), "\n", "\n  ") + "\n- kind: Gateway\n", `document 1, item 2: unknown kind "Gateway"`},
		"an empty list":                {"apiVersion: v1\nkind: List\nitems: []\n", "holds no object"},
		"misspelled items":             {"apiVersion: v1\nkind: List\nItems: [{kind: Pod}]\n---\n" + pod, `document 1: kind "List" is not a list: write its objects as a sequence under items`},
		"no kind":                      {"apiVersion: v1\n", "document 1: kind is missing; known kinds are Namespace (v1), Pod (v1)"},
		"unknown kind":                 {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n", `kind "Deployment" needs a controller, and there is none here; apply the pods themselves, or leave such objects out with --ignore-unknown`},
		"kind in wrong case":           {strings.Replace(pod, "kind: Pod", "kind: pod", 1), `unknown kind "pod"; did you mean Pod?`},
		"a plural as kind":             {strings.Replace(pod, "kind: Pod", "kind: Pods", 1), `unknown kind "Pods"; did you mean Pod?`},
		"wrong version":                {strings.Replace(pod, "v1", "v2", 1), `document 1, Pod shop/web-1: apiVersion is "v2"; write "v1"`},
		"unknown field":                {strings.Replace(pod, "nodeName", "nodename: n1, nodeName", 1), "not valid YAML"},
		"misspelt field":               {strings.Replace(pod, "containers:", "container: x\n  containers:", 1), `unknown field spec.container; did you mean containers?`},
		"field twice":                  {strings.Replace(pod, "nodeName: n1", "nodeName: n1\n  nodeName: n2", 1), `"nodeName" already set`},
		"wrong type":                   {strings.Replace(webService, "port: 80", "port: eighty", 1), "ports.port is a string, but must be a number"},
		"no name":                      {strings.Replace(pod, "name: web-1, ", "", 1), "metadata.name is missing"},
		"bad name":                     {strings.Replace(pod, "web-1", "Web_1", 1), `metadata.name "Web_1": a lowercase RFC 1123 subdomain`},
		"path as name":                 {strings.Replace(pod, "web-1", "../x", 1), "metadata.name"},
		"no node":                      {strings.Replace(pod, "nodeName: n1", "nodeName: \"\"", 1), "spec.nodeName is missing"},
		"unknown node":                 {strings.Replace(pod, "nodeName: n1", "nodeName: n7", 1), `spec.nodeName "n7" is not a node of cluster east; its nodes are n1, n2`},
		"bad port":                     {strings.Replace(pod, "8080", "80800", 1), "containerPort is 80800; choose one from 1 to 65535"},
		"host network":                 {strings.Replace(pod, "nodeName: n1", "nodeName: n1\n  hostNetwork: true", 1), "spec.hostNetwork"},
		"namespace of none":            {"apiVersion: v1\nkind: Namespace\nmetadata: {name: x, namespace: shop}\n", "belongs to no namespace"},
		"address outside":              {strings.Replace(webService, "spec:", "spec:\n  clusterIP: 10.1.0.7", 1), "outside of the service CIDR 10.101.0.0/16"},
		"no address":                   {strings.Replace(webService, "spec:", "spec:\n  clusterIP: web", 1), `"web" is not an IP address`},
		"service type":                 {strings.Replace(webService, "spec:", "spec:\n  type: Loadbalancer", 1), "spec.type Loadbalancer is not a type of service"},
		"external name":                {strings.Replace(webService, "spec:", "spec:\n  type: ExternalName\n  externalName: example.com", 1), "spec.type is ExternalName, which only a DNS server could answer"},
		"IPv6 only":                    {strings.Replace(webService, "spec:", "spec:\n  ipFamilies: [IPv6]", 1), "spec.ipFamilies[0] is IPv6; remove it: cluster east has no service addresses of IPv6: give its API servers an ipv6ServiceCIDR"},
		"IPv6 address":                 {strings.Replace(webService, "spec:", "spec:\n  clusterIP: fd00::7", 1), "spec.clusterIP is fd00::7; remove it: cluster east has no service addresses of IPv6"},
		"two of a family":              {strings.Replace(webService, "spec:", "spec:\n  clusterIPs: [10.101.0.7, 10.101.0.8]", 1), "are not an address of each family"},
		"dual stack required":          {strings.Replace(webService, "spec:", "spec:\n  ipFamilyPolicy: RequireDualStack", 1), "spec.ipFamilyPolicy is RequireDualStack; write PreferDualStack for what the cluster has: cluster east has no service addresses of IPv6"},
		"both families named":          {strings.Replace(webService, "spec:", "spec:\n  ipFamilyPolicy: PreferDualStack\n  ipFamilies: [IPv4, IPv6]", 1), "spec.ipFamilies[1] is IPv6; remove it"},
		"family policy":                {strings.Replace(webService, "spec:", "spec:\n  ipFamilyPolicy: DualStack", 1), `spec.ipFamilyPolicy "DualStack": write SingleStack, PreferDualStack or RequireDualStack`},
		"a family twice":               {strings.Replace(webService, "spec:", "spec:\n  ipFamilies: [IPv4, IPv4]", 1), "spec.ipFamilies names IPv4 twice"},
		"unknown family":               {strings.Replace(webService, "spec:", "spec:\n  ipFamilies: [ipv4]", 1), `spec.ipFamilies names "ipv4"; write IPv4 or IPv6`},
		"another family":               {strings.Replace(webService, "spec:", "spec:\n  clusterIP: 10.101.0.7\n  ipFamilies: [IPv6]", 1), "spec.ipFamilies[0] is IPv6, and 10.101.0.7, the address of that place, is not"},
		"affinity to something":        {strings.Replace(webService, "spec:", "spec:\n  sessionAffinity: Cookie", 1), "spec.sessionAffinity Cookie does not exist; write ClientIP or None"},
		"a session of more than a day": {strings.Replace(webService, "spec:", "spec:\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}", 1), "timeoutSeconds is 86401; choose one from 1 to 86400"},
		"a session without affinity":   {strings.Replace(webService, "spec:", "spec:\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}", 1), "spec.sessionAffinityConfig has no effect without spec.sessionAffinity ClientIP"},
		"distribution":                 {strings.Replace(webService, "spec:", "spec:\n  trafficDistribution: Close", 1), `spec.trafficDistribution "Close" does not exist; write PreferSameZone or PreferSameNode`},
		"bad node port":                {strings.Replace(webService, "port: 80,", "port: 80, nodePort: 80800,", 1), "nodePort is 80800"},
		"Knative's service":            {"apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\n", `apiVersion is "serving.knative.dev/v1"; write "v1"`},
		"annotation":                   {strings.Replace(webService, `"true"`, `"yes"`, 1), `annotation service.cilium.io/global is "yes"; write "true" or "false"`},
		"algorithm":                    {strings.Replace(webService, `"true"`, `"true", service.cilium.io/lb-algorithm: least-conn`, 1), `annotation service.cilium.io/lb-algorithm is "least-conn"; write random or maglev`},
		"size of a table":              {strings.Replace(webService, `"true"`, `"true", service.cilium.io/lb-algorithm: maglev, weft.io/maglev-table-size: "1000"`, 1), `annotation weft.io/maglev-table-size is "1000"; write one of [251 509`},
		"no size of a table":           {strings.Replace(webService, `"true"`, `"true", service.cilium.io/lb-algorithm: maglev, weft.io/maglev-table-size: ""`, 1), `annotation weft.io/maglev-table-size is ""; write one of [251 509`},
		"a table without Maglev":       {strings.Replace(webService, `"true"`, `"true", weft.io/maglev-table-size: "1021"`, 1), `annotation weft.io/maglev-table-size has no effect without service.cilium.io/lb-algorithm: maglev`},
		"weights of clusters":          {strings.Replace(webService, `"true"`, `"true", weft.io/cluster-weights: "east:3"`, 1), `annotation weft.io/cluster-weights: "east:3" is not a cluster and its weight; write them as in east=3,west=1`},
		"weight of a cluster":          {strings.Replace(webService, `"true"`, `"true", weft.io/cluster-weights: "east=70000"`, 1), `the weight of east is "70000"; write a number from 0 to 65535`},
		"weight of no cluster":         {strings.Replace(webService, `"true"`, `"true", weft.io/cluster-weights: "East Coast=1"`, 1), `annotation weft.io/cluster-weights: `},
		"weights without clusters":     {strings.Replace(webService, `"true"`, `"false", weft.io/cluster-weights: "east=3"`, 1), `annotation weft.io/cluster-weights has no effect without service.cilium.io/global: "true"`},
		"affinity":                     {strings.Replace(webService, `"true"`, `"true", io.cilium/service-affinity: near`, 1), `annotation io.cilium/service-affinity is "near"; write local, remote or none`},
		"policy field":                 {strings.Replace(cnp, "ingress:", "ingres: []\n  ingress:", 1), "document 1, CiliumNetworkPolicy default/only-frontend: spec.ingres: unknown field"},
		"managed slice":                {"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x, labels: {kubernetes.io/service-name: web, endpointslice.kubernetes.io/managed-by: weft}}\naddressType: IPv4\nendpoints: []\n", "derives itself"},
		"slice to loopback":            {slice("127.0.0.1"), "127.0.0.1 is a loopback address, which no backend can have"},
		"slice to metadata":            {slice("169.254.169.254"), "link-local"},
		"slice to nowhere":             {slice("0.0.0.0"), "no network"},
		"slice to many":                {slice("224.0.0.1"), "multicast"},
		"slice to all":                 {slice("255.255.255.255"), "broadcast"},
		"slice to a service":           {slice("10.101.0.7"), "10.101.0.7 is a service's address"},
		"slice to its inside":          {slice("10.1.1.1"), "10.1.1.1 is the address of node n1 inside the mesh"},
		"sidecar twice":                {strings.Replace(pod, "containers:", "initContainers: [{name: web}]\n  containers:", 1), `spec.containers[0].name "web" is used twice`},
		"sidecar's port":               {strings.Replace(pod, "containers:", "initContainers: [{name: proxy, restartPolicy: Always, ports: [{containerPort: 0}]}]\n  containers:", 1), "spec.initContainers[0].ports[0].containerPort is 0"},
		"bad selector":                 {strings.Replace(webService, "{app: web}", "{app: the web}", 1), `spec.selector["app"]: a valid label must be`},
		"name too long":                {strings.Replace(pod, "web-1", strings.Repeat("w", 251), 1), "255 characters together; 254 is the limit"},
		"ports of one name":            {slice("192.0.2.9") + "ports: [{name: a, port: 80}, {name: a, port: 81}]\n", `ports[1].name "a" is used twice`},
		"ports of no name":             {slice("192.0.2.9") + "ports: [{port: 80}, {port: 81}]\n", `ports[1].name "" is used twice`},
		"bad name of a port":           {slice("192.0.2.9") + "ports: [{name: A_, port: 80}]\n", `ports[0].name "A_": a lowercase RFC 1123 label`},
		"bad weight":                   {strings.Replace(slice("192.0.2.9"), "{name: x,", "{name: x, annotations: {service.cilium.io/weight: none},", 1), `annotation service.cilium.io/weight is "none"; write a number from 0 to 65535`},
		"giant aliases":                {"apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\nspec:\n- &a " + strings.Repeat("x", 1<<20) + "\n" + strings.Repeat("- *a\n", 8<<10), "document 1: is larger than 4 MiB with its aliases (*name) written out"},
		"a giant document":             {"items:\n" + strings.Repeat("- a\n", 1<<20+1), "document 1: is larger than 4 MiB; separate its objects with lines of ---"},
		"a giant object":               {`{"apiVersion":"v1","kind":"Pod","x":"` + strings.Repeat("x", 4<<20) + `"}`, "document 1: is larger than 4 MiB"},
		"second document bad":          {webService + "---\nkind: Gateway\n", `document 2: unknown kind "Gateway"`},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := fixture(t)
			before := s.Dump("")
			_, err := r.Apply(t.Context(), []byte(c.manifest), api.ManifestOptions{})
			var refused *api.Error
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %s", err, c.want)
			}
			if !slices.Equal(before, s.Dump("")) {
				t.Error("something was altered")
			}
		})
	}
}

func TestNamespaceThatIsAskedFor(t *testing.T) {
	r, _ := fixture(t)
	nowhere := strings.Replace(pod, ", namespace: shop", "", 1)
	everything := nowhere + "---\n" + cnp + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n"
	result, err := r.Apply(t.Context(), []byte(everything), api.ManifestOptions{Namespace: "team"})
	if err != nil {
		t.Fatal(err)
	}
	if got := summary(result); got != "team/web-1 created, team/only-frontend created, team created" {
		t.Error(got)
	}
	policies, err := r.List(t.Context(), "cnp", "team")
	if err != nil || len(policies.Items) != 1 || !strings.Contains(string(policies.Items[0]), `"namespace":"team"`) {
		t.Errorf("stored policies: %+v, %v", policies, err)
	}
	const want = `Pod shop/web-1: metadata.namespace is "shop", but -n says "team"; give -n shop or none`
	if _, err := r.Apply(t.Context(), []byte(pod), api.ManifestOptions{Namespace: "team"}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("applied to another namespace: %v", err)
	}
	if _, err := r.DeleteManifest(t.Context(), []byte(pod), api.ManifestOptions{Namespace: "team"}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("deleted from another namespace: %v", err)
	}
	if _, err := r.Apply(t.Context(), []byte(nowhere), api.ManifestOptions{Namespace: "No_Namespace"}); err == nil || !strings.Contains(err.Error(), `metadata.namespace "No_Namespace"`) {
		t.Errorf("applied to no namespace: %v", err)
	}
	if result, err = r.DeleteManifest(t.Context(), []byte(nowhere), api.ManifestOptions{Namespace: "team"}); err != nil || summary(result) != "team/web-1 deleted" {
		t.Errorf("deleted: %v, %v", result, err)
	}
}

func TestEveryMistakeAtOnce(t *testing.T) {
	r, _ := fixture(t)
	_, err := r.Apply(t.Context(), []byte(strings.Replace(pod, "8080", "0", 1)+"---\nkind: Gateway\n---\n"+strings.Replace(cnp, "fromEndpoints", "fromEndpoint", 1)), api.ManifestOptions{})
	var refused *api.Error
	if !errors.As(err, &refused) || len(refused.Problems) != 3 || refused.Status != http.StatusUnprocessableEntity || refused.Hint == "" {
		t.Errorf("got %+v", err)
	}
}

// Whoever acts on these annotations reads them in any case, and so do we.
func TestAnnotationsInAnyCase(t *testing.T) {
	r, _ := fixture(t)
	text := strings.Replace(webService, `"true"`, `"TRUE", service.cilium.io/affinity: Local`, 1)
	if got := summary(apply(t, r, text+"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {clustermesh.cilium.io/global: \"False\"}}\n")); got != "shop/web created, shop created" {
		t.Error(got)
	}
}

func TestLaterDocumentCounts(t *testing.T) {
	r, _ := fixture(t)
	overlay := strings.Replace(webService, `global: "true"`, `global: "false"`, 1)
	if got := summary(apply(t, r, webService+"---\n"+pod+"---\n"+overlay)); got != "shop/web created, shop/web-1 created" {
		t.Error(got)
	}
	if got := summary(apply(t, r, overlay)); got != "shop/web unchanged" {
		t.Error(got)
	}
}

func TestListsOfObjects(t *testing.T) {
	r, _ := fixture(t)
	item := func(text string) string {
		return "- " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n"
	}
	list := "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: \"\"}\nitems:\n" + item(webService) + item(cnp)
	if got := summary(apply(t, r, list+"---\n"+item(pod))); got != "shop/web created, default/only-frontend created, shop/web-1 created" {
		t.Error(got)
	}
	result, err := r.DeleteManifest(t.Context(), []byte(list), api.ManifestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := summary(result); got != "shop/web deleted, default/only-frontend deleted" {
		t.Error(got)
	}
}

func TestAliasesAreRead(t *testing.T) {
	r, s := fixture(t)
	aliased := strings.Replace(strings.Replace(webService, "selector: {app: web}", "selector: *labels", 1), "  namespace:", "  labels: &labels {app: web}\n  namespace:", 1)
	apply(t, r, aliased)
	if got := strings.Join(s.Dump(wire.ObjectsPrefix), ""); !strings.Contains(got, `"selector":{"app":"web"}`) {
		t.Error(got)
	}
}

// What a cluster prints of a pod on its way out is a manifest of a pod that stays.
func TestPrintedWhileItWasDeleted(t *testing.T) {
	r, s := fixture(t)
	const leaving = `{deletionTimestamp: "2026-01-02T03:04:05Z", deletionGracePeriodSeconds: 30, `
	apply(t, r, strings.Replace(pod, "{name: web-1", leaving+"name: web-1", 1)+"---\n"+strings.Replace(cnp, "{name:", leaving+"name:", 1))
	if got := strings.Join(s.Dump(wire.ObjectsPrefix), ""); strings.Contains(got, "deletion") {
		t.Error(got)
	}
}

func TestWhatHasNoEffectIsWarnedOf(t *testing.T) {
	r, _ := fixture(t)
	for want, text := range map[string]string{
		"metadata.finalizers has no effect": strings.Replace(pod, "name: web-1,", "name: web-1, finalizers: [example.com/wait],", 1),
		"annotation service.kubernetes.io/topology-mode has no effect: CPUs of nodes are not known": strings.Replace(webService, "annotations: {", "annotations: {service.kubernetes.io/topology-mode: Auto, ", 1),
		"spec.loadBalancerIP has no effect": strings.Replace(webService, "spec:", "spec:\n  loadBalancerIP: 192.0.2.9", 1),
	} {
		if got := apply(t, r, text).Warnings; len(got) != 1 || !strings.HasPrefix(got[0].Message, want) {
			t.Errorf("%s: warned %v", want, got)
		}
	}
}

func TestPodCannotMove(t *testing.T) {
	r, _ := fixture(t)
	apply(t, r, pod)
	for _, change := range []string{strings.Replace(pod, "n1", "n2", 1), strings.Replace(pod, "serve", "other", 1)} {
		if _, err := r.Apply(t.Context(), []byte(change), api.ManifestOptions{}); err == nil || !strings.Contains(err.Error(), "delete it first") {
			t.Error(err)
		}
	}
}

func TestDryRunWritesNothing(t *testing.T) {
	r, s := fixture(t)
	before := s.Revision()
	result, err := r.Apply(t.Context(), []byte(pod+"---\n"+webService), api.ManifestOptions{DryRun: true})
	if err != nil || s.Revision() != before || !result.DryRun || summary(result) != "shop/web-1 created, shop/web created" {
		t.Errorf("%v %+v", err, result)
	}
}

func TestServiceAddresses(t *testing.T) {
	r, s := fixture(t)
	apply(t, r, webService)
	given := strings.Replace(strings.Replace(webService, "name: web", "name: fixed", 1), "spec:", "spec:\n  clusterIP: 10.101.0.9", 1)
	apply(t, r, given)
	taken := strings.Replace(given, "name: fixed", "name: other", 1)
	if _, err := r.Apply(t.Context(), []byte(taken), api.ManifestOptions{}); err == nil || !strings.Contains(err.Error(), "belongs to service shop/fixed") {
		t.Error(err)
	}
	if _, err := r.Apply(t.Context(), []byte(strings.Replace(given, "10.101.0.9", "10.101.0.10", 1)), api.ManifestOptions{}); err == nil || !strings.Contains(err.Error(), "cannot change") {
		t.Error(err)
	}
	first := s.Dump(wire.ServiceIPsPrefix)
	if _, err := r.Delete(t.Context(), "Service", "shop", "web", api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(s.Dump(wire.ServiceIPsPrefix)) != 1 {
		t.Error("address not freed")
	}
	apply(t, r, webService)
	if !slices.Equal(first, s.Dump(wire.ServiceIPsPrefix)) {
		t.Error("a service that comes back gets another address")
	}
}

func TestNoAddressTwice(t *testing.T) {
	r, s := fixture(t)
	r.conf.ServiceCIDR = netip.MustParsePrefix("10.101.0.0/28") // 14 addresses
	var wg sync.WaitGroup
	results := make([]error, 16)
	for i := range results {
		wg.Go(func() {
			_, results[i] = r.Apply(context.Background(), []byte(strings.Replace(webService, "name: web", fmt.Sprintf("name: web-%d", i), 1)), api.ManifestOptions{})
		})
	}
	wg.Wait()
	failed := 0
	for _, err := range results {
		if err != nil {
			failed++
			if !strings.Contains(err.Error(), "no address is free") {
				t.Error(err)
			}
		}
	}
	if failed != 2 || len(s.Dump(wire.ServiceIPsPrefix)) != 14 {
		t.Errorf("%d failed, addresses %v", failed, s.Dump(wire.ServiceIPsPrefix))
	}
}

func TestDelete(t *testing.T) {
	r, s := fixture(t)
	before := s.Dump("")
	apply(t, r, pod+"---\n"+webService+"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
	var refused *api.Error
	if _, err := r.Delete(t.Context(), "ns", "", "shop", api.ManifestOptions{}); !errors.As(err, &refused) || !strings.Contains(err.Error(), "still holds Pod web-1, Service web") {
		t.Error(err)
	}
	if _, err := r.Delete(t.Context(), "pods", "shop", "web-2", api.ManifestOptions{}); !errors.As(err, &refused) || refused.Status != http.StatusNotFound || refused.Hint != "`weft get pods` lists them" {
		t.Error(err)
	}
	result, err := r.DeleteManifest(t.Context(), []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n"+pod+"---\n"+webService+"---\n"+cnp), api.ManifestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := summary(result); got != "shop deleted, shop/web-1 deleted, shop/web deleted, default/only-frontend absent" {
		t.Error(got)
	}
	if !slices.Equal(before, withoutTurn(s.Dump(""))) {
		t.Error("left over:", s.Dump(""))
	}
}

func FuzzReadManifest(f *testing.F) {
	for _, seed := range []string{pod, webService, cnp, "a: [", "---\n", "{}", "kind: Pod\nmetadata: 7", "apiVersion: v1\nkind: Pod\nmetadata:\n", "[null]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		readManifest(text, api.ManifestOptions{Namespace: "shop"}, false)
		objects, problems := readManifest(text, api.ManifestOptions{}, false)
		if len(problems) > 0 {
			return
		}
		for _, o := range objects {
			first, err := o.encode()
			if err != nil {
				t.Fatal(err)
			}
			again, problems := readManifest(first, api.ManifestOptions{}, false)
			if len(problems) > 0 || len(again) != 1 {
				t.Fatalf("%s is refused when read back: %v", first, problems)
			}
			if second, _ := again[0].encode(); string(first) != string(second) {
				t.Fatalf("reads back differently:\n%s\n%s", first, second)
			}
		}
	})
}

// A pod's status is its endpoint's, and never part of what was applied.
func TestPodsShowTheirStatus(t *testing.T) {
	r, s := fixture(t)
	apply(t, r, pod)
	read := func() corev1.Pod {
		t.Helper()
		one, err := r.Get(t.Context(), "pod", "shop", "web-1")
		if err != nil {
			t.Fatal(err)
		}
		all, err := r.List(t.Context(), "pods", "")
		if err != nil {
			t.Fatal(err)
		}
		if string(one.Items[0]) != string(all.Items[0]) {
			t.Errorf("one pod reads %s, and in the list %s", one.Items[0], all.Items[0])
		}
		var p corev1.Pod
		if err := json.Unmarshal(one.Items[0], &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := read()
	if p.Status.Phase != corev1.PodPending || p.Status.PodIP != "" {
		t.Errorf("without an endpoint: %+v", p.Status)
	}
	e := wire.Endpoint{Namespace: "shop", Pod: "web-1", UID: string(p.UID), IP: netip.MustParseAddr("10.1.1.7"), NodeIP: netip.MustParseAddr("192.0.2.1"), Ready: true}
	put := func() {
		if err := store.Write(t.Context(), s, store.Put(wire.EndpointKey("shop", "web-1"), wire.Marshal(e))); err != nil {
			t.Fatal(err)
		}
	}
	put()
	p = read()
	if p.Status.PodIP != "10.1.1.7" || p.Status.HostIP != "192.0.2.1" || p.Status.Conditions[0].Status != corev1.ConditionTrue {
		t.Errorf("with a ready endpoint: %+v", p.Status)
	}
	e.Ready, e.State = false, wire.EndpointCreating
	put()
	if p := read(); p.Status.Phase != corev1.PodPending || p.Status.PodIP == "" {
		t.Errorf("with an endpoint whose network is not there yet: %+v", p.Status)
	}
	exported, _ := json.Marshal(p)
	if got := summary(apply(t, r, string(exported))); got != "shop/web-1 unchanged" {
		t.Errorf("shown and applied: %s", got)
	}
	e.UID = "of an earlier pod of that name"
	put()
	if p = read(); p.Status.PodIP != "" {
		t.Errorf("shows another pod's endpoint: %+v", p.Status)
	}
}

// Metadata may be there and say nothing.
func TestEmptyMetadataIsAMistakeInAnyNamespace(t *testing.T) {
	for _, namespace := range []string{"", "shop"} {
		for _, headOnly := range []bool{false, true} {
			for _, text := range []string{
				"apiVersion: v1\nkind: Pod\nmetadata:\n",
				"apiVersion: v1\nkind: Pod\nmetadata: {}\nMetadata: {name: x}\n",
				"apiVersion: v1\nkind: Pod\nmetadata: {Name: x}\n",
				"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\nspec: {endpointSelector: {}}\n",
				"apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nMetadata: {name: x}\nmetadata:\nspec: {endpointSelector: {}}\n",
				"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nMetadata: {name: x}\nmetadata:\nspec: {endpointSelector: {}}\n",
			} {
				objects, problems := readManifest([]byte(text), api.ManifestOptions{Namespace: namespace}, headOnly)
				if len(objects) > 0 || len(problems) == 0 {
					t.Errorf("%sin namespace %q, head only %v: objects %v, problems %v", text, namespace, headOnly, objects, problems)
				}
			}
		}
	}
}
