package meshagent

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/wire"
)

// follow asks one agent after the other, as `weft debug trace` does.
func follow(t *testing.T, w *world, at *testNode, from, to string, proto uint8) (steps []string, end string) {
	t.Helper()
	q := api.TraceQuestion{From: netip.MustParseAddrPort(from), To: netip.MustParseAddrPort(to), Protocol: proto}
	for {
		answer := httptest.NewRecorder()
		at.agent.handler().ServeHTTP(answer, httptest.NewRequest("GET", "/v1/trace?"+q.Values().Encode(), nil))
		var one api.Trace
		if err := json.Unmarshal(answer.Body.Bytes(), &one); err != nil || answer.Code != 200 {
			t.Fatalf("trace on %s: %d %s", at.name, answer.Code, answer.Body)
		}
		for _, s := range one.Steps {
			line := s.At + " " + s.Hook + " " + s.LookUp + ": " + s.Found
			if s.Reason != "" {
				line += " [" + s.Reason + "]"
			}
			steps = append(steps, line)
		}
		if one.Next == nil {
			return steps, one.End
		}
		at = w.clusters[one.Next.Cluster].nodes[one.Next.Node]
		q = api.TraceQuestion{From: one.Next.From, To: one.Next.To, Protocol: proto, Arrives: one.Next.Arrives}
	}
}

func has(t *testing.T, steps []string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !slices.ContainsFunc(steps, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("there is no step %q in\n%s", want, strings.Join(steps, "\n"))
		}
	}
}

func TestAConnectionIsFollowedOverTwoNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, vip := raise(t)
		to := netip.AddrPortFrom(vip, 80).String()
		steps, end := follow(t, w, east, "10.1.1.2:0", to, 6)
		if end != "delivered" {
			t.Errorf("it ends %s", end)
		}
		has(t, steps,
			"east/east-1 from_pod source: east/shop/client 10.1.1.2, identity ",
			"east/east-1 from_pod flow: none",
			"east/east-1 from_pod service: shop/web 80/TCP: 1 backend, of which new connections get 1",
			"east/east-1 from_pod backend: tier 0: west/shop/web-1 10.2.1.2, identity ",
			"east/east-1 from_pod destination: west/shop/web-1 10.2.1.2, identity ",
			"east/east-1 from_pod policy: egress: no policy selects the pod",
			"east/east-1 from_pod path: node west/west-1 is alive",
			"east/east-1 to_tunnel tunnel: tunnel ",
			"west/west-1 from_tunnel source: east/shop/client 10.1.1.2, identity ",
			"west/west-1 from_tunnel policy: ingress: no policy selects the pod",
			"west/west-1 from_tunnel pod: delivered")

		// The flow that is there tells which backend it is about, and what the other side calls it.
		key := bpf.FlowKey{Local: bpf.AddrOf(netip.MustParseAddr("10.1.1.2")), Remote: bpf.AddrOf(vip), Lport: bpf.PortOf(40112), Rport: bpf.PortOf(80), Proto: 6}
		ep, _, _ := east.maps().Endpoints.Lookup(key.Local)
		row := bpf.Flow{Seen: bpf.Now(), Ifindex: ep.Ifindex, Flags: bpf.FlowService | bpf.FlowReplied, Via: bpf.ViaTunnel, Backend: bpf.AddrOf(netip.MustParseAddr("10.2.1.2")), Bport: bpf.PortOf(8080)}
		if err := east.maps().Flows.Update(key, row); err != nil {
			t.Fatal(err)
		}
		steps, _ = follow(t, w, east, "10.1.1.2:40112", to, 6)
		has(t, steps, "east/east-1 from_pod flow: port 40112: open, last packet ", "east/east-1 from_pod flow: what follows is about this open connection, to its backend 10.2.1.2:8080: ")
		steps, _ = follow(t, w, east, "10.1.1.2:40113", to, 6)
		has(t, steps, "east/east-1 from_pod flow: none")

		// A flow that has ended decides nothing.
		ended := row
		ended.Flags |= bpf.FlowReset
		ended.Backend = bpf.AddrOf(netip.MustParseAddr("10.2.1.9"))
		if err := east.maps().Flows.Update(key, ended); err != nil {
			t.Fatal(err)
		}
		steps, _ = follow(t, w, east, "10.1.1.2:0", to, 6)
		has(t, steps, "east/east-1 from_pod flow: port 40112: reset", "east/east-1 from_pod destination: west/shop/web-1 10.2.1.2")

		// What an agent has reported is told by the node that did.
		east.datapath.Emit(bpf.Event{Type: bpf.EventDrop, Reason: bpf.ReasonFlowTableFull, Dir: bpf.Egress, Proto: 6,
			Src: key.Local, Dst: row.Backend, Service: key.Remote, Sport: bpf.PortOf(40112), Dport: row.Bport, ServicePort: key.Rport})
		synctest.Wait()
		steps, end = follow(t, w, east, "10.1.1.2:0", to, 6)
		has(t, steps, "east/east-1 from_pod report: dropped from port 40112 ")
		if end != "delivered" {
			t.Errorf("a report of before decides: %s", end)
		}
		steps, _ = follow(t, w, east, "10.1.1.2:40113", to, 6)
		if slices.ContainsFunc(steps, func(s string) bool { return strings.Contains(s, "report") }) {
			t.Errorf("a report about another port is told:\n%s", strings.Join(steps, "\n"))
		}
	})
}

func TestWhereAConnectionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, vip := raise(t)
		service := netip.AddrPortFrom(vip, 80).String()
		ends := func(what, from, to string, proto uint8, end string, wanted ...string) {
			t.Helper()
			steps, got := follow(t, w, east, from, to, proto)
			if got != end {
				t.Errorf("%s ends as %s, want %s:\n%s", what, got, end, strings.Join(steps, "\n"))
			}
			has(t, steps, wanted...)
		}
		ends("one from nobody", "10.1.1.77:0", service, 6, "spoofed-source", "east/east-1 from_pod source: no pod of this node has 10.1.1.77")
		ends("one to a pod that is gone", "10.1.1.2:0", "10.1.1.77:80", 6, "no-endpoint")
		ends("one to a port that a service lacks", "10.1.1.2:0", netip.AddrPortFrom(vip, 81).String(), 6, "no-backend", "east/east-1 from_pod destination: 10.101.0.10 is a service address")
		ends("one to a node", "10.1.1.2:0", "172.16.2.1:80", 6, "node-address")
		ends("one to a member's address that nobody has", "10.1.1.2:0", "10.2.77.1:80", 6, "no-tunnel")
		ends("one to the world", "10.1.1.2:0", "192.0.2.1:443", 6, "to-stack", "east/east-1 to_device masquerade: none: the pod's own address leaves")
		ends("an echo", "10.1.1.2:0", "10.2.1.2:8", 1, "delivered")

		w.clusters["west"].putRaw(wire.ObjectKey("ciliumnetworkpolicies", "shop", "nobody"), []byte(`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"namespace":"shop","name":"nobody"},"spec":{"endpointSelector":{"matchLabels":{"app":"web"}},"ingress":[{"fromEndpoints":[{"matchLabels":{"app":"client"}}],"toPorts":[{"ports":[{"port":"8080","protocol":"TCP"}]}]}]}}`))
		w.step()
		ends("one that policy keeps out", "10.1.1.2:0", service, 6, "policy-denied",
			"west/west-1 from_tunnel policy: ingress: not allowed by shop/nobody (CiliumNetworkPolicy) [policy-denied]")

		w.setCut("west", true)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		ends("one to a cluster that is cut off", "10.1.1.2:0", service, 6, "no-backend", "east/east-1 from_pod backend: tier 0: west/shop/web-1 10.2.1.2, identity ",
			"east/east-1 from_pod service: shop/web 80/TCP has no backend that can be reached")
		// A flow that is open says nothing of new connections.
		key := bpf.FlowKey{Local: bpf.AddrOf(netip.MustParseAddr("10.1.1.2")), Remote: bpf.AddrOf(vip), Lport: bpf.PortOf(40112), Rport: bpf.PortOf(80), Proto: 6}
		ep, _, _ := east.maps().Endpoints.Lookup(key.Local)
		if err := east.maps().Flows.Update(key, bpf.Flow{Seen: bpf.Now(), Ifindex: ep.Ifindex, Via: bpf.ViaTunnel, Flags: bpf.FlowService | bpf.FlowReplied, Backend: bpf.AddrOf(netip.MustParseAddr("10.2.1.2")), Bport: bpf.PortOf(8080)}); err != nil {
			t.Fatal(err)
		}
		ends("a new one beside one that is open", "10.1.1.2:0", service, 6, "no-backend")
		ends("one that is open", "10.1.1.2:40112", service, 6, "path-down")
		ends("one to its pod", "10.1.1.2:0", "10.2.1.2:8080", 6, "path-down", "east/east-1 from_pod path: node west/west-1 is dead since ")
	})
}

func TestAConnectionWithinANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, east, _, _ := raise(t)
		east.pod("other", "other")
		w.step()
		steps, end := follow(t, w, east, "10.1.1.2:0", east.endpoint("other").IP.String()+":80", 6)
		if end != "delivered" {
			t.Errorf("it ends %s", end)
		}
		has(t, steps, "east/east-1 from_pod destination: east/shop/other ", "east/east-1 from_pod policy: egress: no policy", "east/east-1 from_pod policy: ingress: no policy", "east/east-1 from_pod pod: delivered")
	})
}

func TestTraceRefusesWhatIsNoQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, east, _, _ := raise(t)
		for _, query := range []string{"", "from=10.1.1.2:1", "from=10.1.1.2:1&to=10.1.1.3:1", "from=10.1.1.2:1&to=10.1.1.3:1&protocol=300",
			"from=10.1.1.2:1&to=[fd00::1]:1&protocol=6", "from=10.1.1.2:1&to=10.1.1.3:1&protocol=6&arrives=late"} {
			answer := httptest.NewRecorder()
			east.agent.handler().ServeHTTP(answer, httptest.NewRequest("GET", "/v1/trace?"+query, nil).WithContext(context.Background()))
			if answer.Code != 422 {
				t.Errorf("%q is answered %d %s", query, answer.Code, answer.Body)
			}
		}
	})
}
