package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
)

// version is set by the linker in `make build`.
var version = "devel"

// build is what `weft version` prints.
type build struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	// Contexts is the file that contexts are read from.
	Contexts string `json:"contexts"`
}

func thisBuild() build {
	return build{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Contexts: api.ConfigPath()}
}

func (b build) String() string { return fmt.Sprintf("weft %s (%s, %s)", b.Version, b.Go, b.Platform) }

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this binary",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := thisBuild()
			f, err := format(cmd)
			if err != nil {
				return err
			}
			switch f {
			case "json", "yaml":
				return document(cmd.OutOrStdout(), f, b, 0)
			case "name":
				_, err = fmt.Fprintln(cmd.OutOrStdout(), b.Version)
			default:
				_, err = fmt.Fprintln(cmd.OutOrStdout(), b)
			}
			return err
		},
	}
}
