package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/names"
)

func dnsCommand() *cobra.Command {
	return processCommand(&cobra.Command{
		Use:   "dns",
		Short: "Answer for the names of services",
		Long: "Answer for the names of services, on a node: those of the cluster (SERVICE.NAMESPACE.svc.cluster.local)\n" +
			"and those of the cluster set (SERVICE.NAMESPACE.svc.clusterset.local). It learns them from the agent,\n" +
			"and goes on with what it knows while that is down.",
	}, names.Defaults(), map[string]string{
		"socket":         "socket of the node's agent",
		"listen":         "addresses and ports to answer on, over UDP and TCP",
		"cluster-domain": "domain of the cluster's own services",
		"upstream":       "name servers to ask about all other names, in turn; none: such questions are refused",
	}, func(ctx context.Context, c names.Config, log *slog.Logger) error {
		c.Log = log
		return names.Serve(ctx, c)
	})
}
