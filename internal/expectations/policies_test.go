package expectations

import (
	"fmt"
	"strings"
	"time"
)

const clientIP = "sessionAffinity: ClientIP, "

// sticky is the test of a service whose clients stay with their backend. Targets are where each
// kind of client asks.
func sticky(spec string, targets map[string]string) func(w *world) {
	return func(w *world) {
		w.apply(service("web", clientIP+spec))
		w.pods("web-1@1", "web-2@2", "web-3@3")
		for who, target := range targets {
			w.goes(who, target, "web-1:80")
			w.stays(who, target, "web-1:80", "web-2:80")
			w.stays(who, target, "web-1:80", "web-3:80")
		}
		// Once that backend is gone, they stay with another.
		w.delete("pods", "web-1")
		for who, target := range targets {
			w.goes(who, target, "web-2:80")
			w.stays(who, target, "web-2:80", "web-3:80")
		}
	}
}

// lapsing is that of one whose clients stay only for a while.
func lapsing(spec string, targets map[string]string) func(w *world) {
	return func(w *world) {
		w.apply(service("web", clientIP+"sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, "+spec))
		w.pods("web-1@1", "web-2@2")
		for who, target := range targets {
			w.goes(who, target, "web-1:80")
		}
		w.pass(50 * time.Second)
		for who, target := range targets { // which counts again
			w.stays(who, target, "web-1:80", "web-2:80")
		}
		w.pass(50 * time.Second)
		for who, target := range targets {
			w.stays(who, target, "web-1:80", "web-2:80")
		}
		w.pass(61 * time.Second)
		for who, target := range targets {
			w.goes(who, target, "web-2:80")
		}
	}
}

// switched is that of one that is told to, and told not to.
func switched(spec string, targets map[string]string) func(w *world) {
	return func(w *world) {
		w.apply(service("web", spec))
		w.pods("web-1@1", "web-2@2")
		for range 2 {
			for who, target := range targets {
				w.goes(who, target, "web-1:80")
				w.goes(who, target, "web-2:80")
			}
			w.apply(service("web", clientIP+spec))
			for who, target := range targets {
				if target == "" {
					continue
				}
				with, _ := w.draw(who, target, w.lot("web-1:80"))
				w.stays(who, target, with, "web-2:80")
				w.stays(who, target, with, "web-1:80")
			}
			w.apply(service("web", "sessionAffinity: None, "+spec))
		}
	}
}

// affinity is about clients that stay with their backend.
func affinity() []row {
	inside := map[string]string{"pod@1": "web:80", "pod@4": "web:80", "node@2": "web:80"}
	ports := map[string]string{"pod@1": "node:30080", "node@2": "node:30080", "outside@3": "node:30080"}
	const nodePort = "type: NodePort, ports: [{port: 80, nodePort: 30080}]"
	return []row{
		{file: specs, spec: "should have session affinity work for service with type clusterIP [LinuxOnly]",
			says: "with sessionAffinity ClientIP a client's connections go to one backend for as long as it is there", test: sticky(web80, inside)},
		{file: specs, spec: "should have session affinity timeout work for service with type clusterIP [LinuxOnly]",
			says: "a client that has not connected for timeoutSeconds may get another backend", test: lapsing(web80, inside)},
		{file: specs, spec: "should be able to switch session affinity for service with type clusterIP [LinuxOnly]",
			says: "session affinity is switched on and off for a service that is there", test: switched(web80, inside)},
		{file: specs, spec: "should have session affinity work for NodePort service [LinuxOnly]",
			says: "the same at node ports, also for clients outside", test: sticky(nodePort, ports)},
		{file: specs, spec: "should have session affinity timeout work for NodePort service [LinuxOnly]",
			says: "the same at node ports", test: lapsing(nodePort, ports)},
		{file: specs, spec: "should be able to switch session affinity for NodePort service [LinuxOnly]",
			says: "the same at node ports", test: switched(nodePort, ports)},
	}
}

// labels are about services that are not this proxy's.
func labels() []row {
	toggled := func(label string) func(w *world) {
		return func(w *world) {
			labelled := func(name string) string {
				return manifest("Service", name, fmt.Sprintf("labels: {%s: other}", label),
					"spec: {selector: {app: web}, type: NodePort, externalIPs: [203.0.113.9], ports: [{port: 80}]}")
			}
			plain := manifest("Service", "web", "", "spec: {selector: {app: web}, type: NodePort, externalIPs: [203.0.113.9], ports: [{port: 80}]}")
			w.pods("web-1@1", "web-2@2")
			w.apply(labelled("never"))
			w.everywhere("never:80", Refused)
			w.apply(plain)
			at := "node:" + w.nodePort("web", 80)
			for range 2 {
				w.everywhere("web:80", "web-1:80", "web-2:80")
				w.everywhere(at, "web-1:80", "web-2:80")
				w.apply(labelled("web"))
				w.everywhere("web:80", Refused)
				w.everywhere(at, Left)
				w.everywhere("203.0.113.9:80", Left)
				w.apply(plain)
			}
			w.everywhere("never:80", Refused)
		}
	}
	return []row{
		{file: specs, spec: "should implement service.kubernetes.io/service-proxy-name",
			says: "a service with this label is another proxy's: it is not served, from when the label comes until it goes", test: toggled("service.kubernetes.io/service-proxy-name")},
		{file: specs, spec: "should implement service.kubernetes.io/headless",
			says: "a service with this label is not served either, although it has an address", test: toggled("service.kubernetes.io/headless")},
	}
}

// traffic is about clients that are to stay on the node that they are on, or ask.
func traffic() []row {
	const hostPod = "outside of Kubernetes, pods on the host's network are refused, and a slice written by hand names the node's address"
	hostNetwork := manifest("Pod", "host-1", "", "spec: {nodeName: east-1, hostNetwork: true, containers: [{name: main}]}")
	return []row{
		{file: specs, spec: "should respect internalTrafficPolicy=Local Pod to Pod",
			says: "with internalTrafficPolicy Local a pod gets the endpoints of its node, and none where there are none",
			test: func(w *world) {
				w.apply(service("web", "internalTrafficPolicy: Local, ports: [{port: 80}]"))
				w.pods("web-1@1", "web-2@2")
				w.reaches("pod@1", "web:80", "web-1:80")
				w.reaches("pod@2", "web:80", "web-2:80")
				w.reaches("pod@3", "web:80", Refused)
				w.delete("pods", "web-1")
				w.reaches("pod@1", "web:80", Refused)
			}},
		{file: specs, spec: "should respect internalTrafficPolicy=Local Pod (hostNetwork: true) to Pod",
			says: "the same for the processes of a node",
			test: func(w *world) {
				w.apply(service("web", "internalTrafficPolicy: Local, ports: [{port: 80}]"))
				w.pods("web-1@1")
				w.reaches("node@1", "web:80", "web-1:80")
				w.reaches("node@2", "web:80", Refused)
			}},
		{file: specs, spec: "should respect internalTrafficPolicy=Local Pod and Node, to Pod (hostNetwork: true)",
			says: "the same with endpoints on a node's own network", differs: hostPod,
			test: func(w *world) {
				w.refuses(hostNetwork, "spec.hostNetwork is true")
				w.apply(manifest("Service", "web", "", "spec: {internalTrafficPolicy: Local, ports: [{port: 80}]}"))
				w.apply(slice("web-x", "web", "endpoints: [{addresses: [172.16.1.1], nodeName: east-1}]\nports: [{port: 80}]"))
				w.reaches("pod@1", "web:80", Left)
				w.reaches("node@1", "web:80", Left)
				w.reaches("pod@2", "web:80", Refused)
				w.reaches("node@2", "web:80", Refused)
			}},
		{file: specs, spec: "should support externalTrafficPolicy=Local for type=NodePort",
			says: "with externalTrafficPolicy Local, who asks a node from outside of it is seen with its own address by an endpoint there",
			test: func(w *world) {
				w.apply(service("web", "type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]"))
				w.pods("web-1@1")
				w.reaches("outside@1", "node:30080", "web-1:80")
				w.sees("outside@1", "node:30080", outsiders[0].String())
				w.reaches("node@2", "node@1:30080", "web-1:80")
				w.reaches("pod@1", "node@2:30080", "web-1:80")
			}},
		{file: specs, spec: "should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes",
			says: "with Local, nodes without an endpoint do not answer clients outside and their health check says 503; with Cluster all answer, and there is no health check",
			test: func(w *world) {
				local := func(policy, check string) string {
					return service("web", "type: LoadBalancer, externalTrafficPolicy: "+policy+check+", ports: [{port: 80, nodePort: 30080}]")
				}
				checks := func(want ...int) {
					w.t.Helper()
					for i, s := range w.stations {
						if got := s.of.HealthCheck(30999); got != want[i] {
							w.t.Errorf("node %d says %d, want %d", i+1, got, want[i])
						}
					}
				}
				w.pods("web-1@1")
				for range 2 {
					w.apply(local("Local", ", healthCheckNodePort: 30999"))
					checks(200, 503, 503, 503, 503)
					w.reaches("outside@1", "node:30080", "web-1:80")
					w.sees("outside@1", "node:30080", outsiders[0].String())
					w.reaches("outside@2", "node:30080", Refused)
					w.reaches("pod@2", "node:30080", "web-1:80")
					w.reaches("node@2", "node:30080", "web-1:80")
					w.apply(local("Cluster", ""))
					if p := w.get("web").Spec.HealthCheckNodePort; p != 0 {
						w.t.Errorf("its health check stays at %d", p)
					}
					checks(0, 0, 0, 0, 0)
					w.everywhere("node:30080", "web-1:80")
				}
			}},
		{file: beside, spec: "no endpoint on the node",
			says: "what a traffic policy keeps from endpoints elsewhere is dropped; only a service without any endpoint is refused",
			test: func(w *world) {
				w.apply(service("web", "type: NodePort, externalTrafficPolicy: Local, internalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]"))
				w.pods("web-1@1")
				w.reaches("outside@2", "node:30080", Refused)
				w.reaches("pod@2", "web:80", Refused)
				w.reaches("node@2", "web:80", Refused)
			}, differs: "refused: what is known to be hopeless is told at once. A load balancer that asks the health check sends nobody there"},
	}
}

// terminating is about endpoints that are about to go.
func terminating() []row {
	// pair is a service without a selector, and a pod on nodes 1 and 2 of which slices say what they
	// want.
	pair := func(w *world, spec string) func(first, second string) {
		w.pods("web-1@1", "web-2@2")
		w.apply(manifest("Service", "web", "", "spec: {"+spec+"}"))
		return func(first, second string) {
			w.t.Helper()
			conditions := map[string]string{
				"ready": "ready: true, serving: true, terminating: false", "terminating": "ready: false, serving: true, terminating: true",
				"silent": "ready: false, serving: false, terminating: true",
			}
			var all []string
			for i, says := range []string{first, second} {
				if c, ok := conditions[says]; ok {
					all = append(all, fmt.Sprintf("- {addresses: [%s], nodeName: east-%d, conditions: {%s}}", w.ip(fmt.Sprint("web-", i+1)), i+1, c))
				}
			}
			w.apply(slice("web-x", "web", "endpoints:\n"+strings.Join(all, "\n")+"\nports: [{port: 80}]"))
		}
	}
	return []row{
		{file: specs, spec: "should fail health check node port if there are only terminating endpoints",
			says: "a node whose only endpoint terminates says 503, and still serves",
			test: func(w *world) {
				says := pair(w, "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30999, ports: [{port: 80, nodePort: 30080}]")
				says("ready", "")
				if got := w.stations[0].of.HealthCheck(30999); got != 200 {
					w.t.Errorf("with an endpoint that is ready: %d", got)
				}
				says("terminating", "")
				if got := w.stations[0].of.HealthCheck(30999); got != 503 {
					w.t.Errorf("with one that terminates: %d", got)
				}
				w.reaches("outside@1", "node:30080", "web-1:80")
				w.reaches("pod@1", "node:30080", "web-1:80")
			}},
		{file: specs, spec: "should fallback to terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Cluster",
			says: "endpoints that terminate and serve are used if none is ready, and only then",
			test: func(w *world) {
				says := pair(w, web80)
				says("ready", "terminating")
				w.everywhere("web:80", "web-1:80")
				says("terminating", "terminating")
				w.everywhere("web:80", "web-1:80", "web-2:80")
				says("silent", "terminating")
				w.everywhere("web:80", "web-2:80")
				says("silent", "silent")
				w.everywhere("web:80", Refused)
			}},
		{file: specs, spec: "should fallback to local terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Local",
			says: "with internalTrafficPolicy Local, those of the node that terminate are used if none there is ready",
			test: func(w *world) {
				says := pair(w, "internalTrafficPolicy: Local, ports: [{port: 80}]")
				says("terminating", "ready")
				w.reaches("pod@1", "web:80", "web-1:80")
				w.reaches("node@1", "web:80", "web-1:80")
				w.reaches("pod@2", "web:80", "web-2:80")
				w.reaches("pod@3", "web:80", Refused)
			}},
		{file: specs, spec: "should fallback to terminating endpoints when there are no ready endpoints with externallTrafficPolicy=Cluster",
			says: "the same at node ports", test: func(w *world) {
				says := pair(w, "type: NodePort, ports: [{port: 80, nodePort: 30080}]")
				says("ready", "terminating")
				w.everywhere("node:30080", "web-1:80")
				says("terminating", "terminating")
				w.everywhere("node:30080", "web-1:80", "web-2:80")
			}},
		{file: specs, spec: "should fallback to local terminating endpoints when there are no ready endpoints with externalTrafficPolicy=Local",
			says: "with externalTrafficPolicy Local, clients outside get those of the node that they ask", test: func(w *world) {
				says := pair(w, "type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]")
				says("terminating", "ready")
				w.reaches("outside@1", "node:30080", "web-1:80")
				w.reaches("outside@2", "node:30080", "web-2:80")
				w.reaches("outside@3", "node:30080", Refused)
				w.reaches("pod@1", "node:30080", "web-2:80")
			}},
	}
}

// ports are about those that several protocols or containers have.
func ports() []row {
	both := "ports: [{name: tcp, port: 80}, {name: udp, port: 80, protocol: UDP}]"
	return []row{
		{file: specs, spec: "should serve endpoints on same port and different protocols",
			says: "one port number for two protocols works for both, and for one after the other is taken away",
			test: func(w *world) {
				w.apply(service("web", both))
				w.pods("web-1@1", "web-2@2")
				w.everywhere("web:80", "web-1:80", "web-2:80")
				w.everywhere("web:80/UDP", "web-1:80", "web-2:80")
				w.apply(service("web", "ports: [{name: udp, port: 80, protocol: UDP}]"))
				w.everywhere("web:80/UDP", "web-1:80", "web-2:80")
				w.everywhere("web:80", Refused)
			}},
		{file: specs, spec: "should serve endpoints on same port and different protocol for internal traffic on Type LoadBalancer",
			says: "the same inside, for a service of type LoadBalancer",
			test: func(w *world) {
				w.apply(service("web", "type: LoadBalancer, loadBalancerIP: 203.0.113.20, "+both))
				w.pods("web-1@1", "web-2@2")
				w.everywhere("web:80", "web-1:80", "web-2:80")
				w.everywhere("web:80/UDP", "web-1:80", "web-2:80")
				w.everywhere("203.0.113.20:80", "web-1:80", "web-2:80")
				w.everywhere("203.0.113.20:80/UDP", "web-1:80", "web-2:80")
			}},
		{file: specs, spec: "should allow creating a basic SCTP service with pod and endpoints [LinuxOnly]",
			says: "a service over SCTP is made, with endpoints",
			test: func(w *world) {
				w.apply(service("web", "ports: [{port: 80, protocol: SCTP}]"))
				w.pods("web-1@1")
				w.reaches("pod@1", "web:80/SCTP", "web-1:80")
				w.reaches("pod@2", "web:80/SCTP", "web-1:80")
			}},
		{file: specs, spec: "should connect to the ports exposed by restartable init containers",
			says: "an init container that goes on running serves like others", test: sidecar("8080")},
		{file: specs, spec: "should connect to the named ports exposed by restartable init containers",
			says: "so do its ports by their names", test: sidecar("sidecar")},
		{file: specs, spec: "should support named targetPorts that resolve to different ports on different endpoints",
			says: "a target port by name may be another number in each pod",
			test: func(w *world) {
				w.apply(service("web", "ports: [{name: http, port: 8001, targetPort: mutable}]"))
				old, now := "ports: [{name: mutable, containerPort: 8080}]", "ports: [{name: mutable, containerPort: 8000}]"
				w.apply(pod("web-1@1", old) + "---\n" + pod("web-2@2", old))
				w.everywhere("web:8001", "web-1:8080", "web-2:8080")
				w.delete("pods", "web-1")
				w.apply(pod("web-3@1", now))
				w.everywhere("web:8001", "web-2:8080", "web-3:8000")
				w.delete("pods", "web-2")
				w.apply(pod("web-4@2", now))
				w.everywhere("web:8001", "web-3:8000", "web-4:8000")
			}},
	}
}

func sidecar(target string) func(w *world) {
	return func(w *world) {
		w.apply(service("web", "ports: [{port: 80, targetPort: "+target+"}]"))
		w.apply(manifest("Pod", "web-1", "labels: {app: web}", `spec:
  nodeName: east-1
  initContainers: [{name: side, restartPolicy: Always, ports: [{name: sidecar, containerPort: 8080}]}]
  containers: [{name: main}]`))
		w.everywhere("web:80", "web-1:8080")
	}
}
