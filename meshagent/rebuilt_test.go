package meshagent

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/wire"
)

// lose empties the cluster's store and lets an API server begin it anew: the
// cluster and its nodes are there, and nothing else.
func (c *testCluster) lose(t *testing.T) {
	before := list[wire.Cluster](t, c, wire.ClusterKey)[wire.ClusterKey]
	c.store.SetAway(true)
	time.Sleep(time.Second)
	c.store.Forget()
	c.store.SetAway(false)
	before.Generation += "-rebuilt"
	c.put(t, wire.ClusterKey, before)
	for _, n := range c.nodes {
		c.put(t, wire.RegistrationKey(n.name), wire.Registration{Name: n.name, Addresses: []netip.Addr{n.ip()}, PodCIDRs: []netip.Prefix{n.cidr()}})
	}
}

func TestARebuiltStoreTakesNothingAwayUntilItsNodesAreReleased(t *testing.T) {
	for name, restart := range map[string]bool{"agent goes on": false, "agent restarts": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, east, west, vip := raise(t)
				before := kernel(t, east)
				if restart {
					east.stop()
				}
				east.cluster.lose(t)
				if restart {
					east.run()
				}
				time.Sleep(time.Minute)
				w.step()
				sameKernel(t, "store rebuilt", kernel(t, east), before)
				said := list[wire.NodeState](t, east.cluster, wire.NodesPrefix)[wire.NodeKey(east.name)]
				if said.Holding != "g-east" {
					t.Errorf("the node says %+v", said)
				}
				for _, s := range east.agent.Status().Sources {
					if !strings.Contains(s.Error, "weft node release") {
						t.Errorf("source %+v", s)
					}
				}

				// All but a pod is put back, and then the operator says so.
				w.peer()
				east.cluster.web(t, global)
				w.step()
				sameKernel(t, "put back", kernel(t, east), before)
				now := list[wire.Cluster](t, east.cluster, wire.ClusterKey)[wire.ClusterKey]
				now.Released = true
				east.cluster.put(t, wire.ClusterKey, now)
				time.Sleep(time.Minute)
				w.step()
				if rows := rowsOf(t, east.maps().Endpoints); len(rows) != 0 {
					t.Errorf("a pod that was not put back: %v", rows)
				}
				if s := rowsOf(t, east.maps().Services)[frontend(vip)]; s.Groups != 1 || s.Group[0].Cluster != 2 {
					t.Errorf("the service: %+v", s)
				}
				said = list[wire.NodeState](t, east.cluster, wire.NodesPrefix)[wire.NodeKey(east.name)]
				if said.Holding != "" {
					t.Errorf("released, the node says %+v", said)
				}
				east.stop()
				west.stop()
			})
		})
	}
}
