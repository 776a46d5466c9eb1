package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
)

func serverCommand() *cobra.Command {
	return groupCommand("server", "Manage the API servers of a cluster", operate, serverListCommand(), serverDeleteCommand())
}

func serverListCommand() *cobra.Command {
	return listCommand("Show the API servers and which one leads", (*api.Client).Servers,
		func(l *api.ServerList) []api.ServerStatus { return l.Servers }, serverTable)
}

func serverTable(servers []api.ServerStatus) table {
	t := table{columns: columns("CLUSTER", "SERVER", "STATE", "FOR", "VERSION", "*ID", "*URL"), name: 1}
	for _, s := range servers {
		t.rows = append(t.rows, []string{s.Cluster, s.Name, s.State, age(s.AgeSeconds), s.Version, s.ID, s.URL})
	}
	return t
}

func serverDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Forget an API server that is gone",
		Long: "Forget an API server that is gone for good, so that it is no longer reported as missing. One\n" +
			"that is stopped on purpose is forgotten by itself; one that is running is not deleted.",
		Aliases:           []string{"remove"},
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: first(completeServers),
		RunE: func(cmd *cobra.Command, args []string) error {
			return on(cmd, func(ctx context.Context, c *api.Client) error {
				if err := c.RemoveServer(ctx, args[0]); err != nil {
					return err
				}
				return done(cmd, c, "API server %s is forgotten", args[0])
			})
		},
	}
}

var completeServers = fromCluster(func(ctx context.Context, c *api.Client, _ *cobra.Command, _ []string) (names []string, err error) {
	list, err := c.Servers(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range list.Servers {
		if s.State == api.ServerMissing {
			names = append(names, s.Name)
		}
	}
	return names, nil
})
