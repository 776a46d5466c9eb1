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
		Long: "Run a node's agent. It starts from the join bundle that `weft node add` printed. When it\n" +
			"stops, nothing is removed: packets go on by what is in the kernel.",
	}, meshagent.Defaults(), map[string]string{
		"join":            "join bundle of this node",
		"node-name":       "name of this node, if not the join bundle's",
		"node-ip":         "address where tunnels to this node end, if not the join bundle's",
		"pod-cidr":        "addresses of this node's pods, if not the join bundle's",
		"device":          "interface towards the other nodes; the one that has the node's address",
		"data-dir":        "where endpoints and keys outlive a reboot",
		"bpf-dir":         "where maps and programs outlive the agent, on a BPF file system",
		"netns-dir":       "where the pods' network namespaces are, as files",
		"hosts":           "file that names services, in the form of /etc/hosts; empty: none is written",
		"socket":          "socket of the local API",
		"listen":          "address of the API for the API server, by mutual TLS",
		"metrics-address": "address and port that serve /metrics in plain HTTP, loopback by default; empty: none",
		"gossip-port":     "port of the gossip among agents; 0: none",
		"keep-flows":      "how many flows are kept for `weft observe`",
		"trace":           "report allowed connections too, and not only what is dropped",
		"unreachable":     "what happens to a pod's packet that cannot arrive: reset tells the pod (TCP reset, ICMP error), drop lets it time out",
		"limit-flows":     "rows of the table of connections; each pod is sure of a share",
		"limit-replies":   "rows of the table of connections through services; at least as many as of --limit-flows",
		"limit-endpoints": "rows of the table of this node's pods",
		"limit-ips":       "rows of the table of all pods of the mesh",
		"limit-prefixes":  "rows of the table of CIDRs",
		"limit-nodes":     "rows of the table of all nodes of the mesh",
		"limit-services":  "rows of the table of services",
		"limit-backends":  "rows of the table of backends",
		"limit-members":   "rows of the table that tells whether a backend is still one",
		"limit-classes":   "rows of the table of identities' classes",
		"limit-policy":    "rows of the table of policy",
		"limit-sets":      "rows of the table of policy sets",
		"limit-fragments": "datagrams in pieces that are remembered",
	}, func(ctx context.Context, c meshagent.Config, log *slog.Logger) error {
		c.Log = log
		return meshagent.Run(ctx, c)
	})
}
