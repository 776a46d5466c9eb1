package main

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
)

func serverCommand() *cobra.Command {
	return groupCommand("server", "Manage the API servers of a cluster", operate,
		serverListCommand(), serverAddCommand(), serverDeleteCommand(), serverReplaceCommand())
}

func serverListCommand() *cobra.Command {
	return listCommand("Show the API servers and which one leads", (*api.Client).Servers,
		func(l *api.ServerList) []api.ServerStatus { return l.Servers }, serverTable)
}

func serverTable(servers []api.ServerStatus) table {
	t := table{columns: columns("CLUSTER", "SERVER", "STATE", "FOR", "STORE", "VERSION", "*ID", "*URL", "*MEMBER", "*ETCD", "*SIZE"), name: 1}
	for _, s := range servers {
		store, bytes := s.Store, ""
		if s.StoreLeads {
			store += ", leads"
		}
		if s.StoreBytes > 0 {
			bytes = size(s.StoreBytes)
		}
		t.rows = append(t.rows, []string{s.Cluster, s.Name, s.State, age(s.AgeSeconds), store, s.Version, s.ID, s.URL, s.StoreAddress, s.StoreVersion, bytes})
	}
	return t
}

// quorumLine says how many members of the store answer and how many have to.
func quorumLine(q api.Quorum) string {
	return fmt.Sprintf("%d of %s up, %d needed", q.Up, api.Count(q.Members, "member"), q.Needed)
}

func serverAddCommand() *cobra.Command {
	var address, file string
	var port uint16
	cmd := &cobra.Command{
		Use:   "add NAME --address IP --write FILE",
		Short: "Admit another API server and write its bundle",
		Long: "Admit another API server and write its join bundle, the file that it starts from:\n" +
			"`weft apiserver --name NAME --join FILE`, with the same cluster, ID and CIDRs. The bundle is\n" +
			"good for a day. It holds the key of the cluster's certificate authority: restrict it to mode\n" +
			"0600 (--write does this), or pipe it with --write -.",
		Example: "  weft server add east-2 --address 172.16.1.2 --write east-2.yaml",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := netip.ParseAddr(address)
			if err != nil {
				return usageError{fmt.Errorf("--address: %w", valueError(address, reflect.TypeFor[netip.Addr]()))}
			}
			if err := writable(file); err != nil {
				return err
			}
			return on(cmd, func(ctx context.Context, c *api.Client) error {
				bundle, err := c.AddServer(ctx, api.ServerRequest{Name: args[0], Address: a, Port: port})
				if err != nil {
					return err
				}
				return secret(cmd, c, file, fmt.Sprintf("API server %s may join at %s; its join bundle", bundle.Name, bundle.Address), bundle)
			})
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "address at which the others reach it, its --advertise")
	cmd.Flags().Uint16Var(&port, "port", 0, "port of its --etcd-peer-listen (default: that of the API server that answers)")
	writeFlag(cmd, &file, "join bundle")
	return cmd
}

func serverDeleteCommand() *cobra.Command {
	return serverChange("delete NAME", "Remove an API server for good",
		"Remove an API server, with its part of the store, for good: it does not come back by a restart.\n"+
			"Refused if too few of the others would be left to write to the store. Its machine still has\n"+
			"the key of the cluster's certificate authority: erase its data folder. With an existing etcd,\n"+
			"stop the API server instead; delete forgets one that cannot be stopped, because it is gone.",
		(*api.Client).RemoveServer, "remove")
}

func serverReplaceCommand() *cobra.Command {
	return serverChange("replace NAME", "Let an API server join with an empty disk",
		"Let an API server whose disk was lost join again, with the join bundle it has. Run this, then\n"+
			"start the API server. Refused while it runs, and if too few of the others do.",
		(*api.Client).ReplaceServer)
}

func serverChange(use, short, long string, change func(*api.Client, context.Context, string) (*api.ServerChange, error), aliases ...string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long, Aliases: aliases,
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: first(completeServers),
		RunE: func(cmd *cobra.Command, args []string) error {
			return on(cmd, func(ctx context.Context, c *api.Client) error {
				r, err := change(c, ctx, args[0])
				if err != nil {
					return err
				}
				if r.Quorum == nil {
					return done(cmd, c, "API server %s %s", r.Name, r.Action)
				}
				return done(cmd, c, "API server %s %s; store: %s", r.Name, r.Action, quorumLine(*r.Quorum))
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
		names = append(names, s.Name)
	}
	return names, nil
})
