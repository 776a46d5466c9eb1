package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/apiserver/api"
)

func serviceCommand() *cobra.Command {
	return groupCommand("service", "Services with their backends in every cluster", look, serviceListCommand())
}

func serviceListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show services with their backends in every cluster",
		Long: "Show services with their backends in every cluster, as CLUSTER:READY/ALL. -o wide lists\n" +
			"each backend.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ask := func(ctx context.Context, c *api.Client) (*api.ServiceList, error) {
				l, err := c.Services(ctx)
				if ns := namespace(cmd); err == nil && ns != "" {
					l.Services = slices.DeleteFunc(l.Services, func(s api.Service) bool { return s.Namespace != ns })
				}
				return l, err
			}
			return showEach(cmd, ask, serviceTable)
		},
	}
}

func serviceTable(lists []*api.ServiceList) table {
	t := table{
		columns: columns("CLUSTER", "NAMESPACE", "NAME", "CLUSTER-IP", "PORTS", "GLOBAL", "SHARED", "AFFINITY", "BACKENDS", "*ADDRESSES"),
		name:    2, empty: "there are no services",
	}
	for _, l := range lists {
		for _, s := range l.Services {
			t.rows = append(t.rows, []string{s.Cluster, s.Namespace, s.Name, s.ClusterIP, strings.Join(s.Ports, ","),
				fmt.Sprint(s.Global), fmt.Sprint(s.Shared), s.Affinity, backendCounts(s.Backends), backendAddresses(s.Backends)})
		}
	}
	return t
}

// backendCounts is "east:2/2 west:1/2": ready of all, by cluster.
func backendCounts(backends []api.ServiceBackend) string {
	ready, all := map[string]int{}, map[string]int{}
	for _, b := range backends {
		all[b.Cluster]++
		if b.Ready {
			ready[b.Cluster]++
		}
	}
	var words []string
	for _, cluster := range slices.Sorted(maps.Keys(all)) {
		words = append(words, fmt.Sprintf("%s:%d/%d", cluster, ready[cluster], all[cluster]))
	}
	return strings.Join(words, " ")
}

// backendAddresses marks what is not ready with an exclamation mark.
func backendAddresses(backends []api.ServiceBackend) string {
	var words []string
	for _, b := range backends {
		mark := ""
		if !b.Ready {
			mark = "!"
		}
		words = append(words, mark+b.Cluster+"/"+b.Address.String())
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}
