package embedded

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/internal/loopbacktest"
	"github.com/weft-mesh/weft/store"
)

// A request whose client has gone is still being answered. The database is not closed
// under it.
func TestCloseWaitsForRequests(t *testing.T) {
	ca, err := authority.Open(t.TempDir(), "east")
	if err != nil {
		t.Fatal(err)
	}
	addr := loopbacktest.Addr(t)
	cert, key, err := ca.IssueFile("etcd", authority.Request{User: "etcd", Client: true, Server: true, Addresses: []netip.Addr{addr}})
	if err != nil {
		t.Fatal(err)
	}
	asked, release := make(chan struct{}), make(chan struct{})
	slow := grpc.ServiceDesc{ServiceName: "test.Slow", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Ask",
		Handler: func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
			close(asked)
			<-release
			return &emptypb.Empty{}, nil
		},
	}}}
	conf := Config{Dir: t.TempDir(), Listen: fmt.Sprintf("%v:12379", addr), Cert: cert, Key: key, CA: ca.BundlePath(), Log: slog.New(slog.DiscardHandler)}
	server, err := start(t.Context(), conf, func(c *embed.Config) {
		c.ServiceRegister = func(s *grpc.Server) { s.RegisterService(&slow, nil) }
	})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(authority.Request{User: authority.Root, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	own, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	client, err := store.Dial(store.DialConfig{
		Endpoints: []string{"https://" + server.Addr()}, TLS: &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{own}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	went := make(chan error, 1)
	go func() {
		went <- client.Client().ActiveConnection().Invoke(ctx, "/test.Slow/Ask", &emptypb.Empty{}, &emptypb.Empty{})
	}()
	<-asked
	leave()
	if err := <-went; err == nil {
		t.Error("answered before it was")
	}
	client.Close()

	closed := make(chan struct{})
	go func() { defer close(closed); server.Close() }()
	select {
	case <-closed:
		t.Error("closed under a request")
	case <-time.After(time.Second): // Close takes a tenth of that if it does not wait
	}
	close(release)
	<-closed
}
