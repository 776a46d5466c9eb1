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
	// End is how it ends: api.EndDelivered, api.EndToStack, a reason to drop it, or api.EndUnknown.
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
			"without a cluster, --from is of the current context's and --to of the client's. Every cluster on\n" +
			"the way needs a context. Exits with 1 if new connections do not get through.",
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
			if f, err := format(cmd); err != nil {
				return err
			} else if f == "name" {
				return usageError{fmt.Errorf("-o %s is not supported by `debug trace` (use table, json or yaml)", f)}
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
		all, _, _, err := traceClients(cmd)
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
		words := slices.Concat(found...)
		slices.Sort(words)
		return starting(slices.Compact(words), begin), onlyThese | cobra.ShellCompDirectiveNoSpace
	}
}

// traceContexts are those of -c or else all, the current one first. home is that of a client
// without a cluster: the only one of -c or the current one; "" for none.
func traceContexts(cmd *cobra.Command) (file *api.Config, names []string, home string, err error) {
	if file, err = contexts(); err != nil {
		return nil, nil, "", err
	}
	if names = namedContexts(cmd, file); len(names) == 1 {
		return file, names, names[0], nil
	}
	if len(names) > 1 {
		return file, names, "", nil
	}
	current, unset := file.Context("")
	if names = file.Names(); len(names) == 0 {
		return nil, nil, "", usageError{unset}
	}
	if unset == nil {
		names = slices.DeleteFunc(names, func(name string) bool { return name == current.Name })
		names = slices.Insert(names, 0, current.Name)
	}
	return file, names, current.Name, nil
}

// namedContexts are those of -c; none: all are meant.
func namedContexts(cmd *cobra.Command, file *api.Config) []string {
	names := chosen(cmd)
	if slices.Contains(names, "all") && !slices.Contains(file.Names(), "all") {
		return nil
	}
	return names
}

// traceClients connects to the clusters that a connection may lead through. Unless -c names it, a
// context that cannot be used is like one that does not answer; failed says why.
func traceClients(cmd *cobra.Command) (all []*api.Client, home string, failed, err error) {
	file, names, home, err := traceContexts(cmd)
	if err != nil {
		return nil, "", nil, err
	}
	for _, name := range names {
		c, err := clientOf(file, name)
		if err != nil && len(namedContexts(cmd, file)) > 0 {
			closeAll(all)
			return nil, "", nil, err
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
			continue
		}
		all = append(all, c)
	}
	return all, home, failed, nil
}

func closeAll(all []*api.Client) {
	for _, c := range all {
		c.Close()
	}
}

// whoPatience is how long a context may take to say which cluster it is of.
const whoPatience = 5 * time.Second

// follower asks the clusters along a connection's way.
type follower struct {
	cmd      *cobra.Command
	clusters map[string]*traceCluster
	home     string // of a client without a cluster; "" if it is not known
	failed   error  // of clusters that did not answer
}

// traceCluster is a cluster that answers.
type traceCluster struct {
	client *api.Client
	nodes  []api.NodeStatus
}

func newFollower(ctx context.Context, cmd *cobra.Command) (*follower, error) {
	all, home, failed, err := traceClients(cmd)
	if err != nil {
		return nil, err
	}
	f := &follower{cmd: cmd, clusters: map[string]*traceCluster{}, failed: failed}
	who, cancel := context.WithTimeout(ctx, whoPatience) // one that is not on the way must not delay the others
	defer cancel()
	lists, unanswered := make([]*api.NodeList, len(all)), make([]error, len(all))
	var asked sync.WaitGroup
	for i, c := range all {
		asked.Go(func() { lists[i], unanswered[i] = c.Nodes(who) })
	}
	asked.Wait()
	for i, c := range all {
		if unanswered[i] != nil {
			f.failed = errors.Join(f.failed, fmt.Errorf("%s: %w", c.Name(), advised(c, unanswered[i])))
			c.Close()
			continue
		}
		cluster := lists[i].Cluster
		if c.Name() == home {
			f.home = cluster
		}
		if f.clusters[cluster] != nil { // two contexts of one cluster: the first counts
			c.Close()
			continue
		}
		f.clusters[cluster] = &traceCluster{c, lists[i].Nodes}
	}
	if len(f.clusters) == 0 {
		return nil, f.failed
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
	if file, err := contexts(); err == nil && len(namedContexts(f.cmd, file)) > 0 {
		return nil, usageError{fmt.Errorf("no context of -c is of cluster %s: add it, or leave -c out", name)}
	}
	return nil, usageError{fmt.Errorf("there is no context of cluster %s: merge one with `weft config merge`", name)}
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
	if proto == 1 || proto == 58 { // in a question the port is the type
		t.To.Port = 0
	}
	return t, f.walk(ctx, t, from.cluster, from.node, q)
}

// mostArrivals bounds how often a connection may go on to a pod.
const mostArrivals = 2

// walk asks one node after the other.
func (f *follower) walk(ctx context.Context, t *traced, cluster, node string, q api.TraceQuestion) error {
	for range 1 + mostArrivals {
		t.At = cluster + "/" + node
		one, err := f.ask(ctx, cluster, node, q)
		if err != nil {
			if len(t.Steps) == 0 {
				return err
			}
			t.End, t.Why = api.EndUnknown, "what happens at "+t.At+" is not known: "+err.Error()
			return nil
		}
		t.End = one.End
		goesOn := one.End == api.EndUnknown || one.End == api.EndTunnelled || one.End == api.EndToPod
		for _, s := range one.Steps {
			s.At = t.At // whatever a peer's cluster says
			t.Steps = append(t.Steps, s)
			if s.LookUp != "report" && (s.Reason != "" || goesOn && !one.Dropped) {
				t.Why, t.Advice = s.Found, s.Advice
			}
		}
		switch {
		case one.Dropped:
			return nil
		case one.Next != nil:
			cluster, node = one.Next.Cluster, one.Next.Node
			q = api.TraceQuestion{From: one.Next.From, To: one.Next.To, Protocol: q.Protocol, Arrives: one.Next.Arrives}
		case goesOn:
			t.End = api.EndUnknown
			return nil
		default:
			t.Passes = true
			return nil
		}
		t.Why, t.Advice = "", ""
	}
	t.End, t.Why = api.EndUnknown, fmt.Sprintf("nodes send it on and on: it does not stay at %s either", t.At)
	return nil
}

func protocolText(proto uint8) string {
	for name, number := range traceProtocols {
		if number == proto {
			return name
		}
	}
	return "icmpv6"
}

func (f *follower) ask(ctx context.Context, cluster, node string, q api.TraceQuestion) (*api.Trace, error) {
	c, err := f.cluster(cluster)
	if err != nil {
		return nil, err
	}
	if node == "" { // which would be the agent itself, and this is an API server
		return nil, errors.New("the node has no name")
	}
	t, err := c.client.Trace(ctx, node, q)
	return t, advised(c.client, err)
}

// showTrace prints the steps and, for people, where they end.
func showTrace(cmd *cobra.Command, t *traced) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	if err := writeTrace(cmd, f, t); err != nil {
		return err
	}
	if !t.Passes {
		return errNo
	}
	return nil
}

// writeTrace prints one document, or a table of the steps and the ending.
func writeTrace(cmd *cobra.Command, f string, t *traced) error {
	if f == "json" || f == "yaml" {
		return document(cmd.OutOrStdout(), f, t, 0)
	}
	rows := table{columns: columns("AT", "HOOK", "LOOK-UP", "FOUND"), name: 0, ordered: true}
	for _, s := range t.Steps {
		rows.rows = append(rows.rows, []string{s.At, s.Hook, s.LookUp, s.Found})
	}
	if err := show(cmd, []*traced{t}, rows); err != nil {
		return err
	}
	_, err := io.WriteString(cmd.OutOrStdout(), "\n"+printableLines(t.ending()))
	return err
}

// ending says where the connection ends.
func (t *traced) ending() string {
	what := fmt.Sprintf("%s from %s to %s", t.Protocol, t.From, t.To)
	switch {
	case t.End == api.EndUnknown:
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
		text += fmt.Sprintf("but the last packet that %s reported was not let through: %s\n", last.At, last.Found)
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
