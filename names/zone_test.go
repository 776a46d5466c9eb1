package names

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/weft-mesh/weft/api"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

var http = []api.NamedPort{{Name: "http", Protocol: "TCP", Port: 80}, {Name: "dns", Protocol: "UDP", Port: 53}}

func shop() []api.NamedService {
	ends := []api.NamedEndpoint{
		{Cluster: "east", Hostname: "db-0", Address: netip.MustParseAddr("10.1.1.2"), Ports: http[:1]},
		{Cluster: "west", Hostname: "db-0", Address: netip.MustParseAddr("10.2.1.2"), Ports: http[:1]},
		{Cluster: "west", Address: netip.MustParseAddr("fd00::2"), Ports: http[:1]},
	}
	return []api.NamedService{
		{Namespace: "shop", Name: "web", Addresses: addrs("10.101.0.7", "fd00:101::7"), Ports: http},
		{Namespace: "shop", Name: "db", Headless: true, Ports: http[:1], Endpoints: ends[:1]},
		{Set: true, Namespace: "shop", Name: "web", Addresses: addrs("10.101.0.8"), Ports: http},
		{Set: true, Namespace: "shop", Name: "db", Headless: true, Ports: http[:1], Endpoints: ends},
	}
}

func filled(t testing.TB) *Zone {
	z := NewZone("cluster.local")
	if err := z.Follow()(api.NamesEvent{Services: shop(), Complete: true}); err != nil {
		t.Fatal(err)
	}
	return z
}

// ask returns the answer in one line: the code, and what is in each record, in order.
func ask(z *Zone, name, typ string) string {
	m, ours := z.Answer(dns.Question{Name: dns.Fqdn(name), Qtype: dns.StringToType[typ], Qclass: dns.ClassINET})
	if !ours {
		return "elsewhere"
	}
	var out []string
	for _, rr := range m.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(out)
	if len(out) == 0 && m.Rcode == dns.RcodeSuccess {
		return "NODATA"
	}
	if m.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[m.Rcode]
	}
	return strings.Join(out, ", ")
}

func TestAnswers(t *testing.T) {
	z := filled(t)
	for _, c := range []struct{ name, typ, want string }{
		{"web.shop.svc.cluster.local", "A", "10.101.0.7"},
		{"WEB.Shop.svc.Cluster.Local", "A", "10.101.0.7"},
		{"web.shop.svc.cluster.local", "AAAA", "fd00:101::7"},
		{"web.shop.svc.cluster.local", "TXT", "NODATA"},
		{"web.shop.svc.clusterset.local", "A", "10.101.0.8"},
		{"web.shop.svc.clusterset.local", "AAAA", "NODATA"},
		{"web.shop.svc.clusterset.local", "SRV", "0 100 53 web.shop.svc.clusterset.local., 0 100 80 web.shop.svc.clusterset.local."},
		{"_http._tcp.web.shop.svc.clusterset.local", "SRV", "0 100 80 web.shop.svc.clusterset.local."},
		{"_http._tcp.web.shop.svc.cluster.local", "SRV", "0 100 80 web.shop.svc.cluster.local."},
		{"_http._udp.web.shop.svc.cluster.local", "SRV", "NXDOMAIN"},
		{"_tcp.web.shop.svc.cluster.local", "SRV", "NODATA"},
		{"_http._tcp.web.shop.svc.cluster.local", "A", "NODATA"},
		{"db.shop.svc.cluster.local", "A", "10.1.1.2"},
		{"db-0.db.shop.svc.cluster.local", "A", "10.1.1.2"},
		{"db.shop.svc.clusterset.local", "A", "10.1.1.2, 10.2.1.2"},
		{"db.shop.svc.clusterset.local", "AAAA", "fd00::2"},
		{"db-0.west.db.shop.svc.clusterset.local", "A", "10.2.1.2"},
		{"db-0.east.db.shop.svc.clusterset.local", "A", "10.1.1.2"},
		{"fd00-0000-0000-0000-0000-0000-0000-0002.west.db.shop.svc.clusterset.local", "AAAA", "fd00::2"},
		{"west.db.shop.svc.clusterset.local", "A", "NODATA"},
		{"north.db.shop.svc.clusterset.local", "A", "NXDOMAIN"},
		{"db-0.db.shop.svc.clusterset.local", "A", "NXDOMAIN"},
		{"_http._tcp.db.shop.svc.clusterset.local", "SRV", "0 100 80 db-0.east.db.shop.svc.clusterset.local., 0 100 80 db-0.west.db.shop.svc.clusterset.local., 0 100 80 fd00-0000-0000-0000-0000-0000-0000-0002.west.db.shop.svc.clusterset.local."},
		{"other.shop.svc.clusterset.local", "A", "NXDOMAIN"},
		{"east.web.shop.svc.clusterset.local", "A", "NXDOMAIN"},
		{"shop.svc.clusterset.local", "A", "NODATA"},
		{"other.svc.clusterset.local", "A", "NXDOMAIN"},
		{"svc.clusterset.local", "A", "NODATA"},
		{"dns-version.clusterset.local", "TXT", `"1.1.0"`},
		{"clusterset.local", "SOA", "ns.dns.clusterset.local. hostmaster.clusterset.local. 1 7200 1800 86400 5"},
		{"7.0.101.10.in-addr.arpa", "PTR", "web.shop.svc.cluster.local."},
		{"8.0.101.10.in-addr.arpa", "PTR", "web.shop.svc.clusterset.local."},
		{"2.1.2.10.in-addr.arpa", "PTR", "db-0.west.db.shop.svc.clusterset.local."},
		{"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.1.0.0.0.0.0.0.0.d.f.ip6.arpa", "PTR", "elsewhere"},
		{"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.1.0.0.0.d.f.ip6.arpa", "PTR", "web.shop.svc.cluster.local."},
		{"1.1.1.1.in-addr.arpa", "PTR", "elsewhere"},
		{"example.org", "A", "elsewhere"},
		{"xclusterset.local", "A", "elsewhere"},
	} {
		if got := ask(z, c.name, c.typ); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.name, c.typ, got, c.want)
		}
	}
}

// Before everything was told once, nothing is denied.
func TestUntilItIsTold(t *testing.T) {
	z := NewZone("cluster.local")
	if got := ask(z, "web.shop.svc.cluster.local", "A"); got != "SERVFAIL" {
		t.Errorf("%s", got)
	}
}

// An agent that starts again tells everything again; until it has, what was known holds.
func TestAgentThatStartsAgain(t *testing.T) {
	z := filled(t)
	tell := z.Follow()
	check := func(when, name, want string) {
		t.Helper()
		if got := ask(z, name, "A"); got != want {
			t.Errorf("%s: %s is %s, want %s", when, name, got, want)
		}
	}
	all := shop()
	_ = tell(api.NamesEvent{Services: all[1:2]})
	check("while it tells", "web.shop.svc.cluster.local", "10.101.0.7")
	_ = tell(api.NamesEvent{Services: all[2:], Complete: true})
	check("after that", "web.shop.svc.cluster.local", "NXDOMAIN")
	check("after that", "web.shop.svc.clusterset.local", "10.101.0.8")
	if got := ask(z, "7.0.101.10.in-addr.arpa", "PTR"); got != "elsewhere" {
		t.Errorf("its address is %s", got)
	}
	_ = tell(api.NamesEvent{Services: []api.NamedService{{Set: true, Namespace: "shop", Name: "web", Gone: true}, {Set: true, Namespace: "shop", Name: "db", Gone: true}}})
	check("gone", "web.shop.svc.clusterset.local", "NXDOMAIN")
	check("gone", "shop.svc.clusterset.local", "NXDOMAIN")
}

// No question ends the server, and each answer can be sent.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"db-0.west.db.shop.svc.clusterset.local.", "_http._tcp.web.shop.svc.cluster.local.", ".", "7.0.101.10.in-addr.arpa.", "..svc.cluster.local."} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeSRV)
		if b, err := m.Pack(); err == nil {
			f.Add(b)
		}
	}
	s := &server{zone: filled(f)}
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		m := s.reply(q)
		m.Truncate(512)
		if _, err := m.Pack(); err != nil {
			t.Errorf("%v: %v", q, err)
		}
	})
}
