package tables

import (
	"fmt"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/tunnel/probe"
)

// Path is what is known about the path to a node.
type Path struct {
	Cluster, Node string
	// Observation is nil if nobody probes the node: in a large mesh most are like that.
	Observation *probe.Observation
	// Index is the node's row in the kernel.
	Index uint16
	Lane  uint8
	Alive bool
	// Keyed is set once packets may be sent to the node.
	Keyed bool
	// GossipDead is set while members of the node's cluster consider it dead.
	GossipDead bool
}

// Seen is Observation, or a zero one.
func (p *Path) Seen() (seen probe.Observation) {
	if p.Observation != nil {
		seen = *p.Observation
	}
	return seen
}

// Key is "cluster/node".
func (p *Path) Key() string { return p.Cluster + "/" + p.Node }

var paths = table[*Path]{
	name:    "paths",
	columns: []string{"Cluster", "Node", "Index", "Alive", "Tunnel", "Keyed", "State", "Since", "RTT", "Limit", "Gossip", "Reason"},
	cells: func(p *Path) []string {
		gossip := "-"
		if p.GossipDead {
			gossip = "dead"
		}
		o := p.Seen()
		limit := "-"
		if o.Limit > 0 {
			limit = strconv.Itoa(o.Limit)
		}
		return []string{p.Cluster, p.Node, fmt.Sprint(p.Index), yes(p.Alive), fmt.Sprint(p.Lane), yes(p.Keyed),
			or(string(o.State)), stamp(o.Since), o.RTT.Round(time.Microsecond).String(), limit, gossip, or(o.Reason)}
	},
}
