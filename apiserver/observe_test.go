package apiserver

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/flow"
	"github.com/weft-mesh/weft/internal/loopbacktest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// fakeAgent serves an agent's API for a node at an address of loopback. Without
// a handler there is only the node.
func (p *process) fakeAgent(node string, handler http.HandlerFunc) (stop func()) {
	p.t.Helper()
	p.srv.agents.port = 14245
	addr := loopbacktest.Addr(p.t)
	reg := wire.Registration{Name: node, Addresses: []netip.Addr{addr}}
	if err := store.Write(p.t.Context(), p.srv.store, store.Put(wire.RegistrationKey(node), wire.Marshal(reg))); err != nil {
		p.t.Fatal(err)
	}
	if handler == nil {
		return func() {}
	}
	pair, err := p.srv.authority.Issue(authority.Request{User: node, Server: true, Addresses: reg.Addresses})
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		p.t.Fatal(err)
	}
	l, err := tls.Listen("tcp", fmt.Sprintf("%v:%d", addr, p.srv.agents.port), &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: p.srv.authority.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	srv := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	return func() { srv.Close(); <-done }
}

// flows answers /v1/observe with flows at these seconds, and then with what
// follow sends.
func flows(node string, seconds []int, follow <-chan int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req, err := flow.ParseRequest(r.URL.Query())
		if err != nil {
			refuse(w, api.Invalid("", "%v", err))
			return
		}
		send := func(second int) {
			_ = json.NewEncoder(w).Encode(flow.Flow{Time: time.Unix(int64(second), 0).UTC(), Node: node})
			_ = http.NewResponseController(w).Flush()
		}
		for _, s := range seconds[max(0, len(seconds)-req.Last):] {
			send(s)
		}
		if !req.Follow {
			return
		}
		_ = http.NewResponseController(w).Flush()
		for {
			select {
			case s := <-follow:
				send(s)
			case <-r.Context().Done():
				return
			}
		}
	}
}

func TestObserveMergesNodes(t *testing.T) {
	p := start(t, config(t))
	news := make(chan int)
	defer p.fakeAgent("n1", flows("n1", []int{1, 4, 5}, news))()
	defer p.fakeAgent("n2", flows("n2", []int{2, 3, 6}, nil))()
	p.fakeAgent("n3", nil) // does not answer

	var got []string
	line := func(text []byte) error {
		var f flow.Flow
		if err := json.Unmarshal(text, &f); err != nil {
			return err
		}
		got = append(got, fmt.Sprintf("%s@%d", f.Node, f.Time.Unix()))
		return nil
	}
	silent, err := p.admin().Observe(t.Context(), url.Values{"last": {"3"}}, line)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(silent, []string{"n3"}) {
		t.Error("silent:", silent)
	}
	if text := strings.Join(got, " "); text != "n1@4 n1@5 n2@6" {
		t.Error("newest of all:", text)
	}

	got = nil
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	enough := errors.New("enough")
	go func() {
		select {
		case news <- 9:
		case <-ctx.Done():
		}
	}()
	_, err = p.admin().Observe(ctx, url.Values{"follow": {"true"}}, func(text []byte) error {
		if err := line(text); err != nil {
			return err
		}
		return enough
	})
	if !errors.Is(err, enough) || strings.Join(got, " ") != "n1@9" {
		t.Errorf("followed: %v %v", got, err)
	}
	var refused *api.Error
	if _, err := p.admin().Observe(ctx, url.Values{"verdict": {"MAYBE"}}, line); !errors.As(err, &refused) || refused.Status != http.StatusUnprocessableEntity {
		t.Errorf("a filter that means nothing: %v", err)
	}
}

func TestTablesOfAnAgent(t *testing.T) {
	p := start(t, config(t))
	defer p.fakeAgent("n1", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/tables/nodes" {
			refuse(w, api.NotFound("there is nodes", "the agent has no table %q", r.URL.Path))
			return
		}
		_ = json.NewEncoder(w).Encode(api.Table{Name: "nodes", Node: "n1", Rows: [][]string{{"a"}}})
	})()
	p.fakeAgent("n2", nil)
	for _, node := range []string{"n1", "east/n1"} {
		if table, err := p.admin().Table(t.Context(), node, "nodes"); err != nil || table.Rows[0][0] != "a" {
			t.Error(node, table, err)
		}
	}
	for node, want := range map[string]string{"n1": "no table", "n2": "does not answer: dial tcp", "n9": `no node "n9"`, "west/n1": `no node "west/n1"`} {
		var refused *api.Error
		if _, err := p.admin().Table(t.Context(), node, "ghosts"); !errors.As(err, &refused) || !strings.Contains(err.Error(), want) || refused.Hint == "" {
			t.Errorf("%s: %v", node, err)
		}
	}
}

// An agent is known by the node that its certificate was issued to, wherever it is.
func TestAnAgentIsKnownByItsName(t *testing.T) {
	ca, err := authority.Open(t.TempDir(), "east")
	if err != nil {
		t.Fatal(err)
	}
	other, err := authority.Open(t.TempDir(), "east")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		by      *authority.Authority
		request authority.Request
		want    string
	}{
		"itself":                 {ca, authority.Request{User: "n1", Server: true, Names: []string{"localhost"}}, ""},
		"another node":           {ca, authority.Request{User: "n2", Server: true, Names: []string{"n1"}, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, "not that of node n1"},
		"of another authority":   {other, authority.Request{User: "n1", Server: true}, "certificate"},
		"a client, not a server": {ca, authority.Request{User: "n1", Client: true}, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			pair, err := c.by.Issue(c.request)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := pair.TLS()
			if err != nil {
				t.Fatal(err)
			}
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }))
			s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
			s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			s.StartTLS()
			defer s.Close()
			a := &agents{clients: map[agentAt]*api.Client{}, port: s.Listener.Addr().(*net.TCPAddr).Port, conf: &tls.Config{RootCAs: ca.Pool()}}
			defer a.close()
			client, err := a.client(wire.Registration{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Nodes(t.Context()); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("it answers %v, want %q", err, c.want)
			}
		})
	}
}
