package main

import (
	"reflect"
	"testing"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/apiserver"
	"github.com/weft-mesh/weft/meshagent"
	"github.com/weft-mesh/weft/tunnel"
)

// What can be said in the file can be said as a flag, and is explained.
func TestEverySettingHasAFlag(t *testing.T) {
	for _, process := range []struct {
		cmd    *cobra.Command
		config reflect.Type
	}{
		{apiserverCommand(), reflect.TypeFor[apiserver.Config]()},
		{agentCommand(), reflect.TypeFor[meshagent.Config]()},
		{tunnelCommand(), reflect.TypeFor[tunnel.ServeConfig]()},
	} {
		for _, s := range settingsOf(process.config, "", nil) {
			if f := process.cmd.Flags().Lookup(s.flag); f == nil || f.Usage == "" {
				t.Errorf("weft %s: setting %s has no flag --%s with a sentence", process.cmd.Name(), s.flag, s.flag)
			}
		}
	}
}
