package connectivity

// Checks are all checks, in the order in which people read them. Each name says what it is
// about first.
func Checks() (all []Check) {
	all = append(all, podChecks...)
	all = append(all, nodeChecks...)
	all = append(all, serviceChecks...)
	all = append(all, outsideChecks...)
	all = append(all, packetChecks...)
	all = append(all, meshChecks...)
	all = append(all, policyChecks...)
	all = append(all, statusChecks...)
	return all
}

func needs(n ...Need) []Need      { return n }
func steps(s ...Step) []Step      { return s }
func pair(from, to string) []Step { return steps(asks(from, to)) }

var podChecks = []Check{
	{Name: "pod-to-pod-same-node", Says: "a pod reaches a pod on its node", Steps: pair("client", "server-near:8080")},
	{Name: "pod-to-pod-same-node-udp", Says: "a pod reaches a pod on its node over UDP", Steps: pair("client", "server-near:8080/udp")},
	{Name: "pod-to-pod-same-node-ping", Says: "a pod pings a pod on its node", Steps: pair("client", "server-near/ping")},
	{Name: "pod-to-pod-same-node-ipv6", Says: "a pod reaches a pod on its node over IPv6", Needs: needs(IPv6), Steps: steps(
		asks("client", "server-near:8080"), asks("client", "server-near:8080/udp"), asks("client", "server-near/ping"))},
	{Name: "pod-to-pod-other-node", Says: "a pod reaches a pod on another node", Needs: needs(TwoNodes), Steps: pair("client", "server-far:8080")},
	{Name: "pod-to-pod-other-node-udp", Says: "a pod reaches a pod on another node over UDP", Needs: needs(TwoNodes), Steps: pair("client", "server-far:8080/udp")},
	{Name: "pod-to-pod-other-node-ping", Says: "a pod pings a pod on another node", Needs: needs(TwoNodes), Steps: pair("client", "server-far/ping")},
	{Name: "pod-to-pod-other-node-ipv6", Says: "a pod reaches a pod on another node over IPv6", Needs: needs(TwoNodes, IPv6), Steps: steps(
		asks("client", "server-far:8080"), asks("client", "server-far:8080/udp"), asks("client", "server-far/ping"))},
	{Name: "pod-to-pod-other-namespace", Says: "a pod reaches a pod of another namespace", Steps: pair("guest", "server-near:8080")},
	{Name: "pod-keeps-address-same-node", Says: "a pod on the same node sees the pod's own address", Steps: steps(
		asks("client", "server-near:8080").seen("client"), asks("client", "server-near:8080/udp").seen("client"))},
	{Name: "pod-keeps-address-other-node", Says: "a pod on another node sees the pod's own address", Needs: needs(TwoNodes), Steps: steps(
		asks("client", "server-far:8080").seen("client"), asks("client", "server-far:8080/udp").seen("client"))},
	{Name: "pod-closed-port-refused", Says: "a port at which nobody listens is refused at once", Steps: steps(
		asks("client", "server-near:9").refused(""))},
	{Name: "pod-closed-port-refused-other-node", Says: "a port at which nobody listens on another node is refused at once", Needs: needs(TwoNodes), Steps: steps(
		asks("client", "server-far:9").refused(""))},
}

var nodeChecks = []Check{
	{Name: "node-to-pod-same-node", Says: "a node's processes reach a pod on it, as the kubelet does", Steps: steps(
		asks("host-near", "server-near:8080"), asks("host-near", "server-near:8080/udp"))},
	{Name: "node-to-pod-other-node", Says: "a node's processes reach a pod on another node", Needs: needs(TwoNodes), Steps: steps(
		asks("host-near", "server-far:8080"), asks("host-far", "server-near:8080"))},
	{Name: "node-to-service", Says: "a node's processes reach a service at its cluster IP", Steps: steps(
		asks("host-near", "svc/server:80").by("server-near", "server-far").times(5), asks("host-near", "svc/server:80/udp").by("server-near", "server-far"))},
	{Name: "node-to-service-ipv6", Says: "a node's processes reach a service over IPv6", Needs: needs(IPv6), Steps: steps(
		asks("host-near", "svc/server:80").by("server-near", "server-far").times(5))},
	{Name: "pod-to-own-node", Says: "a pod reaches processes of its own node", Steps: steps(asks("client", "node/near:8478").by("host-near"))},
	{Name: "pod-to-other-node-refused", Says: "what no service names at another node's address is closed to pods, and an event says so", Needs: needs(TwoNodes), Steps: steps(
		asks("client", "node/far:10250").dropped("node-address"))},
	{Name: "pod-to-kubernetes-api", Says: "pods on each node reach the Kubernetes API server through its service", Steps: steps(
		asks("client", "svc/kubernetes:443/connect"))},
	{Name: "pod-to-kubernetes-api-other-node", Says: "pods on another node reach the Kubernetes API server through its service", Needs: needs(TwoNodes), Steps: steps(
		asks("server-far", "svc/kubernetes:443/connect"))},
}

var serviceChecks = []Check{
	{Name: "service-cluster-ip", Says: "a service leads to its pods", Steps: steps(asks("client", "svc/server:80").by("server-near", "server-far").times(5))},
	{Name: "service-cluster-ip-all-backends", Says: "a service uses its pods on all nodes", Needs: needs(TwoNodes), Steps: steps(
		asks("client", "svc/server:80").allOf("server-near", "server-far").times(40))},
	{Name: "service-cluster-ip-udp", Says: "a service over UDP leads to its pods", Steps: steps(asks("client", "svc/server:80/udp").by("server-near", "server-far").times(5))},
	{Name: "service-cluster-ip-ipv6", Says: "a service leads to its pods over IPv6", Needs: needs(IPv6), Steps: steps(
		asks("client", "svc/server:80").by("server-near", "server-far").times(5), asks("client", "svc/server:80/udp").by("server-near", "server-far"))},
	{Name: "service-named-port", Says: "a service's port leads to the container port of that name", Steps: steps(
		asks("client", "svc/server:81").by("server-near", "server-far").times(5))},
	{Name: "service-keeps-address", Says: "the pods of a service see the client's own address", Steps: steps(
		asks("client", "svc/server:80").by("server-near", "server-far").times(5).seen("client"))},
	{Name: "service-other-namespace", Says: "a pod reaches a service of another namespace", Steps: steps(asks("guest", "svc/server:80").by("server-near", "server-far"))},
	{Name: "service-to-itself", Says: "a pod reaches itself through its service", Steps: steps(asks("client", "svc/self:80").by("client").times(3))},
	{Name: "service-headless", Says: "all endpoints of a headless service are reached", Steps: steps(asks("client", "slice/headless:8080").by("server-near", "server-far"))},
	{Name: "service-session-affinity", Says: "a client with session affinity stays with one pod", Steps: steps(
		asks("client", "svc/sticky:80").oneOf("server-near", "server-far").times(20))},
	{Name: "service-internal-traffic-local", Says: "with internalTrafficPolicy Local, the pods of the client's node answer alone", Needs: needs(TwoNodes), Steps: steps(
		asks("client", "svc/local:80").by("server-near").times(20))},
	{Name: "service-internal-traffic-local-refused", Says: "with internalTrafficPolicy Local and pods elsewhere, clients are refused, and an event says so", Needs: needs(TwoNodes), Steps: steps(
		asks("client", "svc/local-far:80").refused("no-backend"))},
	{Name: "service-without-backends-refused", Says: "a service without pods refuses clients at once, and an event says so", Steps: steps(
		asks("client", "svc/empty:80").refused("no-backend"))},
	{Name: "service-unknown-port-refused", Says: "a port that a service does not have is refused at once, and an event says so", Steps: steps(
		asks("client", "svc/server:82").refused("no-backend"))},
	{Name: "service-external-ip", Says: "pods reach a service at its external address", Needs: needs(External), Steps: steps(
		asks("client", "external/external:80").by("server-near", "server-far").times(5))},
	{Name: "service-node-port-from-pod", Says: "pods reach a service at the node port of their own node", Steps: steps(
		asks("client", "node-port/node-port@near:80").by("server-near", "server-far").times(5), asks("client", "node-port/node-port@near:80/udp").by("server-near", "server-far"))},
	{Name: "service-node-port-from-node", Says: "processes reach a service at the node port of their own node", Steps: steps(
		asks("host-near", "node-port/node-port@near:80").by("server-near", "server-far").times(5))},
	{Name: "service-to-process", Says: "a service leads to processes of nodes", Steps: steps(asks("client", "svc/processes:80").by("host-near", "host-far").times(5))},
}

var outsideChecks = []Check{
	{Name: "outside-from-pod", Says: "pods reach servers outside of the mesh", Needs: needs(Outside), Steps: steps(asks("client", "outside").by("outside"))},
	{Name: "outside-from-pod-udp", Says: "pods reach servers outside of the mesh over UDP", Needs: needs(Outside), Steps: steps(asks("client", "outside/udp").by("outside"))},
	{Name: "outside-masquerade", Says: "servers outside of the mesh see the address of the pod's node", Needs: needs(Outside), Steps: steps(
		asks("client", "outside").by("outside").seen("node/near"), asks("client", "outside/udp").by("outside").seen("node/near"))},
	{Name: "outside-masquerade-other-node", Says: "servers outside of the mesh see the address of the pod's node, also of the other one", Needs: needs(Outside, TwoNodes), Steps: steps(
		asks("server-far", "outside").by("outside").seen("node/far"))},
	{Name: "outside-to-node-port", Says: "clients outside reach a service at each node", Needs: needs(Inbound), Steps: steps(
		asks("here", "node-port/node-port@near:80").by("server-near", "server-far").times(10), asks("here", "node-port/node-port@near:80/udp").by("server-near", "server-far").times(5))},
	{Name: "outside-to-node-port-other-node", Says: "clients outside reach a service at the other node", Needs: needs(Inbound, TwoNodes), Steps: steps(
		asks("here", "node-port/node-port@far:80").by("server-near", "server-far").times(10))},
	{Name: "outside-external-traffic-local", Says: "with externalTrafficPolicy Local, pods see the address of the client outside", Needs: needs(Inbound), Steps: steps(
		asks("here", "node-port/node-port-local@near:80").by("server-near").times(5).seen("here"))},
	{Name: "outside-to-host-port", Says: "clients outside reach a pod at its host port", Needs: needs(Inbound), Steps: steps(asks("here", "node/near:8479").by("server-near").times(3))},
	{Name: "outside-to-cluster-ip-closed", Says: "cluster IPs are closed to clients outside", Needs: needs(Inbound), Steps: steps(asks("here", "svc/server:80").dropped(""))},
}

var packetChecks = []Check{
	{Name: "mtu-same-node", Says: "the largest packet reaches a pod on the node and comes back", Steps: steps(asks("client", "server-near:8080/udp").whole().times(3))},
	{Name: "mtu-other-node", Says: "the largest packet reaches a pod on another node and comes back", Needs: needs(TwoNodes), Steps: steps(
		asks("client", "server-far:8080/udp").whole().times(3), asks("server-far", "server-near:8080/udp").whole().times(3))},
	{Name: "mtu-service", Says: "the largest packet passes through a service", Steps: steps(
		asks("client", "svc/server:80/udp").by("server-near", "server-far").whole().times(5))},
	{Name: "fragments-same-node", Says: "a datagram in fragments reaches a pod on the node and comes back", Steps: steps(asks("client", "server-near:8080/udp").bytes(9000).times(3))},
	{Name: "fragments-other-node", Says: "a datagram in fragments reaches a pod on another node and comes back", Needs: needs(TwoNodes), Steps: steps(
		asks("client", "server-far:8080/udp").bytes(9000).times(3))},
	{Name: "fragments-service", Says: "a datagram in fragments passes through a service", Steps: steps(
		asks("client", "svc/server:80/udp").by("server-near", "server-far").bytes(4000).times(3))},
	{Name: "bulk-other-node", Says: "a megabyte passes to another node and back", Needs: needs(TwoNodes), Steps: steps(asks("client", "server-far:8080").bytes(1 << 20))},
	{Name: "bulk-service", Says: "a megabyte passes through a service and back", Steps: steps(asks("client", "svc/server:80").by("server-near", "server-far").bytes(1 << 20))},
	{Name: "encryption-other-node", Says: "what pods send to another node goes through the tunnel, as both ends count it", Needs: needs(TwoNodes), Do: sealed("server-far")},
}

var meshChecks = []Check{
	{Name: "mesh-pod-to-pod", Says: "a pod reaches a peer's pod", Mesh: true, Steps: pair("client", "peer/server-near:8080")},
	{Name: "mesh-pod-to-pod-udp", Says: "a pod reaches a peer's pod over UDP", Mesh: true, Steps: pair("client", "peer/server-near:8080/udp")},
	{Name: "mesh-pod-to-pod-ping", Says: "a pod pings a peer's pod", Mesh: true, Steps: pair("client", "peer/server-near/ping")},
	{Name: "mesh-pod-to-pod-ipv6", Says: "a pod reaches a peer's pod over IPv6", Mesh: true, Needs: needs(IPv6), Steps: steps(
		asks("client", "peer/server-near:8080"), asks("client", "peer/server-near:8080/udp"), asks("client", "peer/server-near/ping"))},
	{Name: "mesh-pod-to-pod-second-node", Says: "a pod on the second node reaches a peer's pod", Mesh: true, Needs: needs(TwoNodes), Steps: pair("server-far", "peer/server-near:8080")},
	{Name: "mesh-node-to-pod", Says: "a node's processes reach a peer's pod", Mesh: true, Steps: pair("host-near", "peer/server-near:8080")},
	{Name: "mesh-keeps-address", Says: "a peer's pod sees the pod's own address", Mesh: true, Steps: steps(asks("client", "peer/server-near:8080").seen("client"))},
	{Name: "mesh-mtu", Says: "the largest packet reaches a peer's pod and comes back", Mesh: true, Steps: steps(asks("client", "peer/server-near:8080/udp").whole().times(3))},
	{Name: "mesh-fragments", Says: "a datagram in fragments reaches a peer's pod and comes back", Mesh: true, Steps: steps(asks("client", "peer/server-near:8080/udp").bytes(9000).times(3))},
	{Name: "mesh-bulk", Says: "a megabyte passes to a peer's pod and back", Mesh: true, Steps: steps(asks("client", "peer/server-near:8080").bytes(1 << 20))},
	{Name: "mesh-encryption", Says: "what pods send to a peer goes through the tunnel, as both ends count it", Mesh: true, Do: sealed("peer/server-near")},
	{Name: "mesh-private-service", Says: "a service that is not global stays with its own cluster's pods", Mesh: true, Steps: steps(asks("client", "svc/private:80").by("global-0").times(20))},
	{Name: "mesh-global-service", Says: "a global service uses the pods of both clusters", Mesh: true, Steps: steps(asks("client", "svc/global:80").allOf("global-0", "peer/global-0").times(60))},
	{Name: "mesh-global-service-node", Says: "a node's processes reach a global service in both clusters", Mesh: true, Steps: steps(asks("host-near", "svc/global:80").allOf("global-0", "peer/global-0").times(60))},
	{Name: "mesh-global-service-affinity", Says: "a global service with affinity to the local cluster uses its pods alone", Mesh: true, Steps: steps(asks("client", "svc/global-local:80").by("global-0").times(20))},
	{Name: "mesh-failover", Says: "a global service without pods here is answered by the peer, and again by both when they are back", Mesh: true, Alone: true, Do: failover},
}

var statusChecks = []Check{
	{Name: "status-well", Says: "`weft status` has nothing to complain about", Alone: true, Bare: true, Do: well},
	{Name: "status-nodes", Says: "the agent of every Kubernetes node is ready", Alone: true, Bare: true, Do: nodesReady},
	{Name: "status-peers", Says: "the link to every peer is up, and all that it exports is here", Alone: true, Bare: true, Do: peersUp},
}
