package chaos

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/meshtest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// No identity number means two label sets, ever: neither in a store, whatever happens to it,
// nor on a node.

// watchIdentities notes every number that is written to a cluster's store.
func (r *runner) watchIdentities(ctx context.Context, c *meshtest.Cluster) {
	_ = store.Persist(ctx, slog.New(slog.DiscardHandler), "watching identities", func(ctx context.Context) error {
		return store.Follow(ctx, c.Store, wire.IdentityIDPrefix, func(b store.Batch) error {
			for _, ev := range b.Events {
				if n, ok := wire.ParseIdentityIDKey(ev.Key); ok && !ev.Deleted {
					r.means("the store of "+c.Name, n, string(ev.Value))
				}
			}
			return nil
		})
	})
}

// loseIdentities takes away what a cluster's store has of a peer's identities until its nodes
// have heard, and puts it back.
func (r *runner) loseIdentities(s Step) {
	c, peer := r.ends(s.On)
	kv := map[string][]byte{}
	for _, line := range c.Store.Dump(wire.Identities.CachePrefix(peer.Name)) {
		key, value, _ := strings.Cut(line, "=")
		kv[key] = []byte(value)
		if err := c.Store.Delete(r.t.Context(), key); err != nil {
			r.t.Fatal(err)
		}
	}
	r.since[c.Name] = time.Now()
	r.mesh.Pass(2 * time.Second)
	r.checkFlows()
	for _, key := range sorted(kv) {
		if err := c.Store.Put(r.t.Context(), key, kv[key]); err != nil {
			r.t.Fatal(err)
		}
	}
	r.mesh.Pass(2 * time.Second)
	r.since[c.Name] = time.Now()
}

// means notes that a number means these labels to somebody.
func (r *runner) means(whom string, n identity.Number, labels string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if was, ok := r.meaning[n]; ok && was != labels {
		r.failLocked("identity %v means %s to %s, and meant %s", n, labels, whom, was)
	}
	r.meaning[n] = labels
}

// checkMeaning looks at what every agent believes.
func (r *runner) checkMeaning() {
	for _, c := range r.clusters {
		for name, n := range c.Nodes {
			for _, row := range tables.All(n.Agent.Tables.DB.ReadTxn(), n.Agent.Tables.Identities) {
				r.means(name, row.Number, row.Labels.String())
			}
		}
	}
}
