package watch

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/stats"

	"github.com/weft-mesh/weft/wire"
)

// Link counts the connections of one etcd client. It is needed because the client
// silently resumes its watches on a new connection, whatever store answers there. The
// zero value is ready for use; safe for concurrent use.
type Link struct {
	mu       sync.Mutex // guards what follows
	count    uint64
	changed  chan struct{} // closed when count changes; nil: nobody waits
	lineage  wire.Lineage
	lookedAt uint64 // count when lineage was read, plus 1; 0: never
}

// Reconnecting to a store that is away. gRPC's own pauses grow to two minutes, which a node
// would be out of date after its store is back, and each try waits 20 s for an answer.
const (
	reconnectPause   = 3 * time.Second // at most; half of it more or less, so that nodes spread out
	reconnectSpread  = 0.5
	reconnectTimeout = 5 * time.Second
)

// DialOptions make a client count its connections here, and reconnect within seconds of the
// store's return. Use them for one client only.
func (l *Link) DialOptions() []grpc.DialOption {
	pause := backoff.DefaultConfig
	pause.MaxDelay, pause.Jitter = reconnectPause, reconnectSpread
	return []grpc.DialOption{
		grpc.WithStatsHandler(l),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pause, MinConnectTimeout: reconnectTimeout}),
	}
}

// HandleConn implements stats.Handler. A connection is counted before anything is
// received on it.
func (l *Link) HandleConn(_ context.Context, s stats.ConnStats) {
	if _, begin := s.(*stats.ConnBegin); !begin {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// TagConn implements stats.Handler.
func (l *Link) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// TagRPC implements stats.Handler.
func (l *Link) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (l *Link) HandleRPC(context.Context, stats.RPCStats) {}

// now returns how many connections there have been, and a channel that is closed at
// the next one.
func (l *Link) now() (count uint64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.count, l.changed
}

// known returns the lineage if it was read since the last new connection.
func (l *Link) known() (lineage wire.Lineage, count uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lineage, l.count, l.lookedAt == l.count+1
}

// keep remembers a lineage that was read when there had been count connections; false
// if there has been another one since.
func (l *Link) keep(lineage wire.Lineage, count uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count != count {
		return false
	}
	l.lineage, l.lookedAt = lineage, count+1
	return true
}
