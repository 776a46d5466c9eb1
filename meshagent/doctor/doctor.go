// Package doctor looks at a node for what keeps Weft from working there: what its kernel
// lacks, what is set otherwise, and what other network plugins have left behind.
//
// It changes nothing but what Fix is asked to. What the mesh knows of itself is in its status.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Severity of a finding.
type Severity string

const (
	// OK is as it should be.
	OK Severity = "ok"
	// Info is worth knowing.
	Info Severity = "info"
	// Warning is what may go wrong, or goes wrong for some.
	Warning Severity = "warning"
	// Error keeps Weft from working.
	Error Severity = "error"
)

// Finding is what one look has shown.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	// Message is what is so, Means what follows from it, and Next what to do.
	Message string `json:"message"`
	Means   string `json:"means,omitempty"`
	Next    string `json:"next,omitempty"`
	// Details are the parts of it: what Fix removes or sets, if it can.
	Details []string `json:"details,omitempty"`
	// Fixable says that Fix can take it away.
	Fixable bool `json:"fixable,omitempty"`

	fix func(context.Context) error
}

// Report is what was found on a node, the worst first.
type Report struct {
	Cluster  string    `json:"cluster,omitempty"`
	Node     string    `json:"node,omitempty"`
	Findings []Finding `json:"findings"`
}

// Well reports whether nothing needs attention.
func (r Report) Well() bool {
	return !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == Warning || f.Severity == Error })
}

// Node is what is known of the node beforehand.
type Node struct {
	Cluster, Name string
	// Running says that an agent has answered and said the rest, and Ready whether it can give
	// pods their networks; Why, if not.
	Running, Ready bool
	Why, Next      string
	// Device is the interface towards the other nodes; "": the one with the first address.
	Device    string
	Addresses []netip.Addr
	// IPv6 says that pods have IPv6 addresses.
	IPv6 bool
	// StateDir is the agent's folder, CNIConfDir the runtime's folder of networks.
	StateDir, CNIConfDir string
	// BPFDir is where programs are pinned, and CgroupRoot the version 2 tree; "": none is mounted.
	BPFDir, CgroupRoot string
	// Servers are the addresses of API servers, host:port.
	Servers []string
	// Ports are those that the agent and the tunnels need.
	Ports []Port
}

// Port is one that Weft needs.
type Port struct {
	Network string // tcp or udp
	Number  uint16
	For     string
}

// Host is how the node is looked at; its twin is in the tests.
type Host struct {
	// Root is before each path; "" except in tests.
	Root  string
	Links func() ([]Link, error)
	// Programs are the names of BPF programs at the node's devices and cgroup.
	Programs func(cgroup string) ([]string, error)
	Rules    Rules
	// Legacy are the rules of iptables before nftables.
	Legacy     Rules
	RemoveLink func(name string) error
	// Dial connects, and asks for the clock of a server.
	Dial func(ctx context.Context, address string) (Answer, error)
	// Free is how much of a folder's file system is free.
	Free func(path string) (bytes, percent float64, err error)
}

// Link is a device of the node.
type Link struct {
	Name, Kind, Master string
	MTU                int
	Up                 bool
	Addresses          []netip.Prefix
}

// check is one look.
type check struct {
	name string
	do   func(context.Context, *look) []Finding
}

// look is one report in the making: what several checks need is read once.
type look struct {
	Host
	node  Node
	links []Link
	// plugins are the other network plugins whose process runs here.
	running map[string]bool
}

var checks = []check{
	{"agent", agent},
	{"kernel", kernel},
	{"wireguard", wireGuard},
	{"sysctl", sysctls},
	{"mtu", mtu},
	{"ports", ports},
	{"cni", cniConfigurations},
	{"other-plugins", plugins},
	{"leftover-rules", rules},
	{"leftover-links", links},
	{"leftover-programs", programs},
	{"servers", servers},
	{"disk", disk},
}

// Run looks at everything.
func Run(ctx context.Context, h Host, n Node) Report {
	l := &look{Host: h, node: n, running: map[string]bool{}}
	r := Report{Cluster: n.Cluster, Node: n.Name, Findings: []Finding{}}
	var err error
	if l.links, err = h.Links(); err != nil {
		r.Findings = append(r.Findings, unseen("links", err))
	}
	if l.node.Device == "" {
		l.node.Device = deviceOf(l.links, n.Addresses)
	}
	l.running = l.pluginsRunning()
	for _, c := range checks {
		for _, f := range c.do(ctx, l) {
			f.Check, f.Fixable = c.name, f.fix != nil
			r.Findings = append(r.Findings, f)
		}
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return rank(b.Severity) - rank(a.Severity) })
	return r
}

// deviceOf is the device with the first address; "" if none has it.
func deviceOf(all []Link, addresses []netip.Addr) string {
	for _, link := range all {
		if len(addresses) > 0 && slices.ContainsFunc(link.Addresses, func(p netip.Prefix) bool { return p.Addr() == addresses[0] }) {
			return link.Name
		}
	}
	return ""
}

func rank(s Severity) int { return slices.Index([]Severity{OK, Info, Warning, Error}, s) }

// unseen is what could not be looked at.
func unseen(what string, err error) Finding {
	return Finding{Check: what, Severity: Warning, Message: what + " cannot be looked at: " + err.Error(), Next: "run it as root, in the node's own network namespace"}
}

// Fix takes away what can be of a report.
func (r Report) Fix(ctx context.Context) error {
	var errs []error
	for _, f := range r.Findings {
		if f.fix == nil {
			continue
		}
		if err := f.fix(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.Check, err))
		}
	}
	return errors.Join(errs...)
}

func agent(_ context.Context, l *look) []Finding {
	switch n := l.node; {
	case !n.Running:
		return []Finding{{
			Severity: Warning, Message: "no agent answers on this node", Means: "pods that run keep their network, and new ones do not start; the node's device and API servers are not known here",
			Next: "start `weft agent`, or give --socket",
		}}
	case !n.Ready:
		return []Finding{{Severity: Warning, Message: "the agent cannot give pods their networks: " + n.Why, Means: "new pods do not start", Next: n.Next}}
	}
	return []Finding{{Severity: OK, Message: "the agent answers"}}
}

// some lists the first of many.
func some(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
