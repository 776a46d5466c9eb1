package manifests

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/journal"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// world is a cluster's registry that follows a folder.
type world struct {
	*testing.T
	dir    string
	store  *storetest.Store
	hands  *registry.Registry // of operators
	source *Source
}

// follow runs f while a source follows a folder in virtual time.
func follow(t *testing.T, f func(w *world)) {
	t.Helper()
	followOn(t, func(r Registry) Registry { return r }, f)
}

// followOn is follow with another registry before the real one.
func followOn(t *testing.T, before func(Registry) Registry, f func(w *world)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, dir: dir, store: storetest.New()}
		w.hands = registry.New(w.store, registry.Config{Cluster: "east", ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16")})
		w.source = New(Config{Dir: dir, Registry: before(w.hands.Owned(api.OwnerManifests)), Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.source.Run(ctx) }()
		f(w)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// after lets time pass.
func (w *world) after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// settle lets the source take in what the folder is.
func (w *world) settle() { w.after(3 * turn) }

func (w *world) write(name, text string) {
	w.Helper()
	aside := filepath.Join(w.dir, "."+name)
	if err := os.WriteFile(aside, []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
	if err := os.Rename(aside, filepath.Join(w.dir, name)); err != nil {
		w.Fatal(err)
	}
}

func (w *world) remove(names ...string) {
	w.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(w.dir, name)); err != nil {
			w.Fatal(err)
		}
	}
}

// has checks which objects there are, by name and owner.
func (w *world) has(when string, want ...string) {
	w.Helper()
	kvs, _, err := w.store.List(context.WithoutCancel(w.Context()), wire.ObjectsPrefix)
	if err != nil {
		w.Fatal(err)
	}
	var got []string
	for _, kv := range kvs {
		_, _, name, _ := wire.ParseObjectKey(kv.Key)
		if owner := api.OwnerOf(kv.Value); owner != api.OwnerManifests {
			name += "=" + owner
		}
		got = append(got, name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.Errorf("%s: there are %v, want %v", when, got, want)
	}
}

// says checks the lines of the status, which begin or end with the folder's path.
func (w *world) says(when string, want ...string) {
	w.Helper()
	rows, looked := w.source.Problems()
	if !looked {
		w.Fatalf("%s: it has not looked yet", when)
	}
	var lines []string
	for _, c := range problems.Rows(rows).Sources() {
		lines = append(lines, strings.ReplaceAll(c.String(), w.dir, "DIR"))
	}
	if len(lines) != len(want) {
		w.Errorf("%s: it says %q, want %q", when, lines, want)
		return
	}
	for i := range want {
		if !strings.Contains(lines[i], want[i]) {
			w.Errorf("%s: it says %q, want %q", when, lines[i], want[i])
		}
	}
}

func (w *world) apply(text string) {
	w.Helper()
	if _, err := w.hands.Apply(w.Context(), []byte(text), api.ManifestOptions{}); err != nil {
		w.Fatal(err)
	}
}

func ns(names ...string) string {
	var all []string
	for _, name := range names {
		all = append(all, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+"}\n")
	}
	return strings.Join(all, "---\n")
}

func TestObjectsFollowTheirFiles(t *testing.T) {
	follow(t, func(w *world) {
		w.apply(ns("dev"))
		w.write("a.yaml", ns("a1", "a2"))
		w.write("b.json", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}}`)
		w.write("README.md", "not a manifest")
		w.write(".hidden.yaml", "neither is this: [")
		w.after(turn - time.Millisecond)
		w.has("before two looks", "dev=apply")
		w.settle()
		w.has("at first", "dev=apply", "a1", "a2", "b")
		w.write("a.yaml", ns("a2", "a3"))
		w.settle()
		w.has("changed", "dev=apply", "a2", "a3", "b")
		w.remove("a.yaml")
		w.settle()
		w.has("removed", "dev=apply", "b")
		w.write("b.json", "# nothing any more\n")
		w.settle()
		w.has("emptied on purpose", "dev=apply")
		w.says("at the end")
	})
}

// Nothing is deleted by what cannot be read, and the status says what and why.
func TestWhatCannotBeReadDeletesNothing(t *testing.T) {
	link := func(to, name string) func(*world) {
		return func(w *world) {
			w.Helper()
			w.remove(name)
			if err := os.Symlink(to, filepath.Join(w.dir, name)); err != nil {
				w.Fatal(err)
			}
		}
	}
	const kept = "1 object may no longer be in DIR: kept until all of its files can be read"
	for name, c := range map[string]struct {
		spoil func(*world)
		says  []string
	}{
		"half a file":        {func(w *world) { w.write("b.yaml", ns("b")+"---\nkind: [\n") }, []string{"DIR/b.yaml:5: not valid YAML: did not find expected node content"}},
		"another mistake":    {func(w *world) { w.write("b.yaml", "# of b\n"+strings.Replace(ns("b"), "{", "{labls: x, ", 1)) }, []string{`DIR/b.yaml:2: Namespace b: unknown field metadata.labls; did you mean labels?; correct it; until then, nothing in this file is applied`}},
		"an empty file":      {func(w *world) { w.write("b.yaml", "\n") }, []string{"DIR/b.yaml cannot be read: it is empty", kept}},
		"a dead link":        {link("nowhere", "b.yaml"), []string{"DIR/b.yaml cannot be read: no such file or directory", kept}},
		"a link to a folder": {link(".", "b.yaml"), []string{"DIR/b.yaml cannot be read: it is not a regular file", kept}},
		"a text":             {func(w *world) { w.write("b.yaml", "see elsewhere\n") }, []string{"DIR/b.yaml:1: not an object", kept}},
		"an empty folder":    {func(w *world) { w.remove("a.yaml", "b.yaml", "c.yaml") }, []string{"folder DIR has no manifest, but 3 objects came from it: they are kept; is it mounted?"}},
		"no folder": {func(w *world) {
			if err := os.Rename(w.dir, w.dir+".away"); err != nil {
				w.Fatal(err)
			}
			w.Cleanup(func() { os.RemoveAll(w.dir + ".away") })
		}, []string{"folder DIR cannot be read: no such file or directory; what came from it is kept"}},
	} {
		t.Run(name, func(t *testing.T) {
			follow(t, func(w *world) {
				w.write("a.yaml", ns("a"))
				w.write("b.yaml", ns("b"))
				w.write("c.yaml", "# nothing yet\n")
				w.settle()
				w.has("at first", "a", "b")
				w.says("at first")
				if name == "an empty folder" {
					w.write("c.yaml", ns("c"))
					w.settle()
					c.spoil(w)
					w.settle()
					w.has("spoilt", "a", "b", "c")
					w.says("spoilt", c.says...)
					return
				}
				c.spoil(w)
				w.settle()
				w.has("spoilt", "a", "b")
				w.says("spoilt", c.says...)
				if name == "no folder" {
					return
				}
				// The other files go on; only deletions wait where nobody can tell.
				w.write("c.yaml", ns("c"))
				w.settle()
				w.has("spoilt, and another file changed", "a", "b", "c")
				os.Remove(filepath.Join(w.dir, "b.yaml")) // a link is not written through
				w.write("b.yaml", ns("b"))
				w.remove("a.yaml")
				w.settle()
				w.has("mended", "b", "c")
				w.says("mended")
			})
		})
	}
}

// A file that is being written in place is not read halfway.
func TestAFileIsReadWhenItIsStill(t *testing.T) {
	follow(t, func(w *world) {
		w.write("a.yaml", ns("a1", "a2", "a3"))
		w.settle()
		f, err := os.Create(filepath.Join(w.dir, "a.yaml"))
		if err != nil {
			w.Fatal(err)
		}
		defer f.Close()
		for i := range 12 { // 4.8 s
			fmt.Fprintf(f, "# %d\n%s---\n", i, ns("a1"))
			w.after(400 * time.Millisecond)
			w.has(fmt.Sprint("while it is written, ", i), "a1", "a2", "a3")
		}
		w.says("while it is written", "folder DIR keeps changing: its manifests are applied once it has been still for 500ms")
		w.settle()
		w.has("written", "a1")
		w.says("written")
	})
}

// As the mounts of a ConfigMap do it: every name is a link through one link that is
// exchanged.
func TestAllFilesAreExchangedByOneLink(t *testing.T) {
	follow(t, func(w *world) {
		swap := func(version string, files map[string]string) {
			w.Helper()
			if err := os.Mkdir(filepath.Join(w.dir, version), 0o700); err != nil {
				w.Fatal(err)
			}
			for name, text := range files {
				if err := os.WriteFile(filepath.Join(w.dir, version, name), []byte(text), 0o600); err != nil {
					w.Fatal(err)
				}
				if err := os.Symlink(filepath.Join("..data", name), filepath.Join(w.dir, name)); err != nil && !os.IsExist(err) {
					w.Fatal(err)
				}
			}
			if err := os.Symlink(version, filepath.Join(w.dir, "..next")); err != nil {
				w.Fatal(err)
			}
			if err := os.Rename(filepath.Join(w.dir, "..next"), filepath.Join(w.dir, "..data")); err != nil {
				w.Fatal(err)
			}
		}
		swap("..1", map[string]string{"a.yaml": ns("a1"), "b.yaml": ns("b1")})
		w.settle()
		w.has("first", "a1", "b1")
		swap("..2", map[string]string{"a.yaml": ns("a2"), "b.yaml": ns("b2")})
		w.settle()
		w.has("second", "a2", "b2")
		swap("..3", map[string]string{"a.yaml": ns("a3")})
		w.settle()
		w.has("a link that leads nowhere", "a2", "a3", "b2")
		w.remove("b.yaml")
		w.settle()
		w.has("third", "a3")
	})
}

func TestWhatOthersChangeIsPutRight(t *testing.T) {
	follow(t, func(w *world) {
		const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {nodeName: n1, containers: [{name: web, image: web}]}\n"
		w.write("a.yaml", pod)
		w.settle()
		w.has("without the node")
		w.says("without the node", `DIR/a.yaml:1: Pod default/web: spec.nodeName "n1" is not a node of cluster east`)
		reg := wire.Registration{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}}
		if err := store.Write(w.Context(), w.store, store.Put(wire.RegistrationKey("n1"), wire.Marshal(reg)), store.Put(wire.RegistrationsTurnKey, []byte("n1"))); err != nil {
			w.Fatal(err)
		}
		w.after(turn)
		w.has("with the node", "web")
		w.says("with the node")
		if _, err := w.hands.Delete(w.Context(), "pod", "default", "web", api.ManifestOptions{TakeOver: true}); err != nil {
			w.Fatal(err)
		}
		w.after(turn)
		w.has("deleted by force", "web")
		// At rest, nothing is written.
		before := w.store.Revision()
		w.after(time.Hour)
		if now := w.store.Revision(); now != before {
			w.Errorf("%d revisions in an hour without a change", now-before)
		}
	})
}

// broken is a registry whose store cannot be used.
type broken struct {
	Registry
	down  atomic.Bool
	tries atomic.Int64
}

func (b *broken) Sync(ctx context.Context, set registry.Set) (*registry.Outcome, error) {
	if b.tries.Add(1); b.down.Load() {
		return nil, store.ErrUnavailable
	}
	return b.Registry.Sync(ctx, set)
}

func TestAFailingStoreIsTriedAgain(t *testing.T) {
	b := &broken{}
	b.down.Store(true)
	before := func(r Registry) Registry {
		b.Registry = r
		return b
	}
	followOn(t, before, func(w *world) {
		w.write("a.yaml", ns("a"))
		w.after(time.Minute)
		w.has("down")
		w.says("down", "the manifests in DIR are not applied: "+store.ErrUnavailable.Error())
		if n := b.tries.Load(); n > 8 {
			w.Errorf("%d tries in a minute", n)
		}
		b.down.Store(false)
		w.after(lastRetry + turn)
		w.has("up", "a")
		w.says("up")
	})
}

// busy is a registry that somebody changes all the time and that takes its time.
type busy struct {
	Registry
	turns, compared atomic.Int64
}

func (b *busy) Turn(context.Context) (journal.Turn, error) {
	return journal.Turn{{Key: "turn", Modified: b.turns.Add(1)}}, nil
}

func (b *busy) Sync(ctx context.Context, set registry.Set) (*registry.Outcome, error) {
	b.compared.Add(1)
	<-time.After(200 * time.Millisecond)
	return b.Registry.Sync(ctx, set)
}

// What others change has all manifests compared a twentieth of the time at most; a changed
// file does not wait for that.
func TestOthersChangesAreComparedAtLeisure(t *testing.T) {
	b := &busy{}
	before := func(r Registry) Registry {
		b.Registry = r
		return b
	}
	followOn(t, before, func(w *world) {
		w.write("a.yaml", ns("a"))
		w.after(time.Minute)
		if n := b.compared.Load(); n < 10 || n > 16 {
			w.Errorf("compared %d times in a minute, want 60 s / (20 × 200 ms) or somewhat less", n)
		}
		w.write("a.yaml", ns("b"))
		w.settle()
		w.has("a changed file", "b")
	})
}

// Without a folder, what came from one stays, and the status says so until it is taken over.
func TestWithoutAFolder(t *testing.T) {
	follow(t, func(w *world) {
		w.write("a.yaml", ns("a1", "a2"))
		w.settle()
		other := &world{T: w.T, store: w.store, hands: w.hands, source: New(Config{Registry: w.hands.Owned(api.OwnerManifests), Log: slog.New(slog.DiscardHandler)})}
		ctx, cancel := context.WithCancel(w.Context())
		ended := make(chan error)
		go func() { ended <- other.source.Run(ctx) }()
		other.settle()
		other.has("not followed", "a1", "a2")
		if rows, _ := other.source.Problems(); len(rows.Sources()) != 1 || !strings.Contains(rows.Sources()[0].Message, "2 objects came from a folder of manifests that this API server does not follow") {
			w.Errorf("%v", rows.Sources())
		}
		w.remove("a.yaml")
		w.write("empty.yaml", "# on purpose\n")
		w.settle()
		if rows, looked := other.source.Problems(); len(rows) != 0 || !looked {
			w.Errorf("%v", rows.Sources())
		}
		cancel()
		if err := <-ended; err != nil {
			w.Error(err)
		}
	})
}
