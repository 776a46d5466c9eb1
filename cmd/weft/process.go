package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/apiserver"
)

// processCommand turns cmd into one of a cluster's processes: it reads its configuration
// and works until it is told to stop.
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
			return usageError{inFile[C](cmd, err)}
		}
		err = work(cmd.Context(), c, log)
		var mistake *apiserver.Misconfigured
		if errors.As(err, &mistake) {
			return usageError{fmt.Errorf("%s%w", lineOf(cmd.Flag("config").Value.String(), mistake.Setting), err)}
		}
		return err
	}
	return cmd
}

// lineOf returns "file:line: " of a setting in a configuration file, or "" if the setting
// is not in it.
func lineOf(file, setting string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if key, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == setting {
			return fmt.Sprintf("%s:%d: ", file, n)
		}
	}
	return ""
}
