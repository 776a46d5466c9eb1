package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
)

// traced is a connection followed to its end.
type traced struct {
	From     traceEnd        `json:"from"`
	To       traceEnd        `json:"to"`
	Protocol string          `json:"protocol"`
	Steps    []api.TraceStep `json:"steps"`
	// End is where it ends: delivered, to-stack, a reason to drop it, or unknown.
	End string `json:"end"`
	// Passes says that new connections get through, as far as nodes know.
	Passes bool `json:"passes"`
	// At is the node where it ends.
	At     string `json:"at,omitempty"`
	Why    string `json:"why,omitempty"`
	Advice string `json:"advice,omitempty"`
}

// traceEnd is one end of a connection, as it was found.
type traceEnd struct {
	Name    string     `json:"name,omitempty"`
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"`
}

func (e traceEnd) String() string {
	text := e.Address.String()
	if e.Port != 0 {
		text = netip.AddrPortFrom(e.Address, e.Port).String()
	}
	if e.Name != "" {
		text = e.Name + " (" + text + ")"
	}
	return text
}

func (e traceEnd) addrPort() netip.AddrPort { return netip.AddrPortFrom(e.Address, e.Port) }

// Protocols of IP that can be traced, and how many their numbers are. ICMP is echo.
var traceProtocols = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1}

func debugTraceCommand() *cobra.Command {
	var from, to, proto string
	var sport uint16
	cmd := &cobra.Command{
		Use:   "trace --from POD --to POD|SERVICE|ADDRESS:PORT",
		Short: "Follow one connection through hooks and nodes",
		Long: "Follow one connection of a pod from hook to hook and node to node, and say where it ends and\n" +
			"why. Agents answer from the maps that packets meet, from their flows, and from the packets that\n" +
			"they reported last; nothing is sent. A pod or a service is written as [cluster/]namespace/name;\n" +
			"without a cluster it is of the client's. Every cluster on the way needs a context. Exits with 1 if\n" +
			"new connections do not get through.",
		Example: "  weft debug trace --from east/shop/web --to west/db/pg:5432\n" +
			"  weft debug trace --from east/shop/web --to db/pg:5432 --sport 40112\n" +
			"  weft debug trace --from 10.1.1.2 --to 10.2.1.7:53 --proto udp -o json",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			number, ok := traceProtocols[strings.ToLower(proto)]
			if !ok {
				return usageError{fmt.Errorf("--proto: there is no protocol %q; choose tcp, udp, sctp or icmp", proto)}
			}
			if from == "" || to == "" {
				return usageError{errors.New("give both ends of the connection: --from and --to")}
			}
			ctx, cancel := patient(cmd)
			defer cancel()
			f, err := newFollower(ctx, cmd)
			if err != nil {
				return err
			}
			defer f.close()
			t, err := f.follow(ctx, from, to, number, sport)
			if err != nil {
				return err
			}
			return showTrace(cmd, t)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "the client: a pod as [cluster/]namespace/name, or its address")
	cmd.Flags().StringVar(&to, "to", "", "what it connects to: a pod, a service or an address, with the port")
	cmd.Flags().StringVar(&proto, "proto", "tcp", "protocol: tcp, udp, sctp or icmp (an echo)")
	cmd.Flags().Uint16Var(&sport, "sport", 0, "the client's port, to find its flow (default: any)")
	complete(cmd, "proto", fixed("tcp", "udp", "sctp", "icmp"))
	complete(cmd, "from", completeEnds(manifest.Pods))
	complete(cmd, "to", completeEnds(manifest.Pods, manifest.Services))
	return cmd
}

// completeEnds completes cluster/namespace/name of objects.
func completeEnds(plurals ...string) completer {
	return func(cmd *cobra.Command, _ []string, begin string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		all, err := traceClients(cmd)
		if err != nil {
			return nil, onlyThese
		}
		found, _ := askAll(ctx, all, func(ctx context.Context, c *api.Client) (names []string, err error) {
			for _, plural := range plurals {
				l, err := c.Objects(ctx, plural, "")
				if err != nil {
					return names, err
				}
				for _, item := range l.Items {
					var o traceObject
					if json.Unmarshal(item, &o) == nil {
						names = append(names, l.Cluster+"/"+o.Metadata.Namespace+"/"+o.Metadata.Name)
					}
				}
			}
			return names, nil
		})
		return starting(slices.Concat(found...), begin), onlyThese | cobra.ShellCompDirectiveNoSpace
	}
}

// traceClients connects to the clusters of -c, or of all contexts: a connection may lead
// through any of them.
func traceClients(cmd *cobra.Command) ([]*api.Client, error) {
	if cmd.Flags().Changed("context") {
		return clients(cmd)
	}
	file, err := contexts()
	if err != nil {
		return nil, err
	}
	if len(file.Names()) == 0 {
		return clients(cmd) // which says what is missing
	}
	var all []*api.Client
	for _, name := range file.Names() {
		c, err := clientOf(file, name)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// whoPatience is how long a context may take to say which cluster it is of.
const whoPatience = 5 * time.Second

// follower asks the clusters along a connection's way.
type follower struct {
	cmd      *cobra.Command
	clusters map[string]*traceCluster
	home     string // of ends without a cluster; "" if several clusters could be meant
	failed   error  // of clusters that did not answer
}

// traceCluster is a cluster that answers.
type traceCluster struct {
	client *api.Client
	nodes  []api.NodeStatus
}

func newFollower(ctx context.Context, cmd *cobra.Command) (*follower, error) {
	all, err := traceClients(cmd)
	if err != nil {
		return nil, err
	}
	f := &follower{cmd: cmd, clusters: map[string]*traceCluster{}}
	who, cancel := context.WithTimeout(ctx, whoPatience) // one that is not on the way must not delay the others
	defer cancel()
	lists, failed := make([]*api.NodeList, len(all)), make([]error, len(all))
	var asked sync.WaitGroup
	for i, c := range all {
		asked.Go(func() { lists[i], failed[i] = c.Nodes(who) })
	}
	asked.Wait()
	for i, c := range all {
		switch {
		case failed[i] != nil:
			f.failed = errors.Join(f.failed, fmt.Errorf("%s: %w", c.Name(), advised(c, failed[i])))
			c.Close()
		case f.clusters[lists[i].Cluster] != nil: // two contexts of one cluster
			c.Close()
		default:
			f.clusters[lists[i].Cluster] = &traceCluster{c, lists[i].Nodes}
		}
	}
	if len(f.clusters) == 0 {
		return nil, f.failed
	}
	file, err := contexts()
	if err != nil {
		return nil, err
	}
	current, unset := file.Context("")
	for name, c := range f.clusters {
		if len(f.clusters) == 1 || !cmd.Flags().Changed("context") && unset == nil && c.client.Name() == current.Name {
			f.home = name
		}
	}
	return f, nil
}

func (f *follower) close() {
	for _, c := range f.clusters {
		c.client.Close()
	}
}

func (f *follower) cluster(name string) (*traceCluster, error) {
	if c := f.clusters[name]; c != nil {
		return c, nil
	}
	if f.failed != nil {
		return nil, fmt.Errorf("cluster %s is not among those that answer: %w", name, f.failed)
	}
	return nil, usageError{fmt.Errorf("there is no context of cluster %s: merge one with `weft config merge`, or leave -c out", name)}
}

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
	host, number, ok := cutLast(text, ":")
	if !ok {
		return text, 0, nil
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q: %q is not a port from 1 to 65535", text, number)
	}
	return strings.Trim(host, "[]"), uint16(n), nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
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
		if len(p.addresses) == 0 {
			return p, fmt.Errorf("%s %s has no address yet", strings.TrimSuffix(plural, "s"), p.name)
		}
	}
	if p.cluster == "" {
		return p, missing
	}
	return p, nil
}

// follow follows the connection from node to node.
func (f *follower) follow(ctx context.Context, fromText, toText string, proto uint8, sport uint16) (*traced, error) {
	from, err := f.find(ctx, "from", fromText, f.home, manifest.Pods)
	if err != nil {
		return nil, err
	}
	if from.port != 0 {
		return nil, usageError{errors.New("--from: give the client's port with --sport")}
	}
	if from.cluster == "" {
		if err := f.locate(&from); err != nil {
			return nil, err
		}
	}
	if from.node == "" {
		return nil, fmt.Errorf("pod %s is not on a node yet", from.name)
	}
	to, err := f.find(ctx, "to", toText, from.cluster, manifest.Pods, manifest.Services)
	if err != nil {
		return nil, err
	}
	client, server, ok := sameFamily(from.addresses, to.addresses)
	if !ok {
		return nil, fmt.Errorf("%s and %s have no addresses of the same IP family", cmp.Or(from.name, fromText), cmp.Or(to.name, toText))
	}
	if proto == 1 {
		if to.port != 0 || sport != 0 {
			return nil, usageError{errors.New("--proto icmp: an echo has no ports")}
		}
		if to.port = 8; server.Is6() {
			proto, to.port = 58, 128
		}
	}
	if to.port == 0 {
		return nil, usageError{fmt.Errorf("--to: give the port, as in %s:80", toText)}
	}
	t := &traced{From: traceEnd{from.name, client, sport}, To: traceEnd{to.name, server, to.port}, Protocol: protocolText(proto), Steps: []api.TraceStep{}}
	q := api.TraceQuestion{From: t.From.addrPort(), To: t.To.addrPort(), Protocol: proto}
	cluster, node := from.cluster, from.node
	for {
		t.At = cluster + "/" + node
		one, err := f.ask(ctx, cluster, node, q)
		if err != nil {
			if len(t.Steps) == 0 {
				return nil, err
			}
			t.End, t.Why = "unknown", "what happens at "+t.At+" is not known: "+err.Error()
			return t, nil
		}
		t.Steps = append(t.Steps, one.Steps...)
		t.End = one.End
		if one.Dropped {
			for _, s := range one.Steps {
				if s.LookUp != "report" && s.Reason != "" {
					t.Why, t.Advice = s.Found, s.Advice
				}
			}
			return t, nil
		}
		if one.Next == nil {
			t.Passes = true
			return t, nil
		}
		cluster, node = one.Next.Cluster, one.Next.Node
		q = api.TraceQuestion{From: one.Next.From, To: one.Next.To, Protocol: proto, Arrives: one.Next.Arrives}
	}
}

func protocolText(proto uint8) string {
	for name, number := range traceProtocols {
		if number == proto {
			return name
		}
	}
	return "icmpv6"
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

// locate finds the node whose pod CIDR has the client's address.
func (f *follower) locate(p *party) error {
	for name, c := range f.clusters {
		for _, n := range c.nodes {
			if slices.ContainsFunc(n.PodCIDRs, func(cidr netip.Prefix) bool { return cidr.Contains(p.addresses[0]) }) {
				p.cluster, p.node = name, n.Name
				return nil
			}
		}
	}
	return errors.Join(fmt.Errorf("--from: %v is in no node's pod CIDR: only a pod's connections can be followed", p.addresses[0]), f.failed)
}

func (f *follower) ask(ctx context.Context, cluster, node string, q api.TraceQuestion) (*api.Trace, error) {
	c, err := f.cluster(cluster)
	if err != nil {
		return nil, err
	}
	t, err := c.client.Trace(ctx, node, q)
	return t, advised(c.client, err)
}

// showTrace prints the steps and, for people, where they end.
func showTrace(cmd *cobra.Command, t *traced) error {
	rows := table{columns: columns("AT", "HOOK", "LOOK-UP", "FOUND"), name: 0, ordered: true}
	for _, s := range t.Steps {
		rows.rows = append(rows.rows, []string{s.At, s.Hook, s.LookUp, s.Found})
	}
	if err := show(cmd, []*traced{t}, rows); err != nil {
		return err
	}
	if f, err := format(cmd); err != nil {
		return err
	} else if f == "table" || f == "wide" {
		fmt.Fprintln(cmd.OutOrStdout())
		io.WriteString(cmd.OutOrStdout(), printableLines(t.ending()))
	}
	if !t.Passes {
		return errNo
	}
	return nil
}

// ending says where the connection ends.
func (t *traced) ending() string {
	what := fmt.Sprintf("%s from %s to %s", t.Protocol, t.From, t.To)
	switch {
	case t.End == "unknown":
		return fmt.Sprintf("UNKNOWN  %s: %s\n", what, t.Why)
	case !t.Passes:
		text := fmt.Sprintf("ENDS     %s at %s: %s: %s\n", what, t.At, t.End, t.Why)
		if t.Advice != "" {
			text += "hint: " + t.Advice + "\n"
		}
		return text
	}
	text := fmt.Sprintf("PASSES   %s: %s at %s\n", what, t.End, t.At)
	if last := t.lastDrop(); last != nil {
		text += fmt.Sprintf("but the last packet that %s reported was not let through (%s)\n", last.At, last.Reason)
	}
	return text
}

// lastDrop is the last report of a node that ends with one of a drop.
func (t *traced) lastDrop() *api.TraceStep {
	var last *api.TraceStep
	for i := range t.Steps {
		s := &t.Steps[i]
		if s.LookUp != "report" {
			continue
		}
		if i+1 == len(t.Steps) || t.Steps[i+1].LookUp != "report" || t.Steps[i+1].At != s.At {
			if s.Reason != "" {
				last = s
			}
		}
	}
	return last
}
