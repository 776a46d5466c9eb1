package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMachineIsThatOfItsJoinBundle(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want string
	}{
		"a bundle":         {"cluster: east\nclusterID: 1\nnode: n1\nkey: KEY\n", "east/n1"},
		"an empty file":    {"", ""},
		"no bundle at all": {"just words", ""},
	} {
		path := filepath.Join(t.TempDir(), "join.yaml")
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := (&machine{path}).at(); got != test.want {
			t.Errorf("%s: at %q, want %q", name, got, test.want)
		}
	}
	if got := (&machine{filepath.Join(t.TempDir(), "absent")}).at(); got != "" {
		t.Errorf("without a file: at %q", got)
	}
}
