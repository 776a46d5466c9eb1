package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/flow"
)

// agentSocket is where an agent serves its API on its own machine.
const agentSocket = "/run/weft/agent.sock"

// defaultLast is the number of past flows shown without --last, as in hubble.
const defaultLast = 20

func observeCommand() *cobra.Command {
	var request flow.Request
	var all, local bool
	var socket string
	cmd := &cobra.Command{
		Use:     "observe",
		Short:   "Show flows and the policies that decided",
		GroupID: look,
		Long: "Show flows: who speaks to whom, what is dropped, why and by which policy. A cluster reports\n" +
			"the flows of all its nodes; with --local, or on a node without contexts, the agent of this\n" +
			"machine is asked. Nodes whose agents do not answer are named on standard error, because\n" +
			"their flows are missing. Filters are joined by AND, the values of one filter by OR;\n" +
			"--not before a filter leaves out what it matches.",
		Example: "  weft observe --verdict DROPPED --follow\n  weft -c all observe --to-pod shop/web --last 100\n" +
			"  weft observe --follow --not --to-port 53 --not --verdict FORWARDED\n" +
			"  weft observe --from-cluster east --to-cluster west --port 80 -o json",
		Args: usageArgs(cobra.NoArgs),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&request.Follow, "follow", "f", false, "keep printing new flows")
	flags.IntVar(&request.Last, "last", defaultLast, "number of past flows to show first (none with --follow unless given)")
	flags.BoolVar(&all, "all", false, "show all past flows that are kept")
	flags.BoolVar(&local, "local", false, "ask the agent of this machine")
	flags.StringVar(&socket, "socket", agentSocket, "the agent's socket; implies --local")
	asked := filters{query: url.Values{}}
	names, usage := flow.Names()
	for _, name := range names {
		if flags.Lookup(name) == nil && name != "namespace" {
			flags.Var(filterFlag{&asked, name}, name, usage[name])
		}
	}
	flags.Var(notFlag{&asked}, "not", "leave out what the next filter matches")
	flags.Lookup("not").NoOptDefVal = "true"
	for _, name := range []string{"from-cluster", "to-cluster", "cluster"} {
		complete(cmd, name, completeContexts)
	}
	complete(cmd, "node", completeNodes)
	for _, name := range []string{"from-namespace", "to-namespace"} {
		complete(cmd, name, completeNamespaces)
	}
	complete(cmd, "verdict", fixed(string(flow.Forwarded), string(flow.Dropped), string(flow.Reset), string(flow.Refused)))
	complete(cmd, "reason", fixed(flow.Reasons()...))
	complete(cmd, "direction", fixed(string(flow.Egress), string(flow.Ingress)))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if cmd.Flags().Changed("namespace") { // the global flag
			asked.query["namespace"] = []string{namespace(cmd)}
		}
		if err = asked.read(&request); err != nil {
			return usageError{err}
		}
		switch {
		case request.Last < 0:
			return usageError{errors.New("--last: give a number of flows, 0 or more; --all shows all that are kept")}
		case all:
			request.Last = -1
		case request.Follow && !flags.Changed("last"):
			request.Last = 0
		}
		sources, err := observed(cmd, local, socket)
		if err != nil {
			return err
		}
		if !local && !flags.Changed("socket") {
			if err := knownNodes(cmd, sources, request.Filter.Nodes); err != nil {
				return err
			}
		}
		return observe(cmd, sources, request)
	}
	return cmd
}

// knownNodes refuses --node for a node that none of the clusters has: it would only find no
// flows. A pattern may match none. A cluster that does not answer is reported by the request
// that follows.
func knownNodes(cmd *cobra.Command, sources []*api.Client, names []string) error {
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return strings.ContainsAny(name, `*?[\`) })
	if len(names) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime) // only a courtesy
	defer cancel()
	var known []string
	for _, c := range sources {
		l, err := c.Nodes(ctx)
		if err != nil {
			return nil
		}
		for _, n := range l.Nodes {
			known = append(known, n.Cluster+"/"+n.Name)
		}
	}
	slices.Sort(known)
	for _, name := range names {
		filter := flow.Filter{Nodes: []string{name}}
		if !slices.ContainsFunc(known, func(node string) bool { return filter.Match(&flow.Flow{Node: node}) }) {
			return usageError{fmt.Errorf("--node: there is no node %q; choose from %s", name, strings.Join(known, ", "))}
		}
	}
	return nil
}

// filters are the filters on the command line, in order: --not applies to the next one.
type filters struct {
	query   url.Values
	not     []url.Values
	negated bool // --not was the last flag
}

func (f *filters) read(r *flow.Request) (err error) {
	if f.negated {
		return errors.New("--not needs a filter after it, and leaves out what that one matches")
	}
	if r.Filter, err = flow.ParseFilter(f.query); err != nil {
		return err
	}
	for _, query := range f.not {
		not, err := flow.ParseFilter(query)
		if err != nil {
			return err
		}
		r.Not = append(r.Not, not)
	}
	return nil
}

// filterFlag is the flag of one filter.
type filterFlag struct {
	in   *filters
	name string
}

func (f filterFlag) String() string { return "" }

// Type names the value in the help.
func (f filterFlag) Type() string { return "strings" }

// Set adds a value to the filter, or to a new one after --not.
func (f filterFlag) Set(value string) error {
	if f.in.negated {
		f.in.not, f.in.negated = append(f.in.not, url.Values{f.name: {value}}), false
		return nil
	}
	f.in.query.Add(f.name, value)
	return nil
}

type notFlag struct{ in *filters }

func (f notFlag) String() string { return "" }

// Type hides the value in the help, like that of a switch.
func (f notFlag) Type() string { return "bool" }

// Set makes the next filter exclude what it matches.
func (f notFlag) Set(string) error {
	f.in.negated = true
	return nil
}

// observed returns whom to ask: the chosen clusters, or this machine's agent.
func observed(cmd *cobra.Command, local bool, socket string) ([]*api.Client, error) {
	local = local || cmd.Flags().Changed("socket")
	if local && cmd.Flags().Changed("context") {
		return nil, usageError{errors.New("weft observe: give either -c, for clusters, or --local or --socket, for the agent of this machine")}
	}
	if !local && !cmd.Flags().Changed("context") {
		if _, err := os.Stat(api.ConfigPath()); err != nil {
			_, err := os.Stat(socket)
			local = err == nil
		}
	}
	if local {
		return []*api.Client{api.NewUnixClient(socket)}, nil
	}
	return clients(cmd)
}

// observe prints the flows of all sources: past ones sorted by time, new ones as they
// come. When following, a source that fails is reported at once and does not end the
// others.
func observe(cmd *cobra.Command, sources []*api.Client, request flow.Request) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	p := &flowPrinter{out: cmd.OutOrStdout(), format: f, colour: colourful(cmd.OutOrStdout())}
	ctx, cancel := cmd.Context(), context.CancelFunc(func() {})
	if !request.Follow {
		ctx, cancel = patient(cmd)
	}
	defer cancel()
	var mu sync.Mutex // guards past and p
	var past []flow.Flow
	gaps, failed := askAll(ctx, sources, func(ctx context.Context, c *api.Client) (gap string, err error) {
		if request.Follow {
			var asked sync.WaitGroup
			defer asked.Wait()
			asked.Go(func() {
				// No past flows, only which agents answer. Whatever fails here fails the stream too.
				silent, _ := c.Observe(ctx, new(flow.Request).Values(), func([]byte) error { return nil })
				fmt.Fprint(cmd.ErrOrStderr(), missing(c, silent))
			})
		}
		silent, err := c.Observe(ctx, request.Values(), func(line []byte) error {
			var fl flow.Flow
			if err := json.Unmarshal(line, &fl); err != nil {
				return fmt.Errorf("read flow: %w", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if request.Follow {
				return p.print(&fl)
			}
			past = append(past, fl)
			return nil
		})
		if err = ended(cmd, err); err != nil && request.Follow && len(sources) > 1 {
			fmt.Fprintln(cmd.ErrOrStderr(), printableLines(fmt.Sprintf("weft: %s: %v", c.Name(), err)))
			err = said{err}
		}
		return missing(c, silent), err
	})
	fmt.Fprint(cmd.ErrOrStderr(), strings.Join(gaps, ""))
	slices.SortStableFunc(past, func(a, b flow.Flow) int { return a.Time.Compare(b.Time) })
	if request.Last >= 0 {
		past = past[max(0, len(past)-request.Last):]
	}
	for i := range past {
		if err := p.print(&past[i]); err != nil {
			return errors.Join(err, failed)
		}
	}
	if len(past) == 0 && failed == nil && !request.Follow && request.Last != 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "no flows match")
	}
	return failed
}

// missing returns a line about nodes whose flows are missing, or "" if there are none.
func missing(c *api.Client, silent []string) string {
	if len(silent) == 0 {
		return ""
	}
	return printableLines(fmt.Sprintf("weft: %s: the flows of %s are missing: no answer from the agent there", c.Name(), strings.Join(silent, ", "))) + "\n"
}

// ended turns the end of a stream that the operator stopped into nil.
func ended(cmd *cobra.Command, err error) error {
	if errors.Is(err, context.Canceled) && cmd.Context().Err() != nil {
		return nil
	}
	return err
}

// flowPrinter prints one flow after another.
type flowPrinter struct {
	out    io.Writer
	format string
	colour bool
}

func (p *flowPrinter) print(f *flow.Flow) error {
	if p.format == "json" {
		text, err := json.Marshal(f)
		if err == nil {
			_, err = fmt.Fprintf(p.out, "%s\n", text)
		}
		return err
	}
	if p.format == "yaml" {
		if _, err := fmt.Fprintln(p.out, "---"); err != nil {
			return err
		}
		return document(p.out, p.format, f, 0)
	}
	if f.Lost > 0 {
		fmt.Fprintf(p.out, "%s lost before this one: use a narrower filter, or read faster\n", api.Count(f.Lost, "flow"))
	}
	if f.Suppressed > 0 {
		fmt.Fprintf(p.out, "%s of the same pod suppressed before this one: it caused too many at once\n", api.Count(f.Suppressed, "event"))
	}
	line := f.Line()
	if p.colour {
		verdict := string(f.Verdict)
		line = paint(verdict, false) + strings.TrimPrefix(line, verdict)
	}
	_, err := fmt.Fprintln(p.out, line)
	return err
}
