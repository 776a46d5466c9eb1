package apiserver

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

// What peers report about their own dead nodes is kept in the store, which outlives this
// process. A server that leads and hears nothing must not erase what its predecessor heard,
// so a stored report counts for as long as the report itself would.

// recordRefresh is how much newer than the stored one a report has to be to be stored just
// for its age, and how long we rely on what we last saw in the store.
const recordRefresh = gossip.ReportLife / 3

// heardOf returns what should be stored about a peer's dead nodes, given what is stored and
// the peer's reports; false if what is stored may stay. If a peer has several API servers,
// the word of one is enough.
func heardOf(stands wire.PeerLiveness, reports []gossip.Report, now time.Time) (wire.PeerLiveness, bool) {
	old := now.Sub(stands.Seen).Abs() >= gossip.ReportLife
	if len(reports) == 0 {
		return wire.PeerLiveness{Seen: stands.Seen}, old && len(stands.Dead) > 0
	}
	next := wire.PeerLiveness{Dead: map[string]time.Time{}}
	for _, r := range reports {
		if made := r.Made().UTC(); made.After(next.Seen) {
			next.Seen = made
		}
		for _, node := range r.Dead {
			since, ok := stands.Dead[node]
			if !ok {
				since = now.UTC()
			}
			next.Dead[node] = since
		}
	}
	if next.Seen.After(now) {
		next.Seen = now.UTC() // the peer's clock is ahead of ours
	}
	if stands.Seen.After(next.Seen) && !old {
		return stands, false // another API server heard what has not reached us yet
	}
	stale := len(next.Dead) > 0 && next.Seen.Sub(stands.Seen) >= recordRefresh
	return next, stale || stands.Seen.IsZero() || !maps.EqualFunc(next.Dead, stands.Dead, time.Time.Equal)
}

// looked is what was stored about a peer's dead nodes when we last looked.
type looked struct {
	stands wire.PeerLiveness
	at     time.Time
}

// writePeers stores what peers report about their own dead nodes. What is stored is looked
// at again from time to time: another API server may have written it and be gone, and then
// nobody else would remove it.
func (g *gossiper) writePeers(ctx context.Context, st store.Store, heard func() []gossip.Report) error {
	last := map[string]looked{}
	tick := time.NewTicker(peersTurn)
	defer tick.Stop()
	for {
		reports := map[string][]gossip.Report{}
		for _, r := range heard() {
			reports[r.Cluster] = append(reports[r.Cluster], r)
		}
		peers := map[string]bool{}
		for _, p := range g.peers() {
			peers[p.Name] = true
			now := time.Now()
			l, ok := last[p.Name]
			if _, change := heardOf(l.stands, reports[p.Name], now); ok && !change && now.Sub(l.at) < recordRefresh {
				continue
			}
			stands, err := g.writePeer(ctx, st, p.Name, reports[p.Name])
			if err != nil {
				return err
			}
			last[p.Name] = looked{stands, now}
		}
		maps.DeleteFunc(last, func(cluster string, _ looked) bool { return !peers[cluster] })
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.reports:
		case <-tick.C: // peers come and go, and reports expire
		}
	}
}

// writePeer stores what one peer reports, and returns what is stored then. It writes only
// while the cluster is a peer: removing a peer deletes its liveness, which must not come
// back.
func (g *gossiper) writePeer(ctx context.Context, st store.Store, cluster string, reports []gossip.Report) (wire.PeerLiveness, error) {
	peer, err := st.Get(ctx, wire.PeerKey(cluster))
	if errors.Is(err, store.ErrNotFound) {
		return wire.PeerLiveness{}, nil
	}
	if err != nil {
		return wire.PeerLiveness{}, err
	}
	key := wire.PeerLivenessKey(cluster)
	kv, err := st.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return wire.PeerLiveness{}, err
	}
	stands, err := wire.Unmarshal[wire.PeerLiveness](kv.Value)
	if err != nil {
		stands = wire.PeerLiveness{} // unreadable counts as absent
	}
	next, change := heardOf(stands, reports, time.Now())
	if !change {
		return stands, nil
	}
	_, done, err := st.Commit(ctx, store.Txn{
		If:   []store.Cond{{Key: peer.Key, Modified: peer.Modified}, {Key: key, Modified: kv.Modified}},
		Then: []store.Op{store.Put(key, wire.Marshal(next))},
	})
	switch {
	case errors.Is(err, store.ErrTooLarge):
		// The other peers are not affected.
		g.log.Warn("a peer's report of dead nodes is too large for the store; it is ignored", "peer", cluster, "nodes", len(next.Dead))
	case err != nil:
		return stands, err
	case !done:
		return stands, nil // someone else wrote: the next turn looks again
	}
	return next, nil
}
