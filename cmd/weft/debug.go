package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	agenttables "github.com/weft-mesh/weft/meshagent/tables"
)

func debugCommand() *cobra.Command {
	return groupCommand("debug", "Inspect a node's tables, maps and tunnels", look,
		debugTablesCommand(), debugTableCommand(), debugMapsCommand(), debugMapCommand(), debugTunnelsCommand(), debugTraceCommand(), debugAgentCommand())
}

// agentFlags choose an agent: one in a cluster with --node, otherwise this machine's.
type agentFlags struct{ node, socket string }

func (a *agentFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.node, "node", "", "node to ask, through its cluster (node or cluster/node)")
	cmd.Flags().Bool("local", true, "ask this machine's agent (the default without --node)")
	a.addSocket(cmd)
	complete(cmd, "node", completeNodes)
}

func (a *agentFlags) addSocket(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.socket, "socket", agentSocket, "the socket of this machine's agent")
}

func (a *agentFlags) client(cmd *cobra.Command) (*api.Client, error) {
	if a.node != "" && cmd.Flags().Changed("local") {
		return nil, usageError{fmt.Errorf("%s: give either --node or --local", cmd.CommandPath())}
	}
	if a.node != "" && cmd.Flags().Changed("socket") {
		return nil, usageError{fmt.Errorf("%s: give either --node or --socket", cmd.CommandPath())}
	}
	if a.node == "" && cmd.Flags().Changed("context") {
		return nil, usageError{fmt.Errorf("%s: without --node it asks the agent of this machine; leave -c out", cmd.CommandPath())}
	}
	if a.node == "" {
		return api.NewUnixClient(a.socket), nil
	}
	return client(cmd)
}

// ask runs one request on the chosen agent.
func ask[T any](cmd *cobra.Command, a *agentFlags, request func(context.Context, *api.Client) (T, error)) (T, error) {
	c, err := a.client(cmd)
	if err != nil {
		var none T
		return none, err
	}
	defer c.Close()
	ctx, cancel := patient(cmd)
	defer cancel()
	answer, err := request(ctx, c)
	return answer, advised(c, err)
}

func debugTablesCommand() *cobra.Command {
	var agent agentFlags
	cmd := &cobra.Command{
		Use:     "tables",
		Short:   "Show a node's tables and their progress",
		Example: "  weft debug tables --node east-1\n  weft debug tables        (on the node itself)",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := ask(cmd, &agent, func(ctx context.Context, c *api.Client) (*api.TableList, error) { return c.Tables(ctx, agent.node) })
			if err != nil {
				return err
			}
			t := table{columns: columns("CLUSTER", "NODE", "TABLE", "ROWS", "PENDING", "ERRORS"), name: 2, empty: "the agent has no tables"}
			for _, s := range l.Tables {
				t.rows = append(t.rows, []string{l.Cluster, l.Node, s.Name, fmt.Sprint(s.Rows), fmt.Sprint(s.Pending), fmt.Sprint(s.Errors)})
			}
			return show(cmd, []*api.TableList{l}, t)
		},
	}
	agent.add(cmd)
	return cmd
}

func debugTableCommand() *cobra.Command {
	var agent agentFlags
	cmd := &cobra.Command{
		Use:   "table NAME",
		Short: "Show the rows of a table",
		// Those of this version's agent; another may have others.
		Long:    "Show the rows of one of an agent's tables.\n\nTables: " + strings.Join(agenttables.New().Names(), ", ") + ".",
		Example: "  weft debug table paths --node east-1",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := ask(cmd, &agent, func(ctx context.Context, c *api.Client) (*api.Table, error) { return c.Table(ctx, agent.node, args[0]) })
			if err != nil {
				return err
			}
			return show(cmd, []*api.Table{l}, agentTable(l))
		},
	}
	agent.add(cmd)
	cmd.ValidArgsFunction = first(func(cmd *cobra.Command, _ []string, begin string) ([]string, cobra.ShellCompDirective) {
		l, err := ask(cmd, &agent, func(ctx context.Context, c *api.Client) (*api.TableList, error) { return c.Tables(ctx, agent.node) })
		if err != nil {
			return nil, onlyThese
		}
		var names []string
		for _, s := range l.Tables {
			names = append(names, s.Name)
		}
		return starting(names, begin), onlyThese
	})
	return cmd
}

// agentTable shows an agent's table, with the agent in front of each row: a cluster or node
// in the row itself is the row's subject.
func agentTable(l *api.Table) table {
	t := table{columns: append(columns("AT"), columns(headings(l.Columns)...)...), empty: "table " + l.Name + " is empty", name: 1, ordered: true}
	for _, row := range l.Rows {
		row = append(slices.Clone(row), make([]string, max(0, len(l.Columns)-len(row)))...)
		t.rows = append(t.rows, append([]string{l.Cluster + "/" + l.Node}, row[:len(l.Columns)]...))
	}
	return t
}

func debugAgentCommand() *cobra.Command {
	var agent agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Show the state of this machine's agent",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := format(cmd)
			if err != nil {
				return err
			}
			text, err := ask(cmd, &agent, func(ctx context.Context, c *api.Client) ([]byte, error) { return c.GetRaw(ctx, "/v1/status", nil) })
			if err != nil {
				return err
			}
			var v any
			if err := json.Unmarshal(text, &v); err != nil {
				return fmt.Errorf("read the agent's status: %w", err)
			}
			if f != "json" {
				f = "yaml"
			}
			return document(cmd.OutOrStdout(), f, v, 0)
		},
	}
	cmd.Flags().Bool("local", true, "ask this machine's agent; it always does")
	agent.addSocket(cmd)
	return cmd
}
