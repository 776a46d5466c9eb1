package main

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
)

// A failed write is an error: a script must not mistake part of the output for all of it.
func TestAFullDiskIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	pods := table{columns: columns("NAME"), rows: [][]string{{"web-1"}}}
	applied := []*api.ApplyResult{{Cluster: "east", Objects: []api.AppliedObject{{Kind: "Pod", Name: "web-1"}}}}
	for name, write := range map[string]func(*cobra.Command) error{
		"listing": func(cmd *cobra.Command) error { return show(cmd, []string{"web-1"}, pods) },
		"applied": func(cmd *cobra.Command) error { return showApplied(cmd, applied) },
		"checked": func(cmd *cobra.Command) error {
			return showChecked(cmd, []checked{{File: "a.yaml", Problems: []string{"contains no policy"}}})
		},
		"status": func(cmd *cobra.Command) error { return showStatus(cmd, []*api.Status{{}}) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range formats {
				cmd := rootCommand()
				cmd.SetOut(full)
				if err := cmd.ParseFlags([]string{"-o", f}); err != nil {
					t.Fatal(err)
				}
				if err := write(cmd); !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("-o %s: %v", f, err)
				}
			}
		})
	}
}
