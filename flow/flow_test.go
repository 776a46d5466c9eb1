package flow

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/identity"
)

// Field names are stable because scripts read them.
func TestFlowJSON(t *testing.T) {
	got, err := json.Marshal(denied())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"time":"2026-01-02T15:04:05.006Z","verdict":"DROPPED","reason":"policy-denied",` +
		`"policies":[{"kind":"CiliumNetworkPolicy","namespace":"shop","name":"web"}],"defaultDeny":true,"direction":"INGRESS",` +
		`"source":{"cluster":"east","namespace":"shop","pod":"frontend-1","identity":65540,"labels":["k8s:app=frontend","k8s:team"],"address":"10.1.1.5","port":40000},` +
		`"destination":{"cluster":"west","namespace":"shop","pod":"web-2","identity":131080,"labels":["k8s:app=web"],"address":"10.2.1.9","port":80},` +
		`"service":{"namespace":"shop","name":"web","address":"10.101.0.7","port":8080},"protocol":"TCP","tcpFlags":["SYN"],"bytes":60,` +
		`"node":"west/west-1","summary":"TCP Flags: SYN"}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestLine(t *testing.T) {
	explicit := denied()
	explicit.DefaultDeny, explicit.Service = false, nil
	explicit.Policies = []Policy{{Kind: "CiliumClusterwideNetworkPolicy", Name: "no-frontend"}}
	world := denied()
	world.Source = Endpoint{Identity: identity.World, Address: netip.MustParseAddr("192.0.2.1"), Port: 5}
	world.Verdict, world.Reason, world.Policies, world.Service = Forwarded, "", nil, nil
	stranger := denied()
	stranger.Source = Endpoint{Cluster: "east", Identity: identity.UnknownMember, Address: netip.MustParseAddr("10.1.7.7")}
	stranger.Policies, stranger.Service, stranger.Summary = nil, &Service{Address: netip.MustParseAddr("10.101.0.1"), Port: 53}, ""
	unread := Flow{Time: denied().Time, Verdict: Dropped, Reason: "not-supported", Direction: Egress, Node: "west/west-1"}
	hinted := denied()
	hinted.Hint = "write a rule"
	rude := denied()
	rude.Source.Pod, rude.Service = "a\x1b[2Jb\u009b", nil

	for _, test := range []struct {
		name string
		flow Flow
		want string
	}{
		{"default deny names who selects", denied(), "DROPPED   TIME east/shop/frontend-1:40000 -> west/shop/web-2:80 ingress policy-denied not allowed by shop/web (CiliumNetworkPolicy) via shop/web:8080 (TCP Flags: SYN) (ID:65540 -> ID:131080) [west/west-1]"},
		{"a rule that denies", explicit, "DROPPED   TIME east/shop/frontend-1:40000 -> west/shop/web-2:80 ingress policy-denied BY no-frontend (CiliumClusterwideNetworkPolicy) (TCP Flags: SYN) (ID:65540 -> ID:131080) [west/west-1]"},
		{"from outside", world, "FORWARDED TIME 192.0.2.1:5 -> west/shop/web-2:80 ingress (TCP Flags: SYN) (world -> ID:131080) [west/west-1]"},
		{"member without identity", stranger, "DROPPED   TIME 10.1.7.7 -> west/shop/web-2:80 ingress policy-denied via 10.101.0.1:53 (east, unknown-member -> ID:131080) [west/west-1]"},
		{"nothing was read", unread, "DROPPED   TIME ? -> ? egress not-supported [west/west-1]"},
		{"a hint comes last", hinted, "DROPPED   TIME east/shop/frontend-1:40000 -> west/shop/web-2:80 ingress policy-denied not allowed by shop/web (CiliumNetworkPolicy) via shop/web:8080 (TCP Flags: SYN) (ID:65540 -> ID:131080) [west/west-1] (write a rule)"},
		{"a name that would move the cursor", rude, `DROPPED   TIME east/shop/a\x1b[2Jb\x9b:40000 -> west/shop/web-2:80 ingress policy-denied not allowed by shop/web (CiliumNetworkPolicy) (TCP Flags: SYN) (ID:65540 -> ID:131080) [west/west-1]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.flow.Line()
			want := strings.Replace(test.want, "TIME", test.flow.Time.Local().Format(time.StampMilli), 1)
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}
