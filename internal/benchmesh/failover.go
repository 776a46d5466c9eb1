package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/benchmesh/peers"
	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/scenario"
)

//go:embed failover.txtar
var failoverScript string

// failoverCluster is the cluster with the clients, which knows all others.
const failoverCluster = "east"

// script is the scenario for a mesh of so many clusters, of which two are real.
func script(clusters, repeats int) (string, error) {
	t := lab.DefaultTopology()
	if splitOf(clusters) == identity.Split511 {
		for i := range t.Clusters {
			t.Clusters[i].APIServer = []string{"--max-connected-clusters", "511"}
		}
	}
	text, err := yaml.Marshal(map[string]any{"clusters": t.Clusters})
	if err != nil {
		return "", err
	}
	return strings.NewReplacer("REPEATS", fmt.Sprint(repeats), "LAB\n", string(text)).Replace(failoverScript), nil
}

// failover measures how long a lost machine and a lost cluster are felt by new
// connections, in a mesh of two real clusters of which one knows many generated ones.
func (b *bench) failover(ctx context.Context) error {
	text, err := script(b.clusters, b.failovers)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "benchmesh")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "failover.txtar")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	guarded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	known, nodes := 0, 0
	view := &crowd{Plain: scenario.NewPlain(os.Stderr), join: func(l *lab.Lab) (*hub, error) {
		go b.guard(guarded, l, cancel)
		h, err := b.crowd(guarded, l)
		if err == nil && h != nil {
			known, nodes = h.known().Shape.Known(), h.joined*h.world.Shape.Nodes
		}
		return h, err
	}}
	result := scenario.Run(guarded, path, scenario.Options{Binary: b.binary, View: view})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	failed := view.failed
	if !result.OK {
		failed = errors.Join(failed, errors.New(result.Error), context.Cause(guarded))
	}
	var series map[string]json.RawMessage
	if raw, err := json.Marshal(result.Figures); err == nil {
		_ = json.Unmarshal(raw, &series) // it was just written
	}
	for _, what := range []string{"node_loss", "cluster_loss"} {
		var s scenario.Series
		if raw, there := series[what]; there {
			if err := json.Unmarshal(raw, &s); err != nil {
				return err
			}
		} else if failed == nil {
			failed = fmt.Errorf("the scenario measured no %s", what)
		}
		f := figure{Line: "failover", What: what, Clusters: b.clusters, Known: known, Value: s.P99, Detail: map[string]float64{"samples": float64(s.Count), "p50_s": s.P50, "max_s": s.Max, "nodes_known": float64(nodes)}}
		if failed != nil {
			f.Error = failed.Error()
		}
		b.print(judged(f))
	}
	return nil
}

// failoverNodes is how many nodes each generated cluster has while failover is measured, at
// most. Two agents know all of them, and where the kernel has no WireGuard, each node takes
// some 150 KiB for its tunnels on each of their machines.
const failoverNodes = 25

// crowd makes generated clusters peers of one cluster of a scenario's lab and waits until
// its nodes know them. It returns nil if there are none to make.
func (b *bench) crowd(ctx context.Context, l *lab.Lab) (*hub, error) {
	s := b.shapeOf(b.clusters, len(l.Topology.Clusters))
	if s.Clusters < 1 {
		return nil, nil
	}
	s.Nodes = min(s.Nodes, failoverNodes)
	world, err := peers.New(ctx, s)
	if err != nil {
		return nil, err
	}
	h, err := newHub(ctx, l, failoverCluster, world)
	if err != nil {
		return nil, err
	}
	if err := h.join(ctx, s.Clusters); err != nil {
		return h, err
	}
	for _, n := range l.Nodes() {
		if n.Cluster.Name != failoverCluster {
			continue
		}
		k, err := openKernel(n)
		if err != nil {
			return h, err
		}
		found, all := k.awaitPods(ctx, world, b.patience)
		k.Close()
		if found < all {
			return h, fmt.Errorf("node %s knows %d of %d endpoints after %v", n.Full(), found, all, b.patience)
		}
	}
	return h, nil
}

// crowd shows a scenario on stderr, and makes peers before its script begins.
type crowd struct {
	*scenario.Plain
	join   func(*lab.Lab) (*hub, error)
	hub    *hub
	failed error
}

// Up implements scenario.View.
func (c *crowd) Up(live *scenario.Live) {
	c.Plain.Up(live)
	began := time.Now()
	if c.hub, c.failed = c.join(live.Lab); c.failed == nil {
		progress("failover: all peers are known after %v", time.Since(began).Round(time.Millisecond))
	}
}

// Down implements scenario.View.
func (c *crowd) Down() {
	c.Plain.Down()
	if c.hub != nil {
		c.failed = errors.Join(c.failed, c.hub.Close())
	}
}
