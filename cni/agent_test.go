package cni_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/cni"
	_ "github.com/weft-mesh/weft/internal/firstthread"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/endpoint/endpointtest"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// agentVariable turns this test binary into a node's agent, as far as pods' networks go, with
// its files in that folder. As a runtime calls the plugin, so is this binary the plugin.
const agentVariable = "WEFT_TEST_AGENT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(agentVariable); dir != "" {
		ctx, cancel := context.WithCancel(context.Background())
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }()
		if err := serveAgent(ctx, dir, endpoint.Kernel{MTU: 1420}, func() { fmt.Println("ready") }); err != nil {
			panic(err)
		}
		return
	}
	if cni.Called(os.Args, os.Getenv) {
		os.Exit(cni.Main())
	}
	os.Exit(m.Run())
}

// unhurried are requests whose pods have no identity to wait for.
type unhurried struct{ api.EndpointRequests }

func (u unhurried) Add(ctx context.Context, r api.EndpointRequest) (*api.EndpointResult, error) {
	if r.WaitSeconds == 0 {
		return nil, errors.New("the plugin does not wait for the pod's identity")
	}
	r.WaitSeconds = 0
	return u.EndpointRequests.Add(ctx, r)
}

// serveAgent gives pods their networks until ctx ends, requested at dir/sock.
func serveAgent(ctx context.Context, dir string, plumbing endpoint.Plumbing, ready func()) error {
	e, err := endpoint.New(endpoint.Config{
		CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("fd00:10:1:1::/64")}, MTU: 1420, Tables: tables.New(), Datapath: bpftest.NewDatapath(),
		Plumbing: plumbing, Dir: endpoint.Dir(filepath.Join(dir, "endpoints")), Spool: api.EndpointSpool(filepath.Join(dir, "spool")),
		Tell: func(string, string) {}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	endpoint.Serve(mux, unhurried{e})
	mux.HandleFunc("GET "+api.EndpointReadyPath, func(w http.ResponseWriter, _ *http.Request) {
		text, err := os.ReadFile(filepath.Join(dir, "readiness"))
		if err != nil {
			text = []byte(`{"ready":true}`)
		}
		_, _ = w.Write(text)
	})
	socket := filepath.Join(dir, "sock")
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: mux}
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(l) }()
	defer func() { _ = s.Close(); <-served }()
	ran := make(chan error, 1)
	go func() { ran <- e.Run(ctx) }()
	<-e.Adopted()
	ready()
	return <-ran
}

// twin starts an agent without a kernel in this process.
func twin(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- serveAgent(ctx, dir, &endpointtest.Plumbing{}, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-ready
	return dir
}

// node is a machine with network namespaces for its pods and an agent of its own.
type node struct {
	t     testing.TB
	dir   string
	agent *exec.Cmd
	stop  io.Closer
	net   *os.File // the machine's network namespace
}

// newNode starts no agent yet.
func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	n := &node{t: t, dir: t.TempDir()}
	n.net = n.namespace("machine")
	if err := os.Mkdir(filepath.Join(n.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(n.dir, "bin", "weft")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.kill)
	return n
}

// namespace makes a network namespace with a file.
func (n *node) namespace(name string) *os.File {
	n.t.Helper()
	path := n.netns(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		n.t.Fatal(err)
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		n.t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { f.Close(); _ = unix.Unmount(path, unix.MNT_DETACH) })
	return f
}

func (n *node) netns(name string) string { return filepath.Join(n.dir, "netns", name) }

// start runs an agent in the machine's network namespace.
func (n *node) start() {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	n.agent = exec.Command(self)
	n.agent.Env = append(os.Environ(), agentVariable+"="+n.dir)
	n.agent.Stderr = os.Stderr
	n.agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if n.stop, err = n.agent.StdinPipe(); err != nil {
		n.t.Fatal(err)
	}
	out, err := n.agent.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	// The thread stays, because its child dies with it.
	started := make(chan error)
	stay := make(chan struct{})
	n.t.Cleanup(func() { close(stay) })
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(n.net.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = n.agent.Start()
		}
		started <- err
		<-stay
	}()
	if err := <-started; err != nil {
		n.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		n.t.Fatalf("the agent says %q, %v", line, err)
	}
}

// kill ends the agent at once, if one runs.
func (n *node) kill() {
	if n.agent == nil {
		return
	}
	_ = n.agent.Process.Kill()
	_ = n.agent.Wait()
	n.agent = nil
}

// inside runs f in the network namespace of a file.
func inside(t testing.TB, ns *os.File, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
