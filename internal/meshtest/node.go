package meshtest

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"sync"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent"
	"github.com/weft-mesh/weft/meshagent/endpoint/endpointtest"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/tunnel/tunneltest"
)

// Node is a machine: its disk and kernel outlive the agent.
type Node struct {
	Name string
	// Agent is the one that runs, or ran last.
	Agent *meshagent.Agent
	// Link leads to the cluster's store.
	Link *storetest.Link

	cluster  *Cluster
	cidr     netip.Prefix
	boots    int
	bundle   api.JoinBundle
	dir      string
	datapath *bpftest.Datapath
	lanes    *tunneltest.Lanes
	host     *tunneltest.Host
	plumbing *endpointtest.Plumbing
	site     Site
	checks   checks
	stop     func()
}

// Site is what a node may have beyond what all have.
type Site struct {
	Labels map[string]string
	// Outside are the addresses at which the world reaches the node; nil: it does not.
	Outside []netip.Addr
	// IPv6 gives its pods addresses of IPv6 as well.
	IPv6 bool
}

// Node adds the cluster's next node and starts its agent.
func (c *Cluster) Node() *Node { return c.NodeAt(Site{}) }

// NodeAt is Node for one that is not like all.
func (c *Cluster) NodeAt(site Site) *Node {
	t := c.mesh.t
	t.Helper()
	number := len(c.Nodes) + 1
	n := &Node{
		site: site,
		Name: fmt.Sprintf("%s-%d", c.Name, number), Link: storetest.NewLink(c.Store), cluster: c, dir: t.TempDir(),
		cidr:     netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(c.id), byte(number), 0}), 24),
		datapath: bpftest.NewDatapath(), lanes: c.mesh.wire.New(), host: &tunneltest.Host{}, plumbing: &endpointtest.Plumbing{},
	}
	c.Nodes[n.Name] = n
	ask := api.NodeRequest{Name: n.Name, Addresses: []netip.Addr{addr(c.id, number)}, PodCIDRs: []netip.Prefix{n.cidr}, Labels: site.Labels}
	if site.IPv6 {
		ask.PodCIDRs = append(ask.PodCIDRs, netip.PrefixFrom(six(c.id, number), 64))
	}
	c.must(http.MethodPost, "/v1/nodes", ask, &n.bundle)
	n.Start()
	return n
}

// Start starts the node's agent, again after Stop.
func (n *Node) Start() {
	t := n.cluster.mesh.t
	t.Helper()
	conf := meshagent.Defaults()
	conf.StateDir, conf.Hosts, conf.GossipPort, conf.Log = n.dir, "", 0, slog.New(slog.DiscardHandler)
	user, err := n.cluster.userOf(n.bundle.Cert, n.bundle.Key)
	if err != nil {
		t.Fatalf("agent of %s: %v", n.Name, err)
	}
	edges := &meshagent.Edges{
		Store: n.Link.As(user), Datapath: n.datapath, Lanes: n.lanes, Host: n.host, Plumbing: n.plumbing,
		Transport: func(src ...netip.Addr) (probe.Transport, error) { return n.cluster.mesh.Probes.From(src...), nil },
		MTU:       1420, BootID: fmt.Sprint("boot ", n.boots),
	}
	if n.site.Outside != nil {
		edges.Outside = func() (meshagent.Outside, error) {
			return meshagent.Outside{Addrs: n.site.Outside, FirstPort: 32768, LastPort: 60999}, nil
		}
		edges.HealthCheck = n.checks.listen
	}
	n.Agent, err = meshagent.New(conf, &n.bundle, edges)
	if err != nil {
		t.Fatalf("agent of %s: %v", n.Name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Agent.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent of %s: %v", n.Name, err)
		}
	})
	t.Cleanup(n.stop)
}

// Stop stops the agent. Its kernel stays as it is.
func (n *Node) Stop() { n.stop() }

// Reboot ends the kernel of a node whose agent is stopped, with its maps, tunnels and links.
func (n *Node) Reboot() {
	n.boots++
	n.EmptyMaps()
	n.lanes.Reboot(false)
	n.host = &tunneltest.Host{}
	n.plumbing.Reboot()
}

// LoseDisk empties the state folder of a node whose agent is stopped, and reboots it.
func (n *Node) LoseDisk() {
	emptied(n.cluster.mesh.t, n.dir)
	n.Reboot()
	n.lanes.Reboot(true)
}

// EmptyMaps gives a node whose agent is stopped new maps; links and tunnels stay.
func (n *Node) EmptyMaps() { n.datapath = bpftest.NewDatapath() }

// SetData makes everything that the node sends to others be lost, or what they send to it,
// or ends that.
func (n *Node) SetData(out, in bool) {
	all := netip.MustParsePrefix("0.0.0.0/0")
	n.cluster.mesh.Probes.SetOneWay(n.cidr, all, out)
	n.cluster.mesh.Probes.SetOneWay(all, n.cidr, in)
}

// Maps are the kernel's maps.
func (n *Node) Maps() *bpf.Maps { return n.datapath.Maps() }

// Rows returns all rows of one of the maps.
func Rows[K comparable, V any](n *Node, table bpf.Table[K, V]) map[K]V {
	t := n.cluster.mesh.t
	t.Helper()
	rows, failed := table.All()
	out := maps.Collect(rows)
	if err := failed(); err != nil {
		t.Fatal(err)
	}
	return out
}

// Pod declares a pod on the node, with one label.
func (n *Node) Pod(namespace, name, app string) {
	n.cluster.mesh.t.Helper()
	n.cluster.Apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {app: %s}}
spec:
  nodeName: %s
  containers: [{name: main, image: none}]
`, name, namespace, app, n.Name))
}
