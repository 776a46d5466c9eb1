package reflector

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-mesh/weft/store/watch"
	"github.com/weft-mesh/weft/wire"
)

const (
	// pageSize is how many keys are asked for at once. If they are too large for one
	// message, half as many are, and so on.
	pageSize = 4096
	// tooLarge is in grpc's error for an answer over the client's limit. Its code also
	// means that the store is busy.
	tooLarge = "received message larger than max"
)

// Etcd is a Source and a Sink over one etcd client. Several goroutines may use it.
type Etcd struct {
	client *clientv3.Client
	store  *watch.Store

	lease clientv3.LeaseID

	// mu guards granted: the lease is there, as far as known.
	mu      sync.Mutex
	granted bool
}

// NewEtcd wraps client of a node's agent, whose connections link counts; it stays
// the caller's to close.
func NewEtcd(node string, client *clientv3.Client, link *watch.Link) *Etcd {
	return &Etcd{client: client, lease: clientv3.LeaseID(wire.AgentLease(node)), store: &watch.Store{Client: client, Link: link, Lineage: wire.LineageKey, Interval: signOfLife}}
}

// List implements Source. Pages are read at the revision of the first one.
func (e *Etcd) List(ctx context.Context, prefix string) (kvs []KV, at watch.Point, err error) {
	at, err = e.store.List(ctx, func() (revision int64, err error) {
		kvs, revision, err = e.list(ctx, prefix)
		return revision, err
	})
	return kvs, at, err
}

func (e *Etcd) list(ctx context.Context, prefix string) (kvs []KV, revision int64, err error) {
	from, end, size := prefix, clientv3.GetPrefixRangeEnd(prefix), int64(pageSize)
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(size)}
		if revision > 0 {
			opts = append(opts, clientv3.WithRev(revision))
		}
		page, err := e.get(ctx, from, opts)
		if err != nil && size > 1 && strings.Contains(err.Error(), tooLarge) {
			size /= 2
			continue
		}
		if err != nil {
			return nil, 0, fmt.Errorf("list %s: %w", prefix, err)
		}
		if revision == 0 {
			revision = page.Header.Revision
		}
		for _, kv := range page.Kvs {
			kvs = append(kvs, KV{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision})
		}
		if !page.More || len(page.Kvs) == 0 {
			return kvs, revision, nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

func (e *Etcd) get(ctx context.Context, from string, opts []clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return e.client.Get(ctx, from, opts...)
}

// Watch implements Source. A store that falls silent ends it with watch.ErrSilent,
// one that went back in time with watch.ErrWentBack.
func (e *Etcd) Watch(ctx context.Context, prefix string, after watch.Point, each func(int64, []Event)) error {
	err := e.store.Watch(ctx, prefix, after, func(current int64, changes []*clientv3.Event) error {
		events := make([]Event, 0, len(changes))
		for _, ev := range changes {
			e := Event{KV: KV{Key: string(ev.Kv.Key), Value: ev.Kv.Value, Revision: ev.Kv.ModRevision}}
			e.Deleted = ev.Type == clientv3.EventTypeDelete
			events = append(events, e)
		}
		each(current, events)
		return nil
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("watch %s: %w", prefix, err)
	}
	return err
}

const (
	// callTimeout bounds one request. A store that takes longer counts as away.
	callTimeout = 5 * time.Second
	// signOfLife is the pause between two requests that prove a watch alive. One
	// that has fallen silent is renewed after 40 s, at worst 80 s; a thousand agents
	// send 600 requests a second.
	signOfLife = 10 * time.Second
)

// Change is a key to write, or to delete.
type Change struct {
	Key    string
	Value  []byte
	Delete bool
}

// etcd refuses transactions of more than 128 operations or 1.5 MiB, both by
// default; Write stays below.
const (
	mostChanges = 100
	mostBytes   = 1 << 20
)

// Write makes changes in their order, as many in one transaction as etcd takes:
// each costs a write to its disk. Deleting an absent key is no error. After an
// error, some may have been made.
func (e *Etcd) Write(ctx context.Context, changes []Change) error {
	for len(changes) > 0 {
		n := portion(changes)
		if err := e.commit(ctx, changes[:n]); err != nil {
			return fmt.Errorf("write %s and %d more: %w", changes[0].Key, n-1, err)
		}
		changes = changes[n:]
	}
	return nil
}

// portion is how many of the first changes fit into one transaction, at least
// one. No key may be written twice in it.
func portion(changes []Change) int {
	size, seen := 0, map[string]bool{}
	for i, c := range changes {
		size += len(c.Key) + len(c.Value)
		if i > 0 && (i == mostChanges || size > mostBytes || seen[c.Key]) {
			return i
		}
		seen[c.Key] = true
	}
	return len(changes)
}

func (e *Etcd) commit(ctx context.Context, changes []Change) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ops := make([]clientv3.Op, len(changes))
	for i, c := range changes {
		ops[i] = clientv3.OpPut(c.Key, string(c.Value))
		if c.Delete {
			ops[i] = clientv3.OpDelete(c.Key)
		}
	}
	_, err := e.client.Txn(ctx).Then(ops...).Commit()
	return err
}

// PutLeased writes key under the agent's lease, which it obtains when there is
// none.
func (e *Etcd) PutLeased(ctx context.Context, key string, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		if err := e.obtain(ctx); err != nil {
			return fmt.Errorf("put %s: %w", key, err)
		}
		_, err := e.client.Put(ctx, key, string(value), clientv3.WithLease(e.lease))
		if attempt == 0 && errors.Is(err, rpctypes.ErrLeaseNotFound) {
			e.forget()
			continue
		}
		if err != nil {
			return fmt.Errorf("put %s: %w", key, err)
		}
		return nil
	}
}

// Renew keeps the lease alive. It reports lost when the lease is gone, with
// everything written under it: the caller writes again.
func (e *Etcd) Renew(ctx context.Context) (lost bool, err error) {
	e.mu.Lock()
	granted := e.granted
	e.mu.Unlock()
	if !granted {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := e.client.KeepAliveOnce(ctx, e.lease); err != nil {
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			e.forget()
			return true, nil
		}
		return false, fmt.Errorf("renew lease: %w", err)
	}
	return false, nil
}

// obtain makes sure that the lease exists. One left by an earlier run is renewed first,
// because it may be about to expire.
func (e *Etcd) obtain(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.granted {
		return nil
	}
	// The client's own Grant lets the store choose the number.
	leases := etcdserverpb.NewLeaseClient(e.client.ActiveConnection())
	_, err := leases.LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{ID: int64(e.lease), TTL: int64(wire.AgentLeaseTTL.Seconds())})
	if errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseExist) {
		_, err = e.client.KeepAliveOnce(ctx, e.lease)
	}
	if err != nil {
		return fmt.Errorf("obtain a lease: %w", err)
	}
	e.granted = true
	return nil
}

func (e *Etcd) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.granted = false
}
