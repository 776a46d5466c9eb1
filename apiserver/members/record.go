package members

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// bundleLifetime is how long a join bundle may be used. A replacement begins it again.
const bundleLifetime = 24 * time.Hour

// record is an API server that an operator has added. The first one has none. Only API
// servers can read it: a bundle is good for nothing once its record has gone or has another
// token.
type record struct {
	Name    string    `json:"name"`
	Address string    `json:"address"`
	Token   string    `json:"token"`
	Added   time.Time `json:"added"`
	Expires time.Time `json:"expires"` // its token
}

// nameFormat is what can be part of a host name.
var nameFormat = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// CheckName returns an error if an API server cannot have this name.
func CheckName(name string) error {
	if !nameFormat.MatchString(name) {
		return fmt.Errorf("%q cannot be an API server's name: use up to 63 of a-z, 0-9, '-' and '.'", name)
	}
	return nil
}

// add writes an API server's record and returns its bundle. One that is invited already gets
// a new token.
func (m *Members) add(ctx context.Context, name string, address netip.Addr, port uint16) (*api.ServerBundle, error) {
	secret, err := m.conf.Secret()
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	r := record{
		Name: name, Address: hostPort(address.String(), port),
		Token: rand.Text(), Added: now, Expires: now.Add(bundleLifetime),
	}
	if err := store.Write(ctx, m.conf.Store, store.Put(wire.AddedServerKey(name), wire.Marshal(r))); err != nil {
		return nil, err
	}
	return &api.ServerBundle{
		Kind: api.ServerBundleKind, Cluster: m.conf.Cluster.Name, ClusterID: uint32(m.conf.Cluster.ID), Name: name, Address: r.Address, Token: r.Token, Expires: r.Expires,
		EtcdEndpoints: m.Endpoints(), CA: string(secret.Bundle), CAKey: string(secret.Key),
	}, nil
}

func records(ctx context.Context, s store.Store) (all map[string]record, err error) {
	kvs, _, err := s.List(ctx, wire.AddedServersPrefix)
	if err != nil {
		return nil, err
	}
	all = map[string]record{}
	for _, kv := range kvs {
		r, err := wire.Unmarshal[record](kv.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kv.Key, err)
		}
		all[r.Name] = r
	}
	return all, nil
}

// admitted returns an error unless a bundle is good.
func admitted(ctx context.Context, s store.Store, b api.ServerBundle, now time.Time) error {
	kv, err := s.Get(ctx, wire.AddedServerKey(b.Name))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	r, bad := wire.Unmarshal[record](kv.Value)
	switch {
	case err != nil || bad != nil || r.Token != b.Token:
		return fmt.Errorf("the join bundle of API server %s is no longer good: it was deleted from cluster %s, or added again with a newer bundle: `weft server add %s …` makes another", b.Name, b.Cluster, b.Name)
	case now.After(r.Expires):
		return fmt.Errorf("the join bundle of API server %s expired on %s: `weft server add %s …` makes another", b.Name, r.Expires.Format(time.RFC3339), b.Name)
	}
	return nil
}
