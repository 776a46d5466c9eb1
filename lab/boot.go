package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
)

// bootPatience bounds the start of one cluster.
const bootPatience = 60 * time.Second

// Boot starts all clusters that are not bare, at the same time and as an operator
// would: the API server, then `weft node add` and the bundle for each machine, then
// the tunnel and the agent. It returns when every node is ready.
func (l *Lab) Boot(ctx context.Context) error {
	patience := bootPatience
	if l.Topology.usesKubernetes() {
		patience += kubernetesPatience
	}
	ctx, cancel := context.WithTimeout(ctx, patience*time.Duration(max(l.slower, 1)))
	defer cancel()
	var g errgroup.Group
	for i := range l.Topology.Clusters {
		c := &l.Topology.Clusters[i]
		switch {
		case c.Kubernetes:
			g.Go(func() error { return l.bootKubernetes(ctx, c) })
		case !c.Bare:
			g.Go(func() error { return l.bootControl(ctx, c) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := l.mergeContexts(); err != nil {
		return err
	}
	for i := range l.Topology.Clusters {
		if c := &l.Topology.Clusters[i]; c.bootsWeft() {
			g.Go(func() error { return l.bootServers(ctx, c) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := l.mergeContexts(); err != nil {
		return err
	}
	for i := range l.Topology.Clusters {
		c := &l.Topology.Clusters[i]
		if !c.bootsWeft() {
			continue
		}
		g.Go(func() error { return l.bootNodes(ctx, c) })
		l.group.Go(func() error { return l.followPods(l.ctx, c.Name) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.mu.Lock()
	l.ready = true
	l.mu.Unlock()
	return l.record()
}

// bootsWeft says whether the lab itself starts Weft on the cluster's machines.
func (c *Cluster) bootsWeft() bool { return !c.Bare && !c.Kubernetes }

// bootControl starts a cluster's first API server, and waits for the admin context that it
// writes for its first operator.
func (l *Lab) bootControl(ctx context.Context, c *Cluster) error {
	n := l.control(c)
	if err := installServer(n, c.APIServer); err != nil {
		return err
	}
	return l.startServer(ctx, n)
}

// bootServers has a cluster's other API servers join the first, all at once.
func (l *Lab) bootServers(ctx context.Context, c *Cluster) error {
	for _, name := range c.Servers {
		if err := l.addServer(ctx, l.nodes[c.Name+"/"+name]); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range c.Servers {
		g.Go(func() error { return l.startServer(ctx, l.nodes[c.Name+"/"+name]) })
	}
	return g.Wait()
}

// addServer writes the configuration and the join bundle of another API server to a
// machine's disk.
func (l *Lab) addServer(ctx context.Context, n *Node) error {
	bundle, err := l.weft(ctx, "-c", n.Cluster.Name, "server", "add", n.Name, "--address", n.Addr.String(), "--write", "-")
	if err != nil {
		return err
	}
	if err := installServer(n, append([]string{"--join", serverBundle}, n.Cluster.APIServer...)); err != nil {
		return err
	}
	return os.WriteFile(n.path(serverBundle), bundle, 0o600)
}

// serverBundle is where an API server that joins others finds its bundle.
const serverBundle = "/etc/weft/server.yaml"

func installServer(n *Node, flags []string) error {
	if err := installExample(n, "apiserver", apiServerSite(n)); err != nil {
		return err
	}
	if len(n.Cluster.Servers) > 0 {
		flags = append([]string{"--name", n.Name}, flags...)
	}
	return writeFlags(n, "apiserver", flags)
}

func (l *Lab) startServer(ctx context.Context, n *Node) error {
	if err := n.Start("apiserver"); err != nil {
		return err
	}
	return l.await(ctx, "API server on "+n.Full(), n, func() error {
		_, err := os.Stat(n.path(api.AdminConfigPath))
		return err
	})
}

// mergeContexts writes the contexts of all clusters into one file.
func (l *Lab) mergeContexts() error {
	merged := &api.Config{}
	for i := range l.Topology.Clusters {
		c := &l.Topology.Clusters[i]
		if !c.bootsWeft() {
			continue
		}
		one, err := api.LoadConfig(l.control(c).path(api.AdminConfigPath))
		if err != nil {
			return fmt.Errorf("cluster %s: %w", c.Name, err)
		}
		first := one.Contexts
		// Each other API server has a context of its own, called CLUSTER-NODE. The first
		// one's file lists it only later.
		for _, name := range c.Servers {
			one, err := api.LoadConfig(l.nodes[c.Name+"/"+name].path(api.AdminConfigPath))
			if errors.Is(err, fs.ErrNotExist) {
				continue // it has not started yet
			}
			if err != nil {
				return fmt.Errorf("cluster %s: %w", c.Name, err)
			}
			for _, x := range one.Contexts {
				for i := range first {
					if !slices.Contains(first[i].Servers, x.Server) {
						first[i].Servers = append(first[i].Servers, x.Server)
					}
				}
				x.Name = c.Name + "-" + name
				merged.Set(x)
			}
		}
		for _, x := range first {
			merged.Set(x)
		}
	}
	return merged.Save(l.ConfigPath())
}

// bootNodes registers a cluster's machines and starts what runs on them.
func (l *Lab) bootNodes(ctx context.Context, c *Cluster) error {
	err := l.await(ctx, "API server of cluster "+c.Name, l.control(c), func() error {
		_, err := l.weft(ctx, "-c", c.Name, "status")
		return err
	})
	if err != nil {
		return err
	}
	var g errgroup.Group
	for _, name := range c.Nodes {
		n := l.nodes[c.Name+"/"+name]
		g.Go(func() error {
			if err := l.Join(ctx, n); err != nil {
				return err
			}
			return l.StartAgent(n)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.await(ctx, "cluster "+c.Name, l.control(c), func() error {
		_, err := l.weft(ctx, "-c", c.Name, "status", "--wait", "2s")
		return err
	})
}

// Join registers a machine in its cluster and writes the bundle to its disk.
func (l *Lab) Join(ctx context.Context, n *Node) error {
	bundle, err := l.weft(ctx, "-c", n.Cluster.Name, "node", "add", n.Name, "--pod-cidr", list(n.Cluster.nodePodCIDRs(n.Name)), "--address", list(n.Addrs), "--write", "-")
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.path("/etc/weft/join.yaml"), bundle, 0o600); err != nil {
		return err
	}
	if err := installExample(n, "agent", nil); err != nil {
		return err
	}
	flags := []string{"--pods-from", "requests", "--cgroup-root", n.cgroup.Dir}
	if n.Cluster.CNI {
		flags = append(flags, cniFlags()...)
	}
	return writeFlags(n, "agent", append(flags, n.Cluster.Agent...))
}

// StartAgent starts the agent of a joined machine, and the tunnel if it needs one.
func (l *Lab) StartAgent(n *Node) error { return startInOrder(n, l.nodeProcesses(n.Cluster)) }

// nodeProcesses are the processes that run on every node of a cluster.
func (l *Lab) nodeProcesses(c *Cluster) (all []string) {
	if !l.kernel || l.Topology.Userspace {
		all = append(all, "tunnel")
	}
	all = append(all, "agent")
	if c.DNS {
		all = append(all, "dns")
	}
	return all
}

// weft runs an operator's command and returns its output. The error includes what
// the command wrote to stderr.
func (l *Lab) weft(ctx context.Context, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	limit := fmt.Sprintf("--timeout=%ds", 30*max(l.slower, 1))
	if err := l.Run(ctx, l.Dir, &stdout, &stderr, append([]string{"weft", limit}, args...)...); err != nil {
		return nil, fmt.Errorf("weft %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// await retries until holds succeeds, a process of the lab dies, or ctx ends.
func (l *Lab) await(ctx context.Context, what string, n *Node, holds func() error) error {
	for {
		err := holds()
		if err == nil {
			return nil
		}
		if failed := l.Failures(); failed != nil {
			return failed
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w%s", what, err, tail(l.logFile(n.dashed(), "apiserver"), 15))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// writeFlags puts extra flags where the unit of a process looks for them.
func writeFlags(n *Node, process string, flags []string) error {
	if len(flags) == 0 {
		return nil
	}
	line := fmt.Sprintf("WEFT_%s_FLAGS=%s\n", strings.ToUpper(process), strings.Join(flags, " "))
	return os.WriteFile(n.path("/etc/weft/"+process+".env"), []byte(line), 0o600)
}
