package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"
)

// processCommand makes cmd one of a cluster's processes: it reads its configuration and
// works until it is told to stop.
func processCommand[C interface{ Validate() error }](cmd *cobra.Command, defaults C, usage map[string]string, work func(context.Context, C, *slog.Logger) error) *cobra.Command {
	logger := logFlags(cmd)
	config := configure(cmd, defaults, usage)
	cmd.GroupID, cmd.Args = process, usageArgs(cobra.NoArgs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := config()
		if err != nil {
			return err
		}
		log, err := logger()
		if err != nil {
			return err
		}
		if err := c.Validate(); err != nil {
			return usageError{err}
		}
		return work(cmd.Context(), c, log)
	}
	return cmd
}
