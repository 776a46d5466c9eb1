package admission

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
)

// ask is an AdmissionReview, with objects in JSON.
func ask(t *testing.T, operation, kind, object, old string) *admissionv1.AdmissionResponse {
	t.Helper()
	if old == "" {
		old = "null"
	}
	text := fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","kind":{"group":"g","version":"v","kind":%q},"name":"x","operation":%q,"object":%s,"oldObject":%s,"dryRun":true}}`, kind, operation, object, old)
	out, err := Reviewer{Cluster: "east"}.Review([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(out, &review); err != nil {
		t.Fatal(err)
	}
	if review.Kind != "AdmissionReview" || review.APIVersion != "admission.k8s.io/v1" || review.Request != nil || review.Response.UID != "u-1" {
		t.Errorf("answered %s", out)
	}
	return review.Response
}

func cnp(meta, spec string) string {
	return fmt.Sprintf(`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"x","namespace":"shop","managedFields":[{"manager":"kubectl","operation":"Update","fieldsV1":{}}],"creationTimestamp":"2026-01-02T03:04:05Z"%s},"spec":%s}`, meta, spec)
}

const (
	good   = `{"endpointSelector":{},"ingress":[{"fromEntities":["cluster"]}]}`
	l7     = `{"endpointSelector":{},"ingress":[{"toPorts":[{"ports":[{"port":"80"}],"rules":{"http":[{}]}}]}]}`
	twoBad = `{"endpointSelector":{},"ingress":[{"fromCIDR":["x"],"fromNodes":[{}]}]}`
)

func TestReview(t *testing.T) {
	peer := func(name, server string) string {
		return fmt.Sprintf(`{"apiVersion":"weft.io/v1alpha1","kind":"Peer","metadata":{"name":%q},"spec":{"servers":[%q],"secretRef":{"name":"m"}}}`, name, server)
	}
	group := func(labels string) string {
		return `{"apiVersion":"cilium.io/v2","kind":"CiliumCIDRGroup","metadata":{"name":"x","labels":` + labels + `},"spec":{"externalCIDRs":["10.0.0.0/8"]}}`
	}
	for name, c := range map[string]struct {
		operation, kind, object, old string
		want                         string // "" is allowed
	}{
		"a good policy":               {"CREATE", "CiliumNetworkPolicy", cnp("", good), "", ""},
		"requests":                    {"CREATE", "CiliumNetworkPolicy", cnp("", l7), "", `CiliumNetworkPolicy "x" cannot be enforced by Weft: spec.ingress[0].toPorts[0].rules: rules on requests`},
		"two mistakes":                {"CREATE", "CiliumNetworkPolicy", cnp("", twoBad), "", "Weft: [spec.ingress[0].fromNodes: "},
		"a field that is not there":   {"CREATE", "CiliumNetworkPolicy", cnp("", `{"endpointSelectr":{},"ingress":[{}]}`), "", "spec.endpointSelectr: unknown field"},
		"made bad":                    {"UPDATE", "CiliumNetworkPolicy", cnp("", l7), cnp("", good), "rules on requests"},
		"bad before, labelled":        {"UPDATE", "CiliumNetworkPolicy", cnp(`,"labels":{"a":"b"}`, l7), cnp("", l7), ""},
		"bad, and being deleted":      {"UPDATE", "CiliumNetworkPolicy", cnp(`,"deletionTimestamp":"2026-01-02T03:04:05Z"`, l7), cnp("", good), ""},
		"deleted":                     {"DELETE", "CiliumNetworkPolicy", "null", cnp("", l7), ""},
		"Kubernetes' own":             {"CREATE", "NetworkPolicy", `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"x","namespace":"shop"},"spec":{"podSelector":{},"policyTypes":["Ingress"]},"status":{}}`, "", ""},
		"a group":                     {"CREATE", "CiliumCIDRGroup", group(`{}`), "", ""},
		"a group with a bad label":    {"UPDATE", "CiliumCIDRGroup", group(`{"a b":"c"}`), group(`{}`), "is not a label key"},
		"a cluster":                   {"CREATE", "Peer", peer("west", "192.0.2.1"), "", ""},
		"a cluster at an IPv6":        {"CREATE", "Peer", peer("west", "fd00::1"), "", ""},
		"a cluster at a port":         {"CREATE", "Peer", peer("west", "[fd00::1]:7443"), "", ""},
		"a cluster at no port":        {"CREATE", "Peer", peer("west", "west:http"), "", "spec.servers[0]: "},
		"a cluster at a URL":          {"CREATE", "Peer", peer("west", "https://west"), "", "is not of the form HOST or HOST:PORT"},
		"the cluster itself":          {"CREATE", "Peer", peer("east", "192.0.2.1"), "", "metadata.name: this is cluster east itself"},
		"the cluster itself, changed": {"UPDATE", "Peer", peer("east", "192.0.2.1"), peer("east", "192.0.2.2"), "metadata.name: "},
	} {
		t.Run(name, func(t *testing.T) {
			out := ask(t, c.operation, c.kind, c.object, c.old)
			switch {
			case out.Allowed != (c.want == ""):
				t.Errorf("allowed: %v, %v", out.Allowed, out.Result)
			case c.want != "" && (!strings.Contains(out.Result.Message, c.want) || out.Result.Code != 422 || out.Result.Reason != "Invalid" || len(out.Result.Details.Causes) == 0):
				t.Errorf("it says %+v", out.Result)
			}
		})
	}
	if out := ask(t, "CREATE", "CiliumNetworkPolicy", cnp("", twoBad), ""); len(out.Result.Details.Causes) != 2 {
		t.Errorf("the causes are %+v", out.Result.Details.Causes)
	}
	warned := ask(t, "CREATE", "CiliumNetworkPolicy", cnp("", `{"endpointSelector":{},"ingress":[{}],"enableDefaultDeny":{"egress":true}}`), "")
	if !warned.Allowed || len(warned.Warnings) != 1 || !strings.Contains(warned.Warnings[0], "denies all egress") {
		t.Errorf("it warns %q", warned.Warnings)
	}
}

func TestWhatIsNoReview(t *testing.T) {
	for _, text := range []string{"", "{}", `{"apiVersion":"admission.k8s.io/v1"}`, `{"apiVersion":"admission.k8s.io/v1beta1","request":{}}`, `[]`} {
		if out, err := (Reviewer{}).Review([]byte(text)); err == nil {
			t.Errorf("%s is answered with %s", text, out)
		}
	}
}

// Whatever somebody sends is answered, and an answer can be read.
func FuzzReview(f *testing.F) {
	f.Add([]byte(cnp("", l7)))
	f.Add([]byte(`{"kind":"CiliumNetworkPolicy"}`))
	f.Fuzz(func(t *testing.T, object []byte) {
		if !json.Valid(object) {
			return
		}
		text := fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"CREATE","kind":{"kind":"X"},"object":%s}}`, object)
		out, err := Reviewer{}.Review([]byte(text))
		if err != nil || !json.Valid(out) {
			t.Errorf("%s, %v", out, err)
		}
	})
}
