package chaos

import (
	"time"

	"github.com/weft-mesh/weft/internal/meshtest"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// succession is how long a cluster may be without a leader that reaches the store while
// another API server works: a leader that the store hears and that hears nothing keeps its
// lease until it gives that up itself, and then the lease ends; and a moment for the election.
const succession = 2*wire.ServerTTL + 4*time.Second

// leader is the API server that leads a cluster by what its store says; nil if none does.
func (r *runner) leader(c *meshtest.Cluster) *meshtest.Server {
	kv, err := c.Store.Get(r.t.Context(), wire.LeaderKey)
	if err != nil {
		return nil
	}
	held, err := wire.Unmarshal[wire.Leader](kv.Value)
	if err != nil {
		return nil
	}
	for _, s := range c.Servers {
		if s.Addr().String() == held.Server.Name {
			return s
		}
	}
	return nil
}

// cutLeader breaks the link between a leader and its store, until another leads.
func (r *runner) cutLeader(s Step, fault storetest.Fault) {
	c := r.clusters[s.On]
	was := r.leader(c)
	if was == nil {
		return // an election is on
	}
	if _, of := r.m.server(was.Name); !of.up || of.fault != "" {
		return // it is cut off already
	}
	was.Link.Set(fault)
	r.mesh.Pass(succession)
	if now := r.leader(c); now == nil || now == was {
		r.fail("%s: the leader %s has not reached its store for %v (%s), others work, and none has succeeded it", c.Name, was.Name, succession, s.With)
	}
	was.Link.Set(storetest.Works)
	r.since[was.Name] = time.Now()
}
