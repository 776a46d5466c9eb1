package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/api"
)

var update = flag.Bool("update", false, "write what the commands print into the scripts")

// noon is the current time in every script.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// leakless also fails if tests leave goroutines behind.
type leakless struct{ *testing.M }

func (m leakless) Run() int {
	code := m.M.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

func TestMain(m *testing.M) {
	testscript.Main(leakless{m}, map[string]func(){
		"weft": func() {
			now = func() time.Time { return noon }
			time.Local, completionTime = time.UTC, time.Minute
			main()
		},
	})
}

// Each script has a fresh pair of clusters, east and west, and their contexts.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			cert, key := keypair(t)
			config := &api.Config{Current: "east"}
			mesh := map[string]*fake{}
			for id, name := range []string{"east", "west"} {
				f := newFake(name, uint32(id+1), mesh)
				env.Defer(f.Close)
				config.Set(api.Context{Name: name, Server: f.URL, CA: f.ca(), Cert: cert, Key: key})
			}
			// gone is a context whose server no longer runs.
			gone := newFake("gone", 9, mesh)
			config.Set(api.Context{Name: "gone", Server: gone.URL, CA: gone.ca(), Cert: cert, Key: key})
			gone.Close()
			// stranger is a context that trusts another CA than its server's.
			config.Set(api.Context{Name: "stranger", Server: config.Contexts[0].Server, CA: cert, Cert: cert, Key: key})

			// In meshes, another mesh has a cluster east of its own, and one context cannot be used.
			other := newFake("east", 5, map[string]*fake{})
			env.Defer(other.Close)
			meshes := &api.Config{Current: "east", Contexts: []api.Context{
				{Name: "other", Server: other.URL, CA: other.ca(), Cert: cert, Key: key}, {Name: "broken", Server: other.URL, CA: "no certificate", Cert: cert, Key: key}}}
			for _, x := range config.Contexts[:2] {
				meshes.Set(x)
			}
			again := config.Contexts[0]
			again.Name = "again"
			meshes.Set(again)
			if err := meshes.Save(filepath.Join(env.WorkDir, "meshes")); err != nil {
				return err
			}

			path := filepath.Join(env.WorkDir, "contexts")
			env.Setenv("WEFT_CONFIG", path)
			env.Setenv("HOME", env.WorkDir)
			// The race detector would make every command wait a second at its end.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			socket := filepath.Join(env.WorkDir, "agent.sock")
			env.Setenv("SOCK", socket)
			stop, err := serveAgent(socket)
			if err != nil {
				return err
			}
			env.Defer(stop)
			return config.Save(path)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
		},
	})
}

// exits CODE weft ARGS… runs a command that must end with this exit code. Its standard
// output and error can be compared afterwards.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if err != nil {
		var exit interface{ ExitCode() int }
		if !asExit(err, &exit) {
			ts.Fatalf("%v", err)
		}
		code = big.NewInt(int64(exit.ExitCode())).String()
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}

// keypair returns a self-signed client certificate.
func keypair(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "admin"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}
