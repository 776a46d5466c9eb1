package meshagent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/cni/conflist"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// The plugin is there from when the node can take pods, and comes back when somebody removes
// it. An agent that stops leaves it.
func TestThePluginIsInstalledOnceTheNodeIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cfg := Config{CNIConfDir: filepath.Join(dir, "net.d"), CNIBinDir: filepath.Join(dir, "bin"), Socket: "/s", CNISpoolDir: "/c"}
		tab := tables.New()
		ready := make(chan struct{})
		p := newPlugin(cfg, ready, partTrouble(tab, "cni", "the CNI plugin is not installed as it should be", slog.New(slog.DiscardHandler)))
		p.conflist.Program = filepath.Join(dir, "weft")
		if err := os.WriteFile(p.conflist.Program, []byte("program"), 0o755); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		conf, program := filepath.Join(cfg.CNIConfDir, conflist.File), filepath.Join(cfg.CNIBinDir, conflist.Type)
		there := func(when string, want bool) {
			t.Helper()
			synctest.Wait()
			for _, path := range []string{conf, program} {
				if _, err := os.Stat(path); (err == nil) != want {
					t.Errorf("%s: %s: %v", when, path, err)
				}
			}
		}
		told := func() (text string) {
			for p := range tables.ProblemsOf(tab.DB.ReadTxn(), tab, wire.ProblemParts) {
				text += p.Error
			}
			return text
		}
		time.Sleep(time.Minute)
		there("before the node is ready", false)
		close(ready)
		there("ready", true)
		if err := errors.Join(os.Remove(conf), os.Remove(program)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pluginTurn)
		there("removed by somebody", true)
		link := filepath.Join(cfg.CNIBinDir, "loopback")
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pluginTurn)
		synctest.Wait()
		if to, err := os.Readlink(link); to != conflist.Type || err != nil {
			t.Errorf("loopback, removed by somebody, leads to %q, %v", to, err)
		}
		if err := os.WriteFile(program, []byte("torn"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(conf, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pluginTurn)
		synctest.Wait()
		if text, err := os.ReadFile(program); string(text) != "program" {
			t.Errorf("overwritten by somebody, it is %q, %v", text, err)
		}
		if text, err := os.ReadFile(conf); string(text) != "{" || !strings.Contains(told(), "repair or delete it") {
			t.Errorf("a damaged configuration is %q, %v; told %q", text, err, told())
		}
		if err := os.Remove(conf); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pluginTurn)
		there("repaired", true)
		if told() != "" {
			t.Errorf("told %q", told())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		there("stopped", true)
	})
}

// A runtime learns from the socket whether pods can be added.
func TestWhetherPodsCanBeAdded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, east, _, _ := raise(t)
		a := east.agent
		ask := func() (r api.EndpointReadiness) {
			w := httptest.NewRecorder()
			a.socketHandler().ServeHTTP(w, httptest.NewRequest("GET", api.EndpointReadyPath, nil))
			if err := json.NewDecoder(w.Body).Decode(&r); err != nil || w.Code != http.StatusOK {
				t.Fatalf("%d, %v", w.Code, err)
			}
			return r
		}
		if got := ask(); got.Ready || !strings.Contains(got.Hint, "--pods-from requests") {
			t.Errorf("where nobody requests networks: %+v", got)
		}
		a.cfg.PodsFrom = Requests
		if got := ask(); !got.Ready {
			t.Errorf("where somebody does: %+v", got)
		}
		for age, limited := range map[time.Duration]bool{0: false, 2 * lastingAfter: true} {
			txn := a.Tables.DB.WriteTxn(a.Tables.Problems)
			tables.Put(txn, a.Tables.Problems, &tables.Problem{Table: wire.ProblemPrograms, Row: "pod x", Error: "no memory", Since: time.Now().Add(-age)})
			txn.Commit()
			if got := ask(); got.Ready == limited || got.Limited != limited || limited && !strings.Contains(got.Why, "pod x: no memory") {
				t.Errorf("without programs for %v: %+v", age, got)
			}
		}
	})
}
