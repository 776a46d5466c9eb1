package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/lab/scenario"
)

// Every script is one that the lab can run, and depends on nothing but its seed.
func TestScripts(t *testing.T) {
	begun := map[string]int{}
	for seed := range uint64(300) {
		text := Script(seed, 25)
		if !bytes.Equal(text, Script(seed, 25)) {
			t.Fatalf("seed %d gives two scripts", seed)
		}
		path := filepath.Join(t.TempDir(), fmt.Sprintf("%d.txtar", seed))
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := scenario.Load(path); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		open := map[string]bool{}
		for line := range strings.Lines(string(text)) {
			_, said, ok := strings.Cut(strings.TrimSpace(line), ": ")
			if !ok || !strings.HasPrefix(line, "# ") {
				continue
			}
			if name, ok := strings.CutPrefix(said, "mended: "); ok {
				if !open[name] {
					t.Errorf("seed %d mends what is not broken: %s", seed, name)
				}
				delete(open, name)
				begun[name]++
			} else {
				open[said] = true
			}
		}
		for name := range open {
			if begun[name] > 0 {
				t.Errorf("seed %d does not mend: %s", seed, name)
			}
		}
	}
	// Each kind in both clusters, and on each node: less often the more particular.
	if len(begun) < 30 {
		t.Errorf("only %d different things break: %v", len(begun), begun)
	}
}

func TestPodsAreAScript(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pods.txtar")
	if err := os.WriteFile(path, pods, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := scenario.Load(path); err != nil {
		t.Error(err)
	}
}

// What one fault needs, no other takes meanwhile.
func TestFaultsDoNotOverlap(t *testing.T) {
	for seed := range uint64(100) {
		s := &story{rand: randOf(seed), has: map[string][]string{}, kept: map[string][]string{}}
		for range 200 {
			s.step()
			taken := map[string]string{}
			for _, f := range s.broken {
				for _, what := range f.takes {
					if by := taken[what]; by != "" {
						t.Fatalf("seed %d: both %q and %q take %s", seed, by, f.name, what)
					}
					taken[what] = f.name
				}
			}
			if len(s.broken) > most {
				t.Fatalf("seed %d: %d things are broken", seed, len(s.broken))
			}
		}
	}
}
