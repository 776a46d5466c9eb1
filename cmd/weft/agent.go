package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent"
)

func agentCommand() *cobra.Command {
	usage := map[string]string{
		"join":                          "join bundle of this node",
		"token":                         "file with the service account token of this agent's pod, for which an API server issues the join bundle; needs --bootstrap",
		"bootstrap":                     "file that says where the API servers are and how to know them",
		"node-name":                     "name of this node (default: from the join bundle)",
		"node-ip":                       "address where tunnels to this node end (default: from the join bundle)",
		"pod-cidr":                      "addresses of this node's pods, of one IP family (default: from the join bundle)",
		"device":                        "interface towards the other nodes (default: the one with the node's address)",
		"data-dir":                      "folder for endpoints and keys, kept across reboots",
		"bpf-dir":                       "folder on a BPF file system for maps and programs, kept when the agent stops",
		"netns-dir":                     "folder with the pods' network namespaces",
		"pods-from":                     "who requests the pods' networks: objects (this agent, for every pod of its node) or requests (a container runtime, on --socket)",
		"cni-conf-dir":                  "folder for the network's configuration, where the container runtime looks (/etc/cni/net.d); empty: the CNI plugin is not installed",
		"cni-bin-dir":                   "folder for the CNI plugin's program (/opt/cni/bin)",
		"cni-spool-dir":                 "folder where the CNI plugin leaves removals while no agent answers",
		"hosts":                         "file to write service names to, in the format of /etc/hosts; empty: none",
		"cluster-dns":                   "addresses at which pods reach a name server; resolv.conf is written beside --hosts, which then names no services",
		"cluster-domain":                "domain of the cluster's own services, for resolv.conf",
		"socket":                        "socket of the local API",
		"listen":                        "address of the API for the API server, with mutual TLS",
		"metrics-address":               "address and port for /metrics in plain HTTP; empty: none",
		"gossip-port":                   "port for gossip among agents; 0: none",
		"keep-flows":                    "number of flows kept for weft observe",
		"trace":                         "report allowed connections too, not only drops",
		"masquerade":                    "let pods' packets to the world come from the node's address",
		"non-masquerade-cidrs":          "CIDRs outside of the mesh towards which pods keep their own addresses",
		"masq-link-local":               "masquerade towards link-local IPv4 addresses too",
		"masq-link-local-ipv6":          "masquerade towards link-local IPv6 addresses too",
		"unreachable":                   "what to do with a pod's packet that cannot arrive: reset (TCP reset or ICMP error) or drop (time out)",
		"socket-lb":                     "give sockets the backends of services when they connect; without it, processes of the node itself reach no services",
		"socket-lb-host-namespace-only": "leave sockets of pods alone, and translate their packets (for Istio)",
		"cgroup-root":                   "cgroup whose processes reach services (default: the root of the version 2 tree)",
	}
	for name, about := range bpf.AboutLimits() {
		usage["limit-"+name] = about
	}
	return processCommand(&cobra.Command{
		Use:   "agent",
		Short: "Run a node's agent",
		Long: "Run a node's agent. It starts from the join bundle that `weft node add` wrote. When it stops,\n" +
			"nothing is removed: packets keep flowing, using the state in the kernel.",
	}, meshagent.Defaults(), usage, func(ctx context.Context, c meshagent.Config, log *slog.Logger) error {
		c.Log = log
		return meshagent.Run(ctx, c)
	})
}
