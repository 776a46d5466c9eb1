// Command weft is the single binary of the mesh: the processes of a cluster and the
// operator's command line, with one file per command.
//
// It reads flags and files, puts the parts together and prints; the packages it imports do
// everything else.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	_ "github.com/weft-mesh/weft/cmd/weft/plugin" // what a container runtime starts
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := rootCommand()
	refuseUnknownShells(root)
	err := root.ExecuteContext(ctx)
	stop()
	os.Exit(finish(root, err))
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "weft",
		Short: "Joins clusters into one mesh",
		Long: "weft joins clusters into one mesh: a service keeps its\n" +
			"name and a workload keeps its rights, whichever cluster a packet starts or ends in.\n\n" + exitCodes,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          subcommand,
		Version:       version,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// Checked before the command acts, so that a bad -o does not hide what was done.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			_, err := format(cmd)
			return err
		},
	}
	root.SetVersionTemplate(thisBuild().String() + "\n")
	globalFlags(root)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(helpCommand())
	root.AddGroup(
		&cobra.Group{ID: operate, Title: "Operate a mesh:"},
		&cobra.Group{ID: look, Title: "Look into it:"},
		&cobra.Group{ID: process, Title: "Processes of a cluster:"},
	)
	root.AddCommand(
		applyCommand(), getCommand(), describeCommand(), deleteCommand(),
		peerCommand(), nodeCommand(), cniCommand(), serverCommand(), policyCommand(), configCommand(), backupCommand(), restoreCommand(),
		installCommand(),
		statusCommand(), serviceCommand(), identityCommand(), observeCommand(), doctorCommand(), debugCommand(), connectivityCommand(), sysdumpCommand(),
		apiserverCommand(), agentCommand(), tunnelCommand(), dnsCommand(),
		versionCommand(),
	)
	root.AddCommand(labCommands()...)
	return root
}

// helpCommand is cobra's, except that an unknown topic is an error.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show help about a command",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective) {
			at, _, err := cmd.Root().Find(args)
			if err != nil {
				return nil, onlyThese
			}
			var names []string
			for _, c := range at.Commands() {
				if c.IsAvailableCommand() {
					names = append(names, c.Name())
				}
			}
			return starting(names, begin), onlyThese
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			at, rest, err := cmd.Root().Find(args)
			if err != nil {
				return usageError{err}
			}
			if len(rest) > 0 {
				return subcommand(at, rest)
			}
			return at.Help()
		},
	}
}

// The groups of commands in the help.
const (
	operate = "operate"
	look    = "look"
	process = "process"
)
