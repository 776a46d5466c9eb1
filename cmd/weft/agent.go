package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/meshagent"
)

func agentCommand() *cobra.Command {
	return processCommand(&cobra.Command{
		Use:   "agent",
		Short: "Run a node's agent",
		Long: "Run a node's agent. It starts from the join bundle that `weft node add` wrote. When it stops,\n" +
			"nothing is removed: packets keep flowing, using the state in the kernel.",
	}, meshagent.Defaults(), map[string]string{
		"join":            "join bundle of this node",
		"node-name":       "name of this node (default: from the join bundle)",
		"node-ip":         "address where tunnels to this node end (default: from the join bundle)",
		"pod-cidr":        "addresses of this node's pods (default: from the join bundle)",
		"device":          "interface towards the other nodes (default: the one with the node's address)",
		"data-dir":        "folder for endpoints and keys, kept across reboots",
		"bpf-dir":         "folder on a BPF file system for maps and programs, kept when the agent stops",
		"netns-dir":       "folder with the pods' network namespaces",
		"pods-from":       "who requests the pods' networks: objects (this agent, for every pod of its node) or requests (a container runtime, on --socket)",
		"hosts":           "file to write service names to, in the format of /etc/hosts; empty: none",
		"socket":          "socket of the local API",
		"listen":          "address of the API for the API server, with mutual TLS",
		"metrics-address": "address and port for /metrics in plain HTTP; empty: none",
		"gossip-port":     "port for gossip among agents; 0: none",
		"keep-flows":      "number of flows kept for weft observe",
		"trace":           "report allowed connections too, not only drops",
		"unreachable":     "what to do with a pod's packet that cannot arrive: reset (TCP reset or ICMP error) or drop (time out)",
		"limit-flows":     "rows of the connection table; each pod has a guaranteed share",
		"limit-replies":   "rows of the table of connections through services; at least --limit-flows",
		"limit-endpoints": "rows of the table of this node's pods",
		"limit-ips":       "rows of the table of all pods of the mesh",
		"limit-prefixes":  "rows of the table of CIDRs",
		"limit-nodes":     "rows of the table of all nodes of the mesh",
		"limit-services":  "rows of the table of services",
		"limit-backends":  "rows of the table of backends",
		"limit-members":   "rows of the table of current backends",
		"limit-classes":   "rows of the table of identity classes",
		"limit-policy":    "rows of the policy table",
		"limit-sets":      "rows of the table of policy sets",
		"limit-fragments": "number of fragmented datagrams tracked",
	}, func(ctx context.Context, c meshagent.Config, log *slog.Logger) error {
		c.Log = log
		return meshagent.Run(ctx, c)
	})
}
