package authority

import (
	"os"
	"strings"
	"testing"
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
	if err := os.WriteFile(a.path("removals"), []byte("three\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.KeepRemovals(4); err == nil || !strings.Contains(err.Error(), a.path("removals")) {
		t.Errorf("a damaged count: %v", err)
	}
}
