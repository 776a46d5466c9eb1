package authority

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weft-mesh/weft/statefile"
)

func TestCountOfRemovalsNeverFalls(t *testing.T) {
	dir := t.TempDir()
	for i, c := range []struct{ atLeast, want uint64 }{{0, 0}, {2, 2}, {1, 2}, {2, 2}, {3, 3}} {
		a, err := Open(dir, "east")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := a.KeepRemovals(c.atLeast); got != c.want || err != nil {
			t.Errorf("step %d: at least %d gives %d, %v", i, c.atLeast, got, err)
		}
	}
	a, err := Open(dir, "east")
	if err != nil {
		t.Fatal(err)
	}
	// A damaged count goes on from one that it cannot have reached.
	for _, text := range []string{"", "three\n", "3"} {
		if err := os.WriteFile(a.path("removals"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		now := uint64(time.Now().Unix())
		got, err := a.KeepRemovals(4)
		if err != nil || got < now {
			t.Errorf("damaged (%q): %d, %v, want at least %d", text, got, err, now)
		}
		if again, err := a.KeepRemovals(4); again != got || err != nil {
			t.Errorf("and then %d, %v, want %d", again, err, got)
		}
	}
	// The same if the new count could not be written when the old was put aside.
	if err := os.Remove(a.path("removals")); err != nil {
		t.Fatal(err)
	}
	if got, err := a.KeepRemovals(4); err != nil || got < uint64(time.Now().Unix())-60 {
		t.Errorf("put aside and not replaced: %d, %v", got, err)
	}
	if d := statefile.Damages(filepath.Dir(a.path("removals"))); len(d) != 3 {
		t.Errorf("put aside: %v", d)
	}
}
