package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

// The audit trail has a line for each change that says who made it, and none for what
// only reads, was refused, or is an agent's routine.
func TestAudit(t *testing.T) {
	by := func(user, method, path string) *http.Request {
		r := httptest.NewRequest(method, path, nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: user}}}}
		return r
	}
	var out bytes.Buffer
	s := &server{log: slog.New(slog.NewTextHandler(&out, nil))}
	for _, c := range []struct {
		request *http.Request
		status  int
		want    string
	}{
		{by("admin", "POST", "/v1/nodes"), 200, "user=admin action=posted object=nodes"},
		{by("admin", "DELETE", "/v1/nodes/n1"), 200, "user=admin action=deleted object=nodes/n1"},
		{by("admin", "DELETE", "/v1/peers/west"), 200, "user=admin action=deleted object=peers/west"},
		{by("admin", "POST", "/v1/rotate"), 200, "user=admin action=posted object=rotate"},
		{by("admin", "GET", "/v1/nodes"), 200, ""},
		{by("admin", "POST", "/v1/nodes"), 409, ""},
		{by("agent-n1", "POST", "/v1/nodes"), 200, ""},
		{by("admin", "POST", "/v1/apply"), 200, ""}, // auditObject has a line for each object
		{by("admin", "POST", "/v1/apply"), 422, ""},
		{by("admin", "POST", "/v1/apply"), 507, ""}, // the store refused it
		{by("admin", "POST", "/v1/apply"), 503, "user=admin action=posted object=apply result=unconfirmed status=503"},
		{by("admin", "POST", "/v1/apply?dry-run=true"), 503, ""},
		{by("admin", "DELETE", "/v1/objects/pods/shop/web"), 500, "object=objects/pods/shop/web result=unconfirmed"},
		{by("admin", "DELETE", "/v1/peers/west"), 503, "object=peers/west result=unconfirmed"},
	} {
		out.Reset()
		s.audited(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(c.status) })).ServeHTTP(httptest.NewRecorder(), c.request)
		if got := out.String(); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s %s with %d: %q, want %q", c.request.Method, c.request.URL.Path, c.status, got, c.want)
		}
	}
	out.Reset()
	s.auditObject("admin", api.AppliedObject{Kind: "Pod", Namespace: "shop", Name: "a", Action: api.Created})
	s.auditObject("admin", api.AppliedObject{Kind: "Namespace", Name: "shop", Action: api.Configured})
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); len(lines) != 2 ||
		!strings.HasSuffix(lines[0], "msg=audit user=admin action=created kind=Pod object=shop/a") ||
		!strings.HasSuffix(lines[1], "action=configured kind=Namespace object=shop") {
		t.Errorf("%s", out.String())
	}
}

// Whoever hangs up while a change is under way neither stops it nor keeps it out of the
// trail.
func TestAChangeIsAuditedWhoeverHangsUp(t *testing.T) {
	var out bytes.Buffer
	s := &server{log: slog.New(slog.NewTextHandler(&out, nil))}
	ctx, hangUp := context.WithCancel(t.Context())
	next := s.answer(func(r *http.Request) (any, error) {
		hangUp()
		return nil, r.Context().Err()
	})
	s.audited(next).ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "DELETE", "/v1/nodes/n1", nil))
	if got := out.String(); !strings.Contains(got, "action=deleted object=nodes/n1") || strings.Contains(got, "unconfirmed") {
		t.Errorf("logged %q", got)
	}
	out.Reset()
	s.audited(next).ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/v1/nodes/n1", nil))
	if got := out.String(); got != "" {
		t.Errorf("a reader who hung up is logged: %q", got)
	}
}

// A running server logs who changed what over its API, a line for each object.
func TestTheAPIServerLogsWhoChangedWhat(t *testing.T) {
	conf, out := config(t), &trail{}
	conf.Log = slog.New(slog.NewTextHandler(out, nil))
	p := start(t, conf)
	ctx, admin := t.Context(), p.admin()
	n1 := join(t, admin, 1)
	const ns = "apiVersion: v1\nkind: Namespace\nmetadata: {name: dev%s}\n"
	for _, labels := range []string{"", ", labels: {a: b}", ", labels: {a: b}"} {
		if _, err := admin.Apply(ctx, fmt.Appendf(nil, ns, labels), api.ManifestOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.Apply(ctx, []byte("kind: Pot"), api.ManifestOptions{}); err == nil {
		t.Error("a pot is applied")
	}
	if _, err := admin.Delete(ctx, "namespace", "", "dev", api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Apply(ctx, fmt.Appendf(nil, ns, ""), api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.DeleteManifest(ctx, fmt.Appendf(nil, ns, ""), api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Invite(ctx, "west"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.agent(n1).Get(ctx, wire.ClusterKey); err != nil { // reading leaves no line
		t.Fatal(err)
	}
	want := []string{
		"user=admin action=posted object=nodes/n1",
		"user=admin action=created kind=Namespace object=dev",
		"user=admin action=configured kind=Namespace object=dev",
		"user=admin action=deleted kind=Namespace object=dev",
		"user=admin action=created kind=Namespace object=dev",
		"user=admin action=deleted kind=Namespace object=dev",
		"user=admin action=posted object=peers/invite/west",
	}
	if diff := cmp.Diff(want, out.audit()); diff != "" {
		t.Errorf("audit trail (-want +got):\n%s", diff)
	}
}

// trail is a log that several goroutines write.
type trail struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *trail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// audit are its lines of the audit trail, without time and level.
func (l *trail) audit() (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if _, said, ok := strings.Cut(strings.TrimSpace(line), "msg=audit "); ok {
			lines = append(lines, said)
		}
	}
	return lines
}
