package main

import (
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/meshagent"
)

// machine is the node that this machine is, by the join bundle from which its
// agent starts. So it is known without the agent.
type machine struct{ join string }

func (m *machine) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&m.join, "join", meshagent.Defaults().Join, "join bundle, which names this machine's cluster and node")
}

// at is cluster/node, as in the tables of agents; empty if there is no bundle
// that says it, for then what is in the kernel is worth showing all the same.
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
