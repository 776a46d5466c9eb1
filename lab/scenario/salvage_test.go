package scenario

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOneFileThatCannotBeKeptLosesNoOther(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for _, name := range []string{"1.log", "2.log", "3.log"} {
		if err := os.WriteFile(filepath.Join(from, name), []byte("said "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(to, "2.log"), 0o700); err != nil { // in the way of the file
		t.Fatal(err)
	}
	if err := keepFiles(to, from); err == nil || !strings.Contains(err.Error(), "2.log") {
		t.Errorf("the error does not say that 2.log was not kept: %v", err)
	}
	for _, name := range []string{"1.log", "3.log"} {
		if text, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(text) != "said "+name {
			t.Errorf("%s holds %q (%v)", name, text, err)
		}
	}
}

func TestAFileThatCannotBeClosedIsTold(t *testing.T) {
	err := keep(filepath.Join(t.TempDir(), "status.txt"), func(w io.Writer) error { return w.(io.Closer).Close() })
	if !errors.Is(err, os.ErrClosed) {
		t.Errorf("closing failed, but keep returns %v", err)
	}
}
