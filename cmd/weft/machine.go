package main

import (
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent"
)

// machine is the node that this machine is, according to the join bundle that its agent
// starts from. It is known even without the agent.
type machine struct{ join string }

func (m *machine) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&m.join, "join", meshagent.Defaults().Join, "join bundle, which names the cluster and node of this machine")
}

// at returns cluster/node, as in the agents' tables, or "" without a usable bundle: what
// is in the kernel is worth showing anyway.
func (m *machine) at() string {
	text, err := os.ReadFile(m.join)
	if err != nil {
		return ""
	}
	var b api.JoinBundle
	if err := yaml.Unmarshal(text, &b); err != nil || b.Cluster == "" || b.Node == "" {
		return ""
	}
	return b.Cluster + "/" + b.Node
}
