package flow

import (
	"encoding/json"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-mesh/weft/identity"
)

// denied returns a packet from frontend in east that web in west refused.
func denied() Flow {
	return Flow{
		Time:    time.Date(2026, 1, 2, 15, 4, 5, 6e6, time.UTC),
		Verdict: Dropped, Reason: "policy-denied", DefaultDeny: true,
		Policies:  []Policy{{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "web"}},
		Direction: Ingress,
		Source: Endpoint{Cluster: "east", Namespace: "shop", Pod: "frontend-1", Identity: 65540,
			Labels: []string{"k8s:app=frontend", "k8s:team"}, Address: netip.MustParseAddr("10.1.1.5"), Port: 40000},
		Destination: Endpoint{Cluster: "west", Namespace: "shop", Pod: "web-2", Identity: 131080,
			Labels: []string{"k8s:app=web"}, Address: netip.MustParseAddr("10.2.1.9"), Port: 80},
		Service:  &Service{Namespace: "shop", Name: "web", Address: netip.MustParseAddr("10.101.0.7"), Port: 8080},
		Protocol: "TCP", TCPFlags: []string{"SYN"}, Bytes: 60, Node: "west/west-1", Summary: "TCP Flags: SYN",
	}
}

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		query string
		want  bool
	}{
		{"", true},
		{"verdict=DROPPED", true},
		{"verdict=dropped", true},
		{"verdict=FORWARDED", false},
		{"verdict=FORWARDED,DROPPED", true},
		{"verdict=FORWARDED&verdict=DROPPED", true},
		{"verdict=DROPPED&reason=no-tunnel", false},
		{"reason=policy-denied", true},
		{"reason=Policy-Denied", true},
		{"direction=ingress", true},
		{"direction=egress", false},
		{"protocol=tcp", true},
		{"protocol=6", true},
		{"protocol=udp", false},
		{"node=west-1", true},
		{"node=west/west-1", true},
		{"node=west/*", true},
		{"node=east/*", false},
		{"node=w*", true},
		{"policy=web", true},
		{"policy=shop/web", true},
		{"policy=other/web", false},
		{"service=web", true},
		{"service=shop/web", true},
		{"service=shop/db", false},
		{"since=2026-01-02T15:04:05Z", true},
		{"since=2026-01-02T15:04:06Z", false},
		{"until=2026-01-02T15:04:05Z", false},
		{"until=2026-01-02T15:04:06Z", true},
		{"since=5m", false},
		{"pod=front", true},
		{"pod=shop/web", true},
		{"pod=shop/", true},
		{"pod=/web", true},
		{"pod=west/shop/web", true},
		{"pod=east/shop/web", false},
		{"pod=east//", true},
		{"from-pod=web", false},
		{"to-pod=web", true},
		{"to-pod=web&from-pod=frontend", true},
		{"to-pod=db,web", true},
		{"cluster=east", true},
		{"cluster=e*", true},
		{"from-cluster=west", false},
		{"from-cluster=east&to-cluster=west", true},
		{"namespace=shop", true},
		{"to-namespace=other", false},
		{"identity=65540", true},
		{"from-identity=65540", true},
		{"to-identity=65540", false},
		{"identity=world", false},
		{"ip=10.1.0.0/16", true},
		{"ip=10.2.1.9", true},
		{"ip=10.3.0.0/16", false},
		{"from-ip=10.2.1.9", false},
		{"port=80", true},
		{"from-port=80", false},
		{"pod=frontend&port=80", true},
		{"label=app", true},
		{"label=app=web", true},
		{"label=k8s:app=web", true},
		{"label=k8s:app", true},
		{"label=team", true},
		{"label=app=we", false},
		{"from-label=app=web", false},
	} {
		t.Run(test.query, func(t *testing.T) {
			query, err := url.ParseQuery(test.query)
			if err != nil {
				t.Fatal(err)
			}
			filter, err := ParseFilter(query)
			if err != nil {
				t.Fatal(err)
			}
			f := denied()
			if got := filter.Match(&f); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestFilterWithoutPods(t *testing.T) {
	world := Flow{Source: Endpoint{Identity: identity.World, Address: netip.MustParseAddr("192.0.2.1")}}
	for query, want := range map[string]bool{"pod=/": false, "identity=world": true, "service=web": false, "cluster=*": true} {
		q, _ := url.ParseQuery(query)
		filter, err := ParseFilter(q)
		if err != nil {
			t.Fatal(err)
		}
		if got := filter.Match(&world); got != want {
			t.Errorf("%s: got %v, want %v", query, got, want)
		}
	}
}

func TestParseFilterRefuses(t *testing.T) {
	for query, want := range map[string]string{
		"verdict=LOST":           `filter verdict: there is no verdict "LOST"; choose FORWARDED, DROPPED, RESET or REFUSED`,
		"reason=policy_denied":   `filter reason: there is no reason "policy_denied"; choose from failed, flow-clash, `,
		"reason=delivered":       `there is no reason "delivered"; choose from`,
		"verdict=":               `there is no verdict ""`,
		"pod=":                   "the value is empty",
		"pod=a/b/c/d":            "too many parts",
		"port=0":                 "not a port",
		"port=70000":             "not a port",
		"ip=10.1":                "neither an address nor a prefix",
		"identity=nobody":        "neither a number nor a reserved name",
		"cluster=[":              "not a pattern",
		"since=yesterday":        "neither a duration",
		"direction=up":           "choose EGRESS or INGRESS",
		"protocol=tcpp":          "choose TCP, UDP",
		"verdcit=DROPPED":        `there is no filter "verdcit"; choose from cluster, direction`,
		"verdict=FORWARDED,,":    `there is no verdict ""`,
		"since=-5m":              "neither a duration",
		"ip=::ffff:10.0.0.0/112": "neither an address nor a prefix",
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = ParseFilter(q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want …%s…", query, err, want)
		}
	}
}

var plain = cmp.Options{
	cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
}

// FuzzParseFilter checks that whatever is accepted reads back the same, and that matching
// never panics.
func FuzzParseFilter(f *testing.F) {
	f.Add("verdict=DROPPED&from-pod=east/shop/web&since=5m&port=80,443&ip=10.1.0.0/16&identity=world&label=app%3Dweb")
	f.Add("node=*&cluster=prod-*&until=2026-01-02T15:04:05Z&protocol=47")
	f.Fuzz(func(t *testing.T, text string) {
		query, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		filter, err := ParseFilter(query)
		if err != nil {
			return
		}
		back, err := ParseFilter(filter.Values())
		if err != nil {
			t.Fatalf("%v reads back as %v", filter, err)
		}
		if diff := cmp.Diff(filter, back, plain); diff != "" {
			t.Fatal(diff)
		}
		fl := denied()
		if filter.Match(&fl) != back.Match(&fl) {
			t.Fatal("the filter that was read back decides otherwise")
		}
	})
}

// FuzzFlowJSON checks that whatever is read as a flow is written as one line that reads
// back the same, and that its text contains nothing a terminal acts on.
func FuzzFlowJSON(f *testing.F) {
	fl := denied()
	text, err := json.Marshal(fl)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"source":{"pod":"\u001b[2J"},"node":"a\nb"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var one, two Flow
		if json.Unmarshal(text, &one) != nil {
			return
		}
		out, err := json.Marshal(one)
		if err != nil {
			return // a time that JSON cannot express
		}
		if strings.ContainsRune(string(out), '\n') {
			t.Fatalf("more than one line: %q", out)
		}
		if err := json.Unmarshal(out, &two); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(one, two, plain); diff != "" {
			t.Fatal(diff)
		}
		if strings.ContainsFunc(one.Line(), func(r rune) bool { return r < ' ' || r >= 0x7f && r <= 0x9f }) {
			t.Fatalf("control characters in %q", one.Line())
		}
	})
}
