package scenarios

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/weft-mesh/weft/lab/scenario"
)

// TestChaos runs one short round of what `make chaos` does for as long as one likes: a script
// that a seed has written breaks and mends real clusters.
func TestChaos(t *testing.T) {
	needLab(t)
	text, err := exec.CommandContext(t.Context(), "go", "run", "../internal/chaos/labchaos", "-seed", "4", "-steps", "9", "-print").Output()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "chaos.txtar")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if result := scenario.Run(t.Context(), path, scenario.Options{Binary: build(t), View: scenario.NewPlain(t.Output())}); !result.OK {
		t.Fatal(result.Error)
	}
}
