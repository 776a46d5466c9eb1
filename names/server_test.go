package names

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent is one that tells what a test sends.
func agent(t *testing.T, events <-chan api.NamesEvent) string {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &nethttp.Server{Handler: nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if r.URL.Path != api.NamesPath {
			t.Errorf("asked for %s", r.URL.Path)
		}
		for {
			select {
			case <-r.Context().Done():
				return
			case e, ok := <-events:
				if !ok {
					return
				}
				_ = json.NewEncoder(w).Encode(e)
				_ = nethttp.NewResponseController(w).Flush()
			}
		}
	})}}
	s.Start()
	t.Cleanup(s.Close)
	return path
}

// free returns an address of this machine that nobody listens on.
func free(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serve runs a server until the test ends.
func serve(t *testing.T, c Config) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Serve(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// until asks again until the answer has the code.
func until(t *testing.T, network, server, name string, rcode int) *dns.Msg {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(name, dns.TypeA)
	for {
		m, _, err := (&dns.Client{Net: network}).ExchangeContext(t.Context(), q, server)
		if err == nil && m.Rcode == rcode {
			return m
		}
		if t.Context().Err() != nil {
			t.Fatalf("%s: %v %v", name, m, err)
		}
	}
}

func TestServer(t *testing.T) {
	many := api.NamedService{Namespace: "shop", Name: "many", Headless: true}
	for i := range 200 {
		many.Endpoints = append(many.Endpoints, api.NamedEndpoint{Cluster: "east", Address: netip.AddrFrom4([4]byte{10, 1, 2, byte(i)})})
	}
	events := make(chan api.NamesEvent)
	c := Defaults()
	c.Socket, c.Listen, c.Log = agent(t, events), []string{free(t)}, slog.New(slog.DiscardHandler)
	serve(t, c)
	at := c.Listen[0]
	q := new(dns.Msg)
	q.SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)
	if m, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), q, at); err == nil {
		t.Errorf("before the agent has told anything: %v", m)
	}
	events <- api.NamesEvent{Services: append(shop(), many), Complete: true}
	if m := until(t, "udp", at, "web.shop.svc.cluster.local.", dns.RcodeSuccess); len(m.Answer) != 1 || !m.Authoritative {
		t.Errorf("%v", m)
	}
	// What does not fit is asked for over TCP.
	if m := until(t, "udp", at, "many.shop.svc.cluster.local.", dns.RcodeSuccess); !m.Truncated {
		t.Errorf("%d records over UDP", len(m.Answer))
	}
	if m := until(t, "tcp", at, "many.shop.svc.cluster.local.", dns.RcodeSuccess); m.Truncated || len(m.Answer) != 200 {
		t.Errorf("%d records over TCP", len(m.Answer))
	}
	until(t, "udp", at, "example.org.", dns.RcodeRefused)
	// The agent goes, and what it has told stays.
	close(events)
	until(t, "udp", at, "web.shop.svc.cluster.local.", dns.RcodeSuccess)
}

func TestUpstream(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	up := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		rr, _ := dns.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.1")
		m.Answer = []dns.RR{rr}
		_ = w.WriteMsg(m)
	})}
	done := make(chan error)
	go func() { done <- up.ActivateAndServe() }()
	t.Cleanup(func() { _ = up.Shutdown(); <-done })
	s := &server{zone: filled(t), upstream: []string{"127.0.0.1:1", pc.LocalAddr().String()}, slots: make(chan struct{}, 1)}
	q := new(dns.Msg)
	q.SetQuestion("example.org.", dns.TypeA)
	if m := s.reply(q); m.Id != q.Id || len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), "192.0.2.1") {
		t.Errorf("%v", m)
	}
	// Names of ours are never asked for elsewhere.
	q.SetQuestion("other.shop.svc.clusterset.local.", dns.TypeA)
	if m := s.reply(q); m.Rcode != dns.RcodeNameError {
		t.Errorf("%v", m)
	}
	s.slots <- struct{}{}
	q.SetQuestion("example.org.", dns.TypeA)
	if m := s.reply(q); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
}

func TestMessagesThatAreNoQuestions(t *testing.T) {
	s := &server{zone: filled(t)}
	for want, change := range map[int]func(*dns.Msg){
		dns.RcodeNotImplemented: func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
		dns.RcodeFormatError:    func(m *dns.Msg) { m.Question = nil },
		dns.RcodeBadVers:        func(m *dns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) },
		dns.RcodeRefused:        func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
	} {
		q := new(dns.Msg)
		q.SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)
		change(q)
		if m := s.reply(q); m.Rcode != want {
			t.Errorf("%s, want %s", dns.RcodeToString[m.Rcode], dns.RcodeToString[want])
		}
	}
}

func TestConfig(t *testing.T) {
	for why, change := range map[string]func(*Config){
		"socket is empty":       func(c *Config) { c.Socket = "" },
		"listen is empty":       func(c *Config) { c.Listen = nil },
		`listen "x"`:            func(c *Config) { c.Listen = []string{"x"} },
		"cluster-domain":        func(c *Config) { c.ClusterDomain = "" },
		"of the cluster set":    func(c *Config) { c.ClusterDomain = "clusterset.local" },
		`upstream "dns.google"`: func(c *Config) { c.Upstream = []string{"dns.google"} },
	} {
		c := Defaults()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(fmt.Sprint(err), why) {
			t.Errorf("%v, want %s", err, why)
		}
	}
	if got, err := upstream("fd00::1"); err != nil || got != "[fd00::1]:53" {
		t.Errorf("%s %v", got, err)
	}
}
