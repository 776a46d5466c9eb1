package policy

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/identity"
)

const everyReserved = "health host ingress init kube-apiserver remote-node unmanaged unknown-member world world-ipv4 world-ipv6"

func words(s ...string) []string {
	out := strings.Fields(strings.Join(s, " "))
	slices.Sort(out)
	return out
}

func TestWhoMayReachWeb(t *testing.T) {
	const pods = "web frontend intruder other/frontend east/frontend east/intruder east/other/frontend"
	const everyone = pods + " " + everyReserved + " never_seen"
	for _, tt := range []struct {
		name, manifests string
		want            string
	}{
		{"no policy lets everyone in", "", everyone},
		{"an egress policy says nothing about ingress", cnp("egress: [{}]"), everyone},
		{"an empty item denies by default", cnp("ingress: [{}]"), ""},
		{"a selector means its own namespace and cluster", cnp(`
ingress:
- fromEndpoints: [{matchLabels: {app: frontend}}]`), "frontend"},
		{"the source k8s means the same", cnp(`
ingress:
- fromEndpoints: [{matchLabels: {"k8s:app": frontend}}]`), "frontend"},
		{"an empty selector means every workload of the namespace", cnp(`
ingress:
- fromEndpoints: [{}]`), "web frontend intruder"},
		{"an empty list of selectors selects no one", cnp(`
ingress:
- fromEndpoints: []
  toPorts: [{ports: [{port: "80"}]}]`), ""},
		{"another namespace is named by its key", cnp(`
ingress:
- fromEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": other, app: frontend}}]`), "other/frontend"},
		{"every namespace by Exists", cnp(`
ingress:
- fromEndpoints:
  - matchLabels: {app: frontend}
    matchExpressions: [{key: io.kubernetes.pod.namespace, operator: Exists}]`), "frontend other/frontend"},
		{"namespaces by their labels", cnp(`
ingress:
- fromEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: other}}]`), "other/frontend"},
		{"another cluster is named by its key", cnp(`
ingress:
- fromEndpoints: [{matchLabels: {app: frontend, io.cilium.k8s.policy.cluster: east}}]`), "east/frontend"},
		{"every cluster by Exists", cnp(`
ingress:
- fromEndpoints:
  - matchLabels: {app: frontend}
    matchExpressions: [{key: io.cilium.k8s.policy.cluster, operator: Exists}]`), "frontend east/frontend"},
		{"a service account", cnp(`
ingress:
- fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: sa-intruder}}]`), "intruder"},
		{"NotIn takes those without the label", cnp(`
ingress:
- fromEndpoints: [{matchExpressions: [{key: tier, operator: NotIn, values: [front, back]}]}]`), "frontend intruder"},
		{"DoesNotExist", cnp(`
ingress:
- fromEndpoints: [{matchExpressions: [{key: tier, operator: DoesNotExist}]}]`), "frontend intruder"},
		{"In takes any of its values", cnp(`
ingress:
- fromEndpoints: [{matchExpressions: [{key: app, operator: In, values: [web, intruder]}]}]`), "web intruder"},
		{"a reserved label lifts every scope", cnp(`
ingress:
- fromEndpoints: [{matchLabels: {"reserved:host": ""}}]`), "host"},
		{"an unknown member is nobody's negative", cnp(`
ingress:
- fromEndpoints: [{matchExpressions: [{key: "reserved:host", operator: DoesNotExist}]}]`),
			pods + " health ingress init kube-apiserver remote-node unmanaged world world-ipv4 world-ipv6"},
		{"entity all is whoever, known or not", cnp("ingress: [{fromEntities: [all]}]"), everyone},
		{"entity none is no one", cnp("ingress: [{fromEntities: [none]}]"), ""},
		{"entity world is neither workload nor unknown member", cnp("ingress: [{fromEntities: [world]}]"), "world world-ipv4 world-ipv6"},
		{"entity cluster is the local one, and nodes of all", cnp("ingress: [{fromEntities: [cluster]}]"),
			"web frontend intruder other/frontend health host ingress init kube-apiserver remote-node unmanaged"},
		{"entity cluster-mesh is all member clusters", cnp("ingress: [{fromEntities: [cluster-mesh]}]"),
			pods + " health host ingress init kube-apiserver remote-node unmanaged"},
		{"single entities", cnp("ingress: [{fromEntities: [host, remote-node]}]"), "host remote-node kube-apiserver"},
		{"an API server's node is a node, a node is no API server", cnp("ingress: [{fromEntities: [kube-apiserver]}]"), "kube-apiserver"},
		{"an empty list of one kind selects nobody, whatever stands beside it", cnp("ingress: [{fromCIDR: [], fromEndpoints: [{}]}]"), ""},
		{"an empty list of what is not supported selects nobody", cnp("ingress: [{fromNodes: []}, {fromGroups: [], toPorts: [{ports: [{port: \"80\"}]}]}]"), ""},
		{"entity ingress", cnp("ingress: [{fromEntities: [ingress]}]"), "ingress"},
		{"an empty list beside entity all", cnp("ingress: [{fromEntities: [all], fromCIDRSet: []}]"), ""},
		{"an empty list denies nobody", cnp("enableDefaultDeny: {ingress: false}\ningressDeny: [{fromEntities: [], fromEndpoints: [{}]}]"), everyone},
		{"every namespace has its name as a label", cnp("ingress: [{fromEndpoints: [{matchLabels: {k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name: other}}]}]"), "other/frontend"},
		{"ports without peers are for whoever", cnp(`ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]`), everyone},
		{"another port is not this one", cnp(`ingress: [{toPorts: [{ports: [{port: "81", protocol: TCP}]}]}]`), ""},
		{"another protocol neither", cnp(`ingress: [{toPorts: [{ports: [{port: "80", protocol: UDP}]}]}]`), ""},
		{"no protocol means TCP, UDP and SCTP", cnp(`ingress: [{fromEntities: [host], toPorts: [{ports: [{port: "80"}]}]}]`), "host"},
		{"port 0 is any", cnp(`ingress: [{fromEntities: [host], toPorts: [{ports: [{port: "0", protocol: TCP}]}]}]`), "host"},
		{"a range includes its ends", cnp(`ingress: [{fromEntities: [host], toPorts: [{ports: [{port: "79", endPort: 80}]}]}]`), "host"},
		{"denial beats allowance of another policy", named("a", "ingress: [{fromEndpoints: [{}]}]") +
			named("b", "ingressDeny: [{fromEndpoints: [{matchLabels: {app: intruder}}]}]"), "web frontend"},
		{"denial by port leaves other ports", cnp(`
ingress:
- fromEndpoints: [{}]
ingressDeny:
- fromEndpoints: [{matchLabels: {app: intruder}}]
  toPorts: [{ports: [{port: "81"}]}]`), "web frontend intruder"},
		{"denial of a range beats allowance of a port", cnp(`
ingress:
- fromEndpoints: [{}]
  toPorts: [{ports: [{port: "80"}]}]
ingressDeny:
- fromEndpoints: [{matchLabels: {app: intruder}}]
  toPorts: [{ports: [{port: "1", endPort: 1000}]}]`), "web frontend"},
		{"denial of whoever on a port beats allowance of a workload", cnp(`
ingress:
- fromEndpoints: [{}]
ingressDeny:
- toPorts: [{ports: [{port: "80"}]}]`), ""},
		{"denial alone denies the rest by default", cnp("ingressDeny: [{fromEntities: [world]}]"), ""},
		{"without default denial it denies what it says", cnp(`
enableDefaultDeny: {ingress: false}
ingressDeny: [{fromEntities: [world]}]`), pods + " health host ingress init kube-apiserver remote-node unmanaged unknown-member"},
		{"who is not known yet may be the one denied", cnp(`
enableDefaultDeny: {ingress: false}
ingressDeny: [{fromEndpoints: [{matchLabels: {app: intruder}}]}]`),
			"web frontend other/frontend east/frontend east/intruder east/other/frontend health host ingress init kube-apiserver remote-node unmanaged world world-ipv4 world-ipv6"},
		{"allowance without default denial changes nothing", cnp(`
enableDefaultDeny: {ingress: false}
ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]`), everyone},
		{"one policy that denies by default is enough", named("a", "enableDefaultDeny: {ingress: false}\ningress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]") +
			named("b", "ingress: [{}]"), "frontend"},
		{"default denial may be asked for without rules", cnp("enableDefaultDeny: {ingress: true}\negress: [{toEntities: [all]}]"), ""},
		{"a policy of another namespace selects others", strings.Replace(cnp("ingress: [{}]"), "namespace: default", "namespace: other", 1), everyone},
		{"a policy for other labels selects others", strings.Replace(cnp("ingress: [{}]"), "app: web", "app: db", 1), everyone},
		{"no namespace is namespace default", strings.Replace(cnp("ingress: [{}]"), ", namespace: default", "", 1), ""},
		{"cluster-wide, an empty selector is every workload of the cluster", ccnp("c", "ingress: [{fromEndpoints: [{}]}]"), "web frontend intruder other/frontend"},
		{"cluster-wide, a selector spans namespaces", ccnp("c", "ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]"), "frontend other/frontend"},
		{"cluster-wide denial beats a namespace's allowance", named("a", "ingress: [{fromEndpoints: [{}]}]") +
			ccnp("c", "ingressDeny: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]"), "web intruder"},
		{"the union of policies", named("a", "ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]") +
			named("b", "ingress: [{fromEntities: [host]}]"), "frontend host"},
		{"the union of specs", strings.Replace(cnp("ingress: [{fromEntities: [host]}]"), "spec:", `
specs:
- endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromEndpoints: [{matchLabels: {app: intruder}}]}]
spec:`, 1), "intruder host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := testWorld(t, tt.manifests)
			got := passing(t, w, "web", Ingress, ProtoTCP, 80)
			for i, name := range got {
				got[i] = strings.ReplaceAll(name, " ", "_")
			}
			if want := words(tt.want); !slices.Equal(got, want) {
				t.Errorf("allowed in: %v\nwant:       %v", got, want)
			}
		})
	}
}

func TestWhomWebMayReach(t *testing.T) {
	for _, tt := range []struct {
		name, manifests string
		want            string
	}{
		{"a workload of the own namespace", cnp("egress: [{toEndpoints: [{matchLabels: {app: frontend}}]}]"), "frontend"},
		{"a prefix is neither workload nor node", cnp("egress: [{toCIDR: [10.0.0.0/8]}]"), "10.0.0.0/8"},
		{"a single address", cnp("egress: [{toCIDR: [192.0.2.1/32]}]"), "192.0.2.1/32"},
		{"a prefix holds the prefixes inside it", named("a", "egress: [{toCIDR: [10.0.0.0/8]}]") + named("b", "ingress: [{fromCIDR: [10.1.0.0/16, 11.0.0.0/8]}]"), "10.0.0.0/8 10.1.0.0/16"},
		{"an exception is carved out", cnp("egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]}]"), "10.0.0.0/8"},
		{"of its own entry only", cnp("egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}, {cidr: 10.96.0.0/16}]}]"), "10.0.0.0/8 10.96.0.0/16"},
		{"every IPv4 address is the world, too", cnp("egress: [{toCIDR: [0.0.0.0/0]}, {toCIDR: [10.0.0.0/8]}]"), "10.0.0.0/8 world world-ipv4"},
		{"but for its exceptions", cnp("egress: [{toCIDRSet: [{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}]}]"), "world world-ipv4"},
		{"an exception of the whole family leaves nothing", cnp("egress: [{toCIDRSet: [{cidr: 0.0.0.0/0, except: [0.0.0.0/0]}]}]\ningress: [{fromCIDR: [10.0.0.0/8]}]"), ""},
		{"an exception as large as its prefix leaves nothing", cnp("egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}]}]\ningress: [{fromCIDR: [10.1.0.0/16]}]"), ""},
		{"exceptions in halves leave nothing of what they name", cnp("egress: [{toCIDRSet: [{cidr: 0.0.0.0/0, except: [0.0.0.0/1, 128.0.0.0/1]}]}]"), "world world-ipv4"},
		{"IPv4 in the form of IPv6 is IPv4", cnp("egress: [{toCIDR: ['::ffff:10.0.0.0/104']}]"), "10.0.0.0/8"},
		{"an empty list of services or names selects nobody", cnp("egress: [{toServices: []}, {toFQDNs: [], toPorts: [{ports: [{port: \"80\"}]}]}, {toGroups: []}, {toNodes: [], toEntities: [world]}]"), ""},
		{"every IPv6 address", cnp("egress: [{toCIDR: [\"::/0\", \"fd00::/8\"]}]"), "fd00::/8 world-ipv6"},
		{"world holds every prefix", cnp("egress: [{toEntities: [world]}]\ningress: [{fromCIDR: [10.0.0.0/8, \"fd00::/8\"]}]"), "10.0.0.0/8 fd00::/8 world world-ipv4 world-ipv6"},
		{"denial inside an allowed prefix", cnp("egress: [{toCIDR: [10.0.0.0/8]}]\negressDeny: [{toCIDR: [10.1.0.0/16]}]"), "10.0.0.0/8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := testWorld(t, tt.manifests)
			got := passing(t, w, "web", Egress, ProtoTCP, 80)
			if want := words(tt.want); !slices.Equal(got, want) {
				t.Errorf("reachable: %v\nwant:      %v", got, want)
			}
		})
	}
}

// A label from another source cannot replace what the cluster itself says, neither to
// get in nor to slip past a denial.
func TestOnlyItsClusterSaysWhereAWorkloadBelongs(t *testing.T) {
	for _, tt := range []struct {
		name, manifests string
		allow           bool
	}{
		{"named as the cluster", cnp("ingress: [{fromEndpoints: [{matchLabels: {app: frontend, io.cilium.k8s.policy.cluster: west}}]}]"), false},
		{"named as the cluster, with any:", cnp(`ingress: [{fromEndpoints: [{matchLabels: {app: frontend, "any:io.cilium.k8s.policy.cluster": west}}]}]`), false},
		{"its real cluster is named", cnp("ingress: [{fromEndpoints: [{matchLabels: {app: frontend, io.cilium.k8s.policy.cluster: east}}]}]"), true},
		{"whoever is not of the cluster is denied", cnp(`
enableDefaultDeny: {ingress: false}
ingressDeny: [{fromEndpoints: [{matchExpressions: [{key: io.cilium.k8s.policy.cluster, operator: NotIn, values: [west]}]}]}]`), false},
		{"named as the namespace", ccnp("c", `ingress: [{fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: other, "k8s:io.cilium.k8s.policy.cluster": east}}]}]`), false},
		{"whoever is of no other namespace is denied", ccnp("c", `
enableDefaultDeny: {ingress: false}
ingressDeny: [{fromEndpoints: [{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [other]}, {key: "k8s:io.cilium.k8s.policy.cluster", operator: Exists}]}]}]`), false},
		{"named by its namespace's labels", cnp(`ingress: [{fromEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: other, "k8s:io.cilium.k8s.policy.cluster": east}}]}]`), false},
		{"named by its account", cnp(`ingress: [{fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: admin, "k8s:io.cilium.k8s.policy.cluster": east}}]}]`), false},
		{"a reserved word as key is no entity", cnp(`ingress: [{fromEndpoints: [{matchLabels: {"reserved:host": ""}}]}, {fromEntities: [host]}]`), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := testWorld(t, tt.manifests)
			labels, err := identity.ParseLabels("container:host;k8s:host;k8s:app=frontend;k8s:io.kubernetes.pod.namespace=default;k8s:io.cilium.k8s.policy.cluster=east;" +
				"container:io.cilium.k8s.policy.cluster=west;container:io.kubernetes.pod.namespace=other;" +
				"container:io.cilium.k8s.namespace.labels.team=other;container:io.cilium.k8s.policy.serviceaccount=admin")
			if err != nil {
				t.Fatal(err)
			}
			people["forged"] = 0x010009
			w.Identities[people["forged"]] = labels
			if got := slices.Contains(passing(t, w, "web", Ingress, ProtoTCP, 80), "forged"); got != tt.allow {
				t.Errorf("allowed in: %v, want %v", got, tt.allow)
			}
		})
	}
}

func TestAnICMPTypeIsNoPort(t *testing.T) {
	w := testWorld(t, cnp("ingress: [{fromEntities: [host], icmps: [{fields: [{type: 8}]}]}]"))
	if got := passing(t, w, "web", Ingress, ProtoICMP, 8); !slices.Equal(got, []string{"host"}) {
		t.Errorf("echo requests of %v pass", got)
	}
	if got := passing(t, w, "web", Ingress, ProtoTCP, 8); len(got) > 0 {
		t.Errorf("%v may reach port 8", got)
	}
}

func TestICMPTypeZeroIsOneType(t *testing.T) {
	w := testWorld(t, cnp("ingress: [{fromEntities: [host], icmps: [{fields: [{type: 0}]}]}]"))
	for number, want := range map[uint16]bool{0: true, 3: false, 8: false} {
		if got := passing(t, w, "web", Ingress, ProtoICMP, number); (len(got) > 0) != want {
			t.Errorf("type %d of %v passes, want %v", number, got, want)
		}
	}
}

// Each field that names peers selects nobody when its list is empty, whatever stands
// beside it: it allows nothing, and denies nothing. The fields are those of the types, so
// that a new one is asked, too.
func TestAnEmptyListOfAnyPeersSelectsNobody(t *testing.T) {
	const everyone = "web frontend intruder other/frontend east/frontend east/intruder east/other/frontend " + everyReserved + " never_seen"
	asked := 0
	for _, side := range []struct {
		list, prefix string
		dir          Direction
		item         any
	}{
		{"ingress", "from", Ingress, ingressItem{}},
		{"egress", "to", Egress, egressItem{}},
	} {
		typ := reflect.TypeOf(side.item)
		for i := range typ.NumField() {
			field, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			switch field {
			case "toPorts", "icmps", "authentication": // are no peers
				continue
			case "fromRequires", "toRequires": // refused, empty or not
				continue
			}
			for beside, text := range map[string]string{
				"alone":                "{%[2]s: []}",
				"beside ports":         `{%[2]s: [], toPorts: [{ports: [{port: "80"}]}]}`,
				"beside every pod":     "{%[2]s: [], %[1]sEndpoints: [{}]}",
				"beside entity all":    "{%[1]sEntities: [all], %[2]s: []}",
				"beside every address": "{%[2]s: [], %[1]sCIDR: [0.0.0.0/0]}",
			} {
				item := fmt.Sprintf(text, side.prefix, field)
				if strings.Count(item, field+":") > 1 {
					continue // it would be given twice
				}
				asked++
				t.Run(field+" "+beside, func(t *testing.T) {
					sees(t, cnp(side.list+": ["+item+"]"), side.dir, "")
					sees(t, cnp("enableDefaultDeny: {"+side.list+": false}\n"+side.list+"Deny: ["+item+"]"), side.dir, everyone)
				})
			}
		}
	}
	if asked < 60 {
		t.Errorf("asked %d times only", asked)
	}
}
