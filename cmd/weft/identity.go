package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/identity"
)

func identityCommand() *cobra.Command {
	return groupCommand("identity", "Inspect identities and their labels", look,
		identityListCommand(), identityGetCommand())
}

func identities(cmd *cobra.Command, wanted func(api.Identity) bool) ([]*api.IdentityList, table, error) {
	lists, err := each(cmd, func(ctx context.Context, c *api.Client) (*api.IdentityList, error) {
		l, err := c.Identities(ctx)
		if err == nil {
			l.Identities = slices.DeleteFunc(l.Identities, func(i api.Identity) bool { return !wanted(i) })
			slices.SortFunc(l.Identities, func(a, b api.Identity) int { return int(a.ID) - int(b.ID) })
		}
		return l, err
	})
	t := table{columns: columns("CLUSTER", "ID", "ENDPOINTS", "LABELS"), name: 1, empty: "there are no identities"}
	for _, l := range lists {
		for _, i := range l.Identities {
			t.rows = append(t.rows, []string{i.Cluster, fmt.Sprint(i.ID), fmt.Sprint(i.Endpoints), i.Labels})
		}
	}
	return lists, t, err
}

func identityListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the identities of the mesh",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			lists, t, err := identities(cmd, func(api.Identity) bool { return true })
			return showPart(cmd, lists, t, err)
		},
	}
}

func identityGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "get NUMBER|NAME",
		Short: "Show what an identity stands for",
		Long: "Show what an identity stands for. Reserved ones, such as world, mean the same everywhere and\n" +
			"are answered without asking a cluster. Numbers from 16777216 up stand for prefixes in\n" +
			"policies; each node assigns its own, which `weft debug map prefixes` shows there.",
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := identity.ParseNumber(args[0])
			if err != nil {
				return usageError{err}
			}
			if labels := identity.ReservedLabels(n); labels != nil {
				one := api.Identity{ID: uint32(n), Labels: labels.String()}
				return show(cmd, []api.Identity{one}, table{columns: columns("CLUSTER", "ID", "LABELS"), name: 1,
					rows: [][]string{{"any", fmt.Sprint(one.ID), one.Labels}}})
			}
			if n.Scope() == identity.ScopeLocal {
				return hinted{fmt.Errorf("identity %d is local to a node: it stands for something a policy distinguishes (a prefix, or the address or port of a pod), and each node numbers these itself", n),
					"`weft debug map prefixes` and `weft debug map ips` show who has it, on the node that reported the number"}
			}
			lists, t, err := identities(cmd, func(i api.Identity) bool { return i.ID == uint32(n) })
			if len(t.rows) > 0 {
				return showPart(cmd, lists, t, err)
			}
			if err != nil {
				return err
			}
			return hinted{fmt.Errorf("identity %d is not known to this cluster or its peers", n), "`weft identity list` lists them"}
		},
	}
}
