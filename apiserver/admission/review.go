// Package admission has the Kubernetes API server refuse, at `kubectl apply`, what Weft could not
// enforce.
//
// What is wrong with a policy is decided in package policy, for it and for `weft policy validate`.
package admission

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/policy"
)

// Path is where the Kubernetes API server asks.
const Path = "/v1/validate"

// mostCauses is how many mistakes an answer names.
const mostCauses = 20

// Reviewer answers for one cluster.
type Reviewer struct {
	// Cluster is its name.
	Cluster string
}

// Review answers an AdmissionReview, in JSON. An error says that it is none.
func (r Reviewer) Review(text []byte) ([]byte, error) {
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(text, &review); err != nil {
		return nil, fmt.Errorf("this is not an AdmissionReview: %w", err)
	}
	if review.Request == nil || review.APIVersion != "admission.k8s.io/v1" {
		return nil, fmt.Errorf("this is not an AdmissionReview of admission.k8s.io/v1 with a request")
	}
	review.Response, review.Request = r.answer(review.Request), nil
	return json.Marshal(review)
}

// cause is one mistake: where, and what.
type cause struct{ field, why string }

func (r Reviewer) answer(q *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	out := &admissionv1.AdmissionResponse{UID: q.UID, Allowed: true}
	if q.Operation != admissionv1.Create && q.Operation != admissionv1.Update {
		return out
	}
	// What is there already is told by events. Its labels may change, and it may be deleted, which
	// takes an update if it has finalizers.
	if q.Operation == admissionv1.Update && (leaving(q.Object.Raw) || unchanged(q.OldObject.Raw, q.Object.Raw)) {
		return out
	}
	var causes []cause
	if q.Kind.Kind == "Peer" {
		causes = r.peer(q.Object.Raw)
	} else {
		causes, out.Warnings = policies(q.Object.Raw)
	}
	if len(causes) == 0 {
		return out
	}
	out.Allowed = false
	out.Result = refusal(q, causes)
	return out
}

// refusal is written like those of Kubernetes itself.
func refusal(q *admissionv1.AdmissionRequest, causes []cause) *metav1.Status {
	s := &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Details: &metav1.StatusDetails{Name: q.Name, Group: q.Kind.Group, Kind: q.Kind.Kind},
	}
	var words []string
	for _, c := range causes[:min(len(causes), mostCauses)] {
		words = append(words, strings.TrimPrefix(c.field+": "+c.why, ": "))
		s.Details.Causes = append(s.Details.Causes, metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Field: c.field, Message: c.why})
	}
	if more := len(causes) - mostCauses; more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	text := words[0]
	if len(words) > 1 {
		text = "[" + strings.Join(words, ", ") + "]"
	}
	s.Message = fmt.Sprintf("%s %q cannot be enforced by Weft: %s", q.Kind.Kind, q.Name, text)
	return s
}

// policies checks what `weft policy validate` checks.
func policies(text []byte) (causes []cause, warnings []string) {
	all, _, err := policy.ParseManifest(text)
	if err != nil {
		for _, line := range strings.Split(err.Error(), "\n") {
			causes = append(causes, causeOf(line))
		}
	}
	for _, p := range all {
		warnings = append(warnings, p.Warnings()...)
	}
	return causes, warnings
}

// causeOf takes a line of package policy apart: document 1: KIND "NAME": FIELD: WHY.
func causeOf(line string) cause {
	_, line, _ = strings.Cut(line, ": ")
	if _, rest, ok := strings.Cut(line, "\": "); ok {
		line = rest
	}
	field, why, ok := strings.Cut(line, ": ")
	if !ok || strings.Contains(field, " ") {
		return cause{why: line}
	}
	return cause{field, why}
}

// peer checks what the definition of Peer cannot.
func (r Reviewer) peer(text []byte) (causes []cause) {
	var o struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Spec struct {
			Servers []string `json:"servers"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(text, &o); err != nil {
		return []cause{{why: err.Error()}}
	}
	if o.Metadata.Name == r.Cluster {
		causes = append(causes, cause{"metadata.name", fmt.Sprintf("this is cluster %s itself; a Peer has the name of another cluster", r.Cluster)})
	}
	for i, s := range o.Spec.Servers {
		host, port, err := net.SplitHostPort(s)
		if err != nil {
			host, port = s, "1" // without a port, or an IPv6 address
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" || strings.ContainsAny(host, "/ @") {
			causes = append(causes, cause{fmt.Sprintf("spec.servers[%d]", i), fmt.Sprintf("%q is not of the form HOST or HOST:PORT", s)})
		}
	}
	return causes
}

// leaving says whether an object is being deleted.
func leaving(text []byte) bool {
	var o metav1.PartialObjectMetadata
	return json.Unmarshal(text, &o) == nil && o.DeletionTimestamp != nil
}

// unchanged says whether two states of an object say the same, whatever they are labelled. The
// labels of a group of prefixes are part of what it says.
func unchanged(before, after []byte) bool {
	var a, b map[string]any
	if json.Unmarshal(before, &a) != nil || json.Unmarshal(after, &b) != nil {
		return false
	}
	return b["kind"] != policy.KindCIDRGroup && reflect.DeepEqual(a["spec"], b["spec"]) && reflect.DeepEqual(a["specs"], b["specs"])
}
