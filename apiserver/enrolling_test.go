package apiserver

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// right is an agent's token, signed by nobody.
var right = func() string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"RS256"}`)) + "." + part([]byte(`{"sub":"system:serviceaccount:weft-system:weft-agent","aud":["weft.io"],"exp":99999999999}`)) + "." + part([]byte("signed"))
}()

// kubernetesAPI answers what an API server asks Kubernetes about an agent of node n1, whose
// token is right. It returns a kubeconfig file.
func kubernetesAPI(t *testing.T) string {
	t.Helper()
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", func(w http.ResponseWriter, r *http.Request) {
		var review authenticationv1.TokenReview
		text, err := io.ReadAll(r.Body)
		if err == nil {
			_, _, err = scheme.Codecs.UniversalDeserializer().Decode(text, nil, &review)
		}
		if err != nil {
			t.Error(err)
		}
		if review.Spec.Token == right {
			review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: review.Spec.Audiences, User: authenticationv1.UserInfo{
				Username: "system:serviceaccount:weft-system:weft-agent", Extra: map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/node-name": {"n1"}},
			}}
		}
		review.TypeMeta = metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}
		answer(w, http.StatusCreated, review)
	})
	mux.HandleFunc("GET /api/v1/nodes/n1", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusOK, corev1.Node{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1"},
			Spec:   corev1.NodeSpec{PodCIDRs: []string{"10.1.77.0/24"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.16.1.7"}}},
		})
	})
	mux.HandleFunc("GET /api/v1/namespaces/kube-system", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusOK, corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "k1"}})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: "` + server.URL + `"}}], users: [{name: c, user: {token: t}}], contexts: [{name: c, context: {cluster: c, user: c}}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// follows makes it known which Kubernetes cluster objects come from.
func follows(t *testing.T, p *process, uid string) {
	t.Helper()
	if err := store.Write(t.Context(), p.srv.store, store.Put(wire.KubernetesKey, []byte(uid))); err != nil {
		t.Fatal(err)
	}
}

// A node of Kubernetes joins with nothing but its token and what everybody may know.
func TestANodeJoinsByItsToken(t *testing.T) {
	conf := config(t)
	conf.AgentAccount, conf.Kubernetes, conf.Kubeconfig, conf.IPAM = "weft-system/weft-agent", true, kubernetesAPI(t), "kubernetes"
	p := start(t, conf)
	where := api.Bootstrap{Servers: []string{p.url}, CA: string(p.srv.authority.Bundle())}
	for _, step := range []struct{ followed, want string }{{"", "has not read Kubernetes yet"}, {"k2", "another Kubernetes cluster"}} {
		if step.followed != "" {
			follows(t, p, step.followed)
		}
		if _, err := api.Enroll(t.Context(), where, right, "n1"); err == nil || !strings.Contains(err.Error(), step.want) {
			t.Errorf("following %q, it is answered with %v, want %q", step.followed, err, step.want)
		}
	}
	follows(t, p, "k1")
	b, err := api.Enroll(t.Context(), where, right, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if b.Node != "n1" || b.Cluster != conf.Cluster || b.PodCIDRs[0].String() != "10.1.77.0/24" || b.Addresses[0].String() != "172.16.1.7" {
		t.Errorf("the bundle is for %s/%s, %v at %v", b.Cluster, b.Node, b.PodCIDRs, b.Addresses)
	}
	if err := authority.CheckPair([]byte(b.Cert), []byte(b.Key), []byte(b.CA), "agent-n1"); err != nil {
		t.Error(err)
	}
	// The certificate is as good as an operator's bundle has.
	c, err := api.NewClient(api.Context{Name: "n1", Server: p.url, CA: b.CA, Cert: b.Cert, Key: b.Key})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.AddNode(t.Context(), api.NodeRequest{Name: "n1"}); err != nil {
		t.Error(err)
	}

	for _, c := range []struct {
		token, node string
		status      int
		want        string
	}{
		{right[:len(right)-1], "", 401, "does not accept the token"},
		{"wrong", "", 401, "the token cannot be an agent's"},
		{"", "", 401, "has no token"},
		{strings.Repeat("x", maxToken+1), "", 401, "has no token"},
		{right, "n2", 403, "the agent calls itself n2"},
	} {
		_, err := api.Enroll(t.Context(), where, c.token, c.node)
		var refusal *api.Error
		if !errors.As(err, &refusal) || refusal.Status != c.status || !strings.Contains(err.Error(), c.want) {
			t.Errorf("token %.10q for node %q: %v, want %d with %q", c.token, c.node, err, c.status, c.want)
		}
	}
	nodes, err := p.admin().Nodes(t.Context())
	if err != nil || len(nodes.Nodes) != 1 {
		t.Errorf("nodes are %+v, %v; want n1 alone", nodes, err)
	}
	// Kubernetes has it, and decides when it goes.
	if _, err := p.admin().RemoveNode(t.Context(), "n1", false); err == nil || !strings.Contains(err.Error(), "comes from Kubernetes") {
		t.Errorf("it was removed here: %v", err)
	}
	if _, err := p.admin().RemoveNode(t.Context(), "n1", true); err != nil {
		t.Error(err)
	}
}

// Where nodes join by token, everything else still needs a certificate.
func TestATokenIsForJoiningAlone(t *testing.T) {
	conf := config(t)
	conf.AgentAccount, conf.Kubernetes, conf.Kubeconfig = "weft-system/weft-agent", true, kubernetesAPI(t)
	p := start(t, conf)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.srv.authority.Pool(), MinVersion: tls.VersionTLS13}}}
	defer client.CloseIdleConnections()
	for _, what := range []string{"GET /v1/status", "GET /v1/nodes", "POST /v1/nodes", "POST /v1/apply", "GET /v1/enroll", "POST /v1/enroll/x", "GET /v1/backup", "GET /debug/pprof/"} {
		method, path, _ := strings.Cut(what, " ")
		r, err := http.NewRequestWithContext(t.Context(), method, p.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+right)
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s is answered with %d, want 401", what, resp.StatusCode)
		}
	}
}

// A kubeconfig that cannot be read keeps nobody from the mesh that there is. What cannot be
// told is said.
func TestAnAPIServerStartsWithoutKubernetes(t *testing.T) {
	conf := config(t)
	conf.AgentAccount, conf.Kubernetes, conf.IPAM = "weft-system/weft-agent", true, "kubernetes"
	readable := kubernetesAPI(t)
	conf.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	p := start(t, conf)
	follows(t, p, "k1")
	where := api.Bootstrap{Servers: []string{p.url}, CA: string(p.srv.authority.Bundle())}
	if _, err := api.Enroll(t.Context(), where, right, "n1"); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("it is answered with %v", err)
	}
	told := func() (all []api.Concern) {
		for _, c := range p.srv.processConcerns() {
			if c.Reason == "BootstrapNotPublished" {
				all = append(all, c)
			}
		}
		return all
	}
	eventually(t, "it is told that nothing is published", func() error {
		all := told()
		if len(all) != 1 || all[0].Object != "Kubernetes" || all[0].Since.IsZero() || !strings.Contains(all[0].Message, "cannot be read") || !strings.Contains(all[0].Next, "--kubeconfig") {
			return fmt.Errorf("told: %+v", all)
		}
		return nil
	})
	text, err := os.ReadFile(readable)
	if err == nil {
		err = os.WriteFile(conf.Kubeconfig, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.Enroll(t.Context(), where, right, "n1"); err != nil {
		t.Errorf("once it can be read: %v", err)
	}
}

// Whoever asks without right fills no log.
func TestRefusalsAreLoggedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		var f refusals
		ask := func(n int) {
			for i := range n {
				f.note(slog.New(slog.NewTextHandler(&log, nil)), fmt.Sprint("192.0.2.", i), errors.New("no token"))
			}
		}
		ask(1000)
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "from=192.0.2.0") || !strings.Contains(text, "no token") {
			t.Errorf("logged %s", text)
		}
		time.Sleep(refusalPause)
		ask(2)
		if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "unloggedBefore=999") {
			t.Errorf("logged %s", text)
		}
	})
}

func TestWithoutAnAccountNobodyJoinsByToken(t *testing.T) {
	p := start(t, config(t))
	where := api.Bootstrap{Servers: []string{p.url}, CA: string(p.srv.authority.Bundle())}
	if _, err := api.Enroll(t.Context(), where, right, "n1"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("it is answered with %v, want that a certificate is required", err)
	}
}
