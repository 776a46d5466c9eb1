package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fixed are the first versions, by minor version, in which a watch cannot read what
// its user may not (CVE-2026-73499). We rely on rights to keep agents and peers apart.
var fixed = []semver.Version{*semver.New("3.5.33"), *semver.New("3.6.14"), *semver.New("3.7.1")}

// Version returns the version of the member we are connected to, and the size of its
// database in bytes.
func (e *Etcd) Version(ctx context.Context) (version string, bytes int64, err error) {
	status, err := e.status(ctx)
	if err != nil {
		return "", 0, fmt.Errorf("ask etcd for its version: %w", explain(err))
	}
	return status.Version, status.DbSize, nil
}

// status asks the member we are connected to how it is, on the connection that is there.
func (e *Etcd) status(ctx context.Context) (*etcdserverpb.StatusResponse, error) {
	return etcdserverpb.NewMaintenanceClient(e.client.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
}

// apart asks single members, by a client of its own, because each question makes a new
// connection: on one of the main client, whoever follows the store would make sure of its
// history and open all watches again.
type apart struct {
	clientv3.Maintenance // of the main client
	conf                 clientv3.Config

	mu     sync.Mutex // guards what follows
	client *clientv3.Client
}

// Status implements clientv3.Maintenance.
func (a *apart) Status(ctx context.Context, endpoint string) (*clientv3.StatusResponse, error) {
	a.mu.Lock()
	if a.client == nil {
		var err error
		if a.client, err = clientv3.New(a.conf); err != nil {
			a.mu.Unlock()
			return nil, err
		}
	}
	client := a.client
	a.mu.Unlock()
	return client.Status(ctx, endpoint)
}

func (a *apart) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client == nil {
		return nil
	}
	return a.client.Close()
}

// Usage returns the store's revision, and how many bytes of its database are in use,
// history included.
func (e *Etcd) Usage(ctx context.Context) (revision, inUse int64, err error) {
	status, err := e.status(ctx)
	if err != nil {
		return 0, 0, explain(err)
	}
	return status.Header.Revision, status.DbSizeInUse, nil
}

// Compact drops values that were replaced or deleted before a revision.
func (e *Etcd) Compact(ctx context.Context, revision int64) error {
	_, err := e.client.Compact(ctx, revision)
	if err = explain(err); errors.Is(err, ErrCompacted) {
		return nil // already done
	}
	return err
}

// CheckVersions returns an error if a member is too old to keep users apart.
func (e *Etcd) CheckVersions(ctx context.Context) error {
	for _, endpoint := range e.client.Endpoints() {
		status, err := e.client.Status(ctx, endpoint)
		if err != nil {
			return fmt.Errorf("ask etcd at %s for its version: %w", endpoint, explain(err))
		}
		if err := checkVersion(status.Version); err != nil {
			return fmt.Errorf("etcd at %s: %w", endpoint, err)
		}
	}
	return nil
}

func checkVersion(text string) error {
	v, err := semver.NewVersion(text)
	if err != nil {
		return fmt.Errorf("version %q cannot be parsed", text)
	}
	for _, f := range fixed {
		if v.Major == f.Major && v.Minor == f.Minor && !v.LessThan(f) {
			return nil
		}
	}
	if last := fixed[len(fixed)-1]; v.Major > last.Major || v.Major == last.Major && v.Minor > last.Minor {
		return nil
	}
	return fmt.Errorf("version %s lets a watch read what its user may not (CVE-2026-73499): upgrade to 3.5.33, 3.6.14, 3.7.1 or later", text)
}
