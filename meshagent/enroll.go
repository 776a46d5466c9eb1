package meshagent

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent/certificate"
	"github.com/weft-mesh/weft/statefile"
)

// enrollment gets the join bundle of a Kubernetes node, which no operator adds: from any API
// server of its cluster, for the token that Kubernetes gives the agent's pod.
type enrollment struct {
	// join is the file of the bundle; token and bootstrap are files that Kubernetes keeps up
	// to date, so they are read each time.
	join, token, bootstrap string
	// state is the agent's folder, with the copy of the bundle from its last start.
	state string
	node  string // empty: the token's
	ask   func(ctx context.Context, b api.Bootstrap, token, node string) (*api.JoinBundle, error)
	log   *slog.Logger
}

// enrollPatience is how long one question to the API servers may take. After a failure, the
// next one comes a second later, then twice as long, up to half a minute.
const (
	enrollPatience  = 20 * time.Second
	enrollRetry     = time.Second
	enrollRetryMost = 30 * time.Second
	refreshPatience = 3 * time.Second
)

// enrollment is nil if operators add this node.
func (c Config) enrollment() *enrollment {
	if c.Token == "" {
		return nil
	}
	return &enrollment{join: c.Join, token: c.Token, bootstrap: c.Bootstrap, state: c.StateDir, node: c.NodeName, ask: api.Enroll, log: c.Log}
}

// await returns once there is a bundle to start from. It asks for none while the one that
// there is may do: an agent starts without its API servers.
func (e *enrollment) await(ctx context.Context) error {
	why := e.lacking(time.Now())
	if why == "" {
		e.refresh(ctx)
		return nil
	}
	if why == damagedBundle {
		d, err := statefile.KeepCopy(e.join, e.state)
		e.log.Error("the join bundle is damaged, and there is no copy", "file", e.join, "kept", d.Aside, "error", err)
	}
	e.log.Info("asking for this node's join bundle", "why", why)
	var told string
	for retry := enrollRetry; ; retry = min(2*retry, enrollRetryMost) {
		b, err := e.fetch(ctx)
		if err == nil {
			if err := e.keep(b); err != nil {
				return err
			}
			e.log.Info("this node has joined", "cluster", b.Cluster, "node", b.Node, "podCIDRs", b.PodCIDRs)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if text := err.Error(); text != told {
			e.log.Warn("this node cannot join yet; retrying", "error", err)
			told = text
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
	}
}

// refresh replaces the bundle if the node is registered in another way by now, which a
// certificate does not tell. It does not hold up the start: packets do not wait for it, but
// their node's agent would.
func (e *enrollment) refresh(ctx context.Context) {
	var is api.JoinBundle
	text, err := os.ReadFile(e.join)
	if err != nil || yaml.UnmarshalStrict(text, &is) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, refreshPatience)
	defer cancel()
	now, err := e.fetch(ctx)
	if err != nil {
		e.log.Info("starting with the join bundle of before", "error", err)
		return
	}
	if sameNode(now, &is) {
		return
	}
	err = e.keep(now)
	e.log.Info("this node is registered in another way than before", "addresses", now.Addresses, "podCIDRs", now.PodCIDRs, "error", err)
}

// keep writes the bundle that the next start uses.
func (e *enrollment) keep(b *api.JoinBundle) error {
	text, err := yaml.Marshal(b)
	if err == nil {
		err = statefile.Write(e.join, text)
	}
	if err != nil {
		return fmt.Errorf("keep the join bundle: %w", err)
	}
	return nil
}

// lacking says why the bundle cannot do; "" if it may.
func (e *enrollment) lacking(now time.Time) string {
	text, err := os.ReadFile(e.join)
	if errors.Is(err, fs.ErrNotExist) {
		return "there is none"
	}
	var b api.JoinBundle
	if err != nil {
		return "" // join says what is wrong
	}
	if !usable(text, &b) {
		if spare, err := os.ReadFile(spareBundle(e.state)); err == nil && usable(spare, &b) {
			return "" // join uses the copy
		}
		return damagedBundle
	}
	pair, err := tls.X509KeyPair([]byte(b.Cert), []byte(b.Key))
	if err == nil && now.After(pair.Leaf.NotAfter) {
		return "its certificates have expired"
	}
	if e.node != "" && b.Node != e.node {
		return fmt.Sprintf("it was issued for node %s", b.Node)
	}
	current, err := e.where()
	if err == nil && !api.ShareCertificate([]byte(b.CA), []byte(current.CA)) {
		return "it is that of a cluster that is no longer there"
	}
	return ""
}

// damagedBundle is why a bundle is asked for that is there.
const damagedBundle = "it is damaged"

// usable reads a bundle, and says whether an agent can start with it.
func usable(text []byte, b *api.JoinBundle) bool {
	*b = api.JoinBundle{}
	return yaml.UnmarshalStrict(text, b) == nil && certificate.Check(b) == nil && b.Cluster != "" && b.Node != ""
}

// where is how the API servers are reached.
func (e *enrollment) where() (api.Bootstrap, error) {
	text, err := os.ReadFile(e.bootstrap)
	if errors.Is(err, fs.ErrNotExist) {
		return api.Bootstrap{}, fmt.Errorf("%s is not there: the cluster's mesh API server writes it once it runs", e.bootstrap)
	}
	if err != nil {
		return api.Bootstrap{}, err
	}
	b, err := api.ReadBootstrap(text)
	if err != nil {
		return b, fmt.Errorf("%s: %w", e.bootstrap, err)
	}
	return b, nil
}

// fetch asks for the bundle once.
func (e *enrollment) fetch(ctx context.Context) (*api.JoinBundle, error) {
	where, err := e.where()
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(e.token)
	if err != nil {
		return nil, fmt.Errorf("read the token: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, enrollPatience)
	defer cancel()
	b, err := e.ask(ctx, where, string(bytes.TrimSpace(token)), e.node)
	if err != nil {
		return nil, err
	}
	if err := certificate.Check(b); err != nil {
		return nil, fmt.Errorf("what the API server sent: %w", err)
	}
	return b, nil
}

// renew asks for new certificates with those of the bundle, and by token where that fails:
// they may have expired.
func (e *enrollment) renew(ctx context.Context, b *api.JoinBundle, conf *tls.Config) (*api.JoinBundle, error) {
	got, err := certificate.API(ctx, b, conf)
	if err == nil || e == nil {
		return got, err
	}
	got, byToken := e.fetch(ctx)
	switch {
	case byToken != nil:
		return nil, errors.Join(err, byToken)
	case got.Cluster != b.Cluster || got.Node != b.Node:
		return nil, errors.Join(err, fmt.Errorf("by its token, this is node %s/%s: restart the agent", got.Cluster, got.Node))
	}
	return got, nil
}
