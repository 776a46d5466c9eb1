package peers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("go.etcd.io/etcd/server/v3/etcdserver.monitorFileDescriptor"))
}

// sides are a store of ours and a real etcd, and a client of each.
type sides struct {
	ours   *Store
	client [2]*store.Etcd // ours, real
}

func begin(t *testing.T) *sides {
	t.Helper()
	ca, err := authority.Open(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(authority.Request{User: authority.Root, Client: true, Server: true, Names: []string{"localhost"}, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Bundle())
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}

	s := &sides{ours: NewStore()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, conf, s.ours, nil) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	for path, text := range map[string][]byte{certFile: pair.Cert, keyFile: pair.Key} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	real, err := embedded.Start(t.Context(), embedded.Config{Dir: filepath.Join(dir, "etcd"), Listen: "127.0.0.1:0", Cert: certFile, Key: keyFile, CA: ca.BundlePath(), QuotaBytes: 64 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(real.Close)
	for i, addr := range []string{l.Addr().String(), real.Addr()} {
		s.client[i], err = store.Dial(store.DialConfig{Endpoints: []string{"https://" + addr}, TLS: conf, SignOfLife: 200 * time.Millisecond, Lineage: wire.ExportLineageKey})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.client[i].Close() })
	}
	return s
}

// write makes the same transaction in both.
func (s *sides) write(t *testing.T, puts map[string]string) {
	t.Helper()
	w := s.ours.begin()
	var ops []store.Op
	for key, value := range puts {
		if value == "" {
			w.delete(key)
			ops = append(ops, store.Delete(key))
		} else {
			w.put(key, []byte(value))
			ops = append(ops, store.Put(key, []byte(value)))
		}
	}
	w.end()
	if _, _, err := s.client[1].Commit(t.Context(), store.Txn{Then: ops}); err != nil {
		t.Fatal(err)
	}
}

// Our store answers the same as a real etcd: lists of any revision, in pages, and watches
// from any revision.
func TestAnswersAreThoseOfEtcd(t *testing.T) {
	s := begin(t)
	r := rand.New(rand.NewPCG(3, 4))
	s.write(t, map[string]string{"a/1": "one", "a/2": "two", "b/1": "other", wire.ExportLineageKey: `{"starts":[{"id":"1"}]}`})
	// What fills our store is not in its history, so a revision later it begins.
	if _, _, err := s.client[1].Commit(t.Context(), store.Txn{Then: []store.Op{store.Put("z", []byte("-"))}}); err != nil {
		t.Fatal(err)
	}
	type event struct {
		Deleted                    bool
		Key, Value                 string
		Created, Modified, Version int64
	}
	var first int64
	for n := range 60 {
		puts := map[string]string{}
		for range 1 + r.IntN(3) {
			value := fmt.Sprint(n)
			if r.IntN(3) == 0 {
				value = ""
			}
			puts[fmt.Sprintf("a/%d", r.IntN(9))] = value
		}
		puts["a/always"] = fmt.Sprint(n) // a transaction that deletes nothing has no revision
		s.write(t, puts)
		for _, opts := range [][]clientv3.OpOption{
			{clientv3.WithPrefix()},
			{clientv3.WithPrefix(), clientv3.WithLimit(3)},
			{clientv3.WithPrefix(), clientv3.WithCountOnly()},
			{clientv3.WithPrefix(), clientv3.WithRev(max(first, 4))},
			{clientv3.WithRange("a/6"), clientv3.WithLimit(2)},
		} {
			var got [2]*clientv3.GetResponse
			for i, c := range s.client {
				var err error
				if got[i], err = c.Client().Get(t.Context(), "a/", opts...); err != nil {
					t.Fatal(err)
				}
			}
			if first == 0 {
				first = got[0].Header.Revision
			}
			if got[0].Header.Revision != got[1].Header.Revision || got[0].Count != got[1].Count || got[0].More != got[1].More {
				t.Fatalf("revision %d, %d keys, more: %v; etcd: %d, %d, %v", got[0].Header.Revision, got[0].Count, got[0].More, got[1].Header.Revision, got[1].Count, got[1].More)
			}
			if diff := cmp.Diff(fmt.Sprint(got[1].Kvs), fmt.Sprint(got[0].Kvs)); diff != "" {
				t.Fatal(diff)
			}
		}
	}
	var got [2][]event
	for i, c := range s.client {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for resp := range c.Client().Watch(ctx, "a/", clientv3.WithPrefix(), clientv3.WithRev(first)) {
			if err := resp.Err(); err != nil {
				t.Fatal(err)
			}
			for _, e := range resp.Events {
				got[i] = append(got[i], event{e.Type == clientv3.EventTypeDelete, string(e.Kv.Key), string(e.Kv.Value), e.Kv.CreateRevision, e.Kv.ModRevision, e.Kv.Version})
			}
			if slices.ContainsFunc(got[i], func(e event) bool { return e.Value == "59" }) {
				break
			}
		}
		cancel()
		// The events of one revision are in any order.
		slices.SortStableFunc(got[i], func(a, b event) int {
			if a.Modified != b.Modified {
				return int(a.Modified - b.Modified)
			}
			return slices.Compare([]byte(a.Key), []byte(b.Key))
		})
	}
	if diff := cmp.Diff(got[1], got[0]); diff != "" || len(got[0]) < 60 {
		t.Errorf("%d events\n%s", len(got[0]), diff)
	}
}

// A mirror's way to follow works on our store as on a real one, also while nothing changes.
func TestFollowingOurStore(t *testing.T) {
	s := begin(t)
	s.write(t, map[string]string{"a/1": "one", wire.ExportLineageKey: `{"starts":[{"id":"1"}]}`})
	for i, c := range s.client {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		signs, last := 0, ""
		follow := func() error {
			return store.Follow(ctx, c, "a/", func(b store.Batch) error {
				if len(b.Events) == 0 {
					if signs++; signs == 3 {
						s.write(t, map[string]string{"a/1": "two"})
					}
				}
				for _, e := range b.Events {
					last = string(e.Value)
				}
				if last == "two" {
					cancel()
				}
				return nil
			})
		}
		for errors.Is(follow(), store.ErrSilent) { // a busy machine
		}
		cancel()
		if signs < 3 || last != "two" {
			t.Errorf("side %d: %d signs of life, the last value is %q", i, signs, last)
		}
		s.write(t, map[string]string{"a/1": "one"})
	}
}

func TestHistoryHasABeginning(t *testing.T) {
	s := begin(t)
	s.write(t, map[string]string{"a/1": "one"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	resp := <-s.client[0].Client().Watch(ctx, "a/", clientv3.WithPrefix(), clientv3.WithRev(1))
	if resp.CompactRevision == 0 {
		t.Errorf("a watch from revision 1 is answered with %+v", resp)
	}
	if _, err := s.client[0].Client().Get(ctx, "a/", clientv3.WithPrefix(), clientv3.WithRev(99)); err == nil {
		t.Error("a revision of the future is answered")
	}
}

// A server ends at once, whatever its connections are at: here a client has not begun its
// handshake.
func TestServeEndsAtOnce(t *testing.T) {
	ca, err := authority.Open(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(authority.Request{User: authority.Root, Client: true, Server: true, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: ca.Pool(), ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, conf, NewStore(), nil) }()
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	later, err := tls.Dial("tcp", l.Addr().String(), conf) // so the silent one was accepted
	if err != nil {
		t.Fatal(err)
	}
	defer later.Close()
	stop()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it waits for the handshake of a client that is silent")
		silent.Close()
		<-served
	}
}
