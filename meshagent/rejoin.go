package meshagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// rejoin asks for another bundle while the agent runs: when the node is registered in another
// way than its bundle says, when the store denies its agent what every agent may do, and when
// it is not read because the bundle is a former cluster's. An operator's node has somebody who
// restarts its agent; one of Kubernetes is removed and registered by what happens there.
type rejoin struct {
	enrollment *enrollment // nil: operators add this node
	bundle     *api.JoinBundle
	tables     *tables.Tables
	states     []func() reflector.State
	trouble    *trouble
}

// errRejoined ends an agent that has another bundle to start from.
var errRejoined = errors.New("this node has joined again")

const (
	// rejoinTurn is how often the agent looks whether its bundle is the node's.
	rejoinTurn = time.Second
	// rejoinAfter is how long it waits before it asks: what it reads may be a little older
	// than its bundle.
	rejoinAfter = 5 * time.Second
)

// Run works until ctx ends or there is another bundle; then it returns errRejoined.
func (r *rejoin) Run(ctx context.Context) error {
	if r.enrollment == nil {
		return nil
	}
	var due time.Time // zero: the bundle is the node's
	pause := rejoinAfter
	for {
		now := time.Now()
		why := r.why(now)
		switch {
		case why == "":
			due, pause = time.Time{}, rejoinAfter
			r.trouble.tell(nil)
		case due.IsZero():
			due = now.Add(rejoinAfter)
		case !now.Before(due):
			err := r.ask(ctx, why)
			if errors.Is(err, errRejoined) {
				return err
			}
			if ctx.Err() == nil {
				r.trouble.tell(err)
			}
			pause = min(2*pause, enrollRetryMost)
			due = time.Now().Add(pause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rejoinTurn):
		}
	}
}

// why says why the bundle is not the node's any longer; "" if it is, as far as is known.
func (r *rejoin) why(now time.Time) string {
	connected := true
	for _, state := range r.states {
		s := state()
		switch {
		case s.Denied:
			return "the store denies its agent access"
		case !s.Connected:
			connected = false
		}
	}
	if !connected {
		return r.enrollment.lacking(now)
	}
	row := tables.Get(r.tables.DB.ReadTxn(), r.tables.Nodes, r.bundle.Cluster+"/"+r.bundle.Node)
	if row == nil || row.Registration == nil {
		return "it is not registered"
	}
	is := row.Registration
	if !slices.Equal(is.Addresses, r.bundle.Addresses) || !slices.Equal(is.PodCIDRs, r.bundle.PodCIDRs) {
		return fmt.Sprintf("it is registered at %v with pod CIDRs %v", is.Addresses, is.PodCIDRs)
	}
	return ""
}

// ask asks for a bundle, which grants the agent its rights again. If it says what the one of
// before does, nothing else has to change.
func (r *rejoin) ask(ctx context.Context, why string) error {
	r.enrollment.log.Info("asking for this node's join bundle again", "why", why)
	b, err := r.enrollment.fetch(ctx)
	if err != nil {
		return fmt.Errorf("%s; another join bundle cannot be had: %w", why, err)
	}
	switch {
	case b.Cluster != r.bundle.Cluster || b.Node != r.bundle.Node:
		return fmt.Errorf("%s; by its token, this is node %s/%s: restart the agent", why, b.Cluster, b.Node)
	case sameNode(b, r.bundle):
		return nil
	}
	if err := r.enrollment.keep(b); err != nil {
		return err
	}
	r.enrollment.log.Info("this node is registered in another way than before; starting again", "addresses", b.Addresses, "podCIDRs", b.PodCIDRs)
	return errRejoined
}

// sameNode says whether two bundles are for a node as it is registered once, in one cluster.
func sameNode(a, b *api.JoinBundle) bool {
	return slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.PodCIDRs, b.PodCIDRs) && a.CA == b.CA
}

// rejoin is the part that asks for another bundle.
func (a *Agent) rejoin(e *enrollment) *rejoin {
	r := &rejoin{enrollment: e, bundle: a.node.bundle, tables: a.Tables, trouble: partTrouble(a.Tables, "enrollment", "this node's join bundle is out of date", a.log)}
	for _, one := range a.reflectors {
		r.states = append(r.states, one.State)
	}
	return r
}
