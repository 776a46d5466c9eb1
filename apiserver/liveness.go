package apiserver

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/weft-mesh/weft/apiserver/store"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

// What peers say of their own dead nodes is kept in the store, which outlives
// this process and may be shared with other API servers: one of them that hears
// nothing must not wipe out what another hears. So what stands there counts as
// long as the report it is from would, and whoever hears the peer keeps it fresh.

// recordRefresh is how much newer a report is than what stands in the store
// before that is written again just for its age, and how long that counts as known
// before it is looked at again.
const recordRefresh = gossip.ReportLife / 3

// heardOf is what should stand in the store of a peer's dead nodes, given what
// does and the reports there are of the peer; false if that may stay. A peer with
// several API servers is believed when one of them says so.
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
		return stands, false // another API server has heard what did not reach us yet
	}
	stale := len(next.Dead) > 0 && next.Seen.Sub(stands.Seen) >= recordRefresh
	return next, stale || stands.Seen.IsZero() || !maps.EqualFunc(next.Dead, stands.Dead, time.Time.Equal)
}

// looked is what stood in the store of a peer's dead nodes, and when.
type looked struct {
	stands wire.PeerLiveness
	at     time.Time
}

// writePeers writes down what peers say of their own dead nodes, in the reports
// that are heard. What stands there is looked at again now and then all the same:
// another API server may have written it, and not be there to wipe it out.
func (g *gossiper) writePeers(ctx context.Context, heard func() []gossip.Report) error {
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
			stands, err := g.writePeer(ctx, p.Name, reports[p.Name])
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
		case <-tick.C: // peers come and go, and what they said grows old
		}
	}
}

// writePeer writes down what is heard of one peer, and says what stands there
// then. It writes only while the peer is one: its removal takes its liveness
// along, and nothing may come after.
func (g *gossiper) writePeer(ctx context.Context, cluster string, reports []gossip.Report) (wire.PeerLiveness, error) {
	peer, err := g.store.Get(ctx, wire.PeerKey(cluster))
	if errors.Is(err, store.ErrNotFound) {
		return wire.PeerLiveness{}, nil
	}
	if err != nil {
		return wire.PeerLiveness{}, err
	}
	key := wire.PeerLivenessKey(cluster)
	kv, err := g.store.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return wire.PeerLiveness{}, err
	}
	stands, err := wire.Unmarshal[wire.PeerLiveness](kv.Value)
	if err != nil {
		stands = wire.PeerLiveness{} // nobody can read it: as good as none
	}
	next, change := heardOf(stands, reports, time.Now())
	if !change {
		return stands, nil
	}
	_, done, err := g.store.Commit(ctx, store.Txn{
		If:   []store.Cond{{Key: peer.Key, Modified: peer.Modified}, {Key: key, Modified: kv.Modified}},
		Then: []store.Op{store.Put(key, wire.Marshal(next))},
	})
	switch {
	case errors.Is(err, store.ErrTooLarge):
		// One peer's excess is no reason not to hear the others.
		g.log.Warn("a peer names too many dead nodes to write them down", "peer", cluster, "nodes", len(next.Dead))
	case err != nil:
		return stands, err
	case !done:
		return stands, nil // somebody else wrote: the next turn looks again
	}
	return next, nil
}
