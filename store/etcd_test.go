package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/weft-mesh/weft/internal/loopbacktest"
	"github.com/weft-mesh/weft/store"
)

// startEtcd runs one member on this machine.
func startEtcd(t *testing.T) (address string) {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel, cfg.ZapLoggerBuilder = t.TempDir(), "fatal", embed.NewZapLoggerBuilder(zap.NewNop())
	addr := loopbacktest.Addr(t)
	client, peer := url.URL{Scheme: "http", Host: fmt.Sprintf("%v:12379", addr)}, url.URL{Scheme: "http", Host: fmt.Sprintf("%v:12380", addr)}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(time.Minute):
		t.Fatal("etcd does not start")
	}
	return client.String()
}

func dial(t *testing.T, c store.DialConfig) *store.Etcd {
	t.Helper()
	e, err := store.Dial(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func count(t *testing.T, e *store.Etcd, prefix string) (keys int, revision int64) {
	t.Helper()
	keys, revision, err := e.Count(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	return keys, revision
}

func TestEtcdListsPagesAndWatchesWhatFollows(t *testing.T) {
	ctx, e := t.Context(), dial(t, store.DialConfig{Endpoints: []string{startEtcd(t)}, Patience: time.Minute})
	// More than a page, at one revision.
	const many = 25_000
	var ops []store.Op
	for i := range many {
		ops = append(ops, store.Put(fmt.Sprintf("a/%05d", i), []byte("x")))
	}
	if err := store.Write(ctx, e, ops...); err != nil {
		t.Fatal(err)
	}
	kvs, at, err := e.List(ctx, "a/")
	if err != nil || len(kvs) != many || kvs[0].Key != "a/00000" || kvs[many-1].Key != fmt.Sprintf("a/%05d", many-1) {
		t.Fatalf("listed %d, %v", len(kvs), err)
	}

	// Everything after the list is heard, in order.
	if err := store.Write(ctx, e, store.Put("a/new", []byte("y")), store.Delete("a/00000")); err != nil {
		t.Fatal(err)
	}
	var heard []string
	enough := errors.New("enough")
	err = e.Watch(ctx, "a/", at, func(b store.Batch) error {
		for _, ev := range b.Events {
			heard = append(heard, fmt.Sprint(ev.Key, " ", string(ev.Value), " ", ev.Deleted))
		}
		if len(heard) >= 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || len(heard) != 2 || heard[0] != "a/new y false" || heard[1] != "a/00000  true" {
		t.Errorf("heard %q, %v", heard, err)
	}

	// What was compacted away is an error, and not silence.
	_, now := count(t, e, "a/")
	if err := e.Compact(ctx, now); err != nil {
		t.Fatal(err)
	}
	at.Revision = 1
	if err := e.Watch(ctx, "a/", at, func(store.Batch) error { return nil }); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("a watch from before a compaction: %v", err)
	}
}

// The owner of a lease chooses its number, and so keeps it when it restarts. A leased key
// goes with its lease, the others stay.
func TestALeaseThatItsOwnerHolds(t *testing.T) {
	ctx, e := t.Context(), dial(t, store.DialConfig{Endpoints: []string{startEtcd(t)}, Patience: time.Minute})
	const lease = store.Lease(7777)
	leased := store.Txn{Then: []store.Op{{Key: "l/mark", Value: []byte("1"), Lease: lease}}}
	if _, _, err := e.Commit(ctx, leased); !errors.Is(err, store.ErrLeaseEnded) {
		t.Errorf("before there is a lease: %v", err)
	}
	if err := e.Renew(ctx, lease); !errors.Is(err, store.ErrLeaseEnded) {
		t.Errorf("renewed before there is a lease: %v", err)
	}
	for range 2 { // the second time as after a restart
		if err := e.Hold(ctx, lease, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := e.Commit(ctx, leased); err != nil {
		t.Fatal(err)
	}
	if err := store.Write(ctx, e, store.Put("l/other", nil)); err != nil {
		t.Fatal(err)
	}
	if err := e.Renew(ctx, lease); err != nil {
		t.Error(err)
	}
	if err := e.Revoke(ctx, lease); err != nil {
		t.Fatal(err)
	}
	if err := e.Renew(ctx, lease); !errors.Is(err, store.ErrLeaseEnded) {
		t.Errorf("renewed after its end: %v", err)
	}
	if kvs, _, err := e.List(ctx, "l/"); err != nil || len(kvs) != 1 || kvs[0].Key != "l/other" {
		t.Errorf("left: %v, %v", kvs, err)
	}
}

// Large values make pages small, and not a list that fails forever.
func TestEtcdListsLargeValues(t *testing.T) {
	address := startEtcd(t)
	e := dial(t, store.DialConfig{Endpoints: []string{address}})
	const many = 9
	for i := range many {
		if err := store.Write(t.Context(), e, store.Put(fmt.Sprint("a/", i), []byte(strings.Repeat("x", 700<<10)))); err != nil {
			t.Fatal(err)
		}
	}
	narrow := dial(t, store.DialConfig{Endpoints: []string{address}, MostAnswer: 2 << 20})
	kvs, _, err := narrow.List(t.Context(), "a/")
	if err != nil || len(kvs) != many || kvs[many-1].Key != fmt.Sprint("a/", many-1) {
		t.Errorf("listed %d, %v", len(kvs), err)
	}
}

// A store that takes its time is not waited for longer than we have patience.
func TestPatienceEnds(t *testing.T) {
	e := dial(t, store.DialConfig{Endpoints: []string{"http://" + loopbacktest.Addr(t).String() + ":12379"}, Patience: 50 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for call, err := range map[string]error{
		"get":  func() error { _, err := e.Get(ctx, "a"); return err }(),
		"list": func() error { _, _, err := e.List(ctx, "a"); return err }(),
		"hold": e.Hold(ctx, 1, time.Minute),
	} {
		if !errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
			t.Errorf("%s: %v", call, err)
		}
	}
}
