package reflector_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/weft-mesh/weft/internal/loopbacktest"
	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/store/watch"
)

// startEtcd runs one member on this machine.
func startEtcd(t *testing.T) (*clientv3.Client, *watch.Link) {
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
	link := new(watch.Link)
	c, err := clientv3.New(clientv3.Config{
		DialOptions: link.DialOptions(),
		Endpoints:   []string{client.String()}, Logger: zap.NewNop(), DialTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, link
}

func TestEtcdListsPagesWatchesAndKeepsALease(t *testing.T) {
	client, link := startEtcd(t)
	ctx := t.Context()
	e := reflector.NewEtcd("n1", client, link)

	// More than a page, at one revision.
	const many = 5000
	for from := 0; from < many; from += 100 {
		var ops []clientv3.Op
		for i := from; i < from+100; i++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("a/%05d", i), "x"))
		}
		if _, err := client.Txn(ctx).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Write(ctx, []reflector.Change{{Key: "b/1", Value: []byte("not ours")}}); err != nil {
		t.Fatal(err)
	}
	kvs, at, err := e.List(ctx, "a/")
	if err != nil || len(kvs) != many || kvs[0].Key != "a/00000" || kvs[many-1].Key != fmt.Sprintf("a/%05d", many-1) {
		t.Fatalf("listed %d, %v", len(kvs), err)
	}

	// Everything after the list is heard, in order.
	if err := e.Write(ctx, []reflector.Change{{Key: "a/new", Value: []byte("y")}, {Key: "a/00000", Delete: true}}); err != nil {
		t.Fatal(err)
	}
	watching, cancel := context.WithTimeout(ctx, time.Minute)
	var heard []string
	err = e.Watch(watching, "a/", at, func(_ int64, events []reflector.Event) {
		for _, ev := range events {
			heard = append(heard, fmt.Sprint(ev.Key, " ", string(ev.Value), " ", ev.Deleted))
		}
		if len(heard) == 2 {
			cancel()
		}
	})
	if len(heard) != 2 || heard[0] != "a/new y false" || heard[1] != "a/00000  true" {
		t.Errorf("heard %q, %v", heard, err)
	}

	// What was compacted away is an error, and not silence.
	now, err := client.Get(ctx, "a/new")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(ctx, now.Header.Revision); err != nil {
		t.Fatal(err)
	}
	watching, cancel = context.WithTimeout(ctx, time.Minute)
	defer cancel()
	at.Revision = 1
	if err := e.Watch(watching, "a/", at, func(int64, []reflector.Event) {}); err == nil || watching.Err() != nil {
		t.Errorf("a watch from before a compaction: %v", err)
	}

	// A leased key goes with its lease, the others stay; the next one is written
	// under a new lease.
	if err := e.PutLeased(ctx, "l/mark", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if lost, err := e.Renew(ctx); lost || err != nil {
		t.Errorf("renewed: lost %v, %v", lost, err)
	}
	leases, err := client.Leases(ctx)
	if err != nil || len(leases.Leases) != 1 {
		t.Fatalf("leases %v, %v", leases, err)
	}
	if _, err := client.Revoke(ctx, leases.Leases[0].ID); err != nil {
		t.Fatal(err)
	}
	if lost, err := e.Renew(ctx); !lost || err != nil {
		t.Errorf("after its end: lost %v, %v", lost, err)
	}
	if kvs, _, err := e.List(ctx, "l/"); err != nil || len(kvs) != 0 {
		t.Errorf("left: %v, %v", kvs, err)
	}
	if err := e.PutLeased(ctx, "l/mark", []byte("2")); err != nil {
		t.Error(err)
	}
	if kvs, _, err := e.List(ctx, "b/"); err != nil || len(kvs) != 1 {
		t.Errorf("the unleased key: %v, %v", kvs, err)
	}
}

// Large values make pages small, and not a list that fails forever.
func TestEtcdListsLargeValues(t *testing.T) {
	client, link := startEtcd(t)
	const many = 9
	for i := range many {
		if _, err := client.Put(t.Context(), fmt.Sprint("a/", i), strings.Repeat("x", 700<<10)); err != nil {
			t.Fatal(err)
		}
	}
	narrow, err := clientv3.New(clientv3.Config{
		Endpoints: client.Endpoints(), Logger: zap.NewNop(), DialTimeout: time.Minute, MaxCallSendMsgSize: 1 << 20, MaxCallRecvMsgSize: 2 << 20,
		DialOptions: link.DialOptions(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer narrow.Close()
	kvs, _, err := reflector.NewEtcd("n1", narrow, link).List(t.Context(), "a/")
	if err != nil || len(kvs) != many || kvs[many-1].Key != fmt.Sprint("a/", many-1) {
		t.Errorf("listed %d, %v", len(kvs), err)
	}
}

// What belongs to one turn costs the store few transactions, none larger than
// an etcd takes that was not configured for us.
func TestEtcdWritesManyChangesInFewTransactions(t *testing.T) {
	client, link := startEtcd(t)
	ctx := t.Context()
	e := reflector.NewEtcd("n1", client, link)
	var changes []reflector.Change
	for i := range 300 {
		changes = append(changes, reflector.Change{Key: fmt.Sprintf("a/%03d", i), Value: []byte("x")})
	}
	// A key that is written twice, and more bytes than one transaction has.
	changes = append(changes, reflector.Change{Key: "a/000", Value: []byte("y")}, reflector.Change{Key: "a/001", Delete: true})
	for i := range 3 {
		changes = append(changes, reflector.Change{Key: fmt.Sprintf("b/%d", i), Value: make([]byte, 700<<10)})
	}
	before, err := client.Get(ctx, "a/", clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Write(ctx, changes); err != nil {
		t.Fatal(err)
	}
	kvs, at, err := e.List(ctx, "a/")
	if err != nil || len(kvs) != 299 || string(kvs[0].Value) != "y" || kvs[1].Key != "a/002" {
		t.Errorf("%d keys, %v", len(kvs), err)
	}
	if n := at.Revision - before.Header.Revision; n != 6 {
		t.Errorf("%d transactions, want 3 for what is small and 3 for what is large", n)
	}
}
