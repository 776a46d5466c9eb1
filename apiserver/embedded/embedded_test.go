package embedded_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/internal/loopbacktest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

type cluster struct {
	t    *testing.T
	ca   *authority.Authority
	conf embedded.Config
	*embedded.Server
}

func start(t *testing.T) *cluster {
	t.Helper()
	ca, err := authority.Open(t.TempDir(), "east")
	if err != nil {
		t.Fatal(err)
	}
	addr := loopbacktest.Addr(t)
	cert, key, err := ca.IssueFile("etcd", authority.Request{User: "etcd", Client: true, Server: true, Addresses: []netip.Addr{addr}})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, ca: ca, conf: embedded.Config{Dir: t.TempDir(), Listen: fmt.Sprintf("%v:12379", addr), Cert: cert, Key: key, CA: ca.BundlePath(), Log: slog.New(slog.DiscardHandler)}}
	c.run()
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *cluster) run() {
	c.t.Helper()
	began := time.Now()
	server, err := embedded.Start(c.t.Context(), c.conf)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Logf("etcd ready after %v", time.Since(began))
	c.Server = server
}

func (c *cluster) as(user string) *store.Etcd { return c.watching(user, 0) }

// watching asks for signs of life at this interval. If it is short, a busy machine may
// miss it and end the watch.
func (c *cluster) watching(user string, signOfLife time.Duration) *store.Etcd {
	c.t.Helper()
	pair, err := c.ca.Issue(authority.Request{User: user, Client: true})
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		c.t.Fatal(err)
	}
	e, err := store.Dial(store.DialConfig{
		Endpoints: []string{"https://" + c.Addr()}, SignOfLife: signOfLife,
		TLS: &tls.Config{RootCAs: c.ca.Pool(), Certificates: []tls.Certificate{cert}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { e.Close() })
	return e
}

func TestUsersReadAndWriteOnlyTheirOwn(t *testing.T) {
	c := start(t)
	ctx := t.Context()
	root := c.as(authority.Root)
	if err := root.EnableAuth(ctx); err != nil {
		t.Fatal(err)
	}
	if err := root.EnableAuth(ctx); err != nil {
		t.Fatal("repeated:", err)
	}
	agent := store.User{Name: "agent-n1", Read: []string{"weft/state/", "one"}, Write: []string{"weft/state/nodes/n1/"}}
	for range 2 {
		if err := root.SetUser(ctx, agent); err != nil {
			t.Fatal(err)
		}
	}
	n1 := c.as(agent.Name)
	put := func(e *store.Etcd, key string) error { return store.Write(ctx, e, store.Put(key, []byte("x"))) }
	for _, key := range []string{"weft/state/nodes/n1/node", "weft/state/nodes/n2/node", "one", "one-more", "weft/secret/ca"} {
		if err := put(root, key); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(n1, "weft/state/nodes/n1/node"); err != nil {
		t.Error("own prefix:", err)
	}
	for _, key := range []string{"weft/state/nodes/n2/node", "weft/state/nodes/n1", "one"} {
		if err := put(n1, key); !errors.Is(err, store.ErrDenied) {
			t.Errorf("write of %s: %v", key, err)
		}
	}
	if _, err := n1.Get(ctx, "one"); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"one-more", "weft/secret/ca"} {
		if _, err := n1.Get(ctx, key); !errors.Is(err, store.ErrDenied) {
			t.Errorf("read of %s: %v", key, err)
		}
	}
	_, at, err := n1.List(ctx, "weft/state/")
	if err != nil {
		t.Fatal(err)
	}
	if err := n1.Watch(ctx, "weft/", at, func(store.Batch) error { return nil }); !errors.Is(err, store.ErrDenied) {
		t.Error("watch of everything:", err)
	}
	if _, _, err := c.as("nobody").List(ctx, "weft/state/"); !errors.Is(err, store.ErrDenied) {
		t.Error("unknown user:", err)
	}

	agent.Read = []string{"weft/state/"}
	if err := root.SetUser(ctx, agent); err != nil {
		t.Fatal(err)
	}
	if _, err := n1.Get(ctx, "one"); !errors.Is(err, store.ErrDenied) {
		t.Error("right not taken back:", err)
	}
	if err := root.RemoveUser(ctx, agent.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := n1.Get(ctx, "weft/state/nodes/n1/node"); !errors.Is(err, store.ErrDenied) {
		t.Error("removed user:", err)
	}
}

func TestWatchEndsWithTheRightsOfItsUser(t *testing.T) {
	c := start(t)
	root := c.as(authority.Root)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := root.EnableAuth(ctx); err != nil {
		t.Fatal(err)
	}
	set := func(name string, read ...string) {
		t.Helper()
		if err := root.SetUser(ctx, store.User{Name: name, Read: read}); err != nil {
			t.Fatal(err)
		}
	}
	for name, takeAway := range map[string]func(user string) error{
		"removed": func(user string) error { return root.RemoveUser(ctx, user) },
		"removed and there again": func(user string) error {
			if err := root.RemoveUser(ctx, user); err != nil {
				return err
			}
			return root.SetUser(ctx, store.User{Name: user})
		},
		"fewer rights": func(user string) error { return root.SetUser(ctx, store.User{Name: user, Read: []string{"other/"}}) },
	} {
		t.Run(name, func(t *testing.T) {
			set("west", "state/", "other/")
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			heard := make(chan string, 100)
			ended := make(chan error, 1)
			west := c.as("west")
			_, now, err := west.List(ctx, "state/")
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				ended <- west.Watch(ctx, "state/", now, func(b store.Batch) error {
					for _, e := range b.Events {
						heard <- string(e.Value)
					}
					return nil
				})
			}()
			await := func(want string) {
				t.Helper()
				for {
					select {
					case got := <-heard:
						if got == want {
							return
						}
					case err := <-ended:
						t.Fatal("watch ended:", err)
					case <-ctx.Done():
						t.Fatal("nothing came")
					}
				}
			}
			put := func(value string) {
				t.Helper()
				if err := store.Write(ctx, root, store.Put("state/a", []byte(value))); err != nil {
					t.Fatal(err)
				}
			}
			put(name + "1")
			await(name + "1")
			set("north", "state/") // does not concern west
			put(name + "2")
			await(name + "2")
			if err := takeAway("west"); err != nil {
				t.Fatal(err)
			}
			put("secret")
			select {
			case err := <-ended:
				if err == nil || ctx.Err() != nil {
					t.Error("watch ended with", err)
				}
			case <-ctx.Done():
				t.Fatal("the watch goes on")
			}
			for len(heard) > 0 {
				if got := <-heard; got == "secret" {
					t.Error("the user heard what it may not read")
				}
			}
		})
	}
}

func TestWatchGivesSignsOfLifeAndSurvivesRestart(t *testing.T) {
	c := start(t)
	root := c.watching(authority.Root, 50*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	batches := make(chan store.Batch)
	done := make(chan error, 1)
	go func() {
		done <- store.Persist(ctx, c.conf.Log, "follow", func(ctx context.Context) error {
			return store.Follow(ctx, root, "k/", func(b store.Batch) error {
				select {
				case batches <- b:
				case <-ctx.Done():
				}
				return nil
			})
		})
	}()
	next := func(what string, match func(store.Batch) bool) {
		t.Helper()
		for {
			select {
			case b := <-batches:
				if match(b) {
					return
				}
			case <-ctx.Done():
				t.Fatal("waiting for", what)
			}
		}
	}
	next("complete list", func(b store.Batch) bool { return b.Complete })
	next("sign of life", func(b store.Batch) bool { return !b.Complete && len(b.Events) == 0 })
	put := func(value string) {
		t.Helper()
		if err := store.Write(ctx, root, store.Put("k/a", []byte(value))); err != nil {
			t.Fatal(err)
		}
	}
	put("1")
	next("change", func(b store.Batch) bool { return len(b.Events) == 1 })

	c.Close()
	c.run()
	put("2")
	next("change after restart", func(b store.Batch) bool {
		return len(b.Events) == 1 && string(b.Events[0].Value) == "2"
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Looking at how the store is must not look like a reconnection, after which everybody
// makes sure of its history and opens all watches again.
func TestAskingHowItIsLeavesTheConnectionAlone(t *testing.T) {
	c := start(t)
	root := c.as(authority.Root)
	_, before, err := root.List(t.Context(), "weft/")
	if err != nil {
		t.Fatal(err)
	}
	_, _, versionErr := root.Version(t.Context())
	_, _, usageErr := root.Usage(t.Context())
	_, spaceErr := root.NoSpace(t.Context())
	_, statusErr := root.Client().Status(t.Context(), root.Client().Endpoints()[0])
	if err := errors.Join(versionErr, usageErr, spaceErr, statusErr, root.CheckVersions(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, after, err := root.List(t.Context(), "weft/"); err != nil || after.Connection != before.Connection {
		t.Errorf("%d new connections, %v", after.Connection-before.Connection, err)
	}
}

func TestWatchOfAStoreThatStaysAwayEnds(t *testing.T) {
	c := start(t)
	root := c.watching(authority.Root, 50*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	alive, ended := make(chan struct{}, 100), make(chan error, 1)
	_, at, err := root.List(ctx, "weft/")
	if err != nil {
		t.Fatal(err)
	}
	var closed atomic.Bool
	go func() {
		for {
			err := root.Watch(ctx, "weft/", at, func(store.Batch) error {
				select {
				case alive <- struct{}{}:
				default:
				}
				return nil
			})
			// On a busy machine the store may seem away while it is there.
			if closed.Load() || !errors.Is(err, store.ErrSilent) {
				ended <- err
				return
			}
		}
	}()
	select {
	case <-alive:
	case err := <-ended:
		t.Fatal("the watch ended while the store was there:", err)
	}
	c.Close()
	closed.Store(true)
	if err := <-ended; err == nil || ctx.Err() != nil {
		t.Error("a store that was away was not noticed:", err)
	}
	c.run() // the cleanup closes it again
}

// etcd's roles cover keys only: with a peer's certificate, anybody could grant any number
// of leases and compact the history that others' watches need.
func TestACertificateIsNoLicenceToHarm(t *testing.T) {
	c := start(t)
	ctx := t.Context()
	root := c.as(authority.Root)
	if err := root.EnableAuth(ctx); err != nil {
		t.Fatal(err)
	}
	peer, agent := store.User{Name: "remote-west", Read: []string{"state/"}}, store.User{Name: authority.AgentUser("n1"), Read: []string{"state/"}, Write: []string{"nodes/n1/"}}
	for _, u := range []store.User{peer, agent} {
		if err := root.SetUser(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Write(ctx, root, store.Put("state/a", nil), store.Put("state/b", nil)); err != nil {
		t.Fatal(err)
	}
	denied := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, store.ErrDenied) && !errors.Is(rpctypes.Error(err), rpctypes.ErrPermissionDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, name := range []string{peer.Name, agent.Name} {
		e := c.as(name)
		if _, _, err := e.List(ctx, "state/"); err != nil {
			t.Error(name, "cannot read:", err)
		}
		_, err := e.Grant(ctx, 365*24*time.Hour)
		denied(name+" grants a lease", err)
		_, err = e.Client().Compact(ctx, 2)
		denied(name+" compacts", err)
		_, err = e.Client().HashKV(ctx, "https://"+c.Addr(), 0)
		denied(name+" has the store hashed", err)
	}
	// etcd ignores the certificate if a header says that the request came through its
	// HTTP gateway. Such a call has no user, and is refused before etcd sees it.
	gateway := metadata.AppendToOutgoingContext(ctx, "grpcgateway-accept", "application/json")
	for _, name := range []string{peer.Name, agent.Name} {
		e := c.as(name)
		_, _, err := e.List(gateway, "state/")
		denied(name+" lists as the gateway", err)
		_, err = e.Grant(gateway, 365*24*time.Hour)
		denied(name+" grants a lease as the gateway", err)
		_, err = e.Client().Compact(gateway, 2)
		denied(name+" compacts as the gateway", err)
		_, err = e.Client().HashKV(gateway, "https://"+c.Addr(), 0)
		denied(name+" has the store hashed as the gateway", err)
	}
	leases, err := root.Client().Leases(ctx)
	if err != nil || len(leases.Leases) != 0 {
		t.Errorf("leases %v, %v", leases, err)
	}

	// An agent has its own, once.
	n1 := etcdserverpb.NewLeaseClient(c.as(agent.Name).Client().ActiveConnection())
	own := &etcdserverpb.LeaseGrantRequest{ID: wire.AgentLease("n1"), TTL: int64(wire.AgentLeaseTTL.Seconds())}
	if _, err := n1.LeaseGrant(ctx, own); err != nil {
		t.Error(err)
	}
	if _, err := n1.LeaseGrant(ctx, own); !errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseExist) {
		t.Error("a second lease:", err)
	}
	if _, err := c.as(agent.Name).Client().KeepAliveOnce(ctx, clientv3.LeaseID(own.ID)); err != nil {
		t.Error("keeping it:", err)
	}
	_, err = c.as(peer.Name).Client().KeepAliveOnce(ctx, clientv3.LeaseID(own.ID))
	if !errors.Is(err, io.EOF) { // the stream may end before the client has sent its request
		denied("the peer keeps the agent's lease", err)
	}
}

// Before the API server opens the member, it alone is answered.
func TestAClosedMemberAnswersRootAlone(t *testing.T) {
	c := start(t)
	ctx := t.Context()
	root := c.as(authority.Root)
	if err := root.EnableAuth(ctx); err != nil {
		t.Fatal(err)
	}
	if err := root.SetUser(ctx, store.User{Name: "remote-west", Read: []string{"state/"}}); err != nil {
		t.Fatal(err)
	}
	c.Close()
	c.conf.Closed = true
	c.run()
	if _, _, err := c.as(authority.Root).List(ctx, "state/"); err != nil {
		t.Error("root:", err)
	}
	west := etcdserverpb.NewKVClient(c.as("remote-west").Client().ActiveConnection())
	list := &etcdserverpb.RangeRequest{Key: []byte("state/"), RangeEnd: []byte("state0")}
	if _, err := west.Range(ctx, list); status.Code(err) != codes.Unavailable {
		t.Error("a peer, closed:", err)
	}
	c.Open()
	if _, err := west.Range(ctx, list); err != nil {
		t.Error("a peer, open:", err)
	}
}

// A store whose log or database was damaged is refused in a sentence that says what
// to do.
func TestDamagedDataIsASentence(t *testing.T) {
	overwrite := func(path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(bytes.Repeat([]byte("garbage "), 2048), 0)
		return errors.Join(err, f.Close())
	}
	truncate := func(size int64) func(string) error {
		return func(path string) error { return os.Truncate(path, size) }
	}
	for _, c := range []struct {
		name, files string
		damage      func(path string) error
	}{
		{"empty log", "wal/*.wal", truncate(0)},
		{"no log", "wal/*.wal", os.Remove},
		{"overwritten log", "wal/*.wal", overwrite},
		{"empty database", "snap/db", truncate(0)},
		{"database cut short in its head", "snap/db", truncate(3000)},
		{"database cut short", "snap/db", truncate(12 << 10)},
		{"overwritten database", "snap/db", overwrite},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := start(t)
			if err := store.Write(t.Context(), cluster.as(authority.Root), store.Put("a", []byte("1"))); err != nil {
				t.Fatal(err)
			}
			cluster.Close()
			member := filepath.Join(cluster.conf.Dir, "member")
			files, err := filepath.Glob(filepath.Join(member, c.files))
			if err != nil || len(files) == 0 {
				t.Fatalf("files %v, %v", files, err)
			}
			for _, path := range files {
				if err := c.damage(path); err != nil {
					t.Fatal(err)
				}
			}
			server, err := embedded.Start(t.Context(), cluster.conf)
			if err == nil {
				server.Close()
				t.Fatal("it started")
			}
			t.Log(err)
			if !strings.Contains(err.Error(), member) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("it says %v", err)
			}
		})
	}
}
