package apiserver

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/apiserver/peering"
	"github.com/weft-mesh/weft/store"
)

// Store is what an API server needs of its cluster's etcd.
type Store interface {
	store.Store
	store.Leases
	store.Users
	store.Alarm
	// EnableAuth makes every access need a right from now on.
	EnableAuth(ctx context.Context) error
	// Count returns how many keys begin with prefix, and the revision.
	Count(ctx context.Context, prefix string) (n int, revision int64, err error)
	// Version returns the store's version and the bytes of its database.
	Version(ctx context.Context) (version string, bytes int64, err error)
	// Usage returns the revision and the bytes in use, history included.
	Usage(ctx context.Context) (revision, inUse int64, err error)
	// Compact drops history up to a revision.
	Compact(ctx context.Context, revision int64) error
	// Backup returns a snapshot of everything.
	Backup(ctx context.Context) (io.ReadCloser, error)
}

var _ Store = (*store.Etcd)(nil)

// Edges are the places where an API server meets the outside world, each with an in-memory
// twin for tests. Those of a process are made from its Config.
type Edges struct {
	Store Store
	// Endpoints are the https URLs at which agents and peers reach the store.
	Endpoints []string
	// Peers reaches the stores of peers.
	Peers peering.Dialer
	// Servers reaches the APIs of the cluster's other API servers as this one; nil: over
	// the network.
	Servers http.RoundTripper
}

// RunOn is Run at the given edges: it starts no store and listens nowhere. ready gets the
// API once it can be called; whoever calls it says in the request's TLS state who it is.
func RunOn(ctx context.Context, conf Config, edges Edges, ready func(http.Handler)) error {
	if err := conf.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	asked := ctx // ends when somebody wants this server to stop
	f, err := lay(ctx, conf, &edges)
	if err != nil {
		return fmt.Errorf("start API server: %w", err)
	}
	defer f.close()
	_, port, _ := net.SplitHostPort(conf.Listen) // Validate has checked it
	s, err := build(ctx, f, "https://"+net.JoinHostPort(conf.Advertise.String(), port), time.Now(), func() bool { return asked.Err() != nil })
	if err != nil {
		return fmt.Errorf("start API server: %w", err)
	}
	defer s.agents.close()
	g, ctx := errgroup.WithContext(ctx)
	s.work(ctx, g)
	ready(s.handler())
	return g.Wait()
}
