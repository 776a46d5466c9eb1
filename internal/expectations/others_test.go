package expectations

import (
	"net/netip"
	"slices"
	"strings"
)

func sortedOf(all []string) []string {
	slices.Sort(all)
	return all
}

// slotsOf counts what a new connection to a front may be given.
func (s *station) slotsOf(at netip.AddrPort, proto uint8) (n int) {
	for front, svc := range s.Services {
		if front.At != at || front.Proto != proto {
			continue
		}
		for _, g := range svc.Groups {
			n += len(g.Backends)
		}
	}
	return n
}

// dualStack is about services and pods of both IP families.
func dualStack() []row {
	const file = "dual_stack.go"
	// families checks a service's addresses, 4 and 6 in order.
	families := func(spec, want string) func(w *world) {
		return func(w *world) {
			w.apply(service("web", spec+"ports: [{port: 80}]"))
			svc, got := w.get("web"), ""
			for i, ip := range svc.Spec.ClusterIPs {
				a := netip.MustParseAddr(ip)
				is := "6"
				if a.Is4() {
					is = "4"
				}
				if got += is; string(svc.Spec.IPFamilies[i]) != "IPv"+is {
					w.t.Errorf("families %v of %v", svc.Spec.IPFamilies, svc.Spec.ClusterIPs)
				}
			}
			if got != want {
				w.t.Errorf("addresses %v, want families %s", svc.Spec.ClusterIPs, want)
			}
			w.pods("web-1@1", "web-2@2")
			w.everywhere("web:80", "web-1:80", "web-2:80")
			if len(want) == 2 {
				w.everywhere("[2]web:80", "web-1:80", "web-2:80")
			}
		}
	}
	const both = "ipFamilyPolicy: RequireDualStack, "
	// function is the test of a service of both families, with node ports.
	function := func(protocol string, clients ...string) func(w *world) {
		return func(w *world) {
			w.apply(service("web", both+"type: NodePort, ports: [{port: 80, nodePort: 30080, protocol: "+protocol+"}]"))
			w.pods("web-1@1", "web-2@2")
			for _, who := range clients {
				for _, target := range []string{"web:80/", "[2]web:80/", "node:30080/", "[2]node:30080/"} {
					if strings.Contains(target, "node:") && !strings.Contains(who, "@") || strings.Contains(target, "web:") && strings.HasPrefix(who, "outside") {
						continue
					}
					w.reaches(who, target+protocol, "web-1:80", "web-2:80")
				}
			}
		}
	}
	pods, nodes, endpoints := []string{"pod@1", "pod@5", "outside@5"}, []string{"node@1", "node@5"}, []string{"web-1", "web-2"}
	updated := func(protocol string) func(w *world) {
		return func(w *world) {
			w.apply(service("web", both+"ports: [{port: 80, protocol: "+protocol+"}]"))
			w.pods("web-1@1", "web-2@2")
			for _, at := range []string{"web:80/", "[2]web:80/"} {
				w.everywhere(at+protocol, "web-1:80", "web-2:80")
			}
			w.delete("pods", "web-1")
			w.pods("web-3@4")
			for _, at := range []string{"web:80/", "[2]web:80/"} {
				w.everywhere(at+protocol, "web-2:80", "web-3:80")
			}
		}
	}
	affine := func(protocol string) func(w *world) {
		return sticky(both+"ports: [{port: 80, protocol: "+protocol+"}]", map[string]string{"pod@1": "web:80/" + protocol, "pod@2": "web:80/" + protocol})
	}
	all := []row{
		{spec: "should have at least one dual-stack node", says: "nodes have pod CIDRs of both families",
			test: func(w *world) {
				for _, e := range w.endpoints() {
					if ips := e.IPs(); len(ips) != 2 || ips[0].Is6() || ips[1].Is4() {
						w.t.Errorf("pod %s has %v", e.Pod, ips)
					}
				}
			}},
		{spec: "should create pod, add ipv6 and ipv4 ip to pod ips", says: "a pod has an address of each family",
			test: func(w *world) {
				w.pods("web-1@1")
				if e, _ := w.endpoint("web-1"); len(e.IPs()) != 2 {
					w.t.Errorf("pod has %v", e.IPs())
				}
			}},
		{spec: "should create pod, add ipv6 and ipv4 ip to host ips", nothing: "a pod's status names its node's first address"},
		{spec: "should be able to reach pod on ipv4 and ipv6 ip", says: "pods reach each other at either",
			test: func(w *world) {
				for _, who := range []string{"client-2", "client-5"} {
					e, _ := w.endpoint(who)
					for _, ip := range e.IPs() {
						w.reaches("pod@1", netip.AddrPortFrom(ip, 80).String(), who+":80")
					}
				}
			}},
		{spec: "should create a single stack service with cluster ip from primary service range", says: "a service that does not say has the cluster's first family", test: families("", "4")},
		{spec: "should create service with ipv4 cluster ip", says: "a service may have IPv4 alone", test: families("ipFamilies: [IPv4], ", "4")},
		{spec: "should create service with ipv6 cluster ip", says: "a service may have IPv6 alone", test: families("ipFamilies: [IPv6], ", "6")},
		{spec: "should create service with ipv4,v6 cluster ip", says: "a service may have both, IPv4 first", test: families(both+"ipFamilies: [IPv4, IPv6], ", "46")},
		{spec: "should create service with ipv6,v4 cluster ip", says: "a service may have both, IPv6 first", test: families(both+"ipFamilies: [IPv6, IPv4], ", "64")},
		{spec: "should function for pod-Service: http", says: "pods reach either address of a service, and node ports at either of a node", test: function("TCP", pods...)},
		{spec: "should function for pod-Service: udp", says: "the same over UDP", test: function("UDP", pods...)},
		{spec: "should function for pod-Service: sctp", says: "pods reach either address of a service over SCTP, and node ports",
			test: func(w *world) {
				w.apply(service("web", both+"ports: [{port: 80, protocol: SCTP}]"))
				w.pods("web-1@1")
				w.reaches("pod@2", "web:80/SCTP", "web-1:80")
				w.reaches("pod@2", "[2]web:80/SCTP", "web-1:80")
			}, differs: "at cluster IPs; node ports have TCP and UDP"},
		{spec: "should function for node-Service: http", says: "so do processes of a node", test: function("TCP", nodes...)},
		{spec: "should function for node-Service: udp", says: "the same over UDP", test: function("UDP", nodes...)},
		{spec: "should function for endpoint-Service: http", says: "so do a service's own pods", test: function("TCP", endpoints...)},
		{spec: "should function for endpoint-Service: udp", says: "the same over UDP", test: function("UDP", endpoints...)},
		{spec: "should update endpoints: http", says: "a pod that is replaced is out at both addresses, and the new one in", test: updated("TCP")},
		{spec: "should update endpoints: udp", says: "the same over UDP", test: updated("UDP")},
		{spec: "should function for client IP based session affinity: http [LinuxOnly]", says: "session affinity holds over TCP", test: affine("TCP")},
		{spec: "should function for client IP based session affinity: udp [LinuxOnly]", says: "session affinity holds over UDP", test: affine("UDP")},
		{spec: "should be able to handle large requests: http", says: "what does not fit into one packet arrives", elsewhere: "scenarios/real-tools.txtar", line: "--client $SIX --bytes 20M"},
		{spec: "should be able to handle large requests: udp", says: "a datagram that travels in pieces arrives", elsewhere: "scenarios/real-tools.txtar", line: "@$SIX long.test TXT"},
		{spec: "should function for service endpoints using hostNetwork", says: "endpoints may be on a node's own network",
			test: func(w *world) {
				w.apply(manifest("Service", "web", "", "spec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}"))
				w.apply(slice("web-4", "web", "endpoints: [{addresses: [172.16.1.2]}]\nports: [{port: 80}]"))
				w.everywhere("web:80", Left)
				w.everywhere("[2]web:80", Refused) // these nodes are registered with addresses of IPv4
			}, differs: "at cluster IPs; at node ports and external addresses a service leads to pods alone"},
	}
	for i := range all {
		all[i].file, all[i].dualStack = file, true
	}
	return all
}

// others are about what Weft has nothing of.
func others() []row {
	return []row{
		{file: "service_latency.go", spec: "should not be very high", nothing: "a figure: `make bench-services` measures it as `sync-one`"},
		{file: "kube_proxy.go", spec: "should set TCP CLOSE_WAIT timeout [Privileged]", nothing: "the kernel's connection tracking is not used"},
		{file: "kube_proxy.go", spec: "should update metric for tracking accepted packets destined for localhost nodeports", nothing: "there are no node ports on loopback"},
		{file: "service_cidrs.go", spec: "should create Services and serve on different Service CIDRs", nothing: "a cluster has one service CIDR of each family"},
		{file: "service_cidrs.go", spec: "should support ServiceCIDR API operations", nothing: "there is no such kind"},
		{file: "service_cidrs.go", spec: "should support IPAddress API operations", nothing: "there is no such kind"},
	}
}
