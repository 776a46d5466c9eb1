package names

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"github.com/weft-mesh/weft/api"
)

// SetDomain is the domain of the cluster set, as the Multi-Cluster Services API has it.
const SetDomain = "clusterset.local."

const (
	// ttl is for how long answers may be kept, in seconds: as long as Kubernetes' name
	// servers say.
	ttl = 5
	// version is that of Kubernetes' DNS specification.
	version = "1.1.0"
)

// id names a service.
type id struct {
	set             bool
	namespace, name string
}

// Zone is what is known of services. Several goroutines may use it.
type Zone struct {
	domain string // of the cluster, with a dot at its end

	mu         sync.RWMutex  // guards what follows
	known      chan struct{} // closed once everything was told
	services   map[id]*api.NamedService
	namespaces map[id]int // how many services each has; without names
	pointers   map[netip.Addr]map[string]bool
}

// NewZone returns an empty zone for the cluster's domain.
func NewZone(domain string) *Zone {
	return &Zone{domain: dns.CanonicalName(domain), known: make(chan struct{}), services: map[id]*api.NamedService{}, namespaces: map[id]int{}, pointers: map[netip.Addr]map[string]bool{}}
}

// Known is closed once the zone was told everything.
func (z *Zone) Known() <-chan struct{} { return z.known }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Follow takes in what one agent tells, from its first event on: what it does not name until
// it has told everything is gone.
func (z *Zone) Follow() func(api.NamesEvent) error {
	seen := map[id]bool{}
	return func(e api.NamesEvent) error {
		z.mu.Lock()
		defer z.mu.Unlock()
		for i := range e.Services {
			s := &e.Services[i]
			key := id{s.Set, s.Namespace, s.Name}
			z.drop(key)
			if !s.Gone {
				z.add(key, s)
			}
			if seen != nil {
				seen[key] = true
			}
		}
		if e.Complete && seen != nil {
			for _, key := range slices.Collect(maps.Keys(z.services)) {
				if !seen[key] {
					z.drop(key)
				}
			}
			if seen = nil; !closed(z.known) {
				close(z.known)
			}
		}
		return nil
	}
}

func (z *Zone) add(key id, s *api.NamedService) {
	z.services[key] = s
	z.namespaces[id{set: key.set, namespace: key.namespace}]++
	for a, name := range z.reverse(s) {
		if z.pointers[a] == nil {
			z.pointers[a] = map[string]bool{}
		}
		z.pointers[a][name] = true
	}
}

func (z *Zone) drop(key id) {
	s := z.services[key]
	if s == nil {
		return
	}
	delete(z.services, key)
	in := id{set: key.set, namespace: key.namespace}
	if z.namespaces[in]--; z.namespaces[in] == 0 {
		delete(z.namespaces, in)
	}
	for a, name := range z.reverse(s) {
		if delete(z.pointers[a], name); len(z.pointers[a]) == 0 {
			delete(z.pointers, a)
		}
	}
}

// reverse yields a service's addresses and those of the endpoints that have names.
func (z *Zone) reverse(s *api.NamedService) func(yield func(netip.Addr, string) bool) {
	return func(yield func(netip.Addr, string) bool) {
		name := z.nameOf(s)
		if !s.Headless {
			for _, a := range s.Addresses {
				if !yield(a, name) {
					return
				}
			}
		}
		for _, e := range s.Endpoints {
			if !yield(e.Address, endpointName(s, e, name)) {
				return
			}
		}
	}
}

func (z *Zone) nameOf(s *api.NamedService) string {
	domain := z.domain
	if s.Set {
		domain = SetDomain
	}
	return strings.ToLower(s.Name + "." + s.Namespace + ".svc." + domain)
}

// host is an endpoint's label.
func host(e api.NamedEndpoint) string {
	return strings.ToLower(cmp.Or(e.Hostname, strings.NewReplacer(".", "-", ":", "-").Replace(expanded(e.Address))))
}

// expanded writes an IPv6 address without ::, which would make a label of dashes at its ends.
func expanded(a netip.Addr) string {
	if a.Is6() {
		return a.StringExpanded()
	}
	return a.String()
}

func endpointName(s *api.NamedService, e api.NamedEndpoint, service string) string {
	if s.Set {
		return host(e) + "." + e.Cluster + "." + service
	}
	return host(e) + "." + service
}

// found is what there is under a name.
type found struct {
	exists  bool // also names under which there are only others
	records []dns.RR
	extra   []dns.RR
}

// Answer answers a question about the zones; false if it is not about them. It has
// no opinion about the size of the answer.
func (z *Zone) Answer(q dns.Question) (m *dns.Msg, ours bool) {
	name := strings.ToLower(dns.Fqdn(q.Name))
	z.mu.RLock()
	defer z.mu.RUnlock()
	m = &dns.Msg{MsgHdr: dns.MsgHdr{Authoritative: true}}
	zone := ""
	for _, domain := range []string{z.domain, SetDomain} {
		if name == domain || strings.HasSuffix(name, "."+domain) {
			zone = domain
		}
	}
	switch {
	case zone == "":
		return m, z.pointer(q, name, m)
	case !closed(z.known):
		m.Authoritative, m.Rcode = false, dns.RcodeServerFailure
		return m, true
	case q.Qclass != dns.ClassINET:
		m.Rcode = dns.RcodeRefused
		return m, true
	}
	f := z.find(zone, strings.TrimSuffix(strings.TrimSuffix(name, zone), "."), q)
	if m.Answer, m.Extra = f.records, f.extra; len(f.records) == 0 {
		m.Ns = []dns.RR{soa(zone)}
	}
	if !f.exists {
		m.Rcode = dns.RcodeNameError
	}
	return m, true
}

// pointer answers for addresses of services; false for all others.
func (z *Zone) pointer(q dns.Question, name string, m *dns.Msg) bool {
	a, ok := reverseAddr(name)
	if !ok || q.Qclass != dns.ClassINET || len(z.pointers[a]) == 0 {
		return false
	}
	if q.Qtype != dns.TypePTR && q.Qtype != dns.TypeANY {
		return true
	}
	for _, target := range slices.Sorted(maps.Keys(z.pointers[a])) {
		m.Answer = append(m.Answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: target})
	}
	return true
}

func header(name string, typ uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: ttl}
}

func soa(zone string) dns.RR {
	return &dns.SOA{Hdr: header(zone, dns.TypeSOA), Ns: "ns.dns." + zone, Mbox: "hostmaster." + zone, Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl}
}

// find looks up a name without its zone.
func (z *Zone) find(zone, name string, q dns.Question) (f found) {
	set := zone == SetDomain
	var labels []string
	if name != "" {
		labels = strings.Split(name, ".")
	}
	n := len(labels)
	switch {
	case n == 0:
		f.exists = true
		if q.Qtype == dns.TypeSOA || q.Qtype == dns.TypeANY {
			f.records = []dns.RR{soa(zone)}
		}
		if q.Qtype == dns.TypeNS || q.Qtype == dns.TypeANY {
			f.records = append(f.records, &dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: "ns.dns." + zone})
		}
		return f
	case n == 1 && labels[0] == "dns-version":
		f.exists = true
		if q.Qtype == dns.TypeTXT || q.Qtype == dns.TypeANY {
			f.records = []dns.RR{&dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{version}}}
		}
		return f
	case labels[n-1] != "svc":
		return f
	case n == 1:
		f.exists = true
		return f
	case n == 2:
		f.exists = z.namespaces[id{set: set, namespace: labels[0]}] > 0
		return f
	}
	s := z.services[id{set, labels[n-2], labels[n-3]}]
	if s == nil {
		return f
	}
	above := labels[:n-3]
	switch {
	case len(above) == 0:
		f.exists = true
		z.ofService(&f, s, q)
	case strings.HasPrefix(above[len(above)-1], "_"):
		z.ofPort(&f, s, above, q)
	case s.Headless:
		z.ofEndpoint(&f, s, above, q)
	}
	return f
}

// ofService answers for the service itself.
func (z *Zone) ofService(f *found, s *api.NamedService, q dns.Question) {
	addresses := s.Addresses
	for _, e := range s.Endpoints {
		addresses = append(addresses, e.Address)
	}
	f.records = records(q.Name, q.Qtype, addresses)
	// The first one gets most connections.
	rand.Shuffle(len(f.records), func(i, j int) { f.records[i], f.records[j] = f.records[j], f.records[i] })
	if q.Qtype == dns.TypeSRV {
		z.srv(f, s, q, "", "")
	}
}

// ofPort answers for _port._protocol.
func (z *Zone) ofPort(f *found, s *api.NamedService, above []string, q dns.Question) {
	protocol, port := strings.TrimPrefix(above[len(above)-1], "_"), ""
	switch {
	case len(above) == 2 && strings.HasPrefix(above[0], "_"):
		port = strings.TrimPrefix(above[0], "_")
	case len(above) > 1:
		return
	}
	var g found
	z.srv(&g, s, q, port, protocol)
	f.exists = len(g.records) > 0
	if q.Qtype == dns.TypeSRV && port != "" {
		f.records, f.extra = g.records, g.extra
	}
}

// srv adds the ports of a name and protocol; empty ones are any.
func (z *Zone) srv(f *found, s *api.NamedService, q dns.Question, port, protocol string) {
	service := z.nameOf(s)
	add := func(p api.NamedPort, target string) {
		if (port == "" || strings.EqualFold(p.Name, port)) && (protocol == "" || strings.EqualFold(p.Protocol, protocol)) && (p.Name != "" || port == "") {
			f.records = append(f.records, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Weight: 100, Port: p.Port, Target: target})
		}
	}
	if !s.Headless {
		for _, p := range s.Ports {
			add(p, service)
		}
		if len(f.records) > 0 {
			f.extra = append(records(service, dns.TypeA, s.Addresses), records(service, dns.TypeAAAA, s.Addresses)...)
		}
		return
	}
	for _, e := range s.Endpoints {
		before, target := len(f.records), endpointName(s, e, service)
		for _, p := range e.Ports {
			add(p, target)
		}
		if len(f.records) > before {
			f.extra = append(f.extra, records(target, typeOf(e.Address), []netip.Addr{e.Address})...)
		}
	}
}

// ofEndpoint answers for a pod: HOST in the cluster, HOST.CLUSTER in the cluster set, where
// CLUSTER alone has no records.
func (z *Zone) ofEndpoint(f *found, s *api.NamedService, above []string, q dns.Question) {
	cluster, label := "", above[0]
	if s.Set {
		if len(above) > 2 {
			return
		}
		cluster = above[len(above)-1]
	} else if len(above) > 1 {
		return
	}
	var addresses []netip.Addr
	for _, e := range s.Endpoints {
		switch {
		case s.Set && !strings.EqualFold(e.Cluster, cluster):
		case s.Set && len(above) == 1:
			f.exists = true
		case host(e) == label:
			addresses = append(addresses, e.Address)
		}
	}
	f.exists = f.exists || len(addresses) > 0
	f.records = records(q.Name, q.Qtype, addresses)
}

func typeOf(a netip.Addr) uint16 {
	if a.Is4() {
		return dns.TypeA
	}
	return dns.TypeAAAA
}

// records are the addresses of a type, each once.
func records(name string, typ uint16, addresses []netip.Addr) (out []dns.RR) {
	seen := map[netip.Addr]bool{}
	for _, a := range addresses {
		if seen[a] || typ != typeOf(a) && typ != dns.TypeANY {
			continue
		}
		seen[a] = true
		if a.Is4() {
			out = append(out, &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
		} else {
			out = append(out, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	return out
}

// reverseAddr reads the name of an address, in in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		p := strings.Split(rest, ".")
		slices.Reverse(p)
		a, err := netip.ParseAddr(strings.Join(p, "."))
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	p := strings.Split(rest, ".")
	if !ok || len(p) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(p)
	var b strings.Builder
	for i, digit := range p {
		if len(digit) != 1 {
			return netip.Addr{}, false
		}
		if i > 0 && i%4 == 0 {
			b.WriteByte(':')
		}
		b.WriteString(digit)
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && a.Is6()
}
