package embedded_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/store"
)

// backup takes a backup into a file.
func (c *cluster) backup(root *store.Etcd) string {
	c.t.Helper()
	r, err := root.Backup(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Close()
	file := filepath.Join(c.t.TempDir(), "backup")
	f, err := os.Create(file)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := f.ReadFrom(r); err != nil {
		c.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		c.t.Fatal(err)
	}
	return file
}

// A backup is read back and restored as what it was; every damage to it is noticed before
// anything is written.
func TestABackupIsCheckedBeforeItIsBelieved(t *testing.T) {
	c := start(t)
	ctx, root := t.Context(), c.as(authority.Root)
	if err := root.EnableAuth(ctx); err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"old", "new"} {
		if err := store.Write(ctx, root, store.Put("a", []byte(value)), store.Put("b", nil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Write(ctx, root, store.Delete("b")); err != nil {
		t.Fatal(err)
	}
	_, revision, err := root.Count(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	// A store that was full is not full for good.
	if err := root.RaiseNoSpace(ctx); err != nil {
		t.Fatal(err)
	}
	file := c.backup(root)
	b, err := embedded.ReadBackup(file, "a", "b", "c")
	if err != nil {
		t.Fatal(err)
	}
	if b.Revision != revision || b.Keys != 1 || len(b.Values) != 1 || string(b.Values["a"]) != "new" {
		t.Errorf("revision %d, want %d: %+v", b.Revision, revision, b)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	is, err := root.Client().Status(ctx, root.Client().Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	c.Close()

	dir := t.TempDir()
	damaged := func(change func(b []byte) []byte) []byte { return change(bytes.Clone(whole)) }
	foreign := filepath.Join(dir, "foreign.db")
	db, err := bbolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(other)
	for name, test := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":                {nil, "is not a backup of a store"},
		"a text":               {[]byte(strings.Repeat("manifest: ", 1000)), "is not a backup of a store"},
		"cut short":            {whole[:len(whole)/2+7], "does not end with its checksum"},
		"without its checksum": {whole[:len(whole)-sha256.Size], "does not end with its checksum"},
		"cut short by a page":  {damaged(func(b []byte) []byte { return append(b[:len(b)-4096-sha256.Size], b[len(b)-sha256.Size:]...) }), "does not match its checksum"},
		"one bit":              {damaged(func(b []byte) []byte { b[len(b)/2] ^= 4; return b }), "does not match its checksum"},
		"a bit of its sum":     {damaged(func(b []byte) []byte { b[len(b)-1] ^= 4; return b }), "does not match its checksum"},
		"another database":     {append(other, sum[:]...), "not an etcd's"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "backup")
			if err := os.WriteFile(file, test.content, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := embedded.ReadBackup(file); !errors.Is(err, embedded.ErrNoBackup) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			to := filepath.Join(t.TempDir(), "etcd")
			if name == "another database" {
				return // whoever restores has read it
			}
			if err := embedded.Restore(file, to, c.conf.Log); !errors.Is(err, embedded.ErrNoBackup) {
				t.Error("restored:", err)
			}
			if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
				t.Error("it left", to, err)
			}
		})
	}
	if _, err := embedded.ReadBackup(dir); !errors.Is(err, embedded.ErrNoBackup) {
		t.Error("a folder:", err)
	}
	if _, err := embedded.ReadBackup(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("absent:", err)
	}

	c.conf.Dir = filepath.Join(dir, "etcd")
	if err := embedded.Restore(file, c.conf.Dir, c.conf.Log); err != nil {
		t.Fatal(err)
	}
	c.run()
	root = c.as(authority.Root)
	now, err := root.Client().Status(ctx, root.Client().Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	if now.Header.Revision != revision || now.Header.ClusterId == is.Header.ClusterId {
		t.Errorf("revision %d, want %d; cluster %x, was %x", now.Header.Revision, revision, now.Header.ClusterId, is.Header.ClusterId)
	}
	if kv, err := root.Get(ctx, "a"); err != nil || string(kv.Value) != "new" {
		t.Error(kv, err)
	}
	if _, err := c.as("agent-n1").Get(ctx, "a"); !errors.Is(err, store.ErrDenied) {
		t.Error("authentication is not as it was:", err)
	}
	if err := root.EndNoSpace(ctx); err != nil {
		t.Fatal(err)
	}
	if err := store.Write(ctx, root, store.Put("a", []byte("newer"))); err != nil {
		t.Error("the alarm of the member that was:", err)
	}
}

// What does not fit on the disk is refused before anything is written.
func TestRestoreNeedsSpace(t *testing.T) {
	c := start(t)
	file := c.backup(c.as(authority.Root))
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	err := embedded.Restore(file, filepath.Join(small, "etcd"), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "has 16 MiB left") || !strings.Contains(err.Error(), "make space there") {
		t.Error(err)
	}
	if left, err := os.ReadDir(small); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}
