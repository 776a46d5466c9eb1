package expectations

import (
	"fmt"
	"strings"
)

// loadBalancers are about services of that type. The load balancer is a network that brings the
// packets for its address to a node, which outside@N stands for.
func loadBalancers() []row {
	const file = "loadbalancer.go"
	changing := func(protocol string) func(w *world) {
		return func(w *world) {
			p := func(number int) string {
				return fmt.Sprintf("ports: [{port: %d, targetPort: 80, protocol: %s}]", number, protocol)
			}
			w.apply(service("web", p(80)))
			w.pods("web-1@1", "web-2@2")
			w.everywhere("web:80/"+protocol, "web-1:80", "web-2:80")
			w.apply(service("web", "type: NodePort, "+p(80)))
			first := w.nodePort("web", 80)
			w.everywhere("node:"+first+"/"+protocol, "web-1:80", "web-2:80")
			w.apply(service("web", "type: LoadBalancer, loadBalancerIP: 203.0.113.20, "+p(80)))
			if now := w.nodePort("web", 80); now != first {
				w.t.Errorf("its node port became %s", now)
			}
			lb := func(port int) string { return fmt.Sprintf("203.0.113.20:%d/%s", port, protocol) }
			w.everywhere(lb(80), "web-1:80", "web-2:80")
			w.reaches("outside@3", lb(80), "web-1:80", "web-2:80")
			// Its port becomes another one, and its node port.
			w.apply(service("web", "type: LoadBalancer, loadBalancerIP: 203.0.113.20, ports: [{port: 81, targetPort: 80, nodePort: 30999, protocol: "+protocol+"}]"))
			w.everywhere(lb(81), "web-1:80", "web-2:80")
			w.everywhere("node:30999/"+protocol, "web-1:80", "web-2:80")
			w.everywhere("node:"+first+"/"+protocol, Left)
			w.reaches("outside@3", lb(80), Left)
			w.delete("pods", "web-1", "web-2")
			w.everywhere(lb(81), Refused)
			w.pods("web-3@4")
			w.everywhere(lb(81), "web-3:80")
			w.apply(service("web", p(81)))
			w.everywhere("web:81/"+protocol, "web-3:80")
			w.everywhere("node:30999/"+protocol, Left)
			w.reaches("outside@3", lb(81), Left)
		}
	}
	const balanced = "type: LoadBalancer, loadBalancerIP: 203.0.113.20, ports: [{port: 80, nodePort: 30080}]"
	const local = "externalTrafficPolicy: Local, healthCheckNodePort: 30999, " + balanced
	clients := map[string]string{"pod@1": "203.0.113.20:80", "outside@2": "203.0.113.20:80"}
	cycles := func(second string) func(w *world) {
		return func(w *world) {
			w.apply(service("dns", "type: LoadBalancer, loadBalancerIP: 203.0.113.20, ports: [{port: 80, protocol: UDP}]"))
			w.pods("dns-1@1")
			outside, inside := w.talk("outside@1", "203.0.113.20:80/UDP"), w.talk("pod@2", "203.0.113.20:80/UDP")
			outside.hears("dns-1:80")
			inside.hears("dns-1:80")
			w.pods("dns-2@" + second)
			w.delete("pods", "dns-1")
			outside.hears("dns-2:80")
			inside.hears("dns-2:80")
		}
	}
	rolling := func(spec string, who ...string) func(w *world) {
		return func(w *world) {
			w.apply(service("web", spec))
			w.pods("web-a@1", "web-b@2")
			serves := func(want ...string) {
				w.t.Helper()
				for _, c := range who {
					w.reaches(c, "203.0.113.20:80", want...)
				}
			}
			serves("web-a:80", "web-b:80")
			for _, step := range []struct{ in, out string }{{"web-c@1", "web-a"}, {"web-d@2", "web-b"}} {
				w.pods(step.in)
				w.delete("pods", step.out)
			}
			serves("web-c:80", "web-d:80")
		}
	}
	nearby := func(w *world) {
		w.apply(service("web", local))
		w.pods("web-a@1", "web-b@1")
		w.reaches("outside@1", "203.0.113.20:80", "web-a:80", "web-b:80")
		w.pods("web-c@1")
		w.delete("pods", "web-a")
		w.reaches("outside@1", "203.0.113.20:80", "web-b:80", "web-c:80")
		w.delete("pods", "web-b")
		w.reaches("outside@1", "203.0.113.20:80", "web-c:80")
	}
	return []row{
		{file: file, spec: "should be able to change the type and ports of a TCP service",
			says: "a service that becomes one of type NodePort, LoadBalancer and ClusterIP again is reached where it then is, and nowhere else", test: changing("TCP")},
		{file: file, spec: "should be able to change the type and ports of a UDP service", says: "the same over UDP", test: changing("UDP")},
		{file: file, spec: "should only allow access from service loadbalancer source ranges",
			says: "loadBalancerSourceRanges let in who is in them, pods and clients outside, and nobody else",
			test: func(w *world) {
				ranged := func(ranges string) string { return service("web", balanced+", loadBalancerSourceRanges: ["+ranges+"]") }
				all := func(accepted, dropped, outside string) {
					w.t.Helper()
					w.reaches("pod@1", "203.0.113.20:80", accepted)
					w.reaches("pod@2", "203.0.113.20:80", dropped)
					w.reaches("outside@3", "203.0.113.20:80", outside)
				}
				const in = "web-1:80"
				w.pods("web-1@3")
				w.apply(service("web", balanced))
				all(in, in, in)
				w.apply(ranged(w.ip("client-1").String() + "/32, 172.16.1.1/32"))
				all(in, Dropped, Dropped)
				w.everywhere("web:80", in) // the cluster IP is for all
				w.apply(ranged("0.0.0.0/1, 128.0.0.0/1"))
				all(in, in, in)
				w.apply(ranged("255.0.0.0/32"))
				all(Dropped, Dropped, Dropped)
				w.reaches("node@2", "203.0.113.20:80", Dropped)
				w.apply(service("web", balanced))
				all(in, in, in)
			}},
		{file: file, spec: "should have session affinity work for LoadBalancer service with Local traffic policy",
			says: "clients stay with a backend of the node that they ask",
			test: func(w *world) {
				w.apply(service("web", clientIP+local))
				w.pods("web-1@1", "web-2@1", "web-3@2")
				w.goes("outside@1", "203.0.113.20:80", "web-1:80")
				w.stays("outside@1", "203.0.113.20:80", "web-1:80", "web-2:80")
				w.reaches("outside@2", "203.0.113.20:80", "web-3:80")
			}},
		{file: file, spec: "should be able to switch session affinity for LoadBalancer service with Local traffic policy",
			says: "session affinity is switched on and off",
			test: func(w *world) {
				w.apply(service("web", local))
				w.pods("web-1@1", "web-2@1")
				w.goes("outside@1", "203.0.113.20:80", "web-1:80")
				w.goes("outside@1", "203.0.113.20:80", "web-2:80")
				w.apply(service("web", clientIP+local))
				w.goes("outside@1", "203.0.113.20:80", "web-1:80")
				w.stays("outside@1", "203.0.113.20:80", "web-1:80", "web-2:80")
				w.apply(service("web", local))
				w.goes("outside@1", "203.0.113.20:80", "web-2:80")
			}},
		{file: file, spec: "should have session affinity work for LoadBalancer service with Cluster traffic policy", says: "clients stay with a backend, wherever it is", test: sticky(balanced, clients)},
		{file: file, spec: "should be able to switch session affinity for LoadBalancer service with Cluster traffic policy", says: "session affinity is switched on and off", test: switched(balanced, clients)},
		{file: file, spec: "should handle load balancer cleanup finalizer for service", nothing: "nobody makes load balancers, so none is left to clean up"},
		{file: file, spec: "should be able to create LoadBalancer Service without NodePort and change it",
			says: "with allocateLoadBalancerNodePorts false a service has no node ports until that changes, and is reached at its address all the time",
			test: func(w *world) {
				without := "type: LoadBalancer, loadBalancerIP: 203.0.113.20, ports: [{port: 80}], allocateLoadBalancerNodePorts: "
				w.apply(service("web", without+"false"))
				w.pods("web-1@1")
				if p := w.get("web").Spec.Ports[0].NodePort; p != 0 {
					w.t.Errorf("it has node port %d", p)
				}
				w.everywhere("203.0.113.20:80", "web-1:80")
				w.apply(service("web", without+"true"))
				w.everywhere("node:"+w.nodePort("web", 80), "web-1:80")
				w.everywhere("203.0.113.20:80", "web-1:80")
			}},
		{file: file, spec: "should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on different nodes",
			says: "who goes on sending datagrams from one port comes to the new backend on another node once the old one is gone", test: cycles("2")},
		{file: file, spec: "should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on the same nodes", says: "the same on one node", test: cycles("1")},
		{file: file, spec: "should not have connectivity disruption during rolling update with externalTrafficPolicy=Cluster",
			says: "while pods are replaced one by one, there is a backend at any time", test: rolling(balanced, "outside@1", "outside@5", "pod@3")},
		{file: file, spec: "should not have connectivity disruption during rolling update with externalTrafficPolicy=Local", says: "the same on one node", test: nearby},
		{file: file, spec: "should work for type=LoadBalancer",
			says: "with externalTrafficPolicy Local a backend sees the client's own address, and a service that becomes ClusterIP has no health check any more",
			test: func(w *world) {
				w.apply(service("web", local))
				w.pods("web-1@1")
				w.sees("outside@1", "203.0.113.20:80", outsiders[0].String())
				if got := w.stations[0].of.HealthCheck(30999); got != 200 {
					w.t.Errorf("health check says %d", got)
				}
				w.apply(service("web", web80))
				if got := w.stations[0].of.HealthCheck(30999); got != 0 {
					w.t.Errorf("health check still says %d", got)
				}
			}},
		{file: file, spec: "should only target nodes with endpoints",
			says: "only nodes with an endpoint say that they are healthy",
			test: func(w *world) {
				w.apply(service("web", local))
				for i, s := range w.stations {
					name := fmt.Sprint("web-", i+1)
					w.pods(fmt.Sprintf("%s@%d", name, i+1))
					for _, other := range w.stations {
						want := 503
						if other == s {
							want = 200
						}
						if got := other.of.HealthCheck(30999); got != want {
							w.t.Errorf("with the endpoint on %s, %s says %d", s.of.Name, other.of.Name, got)
						}
					}
					w.reaches(fmt.Sprint("outside@", i+1), "203.0.113.20:80", name+":80")
					w.delete("pods", name)
				}
			}},
		{file: file, spec: "should target all nodes with endpoints",
			says: "each node with an endpoint leads clients to it",
			test: func(w *world) {
				w.apply(service("web", local))
				w.pods("web-1@1", "web-2@2")
				w.reaches("outside@1", "203.0.113.20:80", "web-1:80")
				w.reaches("outside@2", "203.0.113.20:80", "web-2:80")
			}},
		{file: file, spec: "should work from pods",
			says: "a pod reaches a load balancer's address with externalTrafficPolicy Local from any node, and is seen with its own address",
			test: func(w *world) {
				w.apply(service("web", local))
				w.pods("web-1@1")
				w.sees("pod@1", "203.0.113.20:80", w.ip("client-1").String())
				w.sees("pod@5", "203.0.113.20:80", w.ip("client-5").String())
			}},
		{file: beside, spec: "ipMode of a load balancer",
			says: "an address with ipMode Proxy is left to the load balancer, one with VIP or none is served by nodes",
			test: func(w *world) {
				w.pods("web-1@1")
				w.apply(service("web", "type: LoadBalancer, ports: [{port: 80}]") + "status: {loadBalancer: {ingress: [{ip: 203.0.113.20, ipMode: VIP}, {ip: 203.0.113.21, ipMode: Proxy}, {ip: 203.0.113.22}]}}\n")
				w.everywhere("203.0.113.20:80", "web-1:80")
				w.everywhere("203.0.113.22:80", "web-1:80")
				w.everywhere("203.0.113.21:80", Left)
			}},
	}
}

// distribution is about which of many endpoints are near.
func distribution() []row {
	const file = "traffic_distribution.go"
	zones := func(how string) func(w *world) {
		return func(w *world) {
			w.apply(service("web", "trafficDistribution: "+how+", ports: [{port: 80, targetPort: 9376}]"))
			w.pods("web-1@1", "web-2@3")
			for i, want := range [][]string{{"web-1:9376"}, {"web-1:9376"}, {"web-2:9376"}, {"web-2:9376"}, {"web-1:9376", "web-2:9376"}} {
				w.reaches(fmt.Sprint("pod@", i+1), "web:80", want...)
				w.reaches(fmt.Sprint("node@", i+1), "web:80", want...)
			}
		}
	}
	many := func(how string) func(w *world) {
		return func(w *world) {
			w.apply(service("web", "trafficDistribution: "+how+", ports: [{port: 80, targetPort: 9376}]"))
			w.pods("web-1@1", "web-2@2", "web-3@4")
			for i, want := range [][]string{{"web-1:9376", "web-2:9376"}, {"web-1:9376", "web-2:9376"}, {"web-3:9376"}, {"web-3:9376"}, {"web-1:9376", "web-2:9376", "web-3:9376"}} {
				w.reaches(fmt.Sprint("pod@", i+1), "web:80", want...)
			}
		}
	}
	const same, multiple = "should route traffic to an endpoint in the same zone when using ", "should route traffic correctly between pods on multiple nodes when using "
	return []row{
		{file: file, spec: same + "PreferClose", says: "clients get the endpoints of their zone, and all if there are none", test: zones("PreferClose")},
		{file: file, spec: multiple + "PreferClose", says: "the same with several nodes in a zone", test: many("PreferClose")},
		{file: file, spec: same + "PreferSameZone", says: "the same under the newer name", test: zones("PreferSameZone")},
		{file: file, spec: multiple + "PreferSameZone", says: "the same under the newer name", test: many("PreferSameZone")},
		{file: file, spec: "should route traffic to an endpoint on the same node or fall back to same zone when using PreferSameNode",
			says: "clients get the endpoints of their node, or else of their zone, or else all",
			test: func(w *world) {
				w.apply(service("web", "trafficDistribution: PreferSameNode, ports: [{port: 80, targetPort: 9376}]"))
				w.pods("web-1@1", "web-2@2", "web-3@4")
				for i, want := range [][]string{{"web-1:9376"}, {"web-2:9376"}, {"web-3:9376"}, {"web-3:9376"}, {"web-1:9376", "web-2:9376", "web-3:9376"}} {
					w.reaches(fmt.Sprint("pod@", i+1), "web:80", want...)
				}
			}},
		{file: file, spec: "should route traffic to an endpoint on the same node when using PreferSameNode and fall back when the endpoint becomes unavailable",
			says: "the endpoint of a node is used while it is there, and again when it is back",
			test: func(w *world) {
				w.apply(service("web", "trafficDistribution: PreferSameNode, ports: [{port: 80}]"))
				w.pods("web-1@1", "web-2@2")
				w.reaches("pod@1", "web:80", "web-1:80")
				w.reaches("pod@2", "web:80", "web-2:80")
				w.delete("pods", "web-1")
				w.reaches("pod@1", "web:80", "web-2:80")
				w.reaches("pod@2", "web:80", "web-2:80")
				w.pods("web-3@1")
				w.reaches("pod@1", "web:80", "web-3:80")
				w.reaches("pod@2", "web:80", "web-2:80")
			}},
		{file: "topology_hints.go", spec: "should distribute endpoints evenly",
			says: "with topology-mode Auto, endpoints are given to zones by their share of CPUs",
			test: func(w *world) {
				w.apply(manifest("Service", "web", "annotations: {service.kubernetes.io/topology-mode: Auto}", "spec: {selector: {app: web}, ports: [{port: 80}]}"))
				w.pods("web-1@1", "web-2@3")
				w.everywhere("web:80", "web-1:80", "web-2:80")
			}, differs: "no effect, and `weft apply` warns: nodes do not say how many CPUs they have. trafficDistribution does without"},
	}
}

// conntrack is about clients that go on sending from one port.
func conntrack() []row {
	const file = "conntrack.go"
	// cycles is the test of a client that sends while one backend is replaced by another.
	cycles := func(spec, who, target, second string) func(w *world) {
		return func(w *world) {
			w.apply(service("dns", spec))
			x := w.talk(who, target)
			x.hears(Refused)
			w.pods("dns-1@2")
			x.hears("dns-1:80")
			x.hears("dns-1:80")
			w.pods("dns-2@" + second)
			w.delete("pods", "dns-1")
			x.hears("dns-2:80")
			x.hears("dns-2:80")
		}
	}
	const udp, udpPort = "ports: [{port: 80, protocol: UDP}]", "type: NodePort, ports: [{port: 80, nodePort: 30080, protocol: UDP}]"
	return []row{
		{file: file, spec: "should be able to preserve UDP traffic when server pod cycles for a NodePort service",
			says: "who goes on sending datagrams from one port comes to the new backend once the old one is gone, at a node port",
			test: func(w *world) {
				cycles(udpPort, "outside@2", "node:30080/UDP", "2")(w)
				w.delete("pods", "dns-2")
				w.delete("services", "dns")
				cycles(udpPort, "pod@1", "node:30080/UDP", "2")(w)
			}},
		{file: file, spec: "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service", says: "the same at a cluster IP", test: cycles(udp, "pod@1", "dns:80/UDP", "2")},
		{file: file, spec: "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service with InternalTrafficPolicy set to Local",
			says: "the same with internalTrafficPolicy Local", test: cycles("internalTrafficPolicy: Local, "+udp, "pod@2", "dns:80/UDP", "2")},
		{file: file, spec: "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service and client is hostNetwork",
			says: "the same for a process of a node", test: cycles(udp, "node@1", "dns:80/UDP", "3")},
		{file: file, spec: "should be able to preserve UDP traffic when initial unready endpoints get ready",
			says: "who sends before an endpoint is ready comes to it once it is",
			test: func(w *world) {
				d := w.door()
				w.apply(service("dns", udp))
				x := w.talk("pod@1", "dns:80/UDP")
				x.hears(Refused)
				w.apply(pod("dns-1@2", d.probe()))
				x.hears(Refused)
				d.open(w.t)
				w.pass(2 * converge)
				x.hears("dns-1:80")
			}},
		{file: file, spec: "proxy implementation should not be vulnerable to the invalid conntrack state bug [Privileged]",
			says: "a packet out of sequence does not end a connection", elsewhere: "bpf/packet_sequence_test.go", line: "func TestSequenceIsNoted"},
		{file: file, spec: "should be able to cleanup conntrack entries when UDP service target port changes for a NodePort service",
			says: "who goes on sending comes to the new target port",
			test: func(w *world) {
				port := func(target int) string {
					return strings.Replace(udpPort, "port: 80,", fmt.Sprintf("port: 80, targetPort: %d,", target), 1)
				}
				w.apply(service("dns", port(8080)))
				w.pods("dns-1@2")
				for _, x := range []*talk{w.talk("outside@1", "node:30080/UDP"), w.talk("pod@1", "node:30080/UDP")} {
					x.hears("dns-1:8080")
					w.apply(service("dns", port(9090)))
					x.hears("dns-1:9090")
					w.apply(service("dns", port(8080)))
				}
			}},
	}
}
