package expectations

import (
	"fmt"
	"strings"
)

const specs = "service.go"

const web80 = "ports: [{port: 80}]"

// basics are about a service whose pods come and go.
func basics() []row {
	return []row{
		{file: specs, spec: "should serve a basic endpoint from pods",
			says: "a cluster IP leads to the pods that there are, from pods and from nodes, and is refused without any",
			test: func(w *world) {
				w.apply(service("web", web80))
				w.everywhere("web:80", Refused)
				w.pods("web-1@1")
				w.everywhere("web:80", "web-1:80")
				w.pods("web-2@2")
				w.everywhere("web:80", "web-1:80", "web-2:80")
				w.delete("pods", "web-1")
				w.everywhere("web:80", "web-2:80")
				w.delete("pods", "web-2")
				w.everywhere("web:80", Refused)
			}},
		{file: specs, spec: "should serve multiport endpoints from pods",
			says: "each port of a service leads to the pods that have its target port, by name",
			test: func(w *world) {
				w.apply(service("web", "ports: [{name: one, port: 80, targetPort: first}, {name: two, port: 81, targetPort: second}]"))
				w.apply(pod("web-1@1", "ports: [{name: first, containerPort: 100}]"))
				w.reaches("pod@2", "web:80", "web-1:100")
				w.reaches("pod@2", "web:81", Refused)
				w.apply(pod("web-2@2", "ports: [{name: second, containerPort: 101}]"))
				w.everywhere("web:80", "web-1:100")
				w.everywhere("web:81", "web-2:101")
				w.delete("pods", "web-1")
				w.reaches("pod@2", "web:80", Refused)
				w.reaches("pod@2", "web:81", "web-2:101")
			}},
		{file: specs, spec: "should be updated after adding or deleting ports",
			says: "a port that is added works, one that is taken away is refused, and the others do not notice",
			test: func(w *world) {
				w.apply(service("web", "ports: [{name: one, port: 80, targetPort: 100}]"))
				w.pods("web-1@1")
				w.reaches("pod@2", "web:80", "web-1:100")
				w.reaches("pod@2", "web:81", Refused)
				w.apply(service("web", "ports: [{name: one, port: 80, targetPort: 100}, {name: two, port: 81, targetPort: 101}]"))
				w.everywhere("web:80", "web-1:100")
				w.everywhere("web:81", "web-1:101")
				w.apply(service("web", "ports: [{name: two, port: 81, targetPort: 101}]"))
				w.reaches("pod@2", "web:80", Refused)
				w.everywhere("web:81", "web-1:101")
			}},
		{file: specs, spec: "should preserve source pod IP for traffic thru service cluster IP [LinuxOnly]",
			says: "a backend sees the address of the pod that asks, on the same node and on another one",
			test: func(w *world) {
				w.apply(service("web", web80))
				w.pods("web-1@1")
				w.sees("pod@1", "web:80", w.ip("client-1").String())
				w.sees("pod@2", "web:80", w.ip("client-2").String())
			}},
		{file: specs, spec: "should allow pods to hairpin back to themselves through services",
			says: "a pod reaches itself through its own service",
			test: func(w *world) {
				w.apply(service("web", web80))
				w.pods("web-1@1")
				w.reaches("web-1", "web:80", "web-1:80")
				w.pods("web-2@1", "web-3@2")
				w.reaches("web-1", "web:80", "web-1:80", "web-2:80", "web-3:80")
			}},
		{file: specs, spec: "should be able to up and down services",
			says: "a service that is deleted is refused, others are as before, and a new one works",
			test: func(w *world) {
				w.apply(service("one", web80) + "---\n" + service("two", web80))
				w.pods("one-1@1", "one-2@2", "two-1@1", "two-2@3")
				w.everywhere("one:80", "one-1:80", "one-2:80")
				first := w.get("one").Spec.ClusterIP + ":80"
				w.delete("services", "one")
				w.everywhere(first, Refused)
				w.everywhere("two:80", "two-1:80", "two-2:80")
				w.apply(service("three", web80))
				w.pods("three-1@2")
				w.everywhere("three:80", "three-1:80")
				w.everywhere("two:80", "two-1:80", "two-2:80")
			}},
		{file: specs, spec: "should work after the service has been recreated",
			says: "a service that is deleted and made again works again",
			test: func(w *world) {
				w.apply(service("web", web80))
				w.pods("web-1@1", "web-2@2")
				w.everywhere("web:80", "web-1:80", "web-2:80")
				w.delete("services", "web")
				w.apply(service("web", web80))
				w.everywhere("web:80", "web-1:80", "web-2:80")
			}},
		{file: specs, spec: "should work after restarting kube-proxy",
			says: "services are as before when what programs them starts again, and also while it is stopped",
			test: func(w *world) {
				w.apply(service("web", web80))
				w.pods("web-1@1", "web-2@2")
				for _, s := range w.stations {
					s.of.Stop()
				}
				w.pass(converge)
				w.everywhere("web:80", "web-1:80", "web-2:80")
				for _, s := range w.stations {
					s.of.Start()
				}
				w.pass(2 * converge)
				w.everywhere("web:80", "web-1:80", "web-2:80")
				w.apply(service("late", web80))
				w.pods("late-1@3")
				w.everywhere("late:80", "late-1:80")
			}},
		{file: specs, spec: "should work after restarting apiserver",
			says: "services are as before when the API server starts again, and new ones work",
			test: func(w *world) {
				w.apply(service("web", web80))
				w.pods("web-1@1", "web-2@2")
				at := w.get("web").Spec.ClusterIP + ":80"
				w.cluster.Stop()
				w.pass(converge)
				w.everywhere(at, "web-1:80", "web-2:80")
				w.cluster.Start()
				w.pass(4 * converge)
				w.everywhere("web:80", "web-1:80", "web-2:80")
				w.apply(service("late", web80))
				w.pods("late-1@3")
				w.everywhere("late:80", "late-1:80")
			}},
		{file: specs, spec: "should be rejected when no endpoints exist",
			says: "a service without endpoints is refused at once, from pods and nodes",
			test: func(w *world) {
				w.apply(service("web", "type: NodePort, ports: [{name: one, port: 80, nodePort: 30080}, {name: two, port: 80, nodePort: 30081, protocol: UDP}]"))
				w.everywhere("web:80", Refused)
				w.everywhere("web:80/UDP", Refused)
				w.everywhere("node:30080", Refused)
				w.everywhere("node:30081/UDP", Refused)
			}},
		{file: specs, spec: "should be rejected for evicted pods (no endpoints exist)", nothing: "pods are not evicted: one that is declared runs, and one that is deleted is gone"},
		{file: specs, spec: "should find a service from listing all namespaces", nothing: "there is no service `kubernetes` to find; `weft get services -A` lists all"},
		{file: specs, spec: "should complete a service status lifecycle", nothing: "a service's status is what its manifest says of its load balancer; nobody else writes it"},
		{file: specs, spec: "should delete a collection of services", nothing: "`weft delete -f FILE` deletes what a manifest has"},
	}
}

// sees checks from which address the only backend of a target is asked.
func (w *world) sees(who, target, want string) {
	w.t.Helper()
	to, proto := w.target(who, target)
	c := w.client(who, to.Addr().Is6())
	got := w.send(c, to, proto)
	if got.what != "" || got.packet.src.Addr().String() != want {
		w.t.Errorf("%s connects to %s: the backend is asked from %v (%s), want %s", who, target, got.packet.src, got.what, want)
	}
}

// types are about services that change their type, and about node ports.
func types() []row {
	nodePort := func(name string, port int) string {
		return service(name, fmt.Sprintf("type: NodePort, ports: [{port: 80, nodePort: %d}]", port))
	}
	external := manifest("Service", "web", "", "spec: {type: ExternalName, externalName: example.com}")
	const noExternal, why = "refused, with what to write instead: only a DNS server could answer it, and there is none", "spec.type is ExternalName, which only a DNS server could answer"
	return []row{
		{file: specs, spec: "should be able to create a functioning NodePort service",
			says: "a node port leads to the service's pods at every node, from pods, nodes and outside",
			test: func(w *world) {
				w.apply(nodePort("web", 30080))
				w.pods("web-1@1", "web-2@2")
				w.everywhere("web:80", "web-1:80", "web-2:80")
				w.everywhere("node:30080", "web-1:80", "web-2:80")
				w.reaches("pod@1", "node@2:30080", "web-1:80", "web-2:80")
				w.reaches("node@1", "node@2:30080", "web-1:80", "web-2:80")
				w.reaches("pod@1", "node@2:30081", Refused)
				w.reaches("node@1", "node@2:30081", Left)
			}},
		{file: specs, spec: "should be possible to connect to a service via ExternalIP when the external IP is not assigned to a node",
			says: "an external IP leads to the service's pods from every pod and node, although no node has it",
			test: func(w *world) {
				w.apply(service("web", "externalIPs: [203.0.113.9], ports: [{port: 80, targetPort: 8080}]"))
				w.pods("web-1@1", "web-2@2")
				w.everywhere("203.0.113.9:80", "web-1:8080", "web-2:8080")
				w.reaches("outside@3", "203.0.113.9:80", "web-1:8080", "web-2:8080")
				w.reaches("pod@1", "203.0.113.9:81", Left)
			}},
		{file: specs, spec: "should be able to update service type to NodePort listening on same port number but different protocols",
			says: "a service may have one port number for TCP and for UDP, each with a node port",
			test: func(w *world) {
				w.apply(service("web", web80))
				w.pods("web-1@1", "web-2@2")
				w.apply(service("web", "type: NodePort, ports: [{name: tcp, port: 80, targetPort: 9376}]"))
				tcp := w.nodePort("web", 80)
				w.everywhere("node:"+tcp, "web-1:9376", "web-2:9376")
				w.apply(service("web", "type: NodePort, ports: [{name: tcp, port: 80, targetPort: 9376}, {name: udp, port: 80, targetPort: 9377, protocol: UDP}]"))
				ports := w.get("web").Spec.Ports
				if len(ports) != 2 || fmt.Sprint(ports[0].NodePort) != tcp || ports[1].NodePort == 0 {
					w.t.Errorf("ports %+v", ports)
				}
				w.everywhere("node:"+tcp, "web-1:9376", "web-2:9376")
				w.everywhere(fmt.Sprintf("node:%d/UDP", ports[1].NodePort), "web-1:9377", "web-2:9377")
				w.everywhere("web:80/UDP", "web-1:9377", "web-2:9377")
			}},
		{file: specs, spec: "should be able to change the type from ExternalName to ClusterIP",
			says: "an ExternalName service has no address, and gets one when it becomes ClusterIP", differs: noExternal,
			test: func(w *world) {
				w.refuses(external, why)
				w.apply(service("web", web80))
				w.pods("web-1@1")
				w.everywhere("web:80", "web-1:80")
			}},
		{file: specs, spec: "should be able to change the type from ExternalName to NodePort",
			says: "an ExternalName service gets node ports when it becomes NodePort", differs: noExternal,
			test: func(w *world) {
				w.refuses(external, why)
				w.apply(nodePort("web", 30080))
				w.pods("web-1@1")
				w.everywhere("node:30080", "web-1:80")
			}},
		{file: specs, spec: "should be able to change the type from ClusterIP to ExternalName",
			says: "a service that becomes ExternalName has no address any more", differs: noExternal,
			test: func(w *world) {
				w.apply(service("web", web80))
				w.pods("web-1@1")
				w.refuses(external, why)
				w.pass(converge)
				w.everywhere("web:80", "web-1:80")
			}},
		{file: specs, spec: "should be able to change the type from NodePort to ExternalName",
			says: "a service that becomes ExternalName has no node ports any more", differs: noExternal,
			test: func(w *world) {
				w.apply(nodePort("web", 30080))
				w.pods("web-1@1")
				w.refuses(external, why)
				w.pass(converge)
				w.everywhere("node:30080", "web-1:80")
			}},
		{file: specs, spec: "should prevent NodePort collisions",
			says: "a node port belongs to one service; another that asks for it is refused",
			test: func(w *world) {
				w.apply(nodePort("web", 30080))
				w.refuses(nodePort("other", 30080), "nodePort 30080 belongs to service shop/web")
				w.delete("services", "web")
				w.apply(nodePort("other", 30080))
			}},
		{file: specs, spec: "should check NodePort out-of-range",
			says: "a node port outside of 30000-32767 is refused, for a new service and for one that is there",
			test: func(w *world) {
				w.refuses(nodePort("web", 8080), "choose one from 30000 to 32767")
				w.apply(nodePort("web", 30080))
				w.refuses(nodePort("web", 40000), "choose one from 30000 to 32767")
				if got := w.nodePort("web", 80); got != "30080" {
					w.t.Errorf("its node port became %s", got)
				}
			}},
		{file: specs, spec: "should release NodePorts on delete",
			says: "the node port of a service that is deleted is free, and nobody answers there",
			test: func(w *world) {
				w.apply(nodePort("web", 30080))
				w.pods("web-1@1", "other-1@2")
				w.everywhere("node:30080", "web-1:80")
				w.delete("services", "web")
				w.everywhere("node:30080", Left)
				w.apply(nodePort("other", 30080))
				w.everywhere("node:30080", "other-1:80")
			}},
		{file: beside, spec: "cluster IPs from outside",
			says: "a client outside that has a route reaches a cluster IP through any node",
			test: func(w *world) {
				w.apply(service("web", web80))
				w.pods("web-1@1")
				w.reaches("outside@1", "web:80", Left)
			}, differs: "not answered: cluster IPs are for the mesh. Clients outside reach node ports, external IPs and load balancer addresses"},
		{file: beside, spec: "cluster IPs without a service",
			says: "with nftables, an address of the service CIDR that no service has, or a port that its service does not, is refused",
			test: func(w *world) {
				w.apply(service("web", web80))
				w.pods("web-1@1")
				w.everywhere("10.101.0.9:80", Refused)
				w.everywhere("web:81", Refused)
			}},
		{file: beside, spec: "node ports on loopback",
			says: "with iptables, processes of a node reach node ports at 127.0.0.1",
			test: func(w *world) {
				w.apply(nodePort("web", 30080))
				w.pods("web-1@1")
				w.reaches("node@1", "127.0.0.1:30080", Left)
			}, differs: "as with nftables: only at the addresses of the node's device"},
		{file: beside, spec: "headless services",
			says: "a headless service has no address that leads anywhere, and no node ports",
			test: func(w *world) {
				w.apply(service("web", "clusterIP: None, ports: [{port: 80}]"))
				w.pods("web-1@1")
				w.refuses(service("other", "clusterIP: None, type: NodePort, ports: [{port: 80}]"), "spec.clusterIP is None")
				for _, s := range w.stations {
					if n := len(s.Services); n != 0 {
						w.t.Errorf("%d frontends", n)
					}
				}
			}},
	}
}

// readiness is about which pods are endpoints.
func readiness() []row {
	ready := func(what string) string {
		return strings.ReplaceAll("endpoints:\n- {addresses: [IP], nodeName: east-1, conditions: {"+what+"}}\nports: [{port: 80}]\n", "\t", "")
	}
	return []row{
		{file: specs, spec: "should create endpoints for unready pods",
			says: "pods that are not ready are endpoints of a service with publishNotReadyAddresses, and of no other",
			test: func(w *world) {
				d := w.door()
				w.apply(service("web", "publishNotReadyAddresses: true, ports: [{port: 80}]") + "---\n" + strings.Replace(service("other", web80), "app: other", "app: web", 1))
				w.apply(pod("web-1@1", d.probe()))
				w.everywhere("web:80", "web-1:80")
				w.everywhere("other:80", Refused)
				d.open(w.t)
				w.pass(2 * converge)
				w.everywhere("web:80", "web-1:80")
				w.everywhere("other:80", "web-1:80")
				d.shut()
				w.pass(3 * converge)
				w.everywhere("web:80", "web-1:80")
				w.everywhere("other:80", Refused)
			}},
		{file: specs, spec: "should be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is true",
			says: "an endpoint that is published although it terminates is used, at the cluster IP and at node ports",
			test: func(w *world) {
				w.pods("web-1@1")
				w.apply(manifest("Service", "web", "", "spec: {type: NodePort, publishNotReadyAddresses: true, ports: [{port: 80, nodePort: 30080}]}"))
				w.apply(slice("web-x", "web", strings.Replace(ready("ready: true, serving: false, terminating: true"), "IP", w.ip("web-1").String(), 1)))
				w.everywhere("web:80", "web-1:80")
				w.everywhere("node:30080", "web-1:80")
				w.delete("endpointslices", "web-x")
				w.apply(service("web", "type: NodePort, publishNotReadyAddresses: true, ports: [{port: 80, nodePort: 30080}]"))
				w.everywhere("web:80", "web-1:80")
				w.delete("pods", "web-1")
				w.everywhere("web:80", Refused)
			}, differs: "so where a slice says it; a pod that is deleted here is gone at once, without a grace period, and is no endpoint"},
		{file: specs, spec: "should not be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is false",
			says: "an endpoint that terminates and does not serve is not used",
			test: func(w *world) {
				w.pods("web-1@1")
				w.apply(manifest("Service", "web", "", "spec: {type: NodePort, ports: [{port: 80, nodePort: 30080}]}"))
				w.apply(slice("web-x", "web", strings.Replace(ready("ready: false, serving: false, terminating: true"), "IP", w.ip("web-1").String(), 1)))
				w.everywhere("web:80", Refused)
				w.everywhere("node:30080", Refused)
			}},
	}
}
