package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// TestEmptiedStoreTellsNobodyThatThereIsNothing takes a cluster's store away
// while an agent watches: it must not get to read the empty one, not even for
// the moment in which it is made.
func TestEmptiedStoreTellsNobodyThatThereIsNothing(t *testing.T) {
	conf := config(t)
	p := start(t, conf)
	n1 := p.agent(join(t, p.admin(), 1))
	join(t, p.admin(), 2)
	eventually(t, "both nodes are remembered", func() error {
		text, err := os.ReadFile(p.srv.memory.path)
		if err == nil && !strings.Contains(string(text), `"n2"`) {
			err = fmt.Errorf("it holds %s", text)
		}
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			kvs, _, err := n1.List(ctx, wire.StatePrefix)
			if err == nil && len(kvs) == 0 {
				done <- errors.New("the agent was told that there is nothing")
				return
			}
		}
		done <- nil
	}()
	p.stop()
	if err := os.RemoveAll(filepath.Join(conf.DataDir, "etcd")); err != nil {
		t.Fatal(err)
	}
	p = start(t, conf)
	eventually(t, "agent is refused", func() error {
		if _, _, err := n1.List(ctx, wire.StatePrefix); !errors.Is(err, store.ErrDenied) {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	// The status says how its nodes come back, until they are back or given up.
	problems := func(want ...string) {
		t.Helper()
		eventually(t, "what the status asks for", func() error {
			s, err := p.admin().Status(t.Context())
			if err != nil {
				return err
			}
			got := concernsOf(s, "StoreEmptied")
			for _, text := range want {
				if !strings.Contains(got, text) {
					return fmt.Errorf("%q says nothing of %q", got, text)
				}
			}
			if len(want) == 0 && got != "" {
				return errors.New(got)
			}
			return nil
		})
	}
	// While they are away, what they have is not given up.
	release := func(refused string) {
		t.Helper()
		result, err := p.admin().ReleaseNodes(t.Context())
		if (err == nil) != (refused == "") || err != nil && !strings.Contains(err.Error(), refused) {
			t.Errorf("released %+v, %v, want %q", result, err, refused)
		}
	}
	release("n1, n2 of the earlier store")
	problems("was emptied", "weft node add n1 --address 172.16.1.1 --pod-cidr 10.1.1.0/24", "weft node delete n2")
	p.stop()
	p = start(t, conf)
	problems("node n1 is not let in", "node n2 is not let in")
	join(t, p.admin(), 1)
	problems("node n2 is not let in")
	release("n2 of the earlier store")
	if _, err := p.admin().RemoveNode(t.Context(), "n2", false); err != nil {
		t.Error(err)
	}
	problems()
	p.stop()
	p = start(t, conf)
	release("")
}

// A nodes.json from before it said that a store was lost says so by its lost
// nodes, and goes on saying it when there are none any more.
func TestLostNodesTellOfALostStore(t *testing.T) {
	for text, want := range map[string]bool{
		`{"generation":"g2","lost":{"n1":{"name":"n1"}}}`:  true,
		`{"generation":"g2","nodes":{"n1":{"name":"n1"}}}`: false,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "nodes.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := openMemory(dir, "g2", storetest.New(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.forget(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if yes, lost := m.rebuilt(); yes != want || len(lost) != 0 {
			t.Errorf("%s: rebuilt %v, lost %q", text, yes, lost)
		}
	}
}

// Each API server remembers by itself; what one is told to forget, all of them do.
func TestLostNodesAreForgottenEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := storetest.New(), slog.New(slog.DiscardHandler)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		var all []*memory
		for range 2 {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "nodes.json"), []byte(`{"generation":"g1","nodes":{"n1":{"name":"n1"},"n2":{"name":"n2"}}}`), 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := openMemory(dir, "g2", s, log)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, m)
			go func() { done <- m.Run(ctx) }()
		}
		synctest.Wait()
		if forgot, err := all[0].forget(ctx, "n1"); !forgot || err != nil {
			t.Error(forgot, err)
		}
		synctest.Wait()
		for i, m := range all {
			if _, lost := m.rebuilt(); len(lost) != 1 || lost[0] != "n2" {
				t.Errorf("server %d: lost %v", i, lost)
			}
		}
		cancel()
		for range all {
			<-done
		}
	})
}

// A lost node whose removal fails for another reason than that it is not
// registered is neither reported as deleted nor forgotten.
func TestLostNodeIsForgottenOnlyWhenRemoved(t *testing.T) {
	p := start(t, config(t))
	p.srv.memory.mu.Lock()
	p.srv.memory.know.Lost["n2"] = wire.Registration{Name: "n2"}
	p.srv.memory.mu.Unlock()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx     context.Context
		removed bool
	}{{gone, false}, {t.Context(), true}, {t.Context(), false}} {
		r := httptest.NewRequestWithContext(c.ctx, "DELETE", "/v1/nodes/n2", nil)
		r.SetPathValue("name", "n2")
		if _, err := p.srv.deleteNode(r); (err == nil) != c.removed {
			t.Errorf("want removed: %v, got %v", c.removed, err)
		}
	}
}

// A damaged file is put aside, said in the status until it is looked at, and the
// API server starts all the same.
func TestADamagedMemoryIsPutAside(t *testing.T) {
	conf := config(t)
	p := start(t, conf)
	join(t, p.admin(), 1)
	p.stop()
	path := filepath.Join(conf.DataDir, "nodes.json")
	if err := os.WriteFile(path, []byte(`{"generation":"x","no`), 0o600); err != nil {
		t.Fatal(err)
	}
	p = start(t, conf)
	says := func(want bool) {
		t.Helper()
		eventually(t, "what the status says", func() error {
			s, err := p.admin().Status(t.Context())
			if got := concernsOf(s, "DamagedFile"); err == nil && strings.Contains(got, path+" is damaged and was put aside as ") != want {
				err = fmt.Errorf("concerns %q", got)
			}
			return err
		})
	}
	says(true)
	eventually(t, "it is written again", func() error {
		text, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(text), `"n1"`) {
			err = fmt.Errorf("it holds %s", text)
		}
		return err
	})
	for _, d := range statefile.Damages(conf.DataDir) {
		if err := os.Remove(d.Aside); err != nil {
			t.Fatal(err)
		}
	}
	says(false)
}

// Whoever believed a certificate authority that is gone believes no new one: with a
// store there, none is made, and without one the log says what that means.
func TestALostAuthorityIsNotReplacedInSilence(t *testing.T) {
	conf := config(t)
	p := start(t, conf)
	p.stop()
	pki := filepath.Join(conf.DataDir, "pki")
	refused := func(lost, want string) {
		t.Helper()
		aside := filepath.Join(t.TempDir(), "aside")
		if err := os.Rename(lost, aside); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := run(ctx, conf, func(*server, string) { cancel() })
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "backup") {
			t.Errorf("without %s: %v", lost, err)
		}
		_ = os.RemoveAll(lost)
		if err := os.Rename(aside, lost); err != nil {
			t.Fatal(err)
		}
	}
	refused(filepath.Join(pki, "ca.key"), "ca.key is gone")
	refused(pki, pki+" is gone, but")
	var log strings.Builder
	conf.Log = slog.New(slog.NewTextHandler(&log, nil))
	start(t, conf).stop()
	if strings.Contains(log.String(), "another certificate authority") {
		t.Errorf("it warns:\n%s", log.String())
	}
	conf.DataDir, conf.AdminConfig = t.TempDir(), filepath.Join(t.TempDir(), "admin.conf")
	// A first start that was cut short had no store yet, and may begin again.
	if err := os.MkdirAll(filepath.Join(conf.DataDir, "pki"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(conf.DataDir, "pki", "ca.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, conf).stop()
}
