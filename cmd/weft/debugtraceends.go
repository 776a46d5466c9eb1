package main

// Which pods and services the ends of a traced connection are.

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/manifest"
)

// traceObject is what is read of pods and services.
type traceObject struct {
	Metadata struct{ Namespace, Name string }
	Spec     struct {
		NodeName   string
		ClusterIP  string
		ClusterIPs []string
	}
	Status struct {
		PodIP  string
		PodIPs []struct{ IP string }
	}
}

// addresses are those of the pod or the service.
func (o *traceObject) addresses() (all []netip.Addr) {
	texts := append(slices.Clone(o.Spec.ClusterIPs), o.Spec.ClusterIP, o.Status.PodIP)
	for _, ip := range o.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

// party is an end of the connection: the cluster it was found in, its name and addresses.
type party struct {
	cluster, name string
	addresses     []netip.Addr
	node          string // of a pod
	port          uint16
}

// splitPort takes the port off what an operator wrote.
func splitPort(text string) (host string, port uint16, err error) {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return a.String(), 0, nil
	}
	colon := strings.LastIndex(text, ":")
	if colon < 0 {
		return text, 0, nil
	}
	host, number := text[:colon], text[colon+1:]
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q: %q is not a port from 1 to 65535", text, number)
	}
	return strings.Trim(host, "[]"), uint16(n), nil
}

// find finds a pod or, if it may be one, a service, or takes an address as it is.
func (f *follower) find(ctx context.Context, flag, text, home string, plurals ...string) (p party, err error) {
	host, port, err := splitPort(text)
	if err != nil {
		return p, usageError{fmt.Errorf("--%s: %w", flag, err)}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return party{addresses: []netip.Addr{a.Unmap()}, port: port}, nil
	}
	words := strings.Split(host, "/")
	if len(words) > 3 || slices.Contains(words, "") {
		return p, usageError{fmt.Errorf("--%s: write %q as [cluster/]namespace/name, or give an address", flag, text)}
	}
	name := words[len(words)-1]
	ns := cmp.Or(namespace(f.cmd), "default")
	if len(words) > 1 {
		ns = words[len(words)-2]
	}
	if len(words) == 3 {
		home = words[0]
	}
	if home == "" && f.failed != nil {
		return p, fmt.Errorf("--%s: which cluster is %s of? Write cluster/%s/%s: %w", flag, host, ns, name, f.failed)
	}
	if home == "" {
		return p, usageError{fmt.Errorf("--%s: which cluster is %s of? Write cluster/%s/%s", flag, host, ns, name)}
	}
	c, err := f.cluster(home)
	if err != nil {
		return p, err
	}
	var missing error
	for _, plural := range plurals {
		l, err := c.client.Object(ctx, plural, ns, name)
		if absent(err) {
			missing = errors.Join(missing, advised(c.client, err))
			continue
		}
		if err != nil {
			return p, advised(c.client, err)
		}
		if len(l.Items) == 0 {
			continue
		}
		if p.cluster != "" {
			return p, usageError{fmt.Errorf("--%s: %s/%s is both a pod and a service of %s: give the address of one of them", flag, ns, name, home)}
		}
		var o traceObject
		if err := json.Unmarshal(l.Items[0], &o); err != nil {
			return p, fmt.Errorf("read %s %s/%s of %s: %w", plural, ns, name, home, err)
		}
		p = party{cluster: home, name: home + "/" + ns + "/" + name, addresses: o.addresses(), node: o.Spec.NodeName, port: port}
		if plural == manifest.Services && o.Spec.ClusterIP == "None" {
			return p, usageError{fmt.Errorf("--%s: service %s is headless, so connections go to its pods: give one of them", flag, p.name)}
		}
		if len(p.addresses) == 0 {
			return p, fmt.Errorf("%s %s has no address yet", strings.TrimSuffix(plural, "s"), p.name)
		}
	}
	if p.cluster == "" {
		return p, missing
	}
	return p, nil
}

func sameFamily(a, b []netip.Addr) (x, y netip.Addr, ok bool) {
	for _, x := range a {
		for _, y := range b {
			if x.Is4() == y.Is4() {
				return x, y, true
			}
		}
	}
	return x, y, false
}

// locate finds the node whose pod CIDR has the client's address, first in the home cluster: two
// meshes may use the same addresses.
func (f *follower) locate(p *party) error {
	var at, elsewhere []party
	for name, c := range f.clusters {
		for _, n := range c.nodes {
			if !slices.ContainsFunc(n.PodCIDRs, func(cidr netip.Prefix) bool { return cidr.Contains(p.addresses[0]) }) {
				continue
			}
			if found := (party{cluster: name, node: n.Name}); name == f.home {
				at = append(at, found)
			} else {
				elsewhere = append(elsewhere, found)
			}
		}
	}
	if len(at) == 0 {
		at = elsewhere
	}
	switch len(at) {
	case 0:
		return errors.Join(fmt.Errorf("--from: %v is in no node's pod CIDR: only a pod's connections can be followed", p.addresses[0]), f.failed)
	case 1:
		p.cluster, p.node = at[0].cluster, at[0].node
		return nil
	}
	var nodes []string
	for _, n := range at {
		nodes = append(nodes, n.cluster+"/"+n.node)
	}
	slices.Sort(nodes)
	return usageError{fmt.Errorf("--from: %v is in the pod CIDRs of several nodes: %s. Name the pod, or one context with -c", p.addresses[0], strings.Join(nodes, ", "))}
}
