package store

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/store/watch"
	"github.com/weft-mesh/weft/wire"
)

// Numbers etcd's own clients use.
const (
	pageSize         = 4096 // keys per request of a listing at first; fewer if their answer is too large
	mostPage         = 4 * pageSize
	smallPage        = 4 << 20 // bytes; after a smaller answer, twice as many keys are requested
	dialTimeout      = 5 * time.Second
	keepAliveTime    = 15 * time.Second
	keepAliveTimeout = 10 * time.Second
	maxMessage       = 16 << 20
	// tooLarge is in gRPC's error for an answer over the client's limit. Its code also
	// means that the store is busy.
	tooLarge = "received message larger than max"
)

// MostAnswer is a DialConfig.MostAnswer with room for a page of large values, or for what
// a watch has missed.
const MostAnswer = 64 << 20

// DialConfig says how an etcd is reached.
type DialConfig struct {
	// Endpoints are https URLs; any of them will do.
	Endpoints []string
	// TLS contains the trusted CAs and the client certificate, which names the
	// user.
	TLS *tls.Config
	// SignOfLife is the pause between two requests that prove a watch alive. A few
	// unanswered ones end the watch with ErrSilent. 0 means 5 s.
	SignOfLife time.Duration
	// Ping is the pause between two pings on the connection, and how long one may go
	// unanswered before another connection is tried. 0 means 15 s and 10 s.
	Ping time.Duration
	// Patience bounds each request other than a watch; a store that takes longer counts
	// as unavailable. 0 means no bound.
	Patience time.Duration
	// Lineage is the key of the store's lineage; "" means wire.LineageKey.
	Lineage string
	// MostKeys and MostBytes (keys and values) bound one List, for stores that are
	// not ours. Beyond them it fails with ErrTooMany or ErrTooMuch. 0 means no
	// bound.
	MostKeys, MostBytes int
	// MostAnswer bounds one answer, in bytes. 0 means etcd's own limit, 2 GiB.
	MostAnswer int
}

// Etcd is a Store on a real etcd.
type Etcd struct {
	client    *clientv3.Client
	single    *apart
	watched   *watch.Store
	patience  time.Duration // 0: no bound, as for what follows
	mostKeys  int
	mostBytes int
}

var (
	_ Store  = (*Etcd)(nil)
	_ Leases = (*Etcd)(nil)
	_ Holder = (*Etcd)(nil)
)

// Dial returns a client. It does not wait for a connection; the first call does.
func Dial(c DialConfig) (*Etcd, error) {
	ping, pingTimeout := keepAliveTime, keepAliveTimeout
	if c.Ping > 0 {
		ping, pingTimeout = c.Ping, c.Ping
	}
	send := maxMessage
	if c.MostAnswer > 0 {
		send = min(send, c.MostAnswer) // etcd's client wants this
	}
	options := []grpc.DialOption{grpc.WithChainUnaryInterceptor(wholeAnswer), grpc.WithChainStreamInterceptor(wholeStream)}
	if c.TLS != nil && c.TLS.ServerName != "" {
		options = append(options, grpc.WithAuthority(c.TLS.ServerName)) // otherwise gRPC expects the host of the endpoint
	}
	conf := clientv3.Config{
		Endpoints:            c.Endpoints,
		TLS:                  c.TLS,
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    ping,
		DialKeepAliveTimeout: pingTimeout,
		PermitWithoutStream:  c.Ping > 0,
		MaxCallSendMsgSize:   send,
		MaxCallRecvMsgSize:   c.MostAnswer,
		DialOptions:          options,
		BackoffWaitBetween:   50 * time.Millisecond,
		Logger:               zap.NewNop(),
	}
	link, single := new(watch.Link), &apart{conf: conf}
	conf.DialOptions = append(link.DialOptions(), options...)
	client, err := clientv3.New(conf)
	if err != nil {
		return nil, fmt.Errorf("client of etcd %v: %w", c.Endpoints, err)
	}
	single.Maintenance, client.Maintenance = client.Maintenance, single
	if c.SignOfLife == 0 {
		c.SignOfLife = 5 * time.Second
	}
	watched := &watch.Store{Client: client, Link: link, Lineage: cmp.Or(c.Lineage, wire.LineageKey), Interval: c.SignOfLife}
	return &Etcd{client: client, single: single, watched: watched, patience: c.Patience, mostKeys: c.MostKeys, mostBytes: c.MostBytes}, nil
}

// Client returns the underlying etcd client, for users, roles and maintenance.
func (e *Etcd) Client() *clientv3.Client { return e.client }

// SetEndpoints makes these the URLs of the store. Requests and watches that are under way go
// on.
func (e *Etcd) SetEndpoints(urls []string) { e.client.SetEndpoints(urls...) }

// Close ends the connection and every watch on it.
func (e *Etcd) Close() error { return errors.Join(e.single.close(), e.client.Close()) }

// Get implements Store.
func (e *Etcd) Get(ctx context.Context, key string) (KV, error) {
	resp, err := again(ctx, e.patience, func(ctx context.Context) (*clientv3.GetResponse, error) { return e.client.Get(ctx, key) })
	if err != nil {
		return KV{}, explain(err)
	}
	if len(resp.Kvs) == 0 {
		return KV{}, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	kv := resp.Kvs[0]
	return KV{Key: string(kv.Key), Value: kv.Value, Created: kv.CreateRevision, Modified: kv.ModRevision, Lease: Lease(kv.Lease)}, nil
}

// GetMany implements Store.
func (e *Etcd) GetMany(ctx context.Context, keys ...string) ([]KV, error) {
	kvs := make([]KV, 0, len(keys))
	for part := range slices.Chunk(keys, mostOps) {
		ops := make([]clientv3.Op, len(part))
		for i, key := range part {
			ops[i] = clientv3.OpGet(key)
		}
		resp, err := again(ctx, e.patience, func(ctx context.Context) (*clientv3.TxnResponse, error) {
			return e.client.Txn(ctx).Then(ops...).Commit()
		})
		if err != nil {
			return nil, explain(err)
		}
		if len(resp.Responses) != len(part) {
			return nil, errBroken
		}
		for i, key := range part {
			kv := KV{Key: key}
			if found := resp.Responses[i].GetResponseRange().GetKvs(); len(found) > 0 {
				kv.Value, kv.Created, kv.Modified, kv.Lease = found[0].Value, found[0].CreateRevision, found[0].ModRevision, Lease(found[0].Lease)
			}
			kvs = append(kvs, kv)
		}
	}
	return kvs, nil
}

// List implements Store.
func (e *Etcd) List(ctx context.Context, prefix string) (kvs []KV, at Point, err error) {
	for {
		at, err = e.watched.List(ctx, func() (revision int64, err error) {
			kvs, revision, err = e.list(ctx, prefix)
			return revision, err
		})
		if errors.Is(err, ErrCompacted) && ctx.Err() == nil {
			continue // compacted between two pages: start over
		}
		if err != nil {
			return nil, Point{}, explain(err)
		}
		return kvs, at, nil
	}
}

func (e *Etcd) list(ctx context.Context, prefix string) (kvs []KV, revision int64, err error) {
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	bytes, size := 0, int64(pageSize)
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(size)}
		if revision != 0 {
			opts = append(opts, clientv3.WithRev(revision))
		}
		resp, err := again(ctx, e.patience, func(ctx context.Context) (*clientv3.GetResponse, error) { return e.client.Get(ctx, from, opts...) })
		if err != nil && size > 1 && strings.Contains(err.Error(), tooLarge) {
			size /= 2
			continue
		}
		if err != nil {
			return nil, 0, explain(err)
		}
		if revision == 0 {
			revision = resp.Header.Revision
			kvs = make([]KV, 0, max(0, min(resp.Count, 1<<20))) // a peer may claim any number
		}
		before := bytes
		for _, kv := range resp.Kvs {
			bytes += len(kv.Key) + len(kv.Value)
			kvs = append(kvs, KV{Key: string(kv.Key), Value: kv.Value, Created: kv.CreateRevision, Modified: kv.ModRevision, Lease: Lease(kv.Lease)})
		}
		if over(len(kvs), e.mostKeys) {
			return nil, 0, fmt.Errorf("list %s: %w", prefix, ErrTooMany)
		}
		if over(bytes, e.mostBytes) {
			return nil, 0, fmt.Errorf("list %s: %w", prefix, ErrTooMuch)
		}
		if !resp.More {
			return kvs, revision, nil
		}
		if bytes-before < smallPage { // for each request, etcd counts all keys that are left
			size = min(2*size, mostPage)
		}
		from = kvs[len(kvs)-1].Key + "\x00"
	}
}

func over(n, most int) bool { return most > 0 && n > most }

// Count returns how many keys begin with prefix, and the store's revision.
func (e *Etcd) Count(ctx context.Context, prefix string) (n int, revision int64, err error) {
	resp, err := again(ctx, e.patience, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return e.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	})
	if err != nil {
		return 0, 0, explain(err)
	}
	return int(resp.Count), resp.Header.Revision, nil
}

// Watch implements Store.
func (e *Etcd) Watch(ctx context.Context, prefix string, after Point, each func(Batch) error) error {
	var enough error
	err := e.watched.Watch(ctx, prefix, after, func(revision int64, changes []*clientv3.Event) error {
		batch := Batch{Revision: revision, Events: make([]Event, len(changes))}
		for i, ev := range changes {
			batch.Events[i] = Event{
				KV:      KV{Key: string(ev.Kv.Key), Value: ev.Kv.Value, Created: ev.Kv.CreateRevision, Modified: ev.Kv.ModRevision, Lease: Lease(ev.Kv.Lease)},
				Deleted: ev.Type == clientv3.EventTypeDelete,
			}
		}
		enough = each(batch)
		return enough
	})
	switch {
	case enough != nil:
		return enough
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		return ErrUnavailable
	}
	return explain(err)
}

// Commit implements Store.
func (e *Etcd) Commit(ctx context.Context, txn Txn) (int64, bool, error) {
	cmps := make([]clientv3.Cmp, len(txn.If))
	for i, c := range txn.If {
		cmps[i] = clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.Modified)
		if c.Prefix {
			cmps[i] = cmps[i].WithPrefix()
		}
	}
	ops := make([]clientv3.Op, len(txn.Then))
	for i, op := range txn.Then {
		switch {
		case op.Delete && op.Prefix:
			ops[i] = clientv3.OpDelete(op.Key, clientv3.WithPrefix())
		case op.Delete:
			ops[i] = clientv3.OpDelete(op.Key)
		case op.Lease != 0:
			ops[i] = clientv3.OpPut(op.Key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease)))
		default:
			ops[i] = clientv3.OpPut(op.Key, string(op.Value))
		}
	}
	resp, err := again(ctx, e.patience, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return e.client.Txn(ctx).If(cmps...).Then(ops...).Commit()
	})
	if err != nil {
		return 0, false, explain(err)
	}
	return resp.Header.Revision, resp.Succeeded, nil
}

// Grant implements Leases.
func (e *Etcd) Grant(ctx context.Context, ttl time.Duration) (Lease, error) {
	resp, err := e.client.Grant(ctx, int64(ttl/time.Second))
	if err != nil {
		return 0, explain(err)
	}
	return Lease(resp.ID), nil
}

// KeepAlive implements Leases.
func (e *Etcd) KeepAlive(ctx context.Context, lease Lease) error {
	answers, err := e.client.KeepAlive(ctx, clientv3.LeaseID(lease))
	if err != nil {
		return explain(err)
	}
	for range answers {
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("lease %x: %w", int64(lease), ErrUnavailable)
}

// Revoke implements Leases.
func (e *Etcd) Revoke(ctx context.Context, lease Lease) error {
	_, err := e.client.Revoke(ctx, clientv3.LeaseID(lease))
	return explain(err)
}

// Hold implements Holder.
func (e *Etcd) Hold(ctx context.Context, lease Lease, ttl time.Duration) error {
	_, err := again(ctx, e.patience, func(ctx context.Context) (*etcdserverpb.LeaseGrantResponse, error) {
		// The client's own Grant lets the store choose the number.
		leases := etcdserverpb.NewLeaseClient(e.client.ActiveConnection())
		return leases.LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{ID: int64(lease), TTL: int64(ttl / time.Second)})
	})
	if errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseExist) {
		return e.Renew(ctx, lease) // one left by an earlier run may be about to expire
	}
	return explain(err)
}

// Renew implements Holder.
func (e *Etcd) Renew(ctx context.Context, lease Lease) error {
	_, err := again(ctx, e.patience, func(ctx context.Context) (*clientv3.LeaseKeepAliveResponse, error) {
		return e.client.KeepAliveOnce(ctx, clientv3.LeaseID(lease))
	})
	return explain(err)
}

// again repeats a call that was overtaken by a change of users or roles. etcd refuses
// such a call before doing anything, so repeating it is safe. All tries together have
// the time of one.
func again[R any](ctx context.Context, patience time.Duration, call func(context.Context) (R, error)) (R, error) {
	if patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	for {
		resp, err := call(ctx)
		if !errors.Is(err, rpctypes.ErrAuthOldRevision) || ctx.Err() != nil {
			return resp, err
		}
	}
}

// explained reports whether err already wraps one of our errors.
func explained(err error) bool {
	for _, ours := range []error{ErrCompacted, ErrWentBack, ErrReconnected, ErrSilent, ErrDenied, ErrFull, ErrTooLarge, ErrTooMany, ErrTooMuch, ErrLeaseEnded, ErrUnavailable} {
		if errors.Is(err, ours) {
			return true
		}
	}
	return false
}

// explain wraps etcd's error together with ours of the same meaning.
func explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || explained(err) {
		return err
	}
	var known error
	switch rpc := rpctypes.Error(err); {
	case errors.Is(rpc, rpctypes.ErrCompacted):
		known = ErrCompacted
	case errors.Is(rpc, rpctypes.ErrNoSpace):
		known = ErrFull
	case errors.Is(rpc, rpctypes.ErrPermissionDenied), errors.Is(rpc, rpctypes.ErrUserEmpty), errors.Is(rpc, rpctypes.ErrAuthFailed),
		strings.Contains(err.Error(), rpctypes.ErrPermissionDenied.Error()): // watches get it as text
		known = ErrDenied
	case errors.Is(rpc, rpctypes.ErrRequestTooLarge), errors.Is(rpc, rpctypes.ErrTooManyOps),
		strings.Contains(err.Error(), "message larger than max"): // far larger: gRPC itself refuses it
		known = ErrTooLarge
	case errors.Is(rpc, rpctypes.ErrLeaseNotFound):
		known = ErrLeaseEnded
	case unavailable(rpc), status.Code(err) == codes.Unavailable, status.Code(err) == codes.DeadlineExceeded, errors.Is(err, context.DeadlineExceeded):
		known = ErrUnavailable
	default:
		return err
	}
	return fmt.Errorf("%w: %w", known, err)
}

// unavailable reports whether etcd itself says that it cannot serve now, for example because
// its leader has changed. gRPC does not see the code of such an error.
func unavailable(err error) bool {
	var etcd rpctypes.EtcdError
	return errors.As(err, &etcd) && etcd.Code() == codes.Unavailable
}
