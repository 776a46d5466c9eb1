package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/coreos/go-semver/semver"
)

// fixed are the first versions, by minor version, in which a watch cannot read what
// its user may not (CVE-2026-73499). We rely on rights to keep agents and peers apart.
var fixed = []semver.Version{*semver.New("3.5.33"), *semver.New("3.6.14"), *semver.New("3.7.1")}

// Version returns the first endpoint's version and the size of its database in bytes.
func (e *Etcd) Version(ctx context.Context) (version string, bytes int64, err error) {
	return e.version(ctx, e.client.Endpoints()[0])
}

func (e *Etcd) version(ctx context.Context, endpoint string) (version string, bytes int64, err error) {
	status, err := e.client.Status(ctx, endpoint)
	if err != nil {
		return "", 0, fmt.Errorf("ask etcd at %s for its version: %w", endpoint, explain(err))
	}
	return status.Version, status.DbSize, nil
}

// Usage returns the store's revision, and how many bytes of its database are in use,
// history included.
func (e *Etcd) Usage(ctx context.Context) (revision, inUse int64, err error) {
	status, err := e.client.Status(ctx, e.client.Endpoints()[0])
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
		version, _, err := e.version(ctx, endpoint)
		if err != nil {
			return err
		}
		if err := checkVersion(version); err != nil {
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
