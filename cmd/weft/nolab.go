//go:build nolab

package main

import "github.com/spf13/cobra"

// labCommands is empty in images, where nobody raises clusters.
func labCommands() []*cobra.Command { return nil }
