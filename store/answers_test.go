package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"

	"github.com/weft-mesh/weft/wire"
)

// impostor gives answers that no etcd gives.
type impostor struct {
	etcdserverpb.UnimplementedKVServer
	etcdserverpb.UnimplementedWatchServer
	page  func(n int) *etcdserverpb.RangeResponse
	event *etcdserverpb.WatchResponse
	pages int
}

func (i *impostor) Range(_ context.Context, r *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	if string(r.Key) == wire.LineageKey {
		starts := wire.Lineage{Starts: []wire.Start{{ID: "1"}}}
		return &etcdserverpb.RangeResponse{Header: &etcdserverpb.ResponseHeader{Revision: 5}, Kvs: []*mvccpb.KeyValue{{Value: wire.Marshal(starts)}}}, nil
	}
	i.pages++
	return i.page(i.pages), nil
}

func (i *impostor) Watch(s etcdserverpb.Watch_WatchServer) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	if err := s.Send(&etcdserverpb.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: 5}, Created: true}); err != nil {
		return err
	}
	if err := s.Send(i.event); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

func (i *impostor) serve(t *testing.T, most int) *Etcd {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, i)
	etcdserverpb.RegisterWatchServer(server, i)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-ended })
	e, err := Dial(DialConfig{Endpoints: []string{"http://" + l.Addr().String()}, SignOfLife: 100 * time.Millisecond, MostKeys: most, MostBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// Whatever a peer's store answers, we get an error and do not panic or read for ever.
func TestListFromAnImpostor(t *testing.T) {
	header := &etcdserverpb.ResponseHeader{Revision: 5}
	full := func(n, size int) *etcdserverpb.RangeResponse {
		r := &etcdserverpb.RangeResponse{Header: header, More: true}
		for k := range 100 {
			r.Kvs = append(r.Kvs, &mvccpb.KeyValue{Key: fmt.Appendf(nil, "k/%d-%d", n, k), Value: make([]byte, size)})
		}
		return r
	}
	for name, c := range map[string]struct {
		page func(int) *etcdserverpb.RangeResponse
		want error
	}{
		"more than there can be": {func(int) *etcdserverpb.RangeResponse {
			return &etcdserverpb.RangeResponse{Header: header, Count: 1 << 60}
		}, nil},
		"fewer than none": {func(int) *etcdserverpb.RangeResponse {
			return &etcdserverpb.RangeResponse{Header: header, Count: -1}
		}, nil},
		"more of nothing": {func(int) *etcdserverpb.RangeResponse {
			return &etcdserverpb.RangeResponse{Header: header, More: true}
		}, errBroken},
		"no header": {func(int) *etcdserverpb.RangeResponse { return &etcdserverpb.RangeResponse{} }, errBroken},
		"no revision": {func(n int) *etcdserverpb.RangeResponse {
			r := full(n, 10_000)
			r.Header = &etcdserverpb.ResponseHeader{}
			return r
		}, errBroken},
		"without end":   {func(n int) *etcdserverpb.RangeResponse { return full(n, 10) }, ErrTooMany},
		"without bound": {func(n int) *etcdserverpb.RangeResponse { return full(n, 10_000) }, ErrTooMuch},
	} {
		t.Run(name, func(t *testing.T) {
			i := &impostor{page: c.page}
			kvs, _, err := i.serve(t, 1000).List(t.Context(), "k/")
			if c.want == nil && err != nil || c.want != nil && err == nil {
				t.Errorf("%d keys, %v", len(kvs), err)
			}
			if c.want != errBroken && !errors.Is(err, c.want) {
				t.Error(err)
			}
			if i.pages > 11 || errors.Is(c.want, errBroken) && i.pages > 1 {
				t.Errorf("%d pages", i.pages)
			}
		})
	}
}

func TestWatchOfAnImpostor(t *testing.T) {
	header := &etcdserverpb.ResponseHeader{Revision: 6}
	for name, event := range map[string]*etcdserverpb.WatchResponse{
		"no header": {},
		"no key":    {Header: header, Events: []*mvccpb.Event{{}}},
	} {
		t.Run(name, func(t *testing.T) {
			i := &impostor{event: event}
			if err := i.serve(t, 0).Watch(t.Context(), "k/", Point{Revision: 5, Start: "1"}, func(b Batch) error {
				if len(b.Events) > 0 {
					t.Errorf("heard %v", b)
				}
				return nil
			}); err == nil {
				t.Error("nothing is wrong with it")
			}
		})
	}
}
