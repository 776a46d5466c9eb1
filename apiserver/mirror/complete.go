package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// expected reports whether a resource is read of a cluster. A
// cluster that writes both forms of its services has the same backends in both, but a
// change rewrites all of a service in the older one, and one slice in the other. One that
// does not know service exports writes no canary for them.
func expected(r wire.Resource, has wire.Capabilities) bool {
	switch r {
	case wire.Services:
		return has.EndpointSlicesExportMode == ""
	case wire.EndpointSlices:
		return has.EndpointSlicesExportMode != ""
	case wire.ServiceExports:
		return has.ServiceExportsEnabled != nil && *has.ServiceExportsEnabled
	}
	return true
}

// otherForm is the folder with the form of services that is not read any more, if the
// one that is read instead has some; "" otherwise.
func otherForm(lists []listing) string {
	for form, other := range map[wire.Resource]wire.Resource{wire.Services: wire.EndpointSlices, wire.EndpointSlices: wire.Services} {
		if slices.ContainsFunc(lists, func(l listing) bool { return l.folder.resource == form && len(l.kvs) > 0 }) {
			return string(other)
		}
	}
	return ""
}

// awaitCanaries waits until the peer's store has been filled. Before that, a missing
// entry means nothing.
func (m *Mirror) awaitCanaries(ctx context.Context, src Source, config wire.ClusterConfig) error {
	missing := map[string]bool{}
	for _, f := range m.claims.read(config.Capabilities) {
		if f.resource != "" {
			missing[f.canary(m.conf.Peer.Name)] = true
		}
	}
	enough := errors.New("all canaries are there")
	err := store.Follow(ctx, src, wire.SyncedPrefix(m.conf.Peer.Name), func(b store.Batch) error {
		for _, e := range b.Events {
			if !e.Deleted {
				delete(missing, e.Key)
			}
		}
		if len(missing) == 0 {
			return enough
		}
		m.setState(api.LinkConnecting, fmt.Errorf("the peer is still filling its store: %d of its resources are not complete", len(missing)))
		return nil
	})
	if errors.Is(err, enough) {
		return nil
	}
	return fmt.Errorf("wait until the peer has filled its store: %w", err)
}

// vouched returns an error if changes must not be followed, because they delete
// something while the canary is gone. Cilium's entries and canaries are tied to leases:
// if their writer dies, all of them vanish, and nothing was withdrawn.
func (m *Mirror) vouched(ctx context.Context, src Source, config wire.ClusterConfig, f folder, events []store.Event) error {
	if f.resource == "" || !config.Capabilities.SyncedCanaries ||
		!slices.ContainsFunc(events, func(e store.Event) bool { return e.Deleted }) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.conf.Answer)
	defer cancel()
	_, err := src.Get(ctx, f.canary(m.conf.Peer.Name))
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("the peer's list of %s is no longer complete; our copy stays as it was", f.name)
	}
	return err
}

// raiseCanaries tells our agents which resources of the copy are complete. Canaries of
// what is read stay, because a later session does not make the copy incomplete.
func (m *Mirror) raiseCanaries(ctx context.Context, has wire.Capabilities) error {
	var ops []store.Op
	var raised []wire.Resource
	without := map[wire.Resource]bool{}
	for _, r := range wire.Resources {
		key := r.CacheSyncedKey(m.conf.Peer.Name)
		_, err := m.conf.Store.Get(ctx, key)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("raise canaries: %w", err)
		}
		switch there := err == nil; {
		case !expected(r, has):
			without[r] = true
			if there {
				ops = append(ops, store.Delete(key))
			}
		default:
			raised = append(raised, r)
			if !there {
				ops = append(ops, store.Put(key, wire.TimeText(time.Now())))
			}
		}
	}
	if err := store.Write(ctx, m.conf.Store, ops...); err != nil {
		return fmt.Errorf("raise canaries: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count.without = without
	for _, r := range raised {
		m.count.synced[r] = true
	}
	return nil
}
