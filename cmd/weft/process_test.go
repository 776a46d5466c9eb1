package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/apiserver"
	"github.com/weft-mesh/weft/deploy"
	"github.com/weft-mesh/weft/meshagent"
	"github.com/weft-mesh/weft/names"
	"github.com/weft-mesh/weft/tunnel"
)

// Everything that the file can set can be set with a flag, which is explained.
func TestEverySettingHasAFlag(t *testing.T) {
	for _, process := range []struct {
		cmd    *cobra.Command
		config reflect.Type
	}{
		{apiserverCommand(), reflect.TypeFor[apiserver.Config]()},
		{agentCommand(), reflect.TypeFor[meshagent.Config]()},
		{tunnelCommand(), reflect.TypeFor[tunnel.ServeConfig]()},
		{dnsCommand(), reflect.TypeFor[names.Config]()},
	} {
		for _, s := range settingsOf(process.config, "", nil) {
			if f := process.cmd.Flags().Lookup(s.flag); f == nil || f.Usage == "" {
				t.Errorf("weft %s: setting %s has no flag --%s with a sentence", process.cmd.Name(), s.flag, s.flag)
			}
		}
	}
}

// A setting that only the machine can refuse is refused with the line to edit.
func TestARefusedSettingNamesItsLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "apiserver.yaml")
	example, err := deploy.Files.ReadFile("example/apiserver.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, example, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := rootCommand()
	cmd.SetArgs([]string{"apiserver", "--config", file})
	err = cmd.ExecuteContext(t.Context())
	if err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), file+":6: ") || !strings.Contains(err.Error(), "advertise is 192.0.2.11, which is from an example") {
		t.Errorf("an example that nobody has edited: %v, exit code %d", err, exitCode(err))
	}
	if got := lineOf(file, "listen"); got != "" {
		t.Errorf("a setting that is not there: %q", got)
	}
}
