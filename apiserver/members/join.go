package members

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
)

// Joining, as the API server that joins sees it:
//
//	check the bundle ──► be listed as a learner ──► receive everything ──► get the vote ──► serve
//
// Each step may be interrupted and repeated. A learner has no vote, so it can neither hold
// up the others nor outvote them while it catches up.

// retry is the pause between two tries to go on.
const retry = 500 * time.Millisecond

// ReadBundle reads the bundle of an API server of this cluster.
func ReadBundle(path, cluster string, id uint32, name string) (b api.ServerBundle, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return b, fmt.Errorf("join bundle: %w", err)
	}
	if err := yaml.UnmarshalStrict(text, &b); err != nil || b.Kind != api.ServerBundleKind {
		return b, fmt.Errorf("%s is not the join bundle of an API server: `weft server add %s` writes one", path, name)
	}
	switch {
	case b.Cluster != cluster || b.ClusterID != id:
		return b, fmt.Errorf("%s is for cluster %s (ID %d), and this API server is configured for %s (ID %d)", path, b.Cluster, b.ClusterID, cluster, id)
	case b.Name != name:
		return b, fmt.Errorf("%s is for API server %s, and this one is called %s: set name: %s, or use the bundle of %s", path, b.Name, name, b.Name, name)
	case len(b.EtcdEndpoints) == 0:
		return b, fmt.Errorf("%s names no API server to join", path)
	}
	return b, nil
}

// Cluster is the part of a store that joining needs.
type Cluster interface {
	store.Store
	Members(ctx context.Context) ([]store.Member, error)
	AddLearner(ctx context.Context, peer string) ([]store.Member, error)
	Promote(ctx context.Context, id uint64) error
}

// Enter lists a new member, whose disk is empty, as a learner, and returns the URLs of all
// members by name. While the others are not connected yet, it waits.
func Enter(ctx context.Context, c Cluster, b api.ServerBundle, peer string, log *slog.Logger) (map[string]string, error) {
	if err := admitted(ctx, c, b, time.Now()); err != nil {
		return nil, err
	}
	var all []store.Member
	for said, listed := false, false; !listed; {
		var err error
		if all, err = c.Members(ctx); err == nil {
			if listed, err = isListed(all, b, peer); err != nil {
				return nil, err
			}
		}
		if err == nil && !listed {
			all, err = c.AddLearner(ctx, peer)
			listed = err == nil
		}
		switch {
		case listed:
			continue
		// etcd takes nobody new until enough members have been connected for 5 s.
		case !errors.Is(err, store.ErrJoining) && !errors.Is(err, store.ErrNoQuorum) && !errors.Is(err, store.ErrUnavailable), ctx.Err() != nil:
			return nil, err
		case !said:
			log.Info("waiting until the other members take a new one", "why", err)
			said = true
		}
		if pause(ctx) != nil {
			return nil, err
		}
	}
	urls := map[string]string{}
	for _, m := range all {
		name := m.Name
		if m.Peer == peer {
			name = b.Name
		}
		if name == "" {
			name = fmt.Sprintf("unnamed-%x", m.ID)
		}
		urls[name] = m.Peer
	}
	return urls, nil
}

// isListed reports whether an earlier try has listed a member that has not started yet. It
// returns an error if a member that has started is lost.
func isListed(all []store.Member, b api.ServerBundle, peer string) (listed bool, err error) {
	for _, m := range all {
		if m.Peer != peer && m.Name != b.Name {
			continue
		}
		if m.Name != "" {
			return false, fmt.Errorf("%s is an API server of cluster %s already, but its data is not on this machine: if its disk was lost, run `weft server replace %s`, then start it again", b.Name, b.Cluster, b.Name)
		}
		listed = true
	}
	return listed, nil
}

// Vote gets a learner its vote, as soon as it has received what the others have. It ends
// with store.ErrNotFound if the learner was removed meanwhile.
func Vote(ctx context.Context, c Cluster, id uint64, log *slog.Logger) error {
	for said := time.Now(); ; {
		err := c.Promote(ctx, id)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrDenied):
			return err
		case time.Since(said) > 10*time.Second:
			log.Info("still catching up with the other members", "why", err)
			said = time.Now()
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(retry):
		return nil
	}
}
