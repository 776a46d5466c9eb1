package store

import (
	"context"
	"fmt"
	"io"
)

// Backup returns a snapshot of the whole database, followed by its SHA-256. The reader
// fails if the store or ctx ends before everything was read; the caller closes it.
func (e *Etcd) Backup(ctx context.Context) (io.ReadCloser, error) {
	snapshot, err := e.client.SnapshotWithVersion(ctx)
	if err != nil {
		return nil, fmt.Errorf("take a snapshot of the store: %w", explain(err))
	}
	return snapshot.Snapshot, nil
}
