package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/cni/conflist"
)

func cniCommand() *cobra.Command {
	return groupCommand("cni", "Let a container runtime use Weft on this node", operate, cniInstallCommand(), cniUninstallCommand())
}

// cniFlags are where the plugin is installed.
func cniFlags(cmd *cobra.Command) *conflist.Config {
	c := &conflist.Config{}
	cmd.Flags().StringVar(&c.ConfDir, "conf-dir", conflist.DefaultConfDir, "the runtime's folder of network configurations")
	cmd.Flags().StringVar(&c.BinDir, "bin-dir", conflist.DefaultBinDir, "the runtime's folder of plugins")
	return c
}

func cniInstallCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the CNI plugin on this node",
		Long: "Install the CNI plugin on this node: copy this program to the runtime's folder of plugins, and\n" +
			"write the network's configuration, " + conflist.File + ". A configuration that has the plugin stays as\n" +
			"it is, with what others have chained into it. `weft agent --cni-conf-dir` does the same once the\n" +
			"agent is ready, and restores what is removed.",
		Args: usageArgs(cobra.NoArgs),
	}
	c := cniFlags(cmd)
	cmd.Flags().StringVar(&c.Socket, "socket", agentSocket, "socket of the agent on this node")
	cmd.Flags().StringVar(&c.Spool, "spool-dir", string(api.DefaultEndpointSpool), "the agent's folder for removals while it does not answer")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if c.Program, err = os.Executable(); err != nil {
			return err
		}
		if err := c.InstallProgram(); err != nil {
			return fmt.Errorf("install the plugin: %w", err)
		}
		if err := c.InstallNetwork(); err != nil {
			return fmt.Errorf("install the network's configuration: %w", err)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "The CNI plugin is installed in %s, its network's configuration in %s.\n", c.BinDir, c.ConfDir)
		return err
	}
	return cmd
}

func cniUninstallCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the CNI plugin from this node",
		Long: "Remove the CNI plugin and its network's configuration from this node. An agent with\n" +
			"--cni-conf-dir installs them again: change that first. Pods keep their network.",
		Args: usageArgs(cobra.NoArgs),
	}
	c := cniFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := c.Uninstall(); err != nil {
			return fmt.Errorf("uninstall the CNI plugin: %w", err)
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "The CNI plugin is removed.")
		return err
	}
	return cmd
}
