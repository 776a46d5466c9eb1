package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
)

func serviceCommand() *cobra.Command {
	return groupCommand("service", "Inspect services and their backends", look, serviceListCommand())
}

func serviceListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show services and their backends",
		Long: "Show services with their backends in every cluster, as CLUSTER:REACHED/ALL: how many of all\n" +
			"its backends new connections from here can reach. LEFT-OUT counts the others by reason.\n" +
			"-o wide says how their connections are shared, and lists each backend, with its weight\n" +
			"unless that is 100.",
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
		columns: columns("CLUSTER", "NAMESPACE", "NAME", "CLUSTER-IP", "PORTS", "GLOBAL", "SHARED", "AFFINITY", "BACKENDS", "LEFT-OUT", "*SESSION", "*BALANCING", "*ADDRESSES"),
		name:    2, empty: "there are no services",
	}
	for _, l := range lists {
		for _, s := range l.Services {
			t.rows = append(t.rows, []string{s.Cluster, s.Namespace, s.Name, cmp.Or(strings.Join(s.ClusterIPs, ","), s.ClusterIP), strings.Join(s.Ports, ","),
				fmt.Sprint(s.Global), fmt.Sprint(s.Shared), s.Affinity, backendCounts(s), leftOut(s.Backends), session(s), balancing(s), backendAddresses(s.Backends)})
		}
	}
	return t
}

// session is for how long a client stays with its backend.
func session(s api.Service) string {
	if s.SessionTimeoutSeconds == 0 {
		return "-"
	}
	return (time.Duration(s.SessionTimeoutSeconds) * time.Second).String()
}

// balancing says how a service's backends share new connections, as in "maglev/1021
// east=3,west=1".
func balancing(s api.Service) string {
	text := cmp.Or(s.Algorithm, "random")
	if s.TableSize > 0 {
		text += fmt.Sprintf("/%d", s.TableSize)
	}
	var weights []string
	for _, cluster := range slices.Sorted(maps.Keys(s.ClusterWeights)) {
		weights = append(weights, fmt.Sprintf("%s=%d", cluster, s.ClusterWeights[cluster]))
	}
	if len(weights) > 0 {
		text += " " + strings.Join(weights, ",")
	}
	return text
}

// backendCounts returns "east:2/2 west:1/2": for each cluster, how many of its backends new
// connections can reach. If that depends on the port, each port is listed:
// "http east:2/2, echo east:0/2".
func backendCounts(s api.Service) string {
	var each []string
	for _, port := range s.PortNames {
		each = append(each, portCounts(s.Backends, port))
	}
	if len(each) == 0 {
		return portCounts(s.Backends, "")
	}
	if !slices.ContainsFunc(each, func(c string) bool { return c != each[0] }) {
		return each[0]
	}
	for i := range each {
		each[i] = s.PortNames[i] + " " + each[i]
	}
	return strings.Join(each, ", ")
}

func portCounts(backends []api.ServiceBackend, port string) string {
	reached, all := map[string]int{}, map[string]int{}
	for _, b := range backends {
		all[b.Cluster]++
		if !slices.ContainsFunc(b.LeftOut, func(l api.LeftOut) bool { return l.Port == "" || l.Port == port }) {
			reached[b.Cluster]++
		}
	}
	var words []string
	for _, cluster := range slices.Sorted(maps.Keys(all)) {
		words = append(words, fmt.Sprintf("%s:%d/%d", cluster, reached[cluster], all[cluster]))
	}
	return strings.Join(words, " ")
}

// leftOut says which backends get no new connections and why, as in "2 of west: no port
// http, only www".
func leftOut(backends []api.ServiceBackend) string {
	count := map[string]int{}
	for _, b := range backends {
		for _, l := range b.LeftOut {
			reason := b.Cluster + ": " + l.Reason
			if l.Port != "" && !l.Misfit {
				reason += " (" + l.Port + ")"
			}
			count[reason]++
		}
	}
	var words []string
	for _, reason := range slices.Sorted(maps.Keys(count)) {
		words = append(words, fmt.Sprintf("%d of %s", count[reason], reason))
	}
	return strings.Join(words, "; ")
}

// usualWeight is that of a backend of which nobody says one.
const usualWeight = 100

// backendAddresses lists the backends, with their weights if they have others than usual; an
// exclamation mark means that not every new connection may reach it.
func backendAddresses(backends []api.ServiceBackend) string {
	var words []string
	for _, b := range backends {
		mark := ""
		if !b.Ready {
			mark = "!"
		}
		word := mark + b.Cluster + "/" + b.Address.String()
		if b.Weight != usualWeight && b.Weight != 0 {
			word += fmt.Sprintf("=%d", b.Weight)
		}
		words = append(words, word)
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}
