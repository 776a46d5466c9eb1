package connectivity

// The policies of checks are in the namespace of the test, unless they say otherwise, and are
// applied in one cluster alone. While one is in force, it is the only one there.

// open is how servers are without policies.
var open = []Step{asks("client", "server-near:8080"), asks("stranger", "server-near:8080"), asks("guest", "server-near:8080")}

// openFar is the same on the other node too.
var openFar = append([]Step{asks("client", "server-far:8080")}, open...)

var policyChecks = []Check{
	{Name: "policy-kubernetes-deny-ingress", Says: "a NetworkPolicy that allows nobody closes pods, and events name it", Alone: true, Before: open,
		Policies: `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: weft-test-closed}, spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}}`,
		Steps:    steps(asks("client", "server-near:8080").denied("weft-test-closed"), asks("client", "server-near:8080/udp").denied("weft-test-closed"), asks("guest", "server-near:8080").denied("weft-test-closed"))},
	{Name: "policy-kubernetes-deny-other-node", Says: "a NetworkPolicy that allows nobody closes pods on another node", Alone: true, Needs: needs(TwoNodes), Before: openFar,
		Policies: `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: weft-test-closed}, spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}}`,
		Steps:    steps(asks("client", "server-far:8080").denied("weft-test-closed"), asks("client", "svc/server:80").denied("weft-test-closed"))},
	{Name: "policy-kubernetes-deny-egress", Says: "a NetworkPolicy that allows nothing keeps a pod from sending, and events name it", Alone: true, Before: open,
		Policies: `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: weft-test-closed}, spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}}`,
		Steps:    steps(asks("client", "server-near:8080").denied("weft-test-closed"), asks("stranger", "server-near:8080"), asks("guest", "server-near:8080"))},
	{Name: "policy-kubernetes-by-label", Says: "a NetworkPolicy lets pods with a label in, and no others", Alone: true, Before: open,
		Policies: `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: weft-test-label}, spec: {podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}}`,
		Steps:    steps(asks("client", "server-near:8080"), asks("stranger", "server-near:8080").denied("weft-test-label"), asks("guest", "server-near:8080").denied("weft-test-label"))},
	{Name: "policy-kubernetes-by-namespace", Says: "a NetworkPolicy lets pods of a namespace in, and no others", Alone: true, Before: open,
		Policies: `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: weft-test-namespace}, spec: {podSelector: {matchLabels: {app: server}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{.Other}}}}}]}]}}`,
		Steps:    steps(asks("guest", "server-near:8080"), asks("client", "server-near:8080").denied("weft-test-namespace"))},
	{Name: "policy-kubernetes-named-port", Says: "a NetworkPolicy allows a port by the container port's name", Alone: true, Before: append(steps(asks("client", "server-near:8081")), open...),
		Policies: `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: weft-test-port}, spec: {podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{port: admin}]}]}}`,
		Steps:    steps(asks("client", "server-near:8081"), asks("client", "server-near:8080").denied("weft-test-port"))},
	{Name: "policy-kubernetes-own-node", Says: "a NetworkPolicy that allows nobody lets the pod's own node in, for its probes", Alone: true, Before: open,
		Policies: `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: weft-test-closed}, spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}}`,
		Steps:    steps(asks("host-near", "server-near:8080"), asks("client", "server-near:8080").denied("weft-test-closed"))},
	{Name: "policy-by-label", Says: "a CiliumNetworkPolicy lets pods with a label in, and no others", Alone: true, Before: open,
		Policies: cilium("label", `ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]`),
		Steps:    steps(asks("client", "server-near:8080"), asks("stranger", "server-near:8080").denied("weft-test-label"), asks("guest", "server-near:8080").denied("weft-test-label"))},
	{Name: "policy-by-namespace", Says: "a CiliumNetworkPolicy lets pods of a namespace in, and no others", Alone: true, Before: open,
		Policies: cilium("namespace", `ingress: [{fromEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": {{.Other}}}}]}]`),
		Steps:    steps(asks("guest", "server-near:8080"), asks("client", "server-near:8080").denied("weft-test-namespace"))},
	{Name: "policy-by-port", Says: "a CiliumNetworkPolicy allows a port, and no other", Alone: true, Before: append(steps(asks("client", "server-near:8081")), open...),
		Policies: cilium("port", `ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: "8080", protocol: TCP}]}]}]`),
		Steps:    steps(asks("client", "server-near:8080"), asks("client", "server-near:8081").denied("weft-test-port"))},
	{Name: "policy-by-protocol", Says: "a CiliumNetworkPolicy allows a port over TCP, and not over UDP", Alone: true, Before: append(steps(asks("client", "server-near:8080/udp")), open...),
		Policies: cilium("port", `ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: "8080", protocol: TCP}]}]}]`),
		Steps:    steps(asks("client", "server-near:8080"), asks("client", "server-near:8080/udp").denied("weft-test-port"))},
	{Name: "policy-by-named-port", Says: "a CiliumNetworkPolicy allows a port by its name", Alone: true, Before: append(steps(asks("client", "server-near:8081")), open...),
		Policies: cilium("port", `ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: admin, protocol: TCP}]}]}]`),
		Steps:    steps(asks("client", "server-near:8081"), asks("client", "server-near:8080").denied("weft-test-port"))},
	{Name: "policy-denial-wins", Says: "a denial wins over what is allowed, and events name its policy", Alone: true, Before: open,
		Policies: cilium("allow", `ingress: [{fromEndpoints: [{}]}]`) + "\n---\n" + cilium("deny", `ingressDeny: [{fromEndpoints: [{matchLabels: {app: stranger}}]}]`),
		Steps:    steps(asks("client", "server-near:8080"), asks("stranger", "server-near:8080").denied("weft-test-deny"))},
	{Name: "policy-entity-cluster", Says: "the entity cluster is all pods of the cluster", Alone: true, Before: open,
		Policies: cilium("entity", `ingress: [{fromEntities: [cluster]}]`),
		Steps:    steps(asks("client", "server-near:8080"), asks("guest", "server-near:8080"))},
	{Name: "policy-entity-world", Says: "the entity world is no pod", Alone: true, Before: open,
		Policies: cilium("entity", `ingress: [{fromEntities: [world]}]`),
		Steps:    steps(asks("client", "server-near:8080").denied("weft-test-entity"))},
	{Name: "policy-egress-by-label", Says: "a pod may reach pods with a label, also through their service, and nothing else", Alone: true,
		Before:   append(steps(asks("client", "svc/server:80").by("server-near", "server-far"), asks("client", "global-0:8080")), open...),
		Policies: ciliumFor("client", "egress", `egress: [{toEndpoints: [{matchLabels: {app: server}}]}]`),
		Steps: steps(asks("client", "server-near:8080"), asks("client", "svc/server:80").by("server-near", "server-far").times(5),
			asks("client", "global-0:8080").denied("weft-test-egress"))},
	{Name: "policy-egress-denial", Says: "a pod is kept from a port, and from nothing else", Alone: true, Before: append(steps(asks("client", "server-near:8081")), open...),
		Policies: ciliumFor("client", "egress", `enableDefaultDeny: {egress: false}, egressDeny: [{toEndpoints: [{matchLabels: {app: server}}], toPorts: [{ports: [{port: "8081", protocol: TCP}]}]}]`),
		Steps:    steps(asks("client", "server-near:8080"), asks("client", "server-near:8081").denied("weft-test-egress"))},
	{Name: "policy-egress-entity-world", Says: "a pod that may reach the world reaches servers outside, and no pods", Alone: true, Needs: needs(Outside), Before: append(steps(asks("client", "outside").by("outside")), open...),
		Policies: ciliumFor("client", "egress", `egress: [{toEntities: [world]}]`),
		Steps:    steps(asks("client", "outside").by("outside"), asks("client", "server-near:8080").denied("weft-test-egress"))},
	{Name: "policy-egress-cidr", Says: "a pod that may reach an address outside reaches it, and no pods", Alone: true, Needs: needs(Outside), Before: append(steps(asks("client", "outside").by("outside")), open...),
		Policies: ciliumFor("client", "egress", `egress: [{toCIDR: ["{{.Here}}/{{.Bits}}"]}]`),
		Steps:    steps(asks("client", "outside").by("outside"), asks("client", "server-near:8080").denied("weft-test-egress"))},
	{Name: "policy-egress-cidr-except", Says: "an address that is excepted from a prefix is not reached", Alone: true, Needs: needs(Outside), Before: append(steps(asks("client", "outside").by("outside")), open...),
		Policies: ciliumFor("client", "egress", `egress: [{toCIDRSet: [{cidr: "{{.All}}", except: ["{{.Here}}/{{.Bits}}"]}]}, {toEntities: [cluster]}]`),
		Steps:    steps(asks("client", "outside").denied("weft-test-egress"), asks("client", "server-near:8080"))},
	{Name: "policy-clusterwide", Says: "a CiliumClusterwideNetworkPolicy counts in the namespaces that it selects", Alone: true, Before: open,
		Policies: `{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: weft-test-clusterwide}, spec: {endpointSelector: {matchLabels: {app: server, "k8s:io.kubernetes.pod.namespace": {{.Namespace}}}}, ingress: [{fromEndpoints: [{matchLabels: {app: client, "k8s:io.kubernetes.pod.namespace": {{.Namespace}}}}]}]}}`,
		Steps:    steps(asks("client", "server-near:8080"), asks("guest", "server-near:8080").denied("weft-test-clusterwide"))},
	{Name: "mesh-policy-deny", Says: "a policy that allows nobody keeps a peer's pods out, and events name it", Mesh: true, Alone: true, Before: steps(asks("peer/client", "server-near:8080")),
		Policies: `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: weft-test-closed}, spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}}`,
		Steps:    steps(asks("peer/client", "server-near:8080").denied("weft-test-closed"))},
	{Name: "mesh-policy-by-label", Says: "a policy lets a peer's pods with a label in, and no others", Mesh: true, Alone: true, Before: steps(asks("peer/client", "server-near:8080"), asks("peer/stranger", "server-near:8080")),
		Policies: cilium("label", `ingress: [{fromEndpoints: [{matchLabels: {app: client}, matchExpressions: [{key: io.cilium.k8s.policy.cluster, operator: Exists}]}]}]`),
		Steps:    steps(asks("peer/client", "server-near:8080"), asks("peer/stranger", "server-near:8080").denied("weft-test-label"))},
	{Name: "mesh-policy-by-cluster", Says: "a policy tells pods of the peer from those of the cluster", Mesh: true, Alone: true, Before: append(steps(asks("peer/client", "server-near:8080")), open...),
		Policies: cilium("cluster", `ingress: [{fromEndpoints: [{matchLabels: {"k8s:io.cilium.k8s.policy.cluster": {{.Peer}}}}]}]`),
		Steps:    steps(asks("peer/client", "server-near:8080"), asks("client", "server-near:8080").denied("weft-test-cluster"))},
}

// cilium is a CiliumNetworkPolicy for the servers; its name is weft-test- and name.
func cilium(name, rules string) string { return ciliumFor("server", name, rules) }

func ciliumFor(app, name, rules string) string {
	return `{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: weft-test-` + name + `}, spec: {endpointSelector: {matchLabels: {app: ` + app + `}}, ` + rules + `}}`
}
