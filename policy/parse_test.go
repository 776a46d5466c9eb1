package policy

import (
	"fmt"
	"strings"
	"testing"
)

func TestRefused(t *testing.T) {
	const head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: default}\n"
	for _, tt := range []struct {
		name, manifest string
		want           string // part of the message
	}{
		{"not YAML", "a: [", "not valid YAML"},
		{"a key twice", "a: 1\na: 2", "already set"},
		{"not an object", "5", "document 1: not an object; write one with apiVersion, kind and metadata.name"},
		{"an item that is no object", "[5]", "document 1, item 1: not an object; write one"},
		{"a list with misspelled items", "kind: List\nItems: [{kind: Pod}]", `document 1: kind "List" is not a list: write its objects as a sequence under items`},
		{"a misspelled kind", "apiVersion: v1\nKind: List\nitems: [{kind: Pod}]", "document 1: kind is missing; write CiliumNetworkPolicy"},
		{"a kind in the wrong case", "kind: ciliumNetworkPolicy", `kind "ciliumNetworkPolicy" is not a policy; did you mean CiliumNetworkPolicy?`},
		{"a field of spec that is not indented", "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web}\nspec: {}\ningress: []", "ingress: unknown field; it belongs under spec: indent it"},
		{"labels of a selector that are not under matchLabels", cnp("ingress: [{fromEndpoints: [{app: web}]}]"), "spec.ingress[0].fromEndpoints[0].app: unknown field; labels belong under matchLabels"},
		{"another kind", "kind: Pod\napiVersion: v1", `kind "Pod" is not a policy; write CiliumNetworkPolicy`},
		{"an old version", "kind: CiliumNetworkPolicy\napiVersion: cilium.io/v1", "write cilium.io/v2"},
		{"no name", strings.Replace(cnp("ingress: [{}]"), "name: p, ", "", 1), "metadata.name"},
		{"a bad name", strings.Replace(cnp("ingress: [{}]"), "name: p,", "name: P_,", 1), "metadata.name"},
		{"a bad namespace", strings.Replace(cnp("ingress: [{}]"), "namespace: default", "namespace: D.", 1), "metadata.namespace"},
		{"a namespace of a cluster-wide policy", strings.Replace(ccnp("c", "ingress: [{}]"), "name: c", "name: c, namespace: d", 1), "metadata.namespace: CiliumClusterwideNetworkPolicy has no namespace; leave it out"},
		{"neither spec nor specs", head, "spec: is missing"},
		{"an unknown field", cnp("ingres: []"), "spec.ingres: unknown field; did you mean ingress?"},
		{"an unknown field deep inside", cnp("ingress: [{toPorts: [{ports: [{prt: \"80\"}]}]}]"), "spec.ingress[0].toPorts[0].ports[0].prt: unknown field; did you mean port?"},
		{"a field of the other direction", cnp("egress: [{fromEndpoints: [{}]}]"), "spec.egress[0].fromEndpoints: unknown field"},
		{"a field in wrong case", cnp("Ingress: [{}]"), "spec.Ingress: unknown field"},
		{"the wrong type", cnp("ingress: 5"), "spec.ingress"},
		{"a forgotten value", cnp("ingress:"), "spec.ingress: has no value"},
		{"a dash without item", cnp("ingress: [{fromEndpoints: [~]}]"), "spec.ingress[0].fromEndpoints[0]: has no value"},
		{"a label without value", cnp("ingress: [{fromEndpoints: [{matchLabels: {app: ~}}]}]"), "has no value"},
		{"no subject", head + "spec: {ingress: [{}]}", "spec.endpointSelector: is missing; write {} to select every workload of namespace default"},
		{"nodes as subject", head + "spec: {nodeSelector: {}, ingress: [{}]}", "spec.nodeSelector: a CiliumNetworkPolicy cannot select nodes"},
		{"nodes as subject of a cluster-wide policy", strings.Replace(ccnp("c", "ingress: [{}]"), "endpointSelector", "nodeSelector", 1), "spec.nodeSelector: policies for nodes are not supported"},
		{"the subject of another namespace", strings.Replace(cnp("ingress: [{}]"), "app: web", "io.kubernetes.pod.namespace: kube-system", 1), `its own namespace "default" only`},
		{"the subject of another namespace, by its name as a label", strings.Replace(cnp("ingress: [{}]"), "app: web", "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name: kube-system", 1), `its own namespace "default" only`},
		{"a node as subject", strings.Replace(cnp("ingress: [{}]"), "app: web", `"reserved:host": ""`, 1), "spec.endpointSelector: reserved:host selects no workload"},
		{"a node as subject of a cluster-wide policy", strings.Replace(ccnp("c", "ingress: [{}]"), "Selector: {}", `Selector: {matchLabels: {"reserved:remote-node": ""}}`, 1), "spec.endpointSelector: reserved:remote-node selects no workload"},
		{"nobody as subject", strings.Replace(cnp("ingress: [{}]"), "app: web", `"reserved:none": ""`, 1), "spec.endpointSelector: reserved:none selects no workload"},
		{"a node with a pod's label", cnp(`ingressDeny: [{fromEndpoints: [{matchLabels: {"reserved:host": "", app: web}}]}]`), "spec.ingressDeny[0].fromEndpoints[0]: selects nobody: whoever is reserved:host has no labels of its own"},
		{"no rules", cnp("ingress: []"), "spec: has no rules"},
		{"a name as log too long", cnp("log: {value: 123456789012345678901234567890123}\ningress: [{}]"), "is a number"},
		{"a log value too long", cnp("log: {value: a23456789012345678901234567890123}\ningress: [{}]"), "spec.log.value: is longer than 32"},
		{"an unprintable log value", cnp("log: {value: \"a\\tb\"}\ningress: [{}]"), "unprintable"},
		{"a label without key", cnp("labels: [{value: x}]\ningress: [{}]"), "spec.labels[0].key"},

		{"a bad label key", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"k8s:a b": x}}]}]`), "is not a label key"},
		{"a bad label value", cnp(`ingress: [{fromEndpoints: [{matchLabels: {a: "x y"}}]}]`), "is not a label value"},
		{"an unknown label source", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"container:a": x}}]}]`), "write k8s:a"},
		{"an unknown reserved label", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"reserved:moon": ""}}]}]`), "is not a reserved label; write one of all, cluster, host, ingress, kube-apiserver, none, remote-node, world"},
		{"Weft's own reserved label", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"reserved:unknown-member": ""}}]}]`), "is not a reserved label"},
		{"a reserved label that nothing has", cnp(`ingressDeny: [{fromEndpoints: [{matchLabels: {"reserved:init": ""}}]}]`), `"init" selects nobody: Weft has no endpoint of this kind`},
		{"an entity that nothing has", cnp(`egressDeny: [{toEntities: [host, health]}]`), `spec.egressDeny[0].toEntities[1]: "health" selects nobody: Weft has no endpoint of this kind`},
		{"a label that differs from pod to pod", cnp(`ingress: [{fromEndpoints: [{matchLabels: {statefulset.kubernetes.io/pod-name: web-0}}]}]`), `"statefulset.kubernetes.io/pod-name" is in no identity: the label filter leaves it out`},
		{"such a label in an expression", cnp(`ingress: [{fromEndpoints: [{matchExpressions: [{key: "k8s:pod-template-hash", operator: DoesNotExist}]}]}]`), `matchExpressions[0].key: "k8s:pod-template-hash" is in no identity: the label filter`},
		{"such a label of the subject", strings.Replace(cnp("ingress: [{}]"), "app: web", "topology.kubernetes.io/zone: a", 1), `spec.endpointSelector.matchLabels["topology.kubernetes.io/zone"]: "topology.kubernetes.io/zone" is in no identity`},
		{"a revision's label", cnp(`egressDeny: [{toEndpoints: [{matchLabels: {"any:controller-revision-hash": a}}]}]`), "the label filter leaves it out"},
		{"a label in Cilium's name that it does not give", cnp(`ingressDeny: [{fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.name: a}}]}]`), `"io.cilium.k8s.policy.name" is in no identity: Weft gives no label of this name`},
		{"a value and not that value", cnp(`ingressDeny: [{fromEndpoints: [{matchExpressions: [{key: app, operator: In, values: [a, b]}, {key: app, operator: NotIn, values: [b, a]}]}]}]`), `spec.ingressDeny[0].fromEndpoints[0]: selects nobody: no value of "app" meets all conditions on it; correct or remove one`},
		{"a label and not that label", cnp(`egress: [{toEndpoints: [{matchExpressions: [{key: app, operator: Exists}, {key: "k8s:app", operator: DoesNotExist}]}]}]`), `spec.egress[0].toEndpoints[0]: selects nobody: "app" cannot be there and be missing`},
		{"a label against an expression", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"k8s:app": a}, matchExpressions: [{key: app, operator: In, values: [b, c]}]}]}]`), `selects nobody: no value of "app"`},
		{"one reserved label and not it", cnp(`egressDeny: [{toEndpoints: [{matchLabels: {"reserved:world": ""}, matchExpressions: [{key: "reserved:world", operator: DoesNotExist}]}]}]`), `selects nobody: "world" cannot be there`},
		{"two namespaces", cnp(`ingressDeny: [{fromEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": dev, io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name: prod}}]}]`), `selects nobody: no value of`},
		{"a peer of no namespace", cnp(`ingressDeny: [{fromEndpoints: [{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: DoesNotExist}]}]}]`), `selects nobody: every pod has the label "io.kubernetes.pod.namespace"`},
		{"a subject that contradicts itself", strings.Replace(cnp("ingress: [{}]"), "app: web}", "app: web}, matchExpressions: [{key: app, operator: DoesNotExist}]", 1), `spec.endpointSelector: selects no workload: "app" cannot be there and be missing`},
		{"a group selector that contradicts itself", cnp(`egressDeny: [{toCIDRSet: [{cidrGroupSelector: {matchLabels: {of: us}, matchExpressions: [{key: of, operator: NotIn, values: [us]}]}}]}]`), `toCIDRSet[0].cidrGroupSelector: selects no group: no value of "of"`},
		{"a reserved label with value", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"reserved:host": "true"}}]}]`), "reserved labels have no value"},
		{"addresses as labels", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"cidr:10.0.0.0/8": ""}}]}]`), "write them with fromCIDR"},
		{"an unknown operator", cnp(`ingress: [{fromEndpoints: [{matchExpressions: [{key: a, operator: Is}]}]}]`), `"Is" is not an operator`},
		{"In without values", cnp(`ingress: [{fromEndpoints: [{matchExpressions: [{key: a, operator: In}]}]}]`), "needs at least one value"},
		{"Exists with values", cnp(`ingress: [{fromEndpoints: [{matchExpressions: [{key: a, operator: Exists, values: [x]}]}]}]`), "must be left out with Exists"},

		{"two kinds of peers", cnp("egress: [{toCIDR: [10.0.0.0/8], toEntities: [world]}]"), "spec.egress[0]: combines toCIDR and toEntities; write one list item for each"},
		{"an unknown entity", cnp("egress: [{toEntities: [moon]}]"), `"moon" is not an entity; write one of all, cluster`},
		{"not a prefix", cnp("egress: [{toCIDR: [10.0.0/8]}]"), `"10.0.0/8" is not a prefix; write one such as`},
		{"a bare address", cnp("egress: [{toCIDR: [10.1.2.3]}]"), `spec.egress[0].toCIDR[0]: "10.1.2.3" is an address; a prefix is needed, write 10.1.2.3/32`},
		{"a bare address in a set", cnp("ingress: [{fromCIDRSet: [{cidr: 'fd00::1'}]}]"), `cidr: "fd00::1" is an address; a prefix is needed, write fd00::1/128`},
		{"a bare address as exception", cnp("ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.2.3]}]}]"), `except[0]: "10.1.2.3" is an address`},
		{"an IPv4 address in the form of IPv6", cnp("egress: [{toCIDR: ['::ffff:10.1.2.3']}]"), "write 10.1.2.3/32"},
		{"an exception outside", cnp("egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/8]}]}]"), "spec.egress[0].toCIDRSet[0].except[0]: 11.0.0.0/8 is not inside cidr 10.0.0.0/8"},
		{"an exception of the other family", cnp("egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: ['fd00::/8']}]}]"), "of another address family"},
		{"a set without prefix", cnp("egress: [{toCIDRSet: [{}]}]"), "cidr: is missing"},
		{"a prefix and a group of prefixes", cnp("egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, cidrGroupRef: g}]}]"), "names more than one of cidr, cidrGroupRef and cidrGroupSelector"},
		{"exceptions from a group", cnp("egress: [{toCIDRSet: [{cidrGroupRef: g, except: [10.0.0.0/8]}]}]"), "toCIDRSet[0].except: is not supported beside a group"},
		{"a group with a bad name", cnp("egress: [{toCIDRSet: [{cidrGroupRef: G_}]}]"), `"G_" is not the name of a group`},
		{"a group by a bad label", cnp("egress: [{toCIDRSet: [{cidrGroupSelector: {matchLabels: {'a b': c}}}]}]"), `"a b" is not a label key`},
		{"DNS names", cnp("egress: [{toFQDNs: [{matchName: a.example}]}]"), "spec.egress[0].toFQDNs: selecting by DNS name is not supported"},
		{"an empty DNS name", cnp("egress: [{toFQDNs: [{}]}]"), "spec.egress[0].toFQDNs: selecting by DNS name"},
		{"DNS names and entities", cnp("egress: [{toFQDNs: [{matchName: a.example}], toEntities: [world]}]"), "toFQDNs"},
		{"services", cnp("egress: [{toServices: [{k8sService: {serviceName: a}}]}]"), "selecting by service is not supported"},
		{"groups", cnp("egress: [{toGroups: [{aws: {}}]}]"), "toGroups: cloud provider groups"},
		{"nodes", cnp("ingress: [{fromNodes: [{}]}]"), "fromNodes: selecting nodes"},
		{"requires", cnp("ingress: [{fromRequires: []}]"), "fromRequires: was removed from Cilium 1.19"},
		{"authentication", cnp("ingress: [{authentication: {mode: required}, fromEndpoints: [{}]}]"), "authentication.mode: mutual authentication is not supported"},
		{"authentication, unknown", cnp("ingress: [{authentication: {mode: maybe}, fromEndpoints: [{}]}]"), `"maybe" is not a mode`},
		{"authentication of a denial", cnp("ingressDeny: [{authentication: {mode: disabled}, fromEndpoints: [{}]}]"), "has no meaning in a deny list"},

		{"requests", cnp(`ingress: [{toPorts: [{ports: [{port: "80"}], rules: {http: [{}]}}]}]`), "toPorts[0].rules: rules on requests (http, dns, kafka, l7) are not supported"},
		{"requests of a denial", cnp(`ingressDeny: [{toPorts: [{ports: [{port: "80"}], rules: {http: [{}]}}]}]`), "a deny list takes ports only"},
		{"server names", cnp(`egress: [{toPorts: [{ports: [{port: "443"}], serverNames: [a.example]}]}]`), "rules on TLS server names are not supported"},
		{"TLS interception", cnp(`egress: [{toPorts: [{ports: [{port: "443"}], originatingTLS: {secret: {name: a}}}]}]`), "TLS interception is not supported"},
		{"a listener", cnp(`egress: [{toPorts: [{ports: [{port: "443"}], listener: {name: a}}]}]`), "redirecting to a listener is not supported"},
		{"no ports", cnp("ingress: [{toPorts: [{}]}]"), "ports: is empty; list the ports, or leave toPorts out"},
		{"too many ports", cnp("ingress: [{toPorts: [{ports: [" + strings.Repeat(`{port: "80"},`, 41) + "]}]}]"), "lists 41 ports, but 40 is the limit"},
		{"a port that is missing", cnp("ingress: [{toPorts: [{ports: [{protocol: TCP}]}]}]"), "port: is missing"},
		{"a port as number", cnp("ingress: [{toPorts: [{ports: [{port: 80}]}]}]"), `put it in quotes: "80"`},
		{"a port out of range", cnp(`ingress: [{toPorts: [{ports: [{port: "70000"}]}]}]`), "out of range"},
		{"a port with leading zero", cnp(`ingress: [{toPorts: [{ports: [{port: "080"}]}]}]`), `"080" is not a port number; write "80"`},
		{"another one", cnp(`egressDeny: [{toPorts: [{ports: [{port: "010"}]}]}]`), `"010" is not a port number; write "10"`},
		{"a range as one port", cnp(`ingress: [{toPorts: [{ports: [{port: "6581-6586"}]}]}]`), `"6581-6586" is a range; write port: "6581" and endPort: 6586`},
		{"a negative port", cnp(`ingress: [{toPorts: [{ports: [{port: "-1"}]}]}]`), "out of range"},
		{"a bad name of a port", cnp(`ingress: [{toPorts: [{ports: [{port: my_port}]}]}]`), `"my_port" is neither a port number nor the name of one`},
		{"a name of a port with a range", cnp(`ingress: [{toPorts: [{ports: [{port: http, endPort: 90}]}]}]`), "endPort: needs a port number, not a name"},
		{"a range backwards", cnp(`ingress: [{toPorts: [{ports: [{port: "80", endPort: 79}]}]}]`), "endPort: 79 is below port 80; swap them"},
		{"a range out of range", cnp(`ingress: [{toPorts: [{ports: [{port: "80", endPort: 65536}]}]}]`), "endPort: 65536 is out of range"},
		{"a range from any port", cnp(`ingress: [{toPorts: [{ports: [{port: "0", endPort: 79}]}]}]`), "port 0 already means any port"},
		{"an unknown protocol", cnp(`ingress: [{toPorts: [{ports: [{port: "80", protocol: QUIC}]}]}]`), `"QUIC" is not a protocol; write TCP, UDP, SCTP or ANY`},
		{"ICMP as protocol of a port", cnp(`ingress: [{toPorts: [{ports: [{port: "8", protocol: ICMP}]}]}]`), "use icmps instead"},
		{"an extended protocol", cnp(`ingress: [{toPorts: [{ports: [{port: "0", protocol: VRRP}]}]}]`), `"VRRP" is not supported`},
		{"ports and ICMP types", cnp(`ingress: [{toPorts: [{ports: [{port: "80"}]}], icmps: [{fields: [{type: 8}]}]}]`), "combines toPorts and icmps"},
		{"no ICMP types", cnp(`ingress: [{icmps: [{fields: []}]}]`), "fields: is empty"},
		{"too many ICMP types", cnp("ingress: [{icmps: [{fields: [" + strings.Repeat("{type: 8},", 41) + "]}]}]"), "lists 41 types"},
		{"an ICMP type that is missing", cnp(`ingress: [{icmps: [{fields: [{family: IPv4}]}]}]`), "type: is missing"},
		{"an ICMP type out of range", cnp(`ingress: [{icmps: [{fields: [{type: 256}]}]}]`), "256 is out of range"},
		{"an ICMP type of the other family", cnp(`ingress: [{icmps: [{fields: [{type: PacketTooBig}]}]}]`), "is not an ICMP type of this family"},
		{"an ICMP type of another type", cnp(`ingress: [{icmps: [{fields: [{type: [8]}]}]}]`), "neither a number nor a name"},
		{"an unknown ICMP family", cnp(`ingress: [{icmps: [{fields: [{family: v4, type: 8}]}]}]`), "write IPv4 or IPv6"},
		{"a policy twice", cnp("ingress: [{}]") + cnp("egress: [{}]"), "document 2: CiliumNetworkPolicy default/p is defined twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ps, err := Parse([]byte(tt.manifest))
			if err == nil {
				t.Fatalf("accepted: %v\n%s", ps, tt.manifest)
			}
			if ps != nil {
				t.Error("policies next to an error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("refused with\n%v\nwant a sentence with\n%s", err, tt.want)
			}
		})
	}
}

func TestEveryMistakeIsReportedAtOnce(t *testing.T) {
	_, err := Parse([]byte(cnp("ingress: [{fromEntities: [moon]}, {fromCIDR: [x]}]") + named("q", "egress: [{toCIDR: [z]}]")))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`"moon"`, `"x"`, `"z"`, "document 1", "document 2"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
}

// A field that does not exist hides neither wrong values, nor is it reported again as the
// one that is missing.
func TestAnUnknownFieldHidesNothing(t *testing.T) {
	_, err := Parse([]byte(cnp(`ingress: [{fromEntities: [moon], toPorts: [{ports: [{prt: "80"}, {port: "99999"}]}]}]`)))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`"moon"`, "ports[0].prt: unknown field", "ports[1].port: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 3 {
		t.Errorf("%d mistakes, want 3: %v", len(lines), err)
	}
	_, err = Parse([]byte(strings.Replace(cnp("ingress: [{}]"), "endpointSelector", "endpointSelecter", 1)))
	if err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a misspelt field is refused with %v", err)
	}
}

func TestAListStandsForItsItems(t *testing.T) {
	for _, head := range []string{"", "apiVersion: v1\nkind: List\nitems:\n"} {
		item := "- " + strings.ReplaceAll(strings.TrimPrefix(cnp("ingress: [{}]"), "---\n"), "\n", "\n  ")
		ps := parse(t, head+item)
		if len(ps) != 1 || ps[0].String() != "CiliumNetworkPolicy default/p" {
			t.Errorf("got %v", ps)
		}
	}
}

func TestDocumentsWithoutContentArePassedOver(t *testing.T) {
	ps := parse(t, "# nothing\n---\n---\n# still nothing\n"+cnp("ingress: [{}]")+"---\n")
	if len(ps) != 1 || ps[0].String() != "CiliumNetworkPolicy default/p" {
		t.Errorf("got %v", ps)
	}
}

func TestWhatIsStoredStaysReadable(t *testing.T) {
	text := []byte(cnp(`
ingress:
- fromEntities: [host]
- fromEntities: [health]
- fromCIDR: [192.0.2.1]
- fromEndpoints: [{matchLabels: {pod-template-hash: a, io.cilium.k8s.policy.name: b}}]
  toPorts: [{ports: [{port: "080"}]}]
- icmps: [{fields: [{type: 5}, {type: 128, family: IPv6}]}]`))
	if ps, err := Parse(text); err == nil {
		t.Errorf("accepted anew: %v", ps)
	}
	ps, err := ParseStored(text)
	if err != nil || len(ps) != 1 {
		t.Errorf("got %v, %v", ps, err)
	}
	if ps, err := ParseStored([]byte(cnp("ingres: []"))); err == nil {
		t.Errorf("accepted what never was: %v", ps)
	}
}

func TestEveryICMPTypeIsAccepted(t *testing.T) {
	for number := range 256 {
		parse(t, cnp(fmt.Sprintf(`ingress: [{icmps: [{fields: [{type: %d}, {type: %d, family: IPv6}]}]}]`, number, number)))
		parse(t, cnp(fmt.Sprintf(`egressDeny: [{icmps: [{fields: [{type: "%d"}]}]}]`, number)))
	}
	for proto, names := range icmpTypes {
		for name := range names {
			parse(t, cnp(fmt.Sprintf(`ingress: [{icmps: [{fields: [{type: %s, family: %s}]}]}]`, name, map[uint8]string{ProtoICMP: "IPv4", ProtoICMPv6: "IPv6"}[proto])))
		}
	}
}

func TestWarnings(t *testing.T) {
	for _, tt := range []struct{ name, manifest, want string }{
		{"nothing", cnp("ingress: [{}]"), ""},
		{"default denial beside rules", cnp("enableDefaultDeny: {ingress: true, egress: false}\ningress: [{}]"), ""},
		{"default denial without rules", cnp("enableDefaultDeny: {egress: true}\ningress: [{}]"),
			"spec.enableDefaultDeny.egress: denies all egress of the selected workloads, because there are no egress rules (Cilium ignores the field then)"},
		{"ICMP types that pass", cnp("ingress: [{icmps: [{fields: [{type: 8}, {type: EchoReply}, {type: 3}, {type: Timestamp}, {type: 40}, {type: 135, family: IPv6}]}]}]\negressDeny: [{icmps: [{fields: [{type: 8}, {type: 13}, {type: 5}, {type: 255}]}]}]"), ""},
		{"an ICMP redirect", cnp("ingress: [{icmps: [{fields: [{type: Redirect}]}]}]"),
			`spec.ingress[0].icmps[0].fields[0].type: "Redirect" allows nothing: redirects are always dropped, because their sender can be forged`},
		{"an answer that is denied", cnp("egressDeny: [{icmps: [{fields: [{type: 0}]}]}]"),
			"spec.egressDeny[0].icmps[0].fields[0].type: 0 denies only unsolicited packets: replies and errors pass with the flow they belong to; deny that flow instead, such as EchoRequest"},
		{"rules of a direction that is not listed", netpol("policyTypes: [Egress]\ningress: [{}]"), "spec.ingress: has no effect: policyTypes does not list Ingress"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(parse(t, tt.manifest)[0].Warnings(), "; "); got != tt.want {
				t.Errorf("warned %q, want %q", got, tt.want)
			}
		})
	}
}
