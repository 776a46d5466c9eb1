package enroll

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/nodes"
)

const agent = "system:serviceaccount:weft-system:weft-agent"

// jwt is a token with these claims, and a signature of nobody's.
func jwt(claims string) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"RS256"}`)) + "." + part([]byte(claims)) + "." + part([]byte("signed"))
}

// right is an agent's token, and wrong one that somebody else signed.
var (
	right = jwt(`{"sub":"` + agent + `","aud":["weft.io"],"exp":99999999999,"nbf":1}`)
	wrong = jwt(`{"sub":"` + agent + `","aud":"weft.io","exp":99999999999}`)
)

// What cannot be an agent's token is not shown to Kubernetes.
func TestATokenThatCannotBe(t *testing.T) {
	e, client := enroller(t, review(nil), nodes.ClusterPool, node(nil))
	soon := time.Now().Add(30 * time.Second).Unix()
	for claims, want := range map[string]string{
		`{"sub":"` + agent + `","aud":["weft.io"],"exp":1000}`:                               "it has expired",
		`{"sub":"` + agent + `","aud":["weft.io"]}`:                                          "it has expired",
		`{"sub":"` + agent + `","aud":["weft.io"],"exp":99999999999,"nbf":99999999990}`:      "not valid yet",
		`{"sub":"` + agent + `","aud":["https://kubernetes.default.svc"],"exp":99999999999}`: `it is for "https://kubernetes.default.svc"`,
		`{"sub":"` + agent + `","exp":99999999999}`:                                          `it is for ""`,
		`{"sub":"system:serviceaccount:shop:web","aud":["weft.io"],"exp":99999999999}`:       `it is that of "system:serviceaccount:shop:web"`,
		`{"sub":7,"aud":["weft.io"],"exp":99999999999}`:                                      "not a service account's",
		`[]`: "not a service account's",
		fmt.Sprintf(`{"sub":"%s","aud":["weft.io"],"exp":99999999999,"nbf":%d}`, "nobody", soon): `it is that of "nobody"`,
	} {
		refused(t, e, jwt(claims), http.StatusUnauthorized, want)
	}
	for _, token := range []string{"", "right", "a.b", "a.b.c", "a.!.c", "a.b.c.d", right + "."} {
		refused(t, e, token, http.StatusUnauthorized, "the token cannot be an agent's")
	}
	if asked := client.Actions(); len(asked) > 0 {
		t.Errorf("Kubernetes was asked %d times", len(asked))
	}
}

// review is what Kubernetes says of an agent's token.
func review(change func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
	s := authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{api.TokenAudience},
		User: authenticationv1.UserInfo{Username: agent, Extra: map[string]authenticationv1.ExtraValue{
			podNameKey: {"weft-agent-x"}, podUIDKey: {"p1"}, nodeNameKey: {"n1"},
		}},
	}
	if change != nil {
		change(&s)
	}
	return s
}

func node(change func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1", Labels: map[string]string{corev1.LabelTopologyZone: "a"}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.1.3.0/24", "fd00::/64"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.1"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.11"},
		}},
	}
	if change != nil {
		change(n)
	}
	return n
}

// enroller returns one whose Kubernetes says this of the token right.
func enroller(t *testing.T, says authenticationv1.TokenReviewStatus, ipam nodes.IPAM, objects ...runtime.Object) (*Enroller, *fake.Clientset) {
	t.Helper()
	client := fake.NewClientset(objects...)
	client.PrependReactor("create", "tokenreviews", func(action k8stesting.Action) (bool, runtime.Object, error) {
		asked := action.(k8stesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		out := asked.DeepCopy()
		if asked.Spec.Token == right && slices.Equal(asked.Spec.Audiences, []string{api.TokenAudience}) {
			out.Status = says
		}
		return true, out, nil
	})
	return New(Config{Cluster: followed(t, client), Namespace: "weft-system", Account: "weft-agent", IPAM: ipam}), client
}

// followed is the Kubernetes cluster of a client as the one that objects come from.
func followed(t *testing.T, client *fake.Clientset) *Cluster {
	t.Helper()
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "k1"}}
	if err := client.Tracker().Add(system); err != nil {
		t.Fatal(err)
	}
	return &Cluster{
		Connect:  func() (kubernetes.Interface, error) { return client, nil },
		Followed: func(context.Context) (string, error) { return "k1", nil },
	}
}

// Nobody joins, and nothing is told, but in the cluster that objects come from.
func TestOnlyTheFollowedCluster(t *testing.T) {
	e, client := enroller(t, review(nil), nodes.ClusterPool, node(nil))
	c, uid, connected := e.conf.Cluster, "", 0
	c.Followed = func(context.Context) (string, error) { return uid, nil }
	c.Connect = func() (kubernetes.Interface, error) {
		if connected++; connected == 1 {
			return nil, errors.New("no such file")
		}
		return client, nil
	}
	p := &Publisher{Cluster: c, Namespace: "weft-system", Mesh: "east", Operator: func() ([]byte, error) { return []byte("contexts: []"), nil },
		Now: func() api.Bootstrap { return api.Bootstrap{Servers: []string{"https://192.0.2.1:7443"}, CA: testCA} }}
	for _, step := range []struct{ followed, want string }{
		{"", "has not read Kubernetes yet"}, {"k1", "cannot be read: no such file"}, {"k2", "another Kubernetes cluster"},
	} {
		uid = step.followed
		if step.followed == "k1" {
			connected = 0
		}
		refused(t, e, right, map[string]int{"": 503, "k1": 503, "k2": 409}[uid], step.want)
		if step.followed == "k1" {
			connected = 0
		}
		if err := p.publish(t.Context()); err == nil || !strings.Contains(err.Error(), step.want) {
			t.Errorf("following %q, it is told: %v", uid, err)
		}
	}
	for _, a := range client.Actions() {
		if a.GetResource().Resource != "namespaces" {
			t.Errorf("%s of %s", a.GetVerb(), a.GetResource().Resource)
		}
	}
	// The kubeconfig is read again after it has led elsewhere.
	before := connected
	uid = "k1"
	if _, err := e.Node(t.Context(), right); err != nil || connected != before+1 {
		t.Errorf("%v, connected %d times more", err, connected-before)
	}
	if err := p.publish(t.Context()); err != nil || connected != before+1 {
		t.Errorf("%v, connected %d times more", err, connected-before)
	}
}

func TestAnAgentsTokenNamesItsNode(t *testing.T) {
	e, _ := enroller(t, review(nil), nodes.Kubernetes, node(nil))
	r, err := e.Node(t.Context(), right)
	if err != nil {
		t.Fatal(err)
	}
	if r.Name != "n1" || r.UID != "u1" || !r.Replace || r.Labels[corev1.LabelTopologyZone] != "a" ||
		!slices.Equal(r.Addresses, []netip.Addr{netip.MustParseAddr("192.0.2.11")}) ||
		!slices.Equal(r.PodCIDRs, []netip.Prefix{netip.MustParsePrefix("10.1.3.0/24"), netip.MustParsePrefix("fd00::/64")}) {
		t.Errorf("the node asks for %+v", r)
	}
	e, _ = enroller(t, review(nil), nodes.ClusterPool, node(nil))
	if r, err = e.Node(t.Context(), right); err != nil || r.PodCIDRs != nil {
		t.Errorf("with a pool of the cluster's, the node asks for pod CIDRs %v, %v; want none", r.PodCIDRs, err)
	}
}

// Before 1.30, a token names its pod alone.
func TestATokenOfAnOlderKubernetesNamesItsPod(t *testing.T) {
	older := review(func(s *authenticationv1.TokenReviewStatus) { delete(s.User.Extra, nodeNameKey) })
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "weft-system", Name: "weft-agent-x", UID: "p1"}, Spec: corev1.PodSpec{NodeName: "n1"}}
	e, _ := enroller(t, older, nodes.ClusterPool, node(nil), pod)
	if r, err := e.Node(t.Context(), right); err != nil || r.Name != "n1" {
		t.Errorf("the node is %q, %v; want n1", r.Name, err)
	}
	successor := pod.DeepCopy()
	successor.UID = "p2"
	e, _ = enroller(t, older, nodes.ClusterPool, node(nil), successor)
	refused(t, e, right, http.StatusForbidden, "is gone")
}

func refused(t *testing.T, e *Enroller, token string, status int, text string) {
	t.Helper()
	_, err := e.Node(t.Context(), token)
	var refusal *api.Error
	if !errors.As(err, &refusal) || refusal.Status != status || !strings.Contains(refusal.Error(), text) {
		t.Errorf("error is %v (%+v), want %d with %q", err, refusal, status, text)
	}
}

func TestWhoMayNotJoin(t *testing.T) {
	type status = authenticationv1.TokenReviewStatus
	for name, c := range map[string]struct {
		token  string
		review status
		node   *corev1.Node
		status int
		text   string
	}{
		"somebody else's token": {wrong, review(nil), node(nil), 401, "does not accept the token"},
		"expired":               {right, review(func(s *status) { *s = status{Error: "token has expired"} }), node(nil), 401, "token has expired"},
		"audience ignored":      {right, review(func(s *status) { s.Audiences = []string{"https://kubernetes.default.svc"} }), node(nil), 403, "the token is for"},
		"no audience":           {right, review(func(s *status) { s.Audiences = nil }), node(nil), 403, "the token is for"},
		"other account":         {right, review(func(s *status) { s.User.Username = "system:serviceaccount:shop:web" }), node(nil), 403, "system:serviceaccount:shop:web"},
		"unbound":               {right, review(func(s *status) { s.User.Extra = nil }), node(nil), 403, "not bound to a pod"},
		"no pod":                {right, review(func(s *status) { delete(s.User.Extra, nodeNameKey) }), node(nil), 403, "is gone"},
		"no node":               {right, review(func(s *status) { s.User.Extra[nodeNameKey] = []string{"n2"} }), node(nil), 403, `no node "n2"`},
		"no address":            {right, review(nil), node(func(n *corev1.Node) { n.Status.Addresses = nil }), 503, "no internal address"},
		"no CIDR":               {right, review(nil), node(func(n *corev1.Node) { n.Spec.PodCIDRs = nil }), 503, "no pod CIDR"},
		"bad CIDR":              {right, review(nil), node(func(n *corev1.Node) { n.Spec.PodCIDRs = []string{"10.1.3.0"} }), http.StatusUnprocessableEntity, "10.1.3.0"},
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := enroller(t, c.review, nodes.Kubernetes, c.node)
			refused(t, e, c.token, c.status, c.text)
		})
	}
}

func TestKubernetesIsAway(t *testing.T) {
	e, client := enroller(t, review(nil), nodes.Kubernetes, node(nil))
	client.PrependReactor("get", "nodes", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(corev1.Resource("nodes"), "n1", errors.New("no role"))
	})
	refused(t, e, right, http.StatusServiceUnavailable, "no role")
	client.PrependReactor("create", "tokenreviews", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	})
	refused(t, e, right, http.StatusServiceUnavailable, "connection refused")
}

func TestParseAccount(t *testing.T) {
	if ns, name, err := ParseAccount("weft-system/weft-agent"); ns != "weft-system" || name != "weft-agent" || err != nil {
		t.Errorf("got %q, %q, %v", ns, name, err)
	}
	for _, text := range []string{"", "weft-agent", "/x", "x/", "a/b/c"} {
		if _, _, err := ParseAccount(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}
