package peers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Serve answers readers of a store on a listener, as an etcd does over mutual TLS, until
// ctx ends. It serves what mirrors use: ranges, also of an earlier revision, and watches
// with progress. Sent, if not nil, is raised by the bytes it sends.
func Serve(ctx context.Context, l net.Listener, conf *tls.Config, s *Store, sent *atomic.Int64) error {
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(conf)), grpc.MaxSendMsgSize(1<<30),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	e := &etcd{store: s}
	etcdserverpb.RegisterKVServer(server, e)
	etcdserverpb.RegisterWatchServer(server, e)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	err := server.Serve(counted{l, ctx, sent})
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// counted counts what its connections send, and closes them when ctx ends: a server that is
// stopped would wait for handshakes, each for two minutes.
type counted struct {
	net.Listener
	ctx  context.Context
	sent *atomic.Int64
}

func (l counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countedConn{c, l.sent, context.AfterFunc(l.ctx, func() { c.Close() })}, nil
}

type countedConn struct {
	net.Conn
	sent   *atomic.Int64
	closed func() bool
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if c.sent != nil {
		c.sent.Add(int64(n))
	}
	return n, err
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// etcd is a Store in etcd's language.
type etcd struct {
	etcdserverpb.UnimplementedKVServer
	etcdserverpb.UnimplementedWatchServer
	store *Store
}

func header(revision int64) *etcdserverpb.ResponseHeader {
	return &etcdserverpb.ResponseHeader{ClusterId: 1, MemberId: 1, RaftTerm: 2, Revision: revision}
}

// Range implements etcdserverpb.KVServer.
func (e *etcd) Range(_ context.Context, r *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	kvs, count, revision, ok := e.store.list(string(r.Key), string(r.RangeEnd), r.Revision, int(r.Limit))
	switch {
	case !ok && r.Revision > revision:
		return nil, rpctypes.ErrGRPCFutureRev
	case !ok:
		return nil, rpctypes.ErrGRPCCompacted
	}
	answer := &etcdserverpb.RangeResponse{Header: header(revision), Count: int64(count), More: count > len(kvs)}
	if !r.CountOnly {
		answer.Kvs = kvs
	} else {
		answer.More = false
	}
	return answer, nil
}

// allWatches is the ID in an answer that concerns every watch of a stream.
const allWatches = -1

// watching is one watch of a stream.
type watching struct {
	id       int64
	key, end string
	next     int64 // revision it has not seen yet
}

// Watch implements etcdserverpb.WatchServer.
func (e *etcd) Watch(stream etcdserverpb.Watch_WatchServer) error {
	ctx := stream.Context()
	requests := make(chan *etcdserverpb.WatchRequest)
	var reading sync.WaitGroup
	defer reading.Wait()
	failed := make(chan error, 1)
	reading.Go(func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	})
	s := &watchStream{etcd: e, stream: stream, watches: map[int64]*watching{}}
	for {
		changed, err := s.deliver()
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case r := <-requests:
			if err := s.request(r); err != nil {
				return err
			}
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type watchStream struct {
	etcd    *etcd
	stream  etcdserverpb.Watch_WatchServer
	watches map[int64]*watching
	last    int64
}

// deliver sends to every watch what it has not seen, and returns a channel that is closed
// when there is more.
func (s *watchStream) deliver() (<-chan struct{}, error) {
	_, more := s.etcd.store.now() // before looking: nothing is missed
	for id, w := range s.watches {
		events, revision, ok := s.etcd.store.since(w.next, w.key, w.end)
		if !ok {
			delete(s.watches, id)
			if err := s.stream.Send(&etcdserverpb.WatchResponse{Header: header(revision), WatchId: id, Canceled: true, CompactRevision: s.etcd.store.oldest()}); err != nil {
				return nil, err
			}
			continue
		}
		w.next = max(w.next, revision+1)
		if len(events) == 0 {
			continue
		}
		if err := s.stream.Send(&etcdserverpb.WatchResponse{Header: header(revision), WatchId: id, Events: events}); err != nil {
			return nil, err
		}
	}
	return more, nil
}

func (s *watchStream) request(r *etcdserverpb.WatchRequest) error {
	switch r := r.RequestUnion.(type) {
	case *etcdserverpb.WatchRequest_CreateRequest:
		c := r.CreateRequest
		w := &watching{id: s.last, key: string(c.Key), end: string(c.RangeEnd), next: c.StartRevision}
		s.last++
		revision, _ := s.etcd.store.now()
		if w.next == 0 {
			w.next = revision + 1
		}
		s.watches[w.id] = w
		return s.stream.Send(&etcdserverpb.WatchResponse{Header: header(revision), WatchId: w.id, Created: true})
	case *etcdserverpb.WatchRequest_CancelRequest:
		id := r.CancelRequest.WatchId
		if s.watches[id] == nil {
			return nil
		}
		delete(s.watches, id)
		revision, _ := s.etcd.store.now()
		return s.stream.Send(&etcdserverpb.WatchResponse{Header: header(revision), WatchId: id, Canceled: true})
	case *etcdserverpb.WatchRequest_ProgressRequest:
		// Everything up to now was sent before the request was read.
		revision, _ := s.etcd.store.now()
		if _, err := s.deliver(); err != nil {
			return err
		}
		return s.stream.Send(&etcdserverpb.WatchResponse{Header: header(revision), WatchId: allWatches})
	}
	return nil
}
