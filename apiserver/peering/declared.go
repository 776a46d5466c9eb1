package peering

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// way is by what a peer is joined or parted.
type way int

const (
	byCommand way = iota
	byObject      // a Peer object of Kubernetes
	asCilium      // by command, to a cluster that runs Cilium
)

// mine refuses to change by command what an object has joined, and the other way round: who
// joined a peer alone parts it.
func (p *Peering) mine(peer wire.Peer, cond store.Cond, by way) error {
	switch {
	case cond.Modified == 0, peer.Removing:
	case peer.Declared && by != byObject && p.conf.Declares:
		return api.Conflict("delete the object, with `kubectl delete peers.weft.io "+peer.Name+"`; it would be joined again otherwise",
			"peer %q comes from a Peer object of Kubernetes", peer.Name)
	case !peer.Declared && by == byObject:
		return api.Conflict("`weft peer remove "+peer.Name+" --both` hands it over to the object", "peer %q was joined by command", peer.Name)
	}
	return nil
}

// InviteDeclared is Invite for a cluster that a Peer object names.
func (p *Peering) InviteDeclared(ctx context.Context, cluster string) (*api.Invite, error) {
	return p.invite(ctx, cluster, byObject)
}

// AddDeclared is Add for a cluster that a Peer object names.
func (p *Peering) AddDeclared(ctx context.Context, in *api.Invite) error {
	_, err := p.add(ctx, in, byObject)
	return err
}

// RemoveDeclared removes a peer whose Peer object is gone. It does nothing if there is no such
// peer, or if it was joined by command.
func (p *Peering) RemoveDeclared(ctx context.Context, cluster string) error {
	peer, cond, err := p.peer(ctx, cluster)
	if err != nil || cond.Modified == 0 || !peer.Declared || peer.Removing {
		return err
	}
	return p.remove(ctx, cluster, byObject)
}

// Declared lists the peers that Peer objects have joined, as the store has them.
func (p *Peering) Declared(ctx context.Context) (names []string, err error) {
	peers, err := p.list(ctx)
	for _, peer := range peers {
		if peer.Declared && !peer.Removing {
			names = append(names, peer.Name)
		}
	}
	return names, err
}

// Records returns the peers, ordered by name; false until they were read once.
func (p *Peering) Records() ([]wire.Peer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	peers := slices.Collect(maps.Values(p.peers))
	slices.SortFunc(peers, func(a, b wire.Peer) int { return strings.Compare(a.Name, b.Name) })
	return peers, p.known
}

// EndsSoon says whether the certificate that a peer gave us is to be replaced now.
func (p *Peering) EndsSoon(cluster string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.mirrors[cluster]
	return r != nil && !r.ends.IsZero() && r.ends.Sub(now) < endingSoon
}
