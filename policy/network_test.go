package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/identity"
)

func TestNetworkPolicyIngress(t *testing.T) {
	const pods = "web frontend intruder other/frontend east/frontend east/intruder east/other/frontend"
	const everyone = pods + " " + everyReserved + " never_seen"
	for _, tt := range []struct{ name, manifests, want string }{
		{"it isolates without rules", netpol(""), ""},
		{"a rule without peers and ports is whoever", netpol("ingress: [{}]"), everyone},
		{"an empty list of peers is whoever", netpol("ingress: [{from: []}]"), everyone},
		{"a podSelector means the own namespace and cluster", netpol("ingress: [{from: [{podSelector: {matchLabels: {app: frontend}}}]}]"), "frontend"},
		{"an empty podSelector is every pod of the namespace", netpol("ingress: [{from: [{podSelector: {}}]}]"), "web frontend intruder"},
		{"a namespaceSelector is every pod of those namespaces", netpol("ingress: [{from: [{namespaceSelector: {matchLabels: {team: other}}}]}]"), "other/frontend"},
		{"every namespace has its name as a label", netpol("ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]}]"), "other/frontend"},
		{"an empty namespaceSelector is every pod", netpol("ingress: [{from: [{namespaceSelector: {}}]}]"), "web frontend intruder other/frontend"},
		{"both selectors of one peer must hold", netpol("ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: frontend}}}]}]"), "frontend other/frontend"},
		{"of two peers either", netpol("ingress: [{from: [{namespaceSelector: {matchLabels: {team: other}}}, {podSelector: {matchLabels: {app: intruder}}}]}]"), "intruder other/frontend"},
		{"negative namespaces", netpol("ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [default]}]}}]}]"), "other/frontend"},
		{"another cluster by Cilium's key", netpol("ingress: [{from: [{podSelector: {matchLabels: {app: frontend, io.cilium.k8s.policy.cluster: east}}}]}]"), "east/frontend"},
		{"a port is TCP", netpol("ingress: [{ports: [{port: 80}]}]"), everyone},
		{"not UDP", netpol("ingress: [{ports: [{port: 80, protocol: UDP}]}]"), ""},
		{"an empty list of ports is every port", netpol("ingress: [{from: [{podSelector: {}}], ports: []}]"), "web frontend intruder"},
		{"a protocol alone is each of its ports", netpol("ingress: [{from: [{podSelector: {}}], ports: [{protocol: TCP}]}]"), "web frontend intruder"},
		{"a range includes its ends", netpol("ingress: [{from: [{podSelector: {}}], ports: [{port: 79, endPort: 80}]}]"), "web frontend intruder"},
		{"another range does not", netpol("ingress: [{from: [{podSelector: {}}], ports: [{port: 81, endPort: 90}]}]"), ""},
		{"it adds up with Cilium's", netpol("ingress: [{from: [{podSelector: {matchLabels: {app: intruder}}}]}]") + named("q", "ingress: [{fromEntities: [host]}]"), "intruder host"},
		{"Cilium's denial beats it", netpol("ingress: [{}]") + named("q", "ingressDeny: [{fromEndpoints: [{}]}, {fromEntities: [world]}]"),
			"other/frontend east/frontend east/intruder east/other/frontend health host ingress init kube-apiserver remote-node unmanaged"},
		{"egress alone isolates no ingress", netpol("policyTypes: [Egress]"), everyone},
		{"rules of a direction that is not listed say nothing", netpol("policyTypes: [Egress]\ningress: [{from: [{podSelector: {}}]}]"), everyone},
		{"an ipBlock of everything is every pod and node too", netpol("ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]"),
			pods + " health host ingress init kube-apiserver remote-node unmanaged world world-ipv4"},
		{"no IPv6 block holds a pod", netpol("ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]"), "world-ipv6"},
	} {
		t.Run(tt.name, func(t *testing.T) { sees(t, tt.manifests, Ingress, tt.want) })
	}
}

func TestNetworkPolicyEgress(t *testing.T) {
	for _, tt := range []struct{ name, manifests, want string }{
		{"the own node is always let through", netpol("policyTypes: [Egress]"), "host"},
		{"egress rules isolate egress", netpol("egress: [{to: [{podSelector: {matchLabels: {app: frontend}}}]}]"), "frontend host"},
		{"Cilium's denial keeps the own node out", netpol("policyTypes: [Egress]") + named("q", "egressDeny: [{toEntities: [host]}]"), ""},
		{"a block, but for its exceptions", netpol("egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.96.0.0/12]}}]}]"), "10.0.0.0/8 host"},
		{"of its own entry only", netpol("egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.96.0.0/12]}}, {ipBlock: {cidr: 10.96.0.0/16}}]}]"), "10.0.0.0/8 10.96.0.0/16 host"},
	} {
		t.Run(tt.name, func(t *testing.T) { sees(t, tt.manifests, Egress, tt.want) })
	}
}

// sees checks whom web may reach, or who may reach it.
func sees(t *testing.T, manifests string, dir Direction, want string) {
	t.Helper()
	w := testWorld(t, manifests)
	got := passing(t, w, "web", dir, ProtoTCP, 80)
	for i, name := range got {
		got[i] = strings.ReplaceAll(name, " ", "_")
	}
	if want := words(want); !slices.Equal(got, want) {
		t.Errorf("passes: %v\nwant:   %v", got, want)
	}
}

// An ipBlock distinguishes pods and nodes by address; Cilium's prefixes match neither.
func TestBlocksMeanWhoeverHasTheAddress(t *testing.T) {
	const manifests = `
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: p, namespace: default}
  spec:
    podSelector: {matchLabels: {app: web}}
    ingress: [{from: [{ipBlock: {cidr: 10.2.0.0/16, except: [10.2.1.0/24]}}]}]
`
	w := testWorld(t, manifests)
	if got := Blocks(w.Policies); len(got) != 2 {
		t.Errorf("blocks %v", got)
	}
	pod := w.Identities[people["east/frontend"]]
	for name, in := range map[string]string{"inside": "10.2.0.0/16", "excepted": "10.2.1.0/24", "elsewhere": ""} {
		labels := slices.Clone(pod)
		if in != "" {
			labels = identity.NewLabels(append(labels, BlockLabel(prefixOf(t, in)))...)
		}
		people[name] = identity.LocalNumber(uint32(100 + len(people)))
		w.Identities[people[name]] = labels
	}
	if got := passing(t, w, "web", Ingress, ProtoTCP, 80); !slices.Equal(got, words("inside", "10.2.0.0/16")) {
		t.Errorf("allowed in: %v", got)
	}
	w.Policies = parse(t, cnp("ingress: [{fromCIDR: [10.2.0.0/16]}]"))
	if got := passing(t, w, "web", Ingress, ProtoTCP, 80); !slices.Equal(got, words("10.2.0.0/16", "10.2.1.0/24")) {
		t.Errorf("allowed in by Cilium's prefix: %v", got)
	}
}

func TestNetworkPolicyRefused(t *testing.T) {
	for _, tt := range []struct{ name, manifest, want string }{
		{"another version", strings.Replace(netpol(""), "networking.k8s.io/v1", "extensions/v1beta1", 1), "write networking.k8s.io/v1"},
		{"no spec", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x}", "spec: is missing"},
		{"an unknown field", netpol("ingres: []"), "spec.ingres: unknown field"},
		{"Cilium's field", netpol("ingress: [{fromEndpoints: [{}]}]"), "spec.ingress[0].fromEndpoints: unknown field"},
		{"a forgotten value", netpol("ingress: [{from: [{podSelector: }]}]"), "has no value"},
		{"an unknown type", netpol("policyTypes: [ingress]"), `spec.policyTypes[0]: "ingress" is not a policy type; write Ingress or Egress`},
		{"no peer", netpol("ingress: [{from: [{}]}]"), "spec.ingress[0].from[0]: names no peer"},
		{"a block with a selector", netpol("egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]"), "spec.egress[0].to[0]: combines ipBlock with a selector"},
		{"a block that is an address", netpol("egress: [{to: [{ipBlock: {cidr: 10.0.0.1}}]}]"), "ipBlock.cidr: \"10.0.0.1\" is an address"},
		{"an exception outside", netpol("egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]"), "is not inside cidr"},
		{"an exception of everything", netpol("egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]"), "is all of cidr"},
		{"a bad protocol", netpol("ingress: [{ports: [{protocol: tcp}]}]"), `ports[0].protocol: "tcp" is not a protocol; write TCP, UDP or SCTP`},
		{"a port out of range", netpol("ingress: [{ports: [{port: 70000}]}]"), "out of range"},
		{"a bad name of a port", netpol("ingress: [{ports: [{port: '80'}]}]"), "is not the name of a port"},
		{"a range without a port", netpol("ingress: [{ports: [{endPort: 80}]}]"), "endPort: needs a port to start from"},
		{"a range from a name", netpol("ingress: [{ports: [{port: http, endPort: 80}]}]"), "endPort: needs a port number, not a name"},
		{"a range backwards", netpol("ingress: [{ports: [{port: 80, endPort: 79}]}]"), "is below port 80"},
		{"pods that contradict themselves", netpol("ingress: [{from: [{podSelector: {matchLabels: {app: a}, matchExpressions: [{key: app, operator: NotIn, values: [a]}]}}]}]"), `spec.ingress[0].from[0]: selects nobody: no value of "app"`},
		{"namespaces that contradict themselves", netpol("ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: Exists}, {key: team, operator: DoesNotExist}]}}]}]"), `spec.ingress[0].from[0]: selects nobody: "io.cilium.k8s.namespace.labels.team" cannot be there`},
		{"a label that is in no identity", netpol("ingress: [{from: [{podSelector: {matchLabels: {pod-template-hash: a}}}]}]"), "the label filter leaves it out"},
		{"a label that the cluster gives", netpol("ingress: [{from: [{podSelector: {matchLabels: {io.kubernetes.pod.namespace: a}}}]}]"), "a pod cannot give itself a label of this name"},
		{"Cilium's prefix of a key", netpol("ingress: [{from: [{podSelector: {matchLabels: {'k8s:app': a}}}]}]"), "is not a label key"},
		{"a policy twice", netpol("") + netpol("ingress: [{}]"), "NetworkPolicy default/p is defined twice"},

		{"a group with a bad prefix", "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: g}\nspec: {externalCIDRs: [10.0.0.1]}", `spec.externalCIDRs[0]: "10.0.0.1" is an address`},
		{"a group without a list", "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: g}\nspec: {}", "spec.externalCIDRs: is missing"},
		{"a group in a namespace", "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: g, namespace: a}\nspec: {externalCIDRs: []}", "CiliumCIDRGroup has no namespace; leave it out"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := ParseManifest([]byte(tt.manifest))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant a sentence with %s", err, tt.want)
			}
		})
	}
}

func TestGroups(t *testing.T) {
	group := func(name, labels, cidrs string) string {
		return "---\napiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: " + name + ", labels: {" + labels + "}}\nspec: {externalCIDRs: [" + cidrs + "]}\n"
	}
	groups := group("a", "of: us", "10.1.0.0/16, 192.0.2.0/24") + group("b", "of: them", "203.0.113.0/24") + group("c", "of: us", "")
	for _, tt := range []struct{ name, body, want string }{
		{"by name", "egress: [{toCIDRSet: [{cidrGroupRef: a}]}]", "10.1.0.0/16 192.0.2.0/24"},
		{"by label", "egress: [{toCIDRSet: [{cidrGroupSelector: {matchLabels: {of: us}}}]}]", "10.1.0.0/16 192.0.2.0/24"},
		{"by label, with Cilium's source", "egress: [{toCIDRSet: [{cidrGroupSelector: {matchLabels: {'cidrgroup:of': them}}}]}]", "203.0.113.0/24"},
		{"by expression", "egress: [{toCIDRSet: [{cidrGroupSelector: {matchExpressions: [{key: of, operator: NotIn, values: [us]}]}}]}]", "203.0.113.0/24"},
		{"one that is empty", "egress: [{toCIDRSet: [{cidrGroupRef: c}]}]", ""},
		{"one that is not there", "egress: [{toCIDRSet: [{cidrGroupRef: d}]}]", ""},
		{"denied", "egress: [{toCIDRSet: [{cidrGroupRef: a}, {cidrGroupRef: b}]}]\negressDeny: [{toCIDRSet: [{cidrGroupRef: b}]}]", "10.1.0.0/16 192.0.2.0/24"},
	} {
		t.Run(tt.name, func(t *testing.T) { sees(t, cnp(tt.body)+groups, Egress, tt.want) })
	}
	missing := parse(t, cnp("egress: [{toCIDRSet: [{cidrGroupRef: d}, {cidrGroupRef: a}, {cidrGroupRef: d}]}]"))[0].MissingGroups(func(name string) bool { return name == "a" })
	if !slices.Equal(missing, []string{"d"}) {
		t.Errorf("missing %v", missing)
	}
}

// A port name means whichever port each endpoint gives that name.
func TestNamedPorts(t *testing.T) {
	with := func(w World, name string, ports ...identity.Label) {
		w.Identities[people[name]] = identity.NewLabels(append(slices.Clone(w.Identities[people[name]]), ports...)...)
	}
	for _, tt := range []struct {
		name, manifests string
		dir             Direction
		port            uint16
		want            string
	}{
		{"ingress is the subject's", cnp("ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: http, protocol: TCP}]}]}]"), Ingress, 8080, "web frontend intruder"},
		{"not another's", cnp("ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: http}]}]}]"), Ingress, 9090, ""},
		{"of the right protocol", cnp("ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: http, protocol: UDP}]}]}]"), Ingress, 8080, ""},
		{"in whatever case", cnp("ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: HTTP, protocol: tcp}]}]}]"), Ingress, 8080, "web frontend intruder"},
		{"beside a number", cnp("ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: http}, {port: \"9090\"}]}]}]"), Ingress, 9090, "web frontend intruder"},
		{"a name that the subject has not", cnp("ingress: [{toPorts: [{ports: [{port: dns}]}]}]"), Ingress, 8080, ""},
		{"egress is each peer's", cnp("egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: http}]}]}]"), Egress, 9090, "frontend"},
		{"of whoever has it", cnp("egress: [{toPorts: [{ports: [{port: http}]}]}]"), Egress, 7070, "east/frontend"},
		{"none outside has one", cnp("egress: [{toCIDR: [10.0.0.0/8], toPorts: [{ports: [{port: http}]}]}]"), Egress, 9090, ""},
		{"denied", cnp("egress: [{toEndpoints: [{}]}]\negressDeny: [{toPorts: [{ports: [{port: http}]}]}]"), Egress, 9090, "web intruder"},
		{"Kubernetes' ingress", netpol("ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]"), Ingress, 8080, "web frontend intruder"},
		{"Kubernetes' egress", netpol("egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]"), Egress, 9090, "frontend host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := testWorld(t, tt.manifests)
			with(w, "web", PortLabel("TCP", "http", 8080))
			with(w, "frontend", PortLabel("TCP", "http", 9090))
			with(w, "east/frontend", PortLabel("TCP", "http", 7070))
			if got, want := passing(t, w, "web", tt.dir, ProtoTCP, tt.port), words(tt.want); !slices.Equal(got, want) {
				t.Errorf("passes: %v\nwant:   %v", got, want)
			}
		})
	}
}

func TestWhatSimplyWorks(t *testing.T) {
	const nobody, everyone = "", "web frontend intruder other/frontend east/frontend east/intruder east/other/frontend " + everyReserved + " never_seen"
	for _, tt := range []struct{ name, manifest, want string }{
		{"an empty list of requests is the whole port", cnp(`ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: "80"}], rules: {http: []}}]}]`), "web frontend intruder"},
		{"protocols in small letters", cnp(`ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: "80", protocol: tcp}]}]}]`), "web frontend intruder"},
		{"and only they", cnp(`ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: "80", protocol: udp}]}]}]`), nobody},
		{"a subject that names its own namespace", strings.Replace(cnp("ingress: [{fromEndpoints: [{}]}]"), "app: web", `app: web, "k8s:io.kubernetes.pod.namespace": default`, 1), "web frontend intruder"},
		{"by Cilium's label of namespaces", strings.Replace(cnp("ingress: [{fromEndpoints: [{}]}]"), "app: web", `io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name: default`, 1), "web frontend intruder"},
		{"in an expression", strings.Replace(cnp("ingress: [{fromEndpoints: [{}]}]"), "{matchLabels: {app: web}}", `{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: In, values: [default, other]}]}`, 1), "web frontend intruder"},
		{"reserved:all", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"reserved:all": ""}}]}]`), strings.NewReplacer(" unknown-member", "", " never_seen", "").Replace(everyone)},
		{"reserved:none", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"reserved:none": ""}}]}]`), nobody},
		{"reserved:none denies nobody", cnp("enableDefaultDeny: {ingress: false}\ningressDeny: [{fromEndpoints: [{matchLabels: {\"reserved:none\": \"\"}}]}]"), everyone},
		{"reserved:cluster", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"reserved:cluster": ""}}]}]`),
			"web frontend intruder other/frontend health host ingress init kube-apiserver remote-node unmanaged"},
		{"entity world-ipv4", cnp("ingress: [{fromEntities: [world-ipv4]}]\negress: [{toCIDR: [10.0.0.0/8, 'fd00::/8']}]"), "10.0.0.0/8 world world-ipv4"},
		{"entity world-ipv6", cnp("ingress: [{fromEntities: [world-ipv6]}]\negress: [{toCIDR: [10.0.0.0/8, 'fd00::/8']}]"), "fd00::/8 world-ipv6"},
		{"reserved:world-ipv4", cnp("ingress: [{fromEndpoints: [{matchLabels: {\"reserved:world-ipv4\": \"\"}}]}]\negress: [{toCIDR: [10.0.0.0/8, 'fd00::/8']}]"), "10.0.0.0/8 world world-ipv4"},
	} {
		t.Run(tt.name, func(t *testing.T) { sees(t, tt.manifest, Ingress, tt.want) })
	}
}
