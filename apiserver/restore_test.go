package apiserver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func backup(t *testing.T, c *api.Client) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "east.backup")
	if err := statefile.Create(file, func(f *os.File) error { return c.Backup(t.Context(), f) }); err != nil {
		t.Fatal(err)
	}
	return file
}

// tree lists the files of a folder with their sizes.
func tree(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		all = append(all, fmt.Sprint(path, info.Size(), info.ModTime()))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A backup is taken from a running server, by operators only, and restored: followers
// notice that the store went back, also if it has been written to since, and everything
// that was there at the backup is there again.
func TestBackupAndRestore(t *testing.T) {
	conf := config(t)
	var log bytes.Buffer
	conf.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	p := start(t, conf)
	admin := p.admin()
	n1 := p.agent(join(t, admin, 1))
	const prefix = "weft/state/test/"
	put := func(key, value string) {
		t.Helper()
		if err := store.Write(t.Context(), p.srv.store, store.Put(prefix+key, []byte(value))); err != nil {
			t.Fatal(err)
		}
	}
	put("a", "kept")
	put("gone", "kept too")
	canary := wire.Nodes.CacheSyncedKey("west")
	if err := store.Write(t.Context(), p.srv.store, store.Put(canary, wire.TimeText(time.Now()))); err != nil {
		t.Fatal(err)
	}
	f := following(t, n1.Etcd, prefix)
	eventually(t, "first list", func() error { return f.has(1, prefix+"gone", "kept too") })

	file := backup(t, admin)
	for _, user := range []string{authority.AgentUser("n1"), authority.RemoteUser("west", 0)} {
		var refusal *api.Error
		if err := p.as(user, time.Hour).Backup(t.Context(), new(bytes.Buffer)); !errors.As(err, &refusal) || refusal.Status != http.StatusForbidden {
			t.Errorf("%s got a backup: %v", user, err)
		}
	}
	b, err := ReadBackup(file)
	if err != nil || b.Cluster != "east" || b.ID != conf.ID || b.Generation != p.srv.cluster.Generation || b.Keys < 5 {
		t.Fatalf("%+v, %v", b, err)
	}

	put("a", "lost")
	put("lost", "1")
	if err := store.Write(t.Context(), p.srv.store, store.Delete(prefix+"gone")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what will be lost", func() error { return errors.Join(f.has(1, prefix+"lost", "1"), f.has(1, prefix+"gone", "")) })

	if _, err := Restore(conf, file, false); !errors.Is(err, statefile.ErrInUse) {
		t.Error("restored under a running server:", err)
	}
	for _, writes := range []int{0, 300} {
		f.mu.Lock()
		lists := f.lists
		f.mu.Unlock()
		p.stop()
		r, err := Restore(conf, file, false)
		if err != nil || r.Backup != b || r.Authority || r.AuthorityAside != "" {
			t.Fatalf("%+v, %v", r, err)
		}
		if _, err := os.Stat(filepath.Join(r.Aside, "member", "snap", "db")); err != nil {
			t.Error("the store that was there is lost:", err)
		}
		p = start(t, conf)
		if _, err := p.srv.store.Get(t.Context(), canary); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("restored, the copy of a peer passes for complete: %v", err)
		}
		for i := range writes {
			put("busy", fmt.Sprint(i))
		}
		put("new", fmt.Sprint(writes))
		eventually(t, "restored", func() error {
			return errors.Join(f.has(lists+1, prefix+"a", "kept"), f.has(lists+1, prefix+"gone", "kept too"), f.has(lists+1, prefix+"lost", ""), f.has(lists+1, prefix+"new", fmt.Sprint(writes)))
		})
	}
	if status, err := admin.Status(t.Context()); err != nil || status.Cluster.Generation != b.Generation {
		t.Error("not the store that it was:", err)
	}
	p.stop()
	if n := strings.Count(log.String(), "msg=audit user=admin action=read object=backup"); n != 1 {
		t.Errorf("%d lines about the backup in the audit trail:\n%s", n, log.String())
	}

	// The whole data folder is lost. Everybody's certificates are good for the restored one.
	if err := os.RemoveAll(conf.DataDir); err != nil {
		t.Fatal(err)
	}
	r, err := Restore(conf, file, false)
	if err != nil || !r.Authority || r.Aside != "" || r.AuthorityAside != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	p = start(t, conf)
	if _, err := admin.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if err := n1.put(wire.NodeKey("n1"), wire.NodeState{Name: "n1"}); err != nil {
		t.Error(err)
	}
	// A removed peer's number is never given again, though nobody knows how many there were.
	if n, err := p.srv.authority.KeepRemovals(0); err != nil || n < uint64(time.Now().Add(-time.Hour).Unix()) {
		t.Error("removals continue at", n, err)
	}
	p.stop()
	for _, name := range []string{".restore-*", "*-before-*"} {
		if left, _ := filepath.Glob(filepath.Join(conf.DataDir, name)); len(left) > 0 {
			t.Error("left over:", left)
		}
	}

	// A cluster that began anew in its place makes way, and is kept.
	if err := errors.Join(os.RemoveAll(conf.DataDir), os.Remove(conf.AdminConfig)); err != nil {
		t.Fatal(err)
	}
	start(t, conf).stop()
	if r, err = Restore(conf, file, false); err != nil || r.Aside == "" || r.AuthorityAside == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	start(t, conf)
	if _, err := admin.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// What is refused changes nothing.
func TestWhatIsNotRestored(t *testing.T) {
	conf := config(t)
	p := start(t, conf)
	file := backup(t, p.admin())
	p.stop()
	short := filepath.Join(t.TempDir(), "short")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(short, whole[:len(whole)-500], 0o600); err != nil {
		t.Fatal(err)
	}
	renamed, renumbered, external := conf, conf, conf
	renamed.Cluster = "west"
	renumbered.ID = 7
	external.EtcdEndpoints = []string{"https://192.0.2.1:2379"}
	before := tree(t, conf.DataDir)
	for name, test := range map[string]struct {
		conf Config
		file string
		is   error
		want string
	}{
		"cut short":         {conf, short, ErrNoBackup, short + " does not end with its checksum"},
		"absent":            {conf, short + "er", fs.ErrNotExist, ""},
		"another cluster":   {renamed, file, ErrOtherCluster, "is of cluster east (ID 1), and this API server is configured for west (ID 1)"},
		"another ID":        {renumbered, file, ErrOtherCluster, "east (ID 1), and this API server is configured for east (ID 7)"},
		"an existing etcd":  {external, file, nil, "etcdutl snapshot restore"},
		"no backup at all":  {conf, conf.AdminConfig, ErrNoBackup, "is not a backup of a store"},
		"a folder of files": {conf, conf.DataDir, ErrNoBackup, "is not a file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Restore(test.conf, test.file, false)
			if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.want) {
				t.Error(err)
			}
			if after := tree(t, conf.DataDir); !slices.Equal(before, after) {
				t.Errorf("changed:\n%v\n%v", before, after)
			}
		})
	}
	// An authority that is not the store's would be believed by nobody.
	if err := os.RemoveAll(filepath.Join(conf.DataDir, "pki")); err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Open(filepath.Join(conf.DataDir, "pki"), "east"); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), conf); err == nil || !strings.Contains(err.Error(), "is not the one of this store") {
		t.Error("started with another authority:", err)
	}
	if r, err := Restore(renamed, file, true); err != nil || r.Backup.Cluster != "east" || r.AuthorityAside == "" {
		t.Errorf("forced: %+v, %v", r, err)
	}
	start(t, conf)
}
