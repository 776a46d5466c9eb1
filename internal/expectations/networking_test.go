package expectations

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// endpointSlices are about slices, Kubernetes' own and those written by hand.
func endpointSlices() []row {
	const file, mirroring = "endpointslice.go", "endpointslicemirroring.go"
	const twoPorts = "spec: {ports: [{name: port80, port: 80}, {name: port81, port: 81}]}"
	piece := func(name, addr, port string, number int) string {
		return slice(name, "web", fmt.Sprintf("endpoints: [{addresses: [%s], conditions: {ready: true}}]\nports: [{name: %s, port: %d}]", addr, port, number))
	}
	endpoints := "apiVersion: v1\nkind: Endpoints\nmetadata: {name: web, namespace: shop}\nsubsets: []\n"
	noEndpoints := "kind Endpoints is refused, with the kinds that there are; an EndpointSlice says the same"
	return []row{
		{file: file, spec: "should create and delete EndpointSlices for a Service with a selector that matches no pods",
			says: "a service without pods has a slice without endpoints, which goes with it",
			test: func(w *world) {
				w.apply(service("web", web80))
				if all := w.slices("web"); len(all) != 0 {
					w.t.Errorf("%d slices", len(all))
				}
				w.pods("web-1@1")
				if all := w.slices("web"); len(all) != 1 {
					w.t.Errorf("%d slices with a pod", len(all))
				}
				w.delete("services", "web")
				if all := w.slices("web"); len(all) != 0 {
					w.t.Errorf("%d slices are left over", len(all))
				}
			}, differs: "it has no slice, which means the same to whoever reads them"},
		{file: file, spec: "should create Endpoints and EndpointSlices for Pods matching a Service",
			says: "pods that a service selects are in its slices, with the numbers of its ports",
			test: func(w *world) {
				w.apply(service("one", web80) + "---\n" + service("two", "ports: [{name: http, port: 80, targetPort: http}, {name: dns, port: 53, protocol: UDP}]"))
				w.apply(pod("one-1@1", "") + "---\n" + pod("two-1@1", "ports: [{name: http, containerPort: 3000}]") + "---\n" + pod("two-2@2", "ports: [{name: http, containerPort: 3001}]"))
				for name, want := range map[string]string{"one": "one-1:80", "two": "two-1:3000 two-1:53 two-2:3001 two-2:53"} {
					var got []string
					for _, s := range w.slices(name) {
						for _, e := range s.Endpoints {
							for _, p := range s.Ports {
								got = append(got, fmt.Sprintf("%s:%d", w.podAt(netip.MustParseAddr(e.Addresses[0])), *p.Port))
							}
						}
					}
					if strings.Join(sortedOf(got), " ") != want {
						w.t.Errorf("service %s has %v, want %s", name, got, want)
					}
				}
			}, differs: "its EndpointSlices; there are no objects of kind Endpoints"},
		{file: file, spec: "should support creating EndpointSlice API operations", nothing: "slices are applied, read, watched and deleted like all objects"},
		{file: file, spec: "should support a Service with multiple ports specified in multiple EndpointSlices",
			says: "slices written by hand may each have one port of a service",
			test: func(w *world) {
				w.apply(pod("web-1@1", "ports: [{containerPort: 8090}]"))
				w.apply(manifest("Service", "web", "", twoPorts))
				ip := w.ip("web-1").String()
				w.apply(piece("web-a", ip, "port80", 8090) + "---\n" + piece("web-b", ip, "port81", 9090))
				w.everywhere("web:80", "web-1:8090")
				w.everywhere("web:81", "web-1:9090")
			}},
		{file: file, spec: "should support a Service with multiple endpoint IPs specified in multiple EndpointSlices",
			says: "slices written by hand may have different pods for different ports",
			test: func(w *world) {
				w.pods("web-1@1", "web-2@2")
				w.apply(manifest("Service", "web", "", twoPorts))
				w.apply(piece("web-a", w.ip("web-1").String(), "port80", 8090) + "---\n" + piece("web-b", w.ip("web-2").String(), "port81", 8090))
				w.everywhere("web:80", "web-1:8090")
				w.everywhere("web:81", "web-2:8090")
			}},
		{file: mirroring, spec: "should mirror a custom Endpoints resource through create update and delete",
			says: "Endpoints that are written by hand are copied into slices", differs: noEndpoints,
			test: func(w *world) {
				w.refuses(endpoints, `unknown kind "Endpoints"`)
				w.pods("web-1@1", "web-2@2")
				w.apply(manifest("Service", "web", "", "spec: {ports: [{name: port80, port: 80}]}"))
				w.apply(piece("web-a", w.ip("web-1").String(), "port80", 80))
				w.everywhere("web:80", "web-1:80")
				w.apply(piece("web-a", w.ip("web-2").String(), "port80", 80))
				w.everywhere("web:80", "web-2:80")
				w.delete("endpointslices", "web-a")
				w.everywhere("web:80", Refused)
			}},
		{file: mirroring, spec: "should mirror a custom Endpoint with multiple subsets and same IP address",
			says: "Endpoints with several ports for one address are copied into slices", differs: noEndpoints,
			test: func(w *world) { w.refuses(endpoints, `unknown kind "Endpoints"`) }},
		{file: beside, spec: "a pod in several slices",
			says: "an endpoint that is in several slices of a service counts once",
			test: func(w *world) {
				w.pods("web-1@1", "web-2@2")
				w.apply(manifest("Service", "web", "", "spec: {ports: [{name: port80, port: 80}]}"))
				one := w.ip("web-1").String()
				w.apply(piece("web-a", one, "port80", 80) + "---\n" + piece("web-b", one, "port80", 80) + "---\n" + piece("web-c", w.ip("web-2").String(), "port80", 80))
				w.everywhere("web:80", "web-1:80", "web-2:80")
				to, proto := w.target("pod@3", "web:80")
				for _, s := range w.stations {
					if n := s.slotsOf(to, proto); n != 2 {
						w.t.Errorf("%s has %d slots for two endpoints", s.of.Name, n)
					}
				}
				w.delete("endpointslices", "web-a")
				w.everywhere("web:80", "web-1:80", "web-2:80")
				w.delete("endpointslices", "web-b")
				w.everywhere("web:80", "web-2:80")
			}},
		{file: beside, spec: "slices without a number",
			says: "a port of a slice that has no number is left out, and a slice without ports leads nowhere",
			test: func(w *world) {
				w.pods("web-1@1")
				w.apply(manifest("Service", "web", "", "spec: {ports: [{port: 80}]}"))
				ip := w.ip("web-1").String()
				w.refuses(slice("web-a", "web", "endpoints: [{addresses: ["+ip+"]}]\nports: [{name: http}]"), "ports[0].port must be from 1 to 65535")
				w.apply(slice("web-b", "web", "endpoints: [{addresses: ["+ip+"]}]\n"))
				w.everywhere("web:80", Refused)
			}, differs: "refused where it is applied; from a peer it is left out"},
	}
}

// slices are those of a service, as the API shows them.
func (w *world) slices(of string) (out []discoveryv1.EndpointSlice) {
	w.t.Helper()
	var list struct {
		Items []discoveryv1.EndpointSlice `json:"items"`
	}
	if err := w.cluster.Call(http.MethodGet, "/v1/objects/endpointslices?namespace="+namespace, nil, &list); err != nil {
		w.t.Fatal(err)
	}
	for _, s := range list.Items {
		if s.Labels[discoveryv1.LabelServiceName] == of {
			out = append(out, s)
		}
	}
	return out
}

// networking are about services of one kind after the other, from all kinds of clients.
func networking() []row {
	const file = "networking.go"
	// function is the test of a service with node ports over one protocol, asked by clients of some
	// kinds; the pods behind it are clients too.
	function := func(protocol string, clients ...string) func(w *world) {
		return func(w *world) {
			spec := fmt.Sprintf("type: NodePort, ports: [{port: 80, nodePort: 30080, protocol: %s}]", protocol)
			if protocol == "SCTP" {
				spec = "ports: [{port: 80, protocol: SCTP}]"
				w.refuses(service("web", "type: NodePort, ports: [{port: 80, protocol: SCTP}]"), "is SCTP, which node ports do not carry")
			}
			w.apply(service("web", spec))
			w.pods("web-1@1", "web-2@2", "web-3@3")
			for _, who := range clients {
				if !strings.HasPrefix(who, "outside") {
					w.reaches(who, "web:80/"+protocol, "web-1:80", "web-2:80", "web-3:80")
				}
				if protocol != "SCTP" && strings.Contains(who, "@") {
					w.reaches(who, "node:30080/"+protocol, "web-1:80", "web-2:80", "web-3:80")
				}
				if protocol != "SCTP" && !strings.HasPrefix(who, "outside") {
					w.reaches(who, "node@2:30080/"+protocol, "web-1:80", "web-2:80", "web-3:80")
				}
			}
		}
	}
	pods, nodes, endpoints := []string{"pod@1", "pod@2", "pod@5"}, []string{"node@1", "node@5"}, []string{"web-1", "web-2", "web-3"}
	updated := func(protocol string) func(w *world) {
		return func(w *world) {
			w.apply(service("web", "ports: [{port: 80, protocol: "+protocol+"}]"))
			w.pods("web-1@1", "web-2@2")
			w.everywhere("web:80/"+protocol, "web-1:80", "web-2:80")
			w.delete("pods", "web-1")
			w.everywhere("web:80/"+protocol, "web-2:80")
			w.pods("web-3@4")
			w.everywhere("web:80/"+protocol, "web-2:80", "web-3:80")
		}
	}
	withdrawn := func(protocol string) func(w *world) {
		return func(w *world) {
			w.apply(service("web", "type: NodePort, ports: [{port: 80, nodePort: 30080, protocol: "+protocol+"}]"))
			w.pods("web-1@1", "web-2@2")
			w.everywhere("node:30080/"+protocol, "web-1:80", "web-2:80")
			w.delete("services", "web")
			w.everywhere("node:30080/"+protocol, Left)
		}
	}
	const noSCTP = "over SCTP at the cluster IP and from pods; node ports and processes of nodes have TCP and UDP, and the rest is refused"
	return []row{
		{file: file, spec: "should provide Internet connection for containers", says: "pods reach the world, as the node", elsewhere: "scenarios/masquerade.txtar", line: "internet/n1"},
		{file: file, spec: "should provider Internet connection for containers using DNS", nothing: "there is no DNS server in the cluster; pods ask whom they know"},
		{file: file, spec: "should provide unchanging, static URL paths for kubernetes api services", nothing: "the API is another one"},
		{file: file, spec: "should check kube-proxy urls", nothing: "there is no kube-proxy; an agent's `/metrics` and health checks are described in [operations](operations.md)"},
		{file: file, spec: "should function for pod-Service: http", says: "pods reach a service at its cluster IP and at node ports", test: function("TCP", pods...)},
		{file: file, spec: "should function for pod-Service: udp", says: "the same over UDP", test: function("UDP", pods...)},
		{file: file, spec: "should function for pod-Service: sctp", says: "clients of all kinds reach a service over SCTP, at its cluster IP and at node ports", test: function("SCTP", pods...), differs: noSCTP},
		{file: file, spec: "should function for node-Service: http", says: "processes of a node reach a service at its cluster IP and at node ports", test: function("TCP", nodes...)},
		{file: file, spec: "should function for node-Service: udp", says: "the same over UDP", test: function("UDP", nodes...)},
		{file: file, spec: "should function for node-Service: sctp", says: "the same over SCTP", test: function("SCTP", pods...), differs: noSCTP},
		{file: file, spec: "should function for endpoint-Service: http", says: "a service's own pods reach it, and themselves", test: function("TCP", endpoints...)},
		{file: file, spec: "should function for endpoint-Service: udp", says: "the same over UDP", test: function("UDP", endpoints...)},
		{file: file, spec: "should function for endpoint-Service: sctp", says: "the same over SCTP", test: function("SCTP", endpoints...), differs: noSCTP},
		{file: file, spec: "should function for multiple endpoint-Services with same selector",
			says: "two services may have the same pods, and one goes without the other",
			test: func(w *world) {
				both := "spec: {selector: {app: web}, type: NodePort, ports: [{port: 80}]}"
				w.apply(manifest("Service", "one", "", both) + "---\n" + manifest("Service", "two", "", both))
				w.pods("web-1@1", "web-2@2")
				for _, name := range []string{"one", "two"} {
					w.everywhere(name+":80", "web-1:80", "web-2:80")
					w.everywhere("node:"+w.nodePort(name, 80), "web-1:80", "web-2:80")
					w.reaches("web-1", name+":80", "web-1:80", "web-2:80")
				}
				w.delete("services", "one")
				w.everywhere("two:80", "web-1:80", "web-2:80")
				w.everywhere("node:"+w.nodePort("two", 80), "web-1:80", "web-2:80")
			}},
		{file: file, spec: "should update endpoints: http", says: "a pod that is replaced is out, and the new one is in", test: updated("TCP")},
		{file: file, spec: "should update endpoints: udp", says: "the same over UDP", test: updated("UDP")},
		{file: file, spec: "should update nodePort: http", says: "without the service, nobody answers at its node port", test: withdrawn("TCP")},
		{file: file, spec: "should support basic nodePort: udp functionality", says: "a node port works over UDP", test: function("UDP", "node@1", "outside@1")},
		{file: file, spec: "should update nodePort: udp", says: "without the service, nobody answers there", test: withdrawn("UDP")},
		{file: file, spec: "should function for client IP based session affinity: http [LinuxOnly]", says: "session affinity holds over TCP",
			test: sticky(web80, map[string]string{"pod@1": "web:80", "pod@2": "web:80"})},
		{file: file, spec: "should function for client IP based session affinity: udp [LinuxOnly]", says: "session affinity holds over UDP",
			test: sticky("ports: [{port: 80, protocol: UDP}]", map[string]string{"pod@1": "web:80/UDP", "pod@2": "web:80/UDP"})},
		{file: file, spec: "should be able to handle large requests: http", says: "what does not fit into one packet arrives", elsewhere: "scenarios/real-tools.txtar", line: "--bytes 20M"},
		{file: file, spec: "should be able to handle large requests: udp", says: "a datagram that travels in pieces arrives", elsewhere: "scenarios/real-tools.txtar", line: "whose datagram travels in pieces"},
		{file: file, spec: "should function for service endpoints using hostNetwork",
			says: "endpoints may be on a node's own network",
			test: func(w *world) {
				w.apply(manifest("Service", "web", "", "spec: {ports: [{port: 80}]}"))
				w.apply(slice("web-x", "web", "endpoints: [{addresses: [172.16.1.2]}]\nports: [{port: 80}]"))
				w.everywhere("web:80", Left)
				w.reaches("pod@1", "172.16.1.2:80", Left)
				w.reaches("pod@1", "172.16.1.2:81", Refused)
				w.reaches("pod@1", "172.16.1.2:80/UDP", Refused)
				w.delete("endpointslices", "web-x")
				w.everywhere("web:80", Refused)
				w.reaches("pod@1", "172.16.1.2:80", Refused)
			}, differs: "at cluster IPs; at node ports and external addresses a service leads to pods alone"},
		{file: file, spec: "should recreate its iptables rules if they are deleted", says: "what somebody removes from the kernel is restored", elsewhere: "scenarios/mended.txtar", line: "All pins of the datapath"},
		{file: file, spec: "should allow creating a Pod with an SCTP HostPort [LinuxOnly]",
			says: "a host port may be one of SCTP",
			test: func(w *world) {
				w.refuses(pod("web-1@1", "ports: [{containerPort: 80, hostPort: 5060, protocol: SCTP}]"), "SCTP, which host ports do not carry")
			}, differs: "refused: nodes carry TCP and UDP there"},
		{file: "no_snat.go", spec: "Should be able to send traffic between Pods without SNAT",
			says: "pods see each other's own addresses",
			test: func(w *world) {
				for _, other := range []string{"client-2", "client-5"} {
					w.sees("pod@1", w.ip(other).String()+":80", w.ip("client-1").String())
				}
				w.sees("pod@2", w.ip("client-1").String()+":80", w.ip("client-2").String())
			}},
	}
}

// hostPorts are about pods at their node's addresses.
func hostPorts() []row {
	return []row{
		{file: "hostport.go", spec: "validates that there is no conflict between pods with same hostPort but different hostIP and protocol [LinuxOnly]",
			says: "one host port is free for each of a node's addresses and each protocol",
			test: func(w *world) {
				at := func(name, ip, protocol string) string {
					return pod(name+"@1", fmt.Sprintf("ports: [{containerPort: 8080, hostPort: 5432, hostIP: %s, protocol: %s}]", ip, protocol))
				}
				w.apply(at("one", "127.0.0.1", "TCP") + "---\n" + at("two", "172.16.1.1", "TCP") + "---\n" + at("three", "172.16.1.1", "UDP") + "---\n" + pod("four@2", "ports: [{containerPort: 8080, hostPort: 5432}]"))
				for _, who := range []string{"node@1", "pod@1", "outside@1"} {
					w.reaches(who, "node:5432", "two:8080")
					w.reaches(who, "node:5432/UDP", "three:8080")
				}
				w.reaches("node@1", "127.0.0.1:5432", "one:8080")
				w.reaches("node@1", "127.0.0.1:5432/UDP", Left)
				w.reaches("node@2", "127.0.0.1:5432", Left)
				w.reaches("pod@1", "127.0.0.1:5432", Left)
				w.reaches("outside@1", "127.0.0.1:5432", Left)
				w.reaches("outside@2", "node:5432", "four:8080")
				w.reaches("outside@3", "node:5432", Left)
			}},
		{file: beside, spec: "two pods with one host port",
			says: "a node has one pod at a host port; the scheduler sees to that",
			test: func(w *world) {
				hosted := func(name string) string { return pod(name+"@1", "ports: [{containerPort: 80, hostPort: 8080}]") }
				w.apply(hosted("one") + "---\n" + hosted("two"))
				w.reaches("outside@1", "node:8080", "one:80")
				w.delete("pods", "one")
				w.reaches("outside@1", "node:8080", "two:80")
			}, differs: "nobody schedules: the first by name has it, status names the other, which follows"},
	}
}
