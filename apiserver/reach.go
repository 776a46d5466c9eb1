package apiserver

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/tunnel"
)

// reach combines what the agents of this cluster say about their paths: who reaches whom,
// and how large a packet may be.
type reach struct {
	own  string
	live []string // own nodes whose agents answer, sorted
	// cut has, by cluster, the own nodes that reach none of its nodes.
	cut map[string]map[string]api.NodePath
	// down has, by remote end, the own nodes that do not reach it.
	down    map[end]map[string]time.Time
	limited map[string][]limitedPath // by cluster
	cilium  map[string]bool          // peers that run Cilium, to whose nodes there are no paths
}

// end is a node of any cluster.
type end struct{ cluster, node string }

func (e end) String() string { return e.cluster + "/" + e.node }

type limitedPath struct {
	from string
	api.NodePath
}

// reachOf combines what nodes say about the paths to each other and to peers. A silent
// node says nothing.
func reachOf(own string, nodes []api.NodeStatus, peers []api.PeerStatus) reach {
	r := reach{own: own, cut: map[string]map[string]api.NodePath{}, down: map[end]map[string]time.Time{}, limited: map[string][]limitedPath{}, cilium: map[string]bool{}}
	for _, p := range peers {
		if p.Cilium {
			r.cilium[p.Name] = true
		}
	}
	for _, n := range nodes {
		if n.State == api.NodeSilent || n.State == api.NodeNeverConnected {
			continue
		}
		r.live = append(r.live, n.Name)
		for _, p := range n.Paths {
			switch {
			case p.Limit > 0:
				r.limited[p.Cluster] = append(r.limited[p.Cluster], limitedPath{n.Name, p})
			case p.Node != "":
				r.note(end{p.Cluster, p.Node}, n.Name, p.Since)
			case p.Cluster == own:
				// It reaches none of its own cluster's nodes, which are known.
				for _, other := range nodes {
					if other.Name != n.Name && other.State != api.NodeNeverConnected {
						r.note(end{own, other.Name}, n.Name, p.Since)
					}
				}
			default:
				if r.cut[p.Cluster] == nil {
					r.cut[p.Cluster] = map[string]api.NodePath{}
				}
				r.cut[p.Cluster][n.Name] = p
			}
		}
	}
	slices.Sort(r.live)
	return r
}

func (r *reach) note(to end, from string, since time.Time) {
	if r.down[to] == nil {
		r.down[to] = map[string]time.Time{}
	}
	r.down[to][from] = since
}

// cluster returns how many paths there are to a peer if none of them is up, and since when
// that is so; 0 if one may be up.
func (r reach) cluster(name string) (paths int, since time.Time) {
	if len(r.live) == 0 || len(r.cut[name]) < len(r.live) {
		return 0, time.Time{}
	}
	for _, p := range r.cut[name] {
		paths += p.Probed
		if p.Since.After(since) {
			since = p.Since
		}
	}
	return paths, since
}

// node reports whether no live node, other than itself, reaches a node, and since when.
func (r reach) node(to end) (since time.Time, lost bool) {
	others := 0
	for _, from := range r.live {
		if to == (end{r.own, from}) {
			continue
		}
		others++
		at, down := r.down[to][from]
		if p, cut := r.cut[to.cluster][from]; cut {
			at, down = p.Since, true
		}
		if !down {
			return time.Time{}, false
		}
		if at.After(since) {
			since = at
		}
	}
	return since, others > 0
}

// why says why a backend on a node cannot be reached from this cluster; "" if it can.
func (r reach) why(cluster, node string) string {
	if r.cilium[cluster] {
		return cluster + " runs Cilium, so there is no tunnel to its nodes"
	}
	if paths, _ := r.cluster(cluster); paths > 0 {
		return "no path to " + cluster + " is up"
	}
	if node == "" {
		return ""
	}
	if _, lost := r.node(end{cluster, node}); lost {
		return "no path to " + cluster + "/" + node + " is up"
	}
	return ""
}

// mostPathLines is how many paths between two clusters have a line each. More than that
// usually have one cause, and share a line with an example.
const mostPathLines = 4

// pathGrace is longer than a restart of `weft tunnel` or a handshake takes.
const pathGrace = 3 * time.Second

// concerns are the paths that are down or carry less than they should. Those to a peer that
// has not added this cluster, or runs Cilium, are left out, because they cannot be up.
func (r reach) concerns(nodes []api.NodeStatus, peers []api.PeerStatus) (out []api.Concern) {
	silent := map[string]bool{}
	for _, n := range nodes {
		silent[n.Name] = n.State == api.NodeSilent
	}
	out = append(out, r.within(silent)...)
	for _, p := range peers {
		if halfJoined(p) || p.Cilium {
			continue
		}
		out = append(out, r.towards(p)...)
	}
	for _, cluster := range slices.Sorted(maps.Keys(r.limited)) {
		out = append(out, r.limits(cluster)...)
	}
	return out
}

const openPorts = "is UDP %d–%d open between %s?"

func ports(whom string) string {
	return fmt.Sprintf(openPorts, tunnel.DefaultPorts[0], tunnel.DefaultPorts[1], whom)
}

// within are the paths between nodes of the own cluster.
func (r reach) within(silent map[string]bool) (out []api.Concern) {
	var pairs []path
	lost := map[string]time.Time{} // nodes that no other reaches
	for to := range r.down {
		if to.cluster != r.own {
			continue
		}
		if since, all := r.node(to); all {
			lost[to.node] = since
		}
	}
	alive := 0 // of those, the ones whose agents answer
	var last time.Time
	for name, since := range lost {
		if !silent[name] {
			alive++
			if since.After(last) {
				last = since
			}
		}
	}
	if alive == len(r.live) && alive > 1 {
		return []api.Concern{{
			Object: "path " + r.own + " → " + r.own, Reason: "PathsDown", Since: last, Grace: pathGrace,
			Message: fmt.Sprintf("between the nodes of %s: 0 of %d paths up", r.own, alive*(alive-1)), Next: ports("the nodes"),
		}}
	}
	for to, from := range r.down {
		if to.cluster != r.own || silent[to.node] && !lost[to.node].IsZero() {
			continue // the node is down, and has its own line
		}
		if since, all := lost[to.node]; all && len(r.live) > 2 {
			out = append(out, unreachable(r.own, to, since))
			continue
		}
		for name, since := range from {
			if _, isolated := lost[name]; isolated && len(r.live) > 2 {
				continue // it reaches nobody, and has its own line
			}
			if _, back := r.down[end{r.own, name}][to.node]; back && name > to.node {
				continue // one line for both directions
			}
			pairs = append(pairs, path{end{r.own, name}, to, since})
		}
	}
	return append(out, lines(r.own, r.own, pairs)...)
}

// towards are the paths to the nodes of a peer.
func (r reach) towards(p api.PeerStatus) (out []api.Concern) {
	if paths, since := r.cluster(p.Name); paths > 0 {
		c := api.Concern{
			Object: "path " + r.own + " → " + p.Name, Reason: "PathsDown", Since: since, Grace: pathGrace,
			Message: fmt.Sprintf("%s → %s: 0 of %d paths up", r.own, p.Name, paths), Next: ports("the nodes"),
		}
		if p.Control.State != api.LinkUp {
			c.Next = "is " + p.Name + " running, and the network to it up?"
		}
		return []api.Concern{c}
	}
	for _, from := range slices.Sorted(maps.Keys(r.cut[p.Name])) {
		if !slices.Contains(r.live, from) {
			continue
		}
		out = append(out, api.Concern{
			Object: "path " + from + " → " + p.Name, Node: from, Reason: "PathsDown", Since: r.cut[p.Name][from].Since, Grace: pathGrace,
			Message: fmt.Sprintf("%s/%s → %s: 0 of %d paths up", r.own, from, p.Name, r.cut[p.Name][from].Probed), Next: ports(from + " and the nodes of " + p.Name),
		})
	}
	var pairs []path
	for to, from := range r.down {
		switch since, all := r.node(to); {
		case to.cluster != p.Name:
		case all && slices.Contains(p.DeadNodes, to.node):
			// The node is down, and has its own line.
		case all && len(r.live) > 1:
			out = append(out, unreachable(r.own, to, since))
		default:
			for name, since := range from {
				pairs = append(pairs, path{end{r.own, name}, to, since})
			}
		}
	}
	return append(out, lines(r.own, p.Name, pairs)...)
}

func unreachable(own string, to end, since time.Time) api.Concern {
	return api.Concern{
		Object: "path " + own + " → " + to.String(), Reason: "PathsDown", Since: since, Grace: pathGrace,
		Message: fmt.Sprintf("no node of %s reaches %s", own, to), Next: ports("the nodes of " + own + " and " + to.String()),
	}
}

// path is a path that is down.
type path struct {
	from, to end
	since    time.Time
}

func lines(from, to string, pairs []path) (out []api.Concern) {
	slices.SortFunc(pairs, func(a, b path) int {
		return cmp.Or(cmp.Compare(a.from.node, b.from.node), cmp.Compare(a.to.node, b.to.node))
	})
	if len(pairs) > mostPathLines {
		first := slices.MinFunc(pairs, func(a, b path) int { return a.since.Compare(b.since) })
		return []api.Concern{{
			Object: "path " + from + " → " + to, Reason: "PathsDown", Since: first.since, Grace: pathGrace,
			Message: fmt.Sprintf("%s → %s: %d paths are down, %s → %s first", from, to, len(pairs), first.from, first.to), Next: ports("the nodes"),
		}}
	}
	for _, p := range pairs {
		out = append(out, api.Concern{
			Object: fmt.Sprintf("path %s → %s", p.from.node, p.to), Node: p.from.node, Reason: "PathDown", Since: p.since, Grace: pathGrace,
			Message: fmt.Sprintf("path %s → %s is down", p.from, p.to), Next: ports("the two"),
		})
	}
	return out
}

// limits are the paths to a cluster that drop large packets.
func (r reach) limits(cluster string) (out []api.Concern) {
	all := r.limited[cluster]
	slices.SortFunc(all, func(a, b limitedPath) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.Node, b.Node))
	})
	if len(all) > mostPathLines {
		worst := slices.MinFunc(all, func(a, b limitedPath) int { return cmp.Compare(a.Limit, b.Limit) })
		return []api.Concern{{
			Object: "path " + r.own + " → " + cluster, Reason: "PathLimited", Since: worst.Since,
			Message: fmt.Sprintf("%d paths from %s to %s swallow packets that the tunnels send, %s/%s → %s/%s those over %s of %s bytes",
				len(all), r.own, cluster, r.own, worst.from, cluster, worst.Node, digits(worst.Limit), digits(worst.Sends)),
			Next: lower(worst.Limit, "the nodes' devices"),
		}}
	}
	for _, p := range all {
		out = append(out, api.Concern{
			Object: fmt.Sprintf("path %s → %s/%s", p.from, cluster, p.Node), Node: p.from, Reason: "PathLimited", Since: p.Since,
			Message: fmt.Sprintf("path %s/%s → %s/%s carries %s bytes at most, the tunnel sends %s", r.own, p.from, cluster, p.Node, digits(p.Limit), digits(p.Sends)),
			Next:    lower(p.Limit, "both nodes' devices"),
		})
	}
	return out
}

// lower says how to make packets fit. An agent reads its device's MTU only when it starts.
func lower(limit int, devices string) string {
	if least := tunnel.MinMTU + tunnel.Overhead; limit < least {
		return fmt.Sprintf("raise the MTU of the network between them to %s or more", digits(least))
	}
	return fmt.Sprintf("lower the MTU of %s to %s and restart their agents", devices, digits(limit))
}

// digits formats a number below a million with a thousands separator.
func digits(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}
