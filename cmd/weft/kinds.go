package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/service"
)

// kind is a kind of object as `weft get` shows it. Every listing begins with cluster,
// namespace and name and ends with owner and age; cells are the columns between.
type kind struct {
	manifest.Kind
	listing
}

type listing struct {
	columns []column
	cells   func(raw []byte) ([]string, error)
}

// listings show objects, by plural.
var listings = map[string]listing{
	manifest.Namespaces: {columns("*LABELS"), cells(func(n *corev1.Namespace) []string {
		return []string{labelList(n.Labels)}
	})},
	manifest.Pods: {columns("NODE", "ADDRESS", "READY", "STATUS", "*LABELS"), cells(func(p *corev1.Pod) []string {
		return []string{p.Spec.NodeName, podIPs(p), podReady(p), podStatus(p), labelList(p.Labels)}
	})},
	manifest.Services: {columns("CLUSTER-IP", "EXTERNAL-IP", "PORTS", "GLOBAL", "*SELECTOR"), cells(func(s *corev1.Service) []string {
		return []string{clusterIPs(s), strings.Join(service.ExternalAddresses(s), ","), servicePorts(s), fmt.Sprint(isGlobal(s)), labelList(s.Spec.Selector)}
	})},
	manifest.EndpointSlices: {columns("SERVICE", "ADDRESSES", "PORTS"), cells(func(e *discoveryv1.EndpointSlice) []string {
		return []string{e.Labels[discoveryv1.LabelServiceName], sliceAddresses(e), slicePorts(e)}
	})},
	manifest.Policies:            {columns("SELECTS", "RULES"), policyCells},
	manifest.ClusterwidePolicies: {columns("SELECTS", "RULES"), policyCells},
	manifest.NetworkPolicies:     {columns("SELECTS", "RULES"), cells(networkPolicyCells)},
	manifest.CIDRGroups:          {columns("PREFIXES"), cells(groupCells)},
	manifest.ServiceExports: {columns("VALID", "CONFLICT"), cells(func(e *mcs.ServiceExport) []string {
		return []string{condition(e.Status.Conditions, string(mcs.ServiceExportConditionValid)), condition(e.Status.Conditions, string(mcs.ServiceExportConditionConflict))}
	})},
	manifest.ServiceImports: {columns("TYPE", "IP", "PORTS", "CLUSTERS"), cells(importCells)},
}

// condition is how a condition stands, with the reason of one that is not as it should be.
func condition(all []metav1.Condition, name string) string {
	for _, c := range all {
		if c.Type == name {
			if good := (name == string(mcs.ServiceExportConditionConflict)) != (c.Status == metav1.ConditionTrue); good {
				return string(c.Status)
			}
			return string(c.Status) + " (" + c.Reason + ")"
		}
	}
	return "Unknown"
}

func importCells(i *mcs.ServiceImport) []string {
	var ports, clusters []string
	for _, p := range i.Spec.Ports {
		ports = append(ports, fmt.Sprintf("%d/%s", p.Port, cmp.Or(p.Protocol, corev1.ProtocolTCP)))
	}
	for _, c := range i.Status.Clusters {
		clusters = append(clusters, c.Cluster)
	}
	return []string{string(i.Spec.Type), strings.Join(i.Spec.IPs, ","), strings.Join(ports, ","), strings.Join(clusters, ",")}
}

var kinds = func() (all []kind) {
	for _, k := range manifest.Kinds() {
		all = append(all, kind{k, listings[k.Plural]})
	}
	return all
}()

// kindOf finds a kind by any of its names.
func kindOf(word string) (kind, error) {
	word = strings.ToLower(word)
	if command := elsewhere(word); command != "" {
		return kind{}, usageError{fmt.Errorf("%q is not a kind of manifest; `weft %s` shows them", word, command)}
	}
	var words []string
	for _, k := range kinds {
		if k.Called(word) {
			return k, nil
		}
		words = append(append(words, k.Plural, strings.ToLower(k.Name)), k.Short...)
	}
	if near := manifest.Nearest(word, words); near != "" {
		return kind{}, usageError{fmt.Errorf("there is no kind %q; did you mean %s?", word, near)}
	}
	return kind{}, usageError{fmt.Errorf("there is no kind %q; choose from %s", word, strings.Join(kindNames(), ", "))}
}

// elsewhere returns the command that shows what has no manifest, or several kinds.
func elsewhere(word string) string {
	switch word {
	case "node", "nodes":
		return "node list"
	case "peer", "peers", "cluster", "clusters":
		return "peer list"
	case "policy", "policies":
		return "policy list"
	case "identity", "identities":
		return "identity list"
	case "flow", "flows":
		return "observe"
	}
	return ""
}

func kindNames() []string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.Plural
	}
	return names
}

// cells adapts a function on a kind's decoded object to its raw form.
func cells[T any](of func(*T) []string) func([]byte) ([]string, error) {
	return func(raw []byte) ([]string, error) {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("read object: %w", err)
		}
		return of(&v), nil
	}
}

// row returns one object's line.
func (k kind) row(cluster string, raw []byte) ([]string, error) {
	var meta struct {
		metav1.ObjectMeta `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &meta); err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	middle, err := k.cells(raw)
	if err != nil {
		return nil, err
	}
	row := []string{cluster, meta.Namespace, meta.Name}
	if !k.Namespaced {
		row = []string{cluster, meta.Name}
	}
	return append(append(row, middle...), api.OwnerOf(raw), since(meta.CreationTimestamp.Time)), nil
}

func (k kind) heads() []column {
	cols := columns("CLUSTER", "NAMESPACE", "NAME")
	if !k.Namespaced {
		cols = columns("CLUSTER", "NAME")
	}
	return append(append(cols, k.columns...), columns("*OWNER", "AGE")...)
}

// isGlobal reads the annotations like everything that acts on them.
func isGlobal(s *corev1.Service) bool {
	read, err := service.FromKubernetes(s)
	return err == nil && read.Global
}

func servicePorts(s *corev1.Service) string {
	var ports []string
	for _, p := range s.Spec.Ports {
		port := service.Port{Port: uint16(p.Port), Protocol: service.Protocol(orTCP(p.Protocol))}
		if service.HasNodePorts(&s.Spec) {
			port.NodePort = uint16(p.NodePort)
		}
		ports = append(ports, port.String())
	}
	return strings.Join(ports, ",")
}

func orTCP(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

func sliceAddresses(e *discoveryv1.EndpointSlice) string {
	var all []string
	for _, ep := range e.Endpoints {
		all = append(all, ep.Addresses...)
	}
	return strings.Join(all, ",")
}

func slicePorts(e *discoveryv1.EndpointSlice) string {
	var ports []string
	for _, p := range e.Ports {
		if p.Port == nil {
			continue
		}
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = orTCP(*p.Protocol)
		}
		ports = append(ports, fmt.Sprintf("%d/%s", *p.Port, protocol))
	}
	return strings.Join(ports, ",")
}

// policySpec is the part of a policy that a listing shows.
type policySpec struct {
	EndpointSelector *metav1.LabelSelector `json:"endpointSelector"`
	NodeSelector     *metav1.LabelSelector `json:"nodeSelector"`
	Ingress          []any                 `json:"ingress"`
	IngressDeny      []any                 `json:"ingressDeny"`
	Egress           []any                 `json:"egress"`
	EgressDeny       []any                 `json:"egressDeny"`
}

func policyCells(raw []byte) ([]string, error) {
	var p struct {
		Spec  *policySpec  `json:"spec"`
		Specs []policySpec `json:"specs"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	if p.Spec != nil {
		p.Specs = append([]policySpec{*p.Spec}, p.Specs...)
	}
	var selects, rules []string
	for _, s := range p.Specs {
		selector := s.EndpointSelector
		if selector == nil {
			selector = s.NodeSelector
		}
		text := metav1.FormatLabelSelector(selector)
		if selector != nil && len(selector.MatchLabels)+len(selector.MatchExpressions) == 0 {
			text = "all"
		}
		selects = append(selects, text)
		for _, r := range []struct {
			name  string
			rules []any
		}{{"ingress", s.Ingress}, {"ingress-deny", s.IngressDeny}, {"egress", s.Egress}, {"egress-deny", s.EgressDeny}} {
			if r.rules != nil {
				rules = append(rules, fmt.Sprintf("%s:%d", r.name, len(r.rules)))
			}
		}
	}
	return []string{strings.Join(selects, "; "), strings.Join(rules, " ")}, nil
}

func networkPolicyCells(p *networkingv1.NetworkPolicy) []string {
	var rules []string
	types := p.Spec.PolicyTypes
	if len(types) == 0 {
		types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			types = append(types, networkingv1.PolicyTypeEgress)
		}
	}
	for _, t := range types {
		n := len(p.Spec.Ingress)
		if t == networkingv1.PolicyTypeEgress {
			n = len(p.Spec.Egress)
		}
		rules = append(rules, fmt.Sprintf("%s:%d", strings.ToLower(string(t)), n))
	}
	selects := "all"
	if s := p.Spec.PodSelector; len(s.MatchLabels)+len(s.MatchExpressions) > 0 {
		selects = metav1.FormatLabelSelector(&s)
	}
	return []string{selects, strings.Join(rules, " ")}
}

// cidrGroup is the part of a group of prefixes that a listing shows.
type cidrGroup struct {
	Spec struct {
		ExternalCIDRs []string `json:"externalCIDRs"`
	} `json:"spec"`
}

func groupCells(g *cidrGroup) []string { return []string{strings.Join(g.Spec.ExternalCIDRs, ",")} }

func labelList(labels map[string]string) string {
	if len(labels) == 0 {
		return ""
	}
	return metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: labels})
}

// objectNames returns the names of a kind's objects.
func objectNames(ctx context.Context, c *api.Client, word, ns string) (names []string, err error) {
	k, err := kindOf(word)
	if err != nil {
		return nil, err
	}
	l, err := c.Objects(ctx, k.Plural, ns)
	if err != nil {
		return nil, err
	}
	for _, raw := range l.Items {
		var meta struct {
			metav1.ObjectMeta `json:"metadata"`
		}
		if json.Unmarshal(raw, &meta) == nil {
			names = append(names, meta.Name)
		}
	}
	return names, nil
}

// podIPs lists a pod's addresses: one, or one of each IP family.
func podIPs(p *corev1.Pod) string {
	var ips []string
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	return strings.Join(ips, ",")
}

// clusterIPs returns a service's addresses: one, or one of each IP family.
func clusterIPs(s *corev1.Service) string { return strings.Join(service.ClusterIPs(s), ",") }

// podReady returns yes or no, pending while the pod has no address yet, and "" if there is
// no status.
func podReady(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return map[bool]string{true: "yes", false: "no"}[c.Status == corev1.ConditionTrue]
		}
	}
	return strings.ToLower(string(p.Status.Phase))
}

// podStatus is a word for what a pod does or waits for; describe has the sentence.
func podStatus(p *corev1.Pod) string { return cmp.Or(p.Status.Reason, string(p.Status.Phase)) }
