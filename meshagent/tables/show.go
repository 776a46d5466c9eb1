package tables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The columns shown to people. No row contains secrets.

// TableHeader and TableRow, here and below, format a row as text.
func (*Cluster) TableHeader() []string {
	return []string{"Cluster", "ID", "Own", "Member", "PodCIDRs", "Synced", "Dead"}
}

func (c *Cluster) TableRow() []string {
	dead := 0
	if c.Liveness != nil {
		dead = len(c.Liveness.Dead)
	}
	return []string{c.Name, fmt.Sprint(c.ID()), yes(c.Own != nil), yes(c.Member()), prefixes(c.PodCIDRs()), yes(c.Complete()), strconv.Itoa(dead)}
}

func (*Former) TableHeader() []string { return []string{"Peer", "PodCIDRs", "Removed", "Blocked"} }

func (f *Former) TableRow() []string {
	return []string{f.Name, prefixes(f.PodCIDRs), f.Removed.UTC().Format(time.RFC3339), yes(f.Forgotten.IsZero())}
}

func (*Node) TableHeader() []string {
	return []string{"Cluster", "Node", "Internal", "Addresses", "PodCIDRs", "Epoch", "Keys"}
}

func (n *Node) TableRow() []string {
	lanes, epoch := n.Lanes()
	var keys []string
	for _, l := range lanes {
		keys = append(keys, short(l.PublicKey))
	}
	return []string{n.Cluster, n.Name, addr(n.Internal()), addrs(n.Addresses()), prefixes(n.PodCIDRs()), fmt.Sprint(epoch), strings.Join(keys, ",")}
}

func (*IP) TableHeader() []string {
	return []string{"Cluster", "Address", "Identity", "Host", "Pod"}
}

func (i *IP) TableRow() []string {
	return []string{i.Cluster, show(i.Prefix), i.Identity.String(), addr(i.Host), pod(i.Namespace, i.Pod)}
}

func (*Identity) TableHeader() []string { return []string{"Cluster", "Identity", "Labels"} }

func (i *Identity) TableRow() []string {
	return []string{i.Cluster, i.Number.String(), i.Labels.String()}
}

func (*Service) TableHeader() []string {
	return []string{"Cluster", "Namespace", "Name", "Addresses", "Ports"}
}

func (s *Service) TableRow() []string {
	var ips, ports []string
	for _, ip := range s.Addresses {
		ips = append(ips, ip.String())
	}
	for _, p := range s.Ports {
		ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
	}
	return []string{s.Cluster, s.Namespace, s.Name, list(ips), list(ports)}
}

func (*Slice) TableHeader() []string {
	return []string{"Cluster", "Namespace", "Name", "Service", "Endpoints"}
}

func (s *Slice) TableRow() []string {
	return []string{s.Cluster, s.Namespace, s.Name, s.Service, strconv.Itoa(len(s.Endpoints))}
}

func (*Namespace) TableHeader() []string { return []string{"Namespace", "Labels"} }

func (n *Namespace) TableRow() []string {
	var labels []string
	for k, v := range n.Object.Labels {
		labels = append(labels, k+"="+v)
	}
	slices.Sort(labels)
	return []string{n.Name, list(labels)}
}

func (*Pod) TableHeader() []string {
	return []string{"Namespace", "Pod", "Node", "Address", "Identity", "Ready"}
}

func (p *Pod) TableRow() []string {
	node, ip, id, ready := "", "", "", "no"
	if p.Object != nil {
		node = p.Object.Spec.NodeName
	}
	if e := p.Endpoint; e != nil {
		node, ip, id, ready = e.Node, addr(e.IP), e.Identity.String(), yes(e.Ready)
	}
	return []string{p.Namespace, p.Name, or(node), or(ip), or(id), ready}
}

func (*Policy) TableHeader() []string { return []string{"Kind", "Namespace", "Name"} }

func (p *Policy) TableRow() []string { return []string{p.Kind, or(p.Namespace), p.Name} }

func (*Rejected) TableHeader() []string { return []string{"Cluster", "Key", "Since", "Error"} }

func (r *Rejected) TableRow() []string {
	return []string{r.Cluster, r.StoreKey, stamp(r.Since), r.Error}
}

func (*Endpoint) TableHeader() []string {
	return []string{"Namespace", "Pod", "Address", "Device", "Phase", "Identity", "Set", "Ready", "Why"}
}

func (e *Endpoint) TableRow() []string {
	return []string{e.Namespace, e.Pod, addr(e.IP), or(e.Device), string(e.Phase), e.Identity.String(), fmt.Sprint(e.Set), yes(e.Ready), or(e.Why)}
}

func (*Path) TableHeader() []string {
	return []string{"Cluster", "Node", "Index", "Alive", "Tunnel", "Keyed", "State", "Since", "RTT", "Limit", "Gossip", "Reason"}
}

func (p *Path) TableRow() []string {
	gossip := "-"
	if p.GossipDead {
		gossip = "dead"
	}
	o := p.Observation
	limit := "-"
	if o.Limit > 0 {
		limit = strconv.Itoa(o.Limit)
	}
	return []string{p.Cluster, p.Node, fmt.Sprint(p.Index), yes(p.Alive), strconv.Itoa(p.Lane), yes(p.Keyed),
		or(string(o.State)), stamp(o.Since), o.RTT.Round(time.Microsecond).String(), limit, gossip, or(o.Reason)}
}

func (*Problem) TableHeader() []string {
	return []string{"Table", "Row", "Since", "Attempts", "Error"}
}

func (p *Problem) TableRow() []string {
	return []string{p.Table, p.Row, stamp(p.Since), strconv.Itoa(p.Attempts), p.Error}
}

func (*Progress) TableHeader() []string { return []string{"Table", "Revision", "At"} }

func (p *Progress) TableRow() []string {
	return []string{p.Table, fmt.Sprint(p.Revision), stamp(p.At)}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func or(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func list(s []string) string { return or(strings.Join(s, ",")) }

func addr(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func addrs(all []netip.Addr) string {
	var out []string
	for _, a := range all {
		out = append(out, a.String())
	}
	return list(out)
}

func prefixes(all []netip.Prefix) string {
	var out []string
	for _, p := range all {
		out = append(out, p.String())
	}
	return list(out)
}

// show formats a prefix, without the length if it is a single address.
func show(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func pod(namespace, name string) string {
	if name == "" {
		return "-"
	}
	return namespace + "/" + name
}

func short(key string) string {
	if len(key) < 8 {
		return or(key)
	}
	return key[:8]
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
