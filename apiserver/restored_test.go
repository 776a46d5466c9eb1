package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// follower is anybody who follows a prefix over one client.
type follower struct {
	mu    sync.Mutex
	lists int
	keys  map[string]string
}

// following follows a prefix until the test ends.
func following(t *testing.T, s store.Store, prefix string) *follower {
	ctx, cancel := context.WithCancel(t.Context())
	f := new(follower)
	done := make(chan error, 1)
	go func() {
		done <- store.Persist(ctx, slog.New(slog.DiscardHandler), "following", func(ctx context.Context) error {
			return store.Follow(ctx, s, prefix, f.apply)
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

func (f *follower) apply(b store.Batch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b.Complete {
		f.lists++
		f.keys = map[string]string{}
	}
	for _, e := range b.Events {
		if delete(f.keys, e.Key); !e.Deleted {
			f.keys[e.Key] = string(e.Value)
		}
	}
	return nil
}

// has fails unless there were at least so many lists and the key has the value. A
// slow machine may cost a connection, and so a list, more.
func (f *follower) has(lists int, key, value string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lists < lists || f.keys[key] != value {
		return fmt.Errorf("listed %d times, %s is %q", f.lists, key, f.keys[key])
	}
	return nil
}

// Who follows a store through its restart goes on where they were; through its
// restoration, they list again, however fast it is written to.
func TestFollowersNoticeThatAStoreWasRestored(t *testing.T) {
	conf := config(t)
	p := start(t, conf)
	n1 := p.agent(join(t, p.admin(), 1))
	const prefix = "weft/state/test/"
	put := func(key, value string) {
		t.Helper()
		if err := store.Write(t.Context(), p.srv.store, store.Put(prefix+key, []byte(value))); err != nil {
			t.Fatal(err)
		}
	}
	put("a", "kept")
	canary := wire.Nodes.CacheSyncedKey("west")
	if err := store.Write(t.Context(), p.srv.store, store.Put(canary, nil)); err != nil {
		t.Fatal(err)
	}
	f := following(t, n1.Etcd, prefix)
	eventually(t, "first list", func() error { return f.has(1, prefix+"a", "kept") })

	p.stop()
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(filepath.Join(conf.DataDir, "etcd"))); err != nil {
		t.Fatal(err)
	}
	p = start(t, conf)
	put("b", "restarted")
	eventually(t, "a restart", func() error { return f.has(1, prefix+"b", "restarted") })
	if _, err := p.srv.store.Get(t.Context(), canary); err != nil {
		t.Error("what was complete is so after a restart:", err)
	}
	put("lost", "1")
	put("a", "lost")
	eventually(t, "what will be lost", func() error { return errors.Join(f.has(1, prefix+"a", "lost"), f.has(1, prefix+"lost", "1")) })

	for _, writes := range []int{0, 300} {
		f.mu.Lock()
		lists := f.lists
		f.mu.Unlock()
		_, before, err := p.srv.store.List(t.Context(), wire.LineageKey)
		if err != nil {
			t.Fatal(err)
		}
		p.stop()
		if err := os.RemoveAll(filepath.Join(conf.DataDir, "etcd")); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(filepath.Join(conf.DataDir, "etcd"), os.DirFS(copied)); err != nil {
			t.Fatal(err)
		}
		p = start(t, conf)
		for i := range writes {
			put("busy", fmt.Sprint(i))
		}
		put("new", fmt.Sprint(writes))
		if _, after, _ := p.srv.store.List(t.Context(), wire.LineageKey); writes > 0 && after.Revision <= before.Revision {
			t.Errorf("revision %d, before %d: nothing is regained", after.Revision, before.Revision)
		}
		eventually(t, "restored", func() error {
			return errors.Join(f.has(lists+1, prefix+"a", "kept"), f.has(lists+1, prefix+"lost", ""), f.has(lists+1, prefix+"new", fmt.Sprint(writes)))
		})
	}
}
