package apiserver

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/wire"
)

// differences returns everything that is not as wanted; api.Judge decides what of it
// concerns an operator. A new kind of concern is one more function here, from what the
// status shows to concerns, free of clocks, locks and the store. more is what other parts
// know. Concerns that do not say when they began are dated from when they were first seen.
func (s *server) differences(now time.Time, out *api.Status, more []api.Concern) []api.Concern {
	r := reachOf(s.cluster.Name, out.Nodes, out.Peers)
	all := slices.Concat(more, nodeConcerns(out.Nodes, r), aheadConcerns(out.Nodes, out.Cluster.Revision),
		peerConcerns(s.cluster.Name, out.Peers, r), r.concerns(out.Nodes, out.Peers), refusalConcerns(out))
	for i := range all {
		all[i].Cluster = s.cluster.Name
	}
	all = once(all)
	s.sightings.date(now, all)
	return all
}

// once drops repetitions: several nodes may report the same about an object.
func once(all []api.Concern) (out []api.Concern) {
	type same struct{ object, message string }
	seen := map[same]bool{}
	for _, c := range all {
		if id := (same{c.Object, c.Message}); !seen[id] {
			seen[id] = true
			out = append(out, c)
		}
	}
	return out
}

// controllerConcerns are what the controllers could not do.
func (s *server) controllerConcerns(rows problems.Rows) []api.Concern {
	return ordered(slices.Concat(rows.Unwritten(), rows.Sources(), exportConcerns(s.cluster.Name, rows.NotExported())))
}

// processConcerns are those of this process and its machine. Other servers show them too;
// see attend.
func (s *server) processConcerns() []api.Concern {
	cluster := s.cluster.Name
	all := slices.Concat(s.memory.concerns(cluster), s.registry.Concerns(), heldConcerns(cluster, s.census.holding()))
	dir := s.conf.DataDir
	for _, d := range statefile.Damages(dir, filepath.Join(dir, "pki"), filepath.Dir(s.conf.AdminConfig)) {
		all = append(all, api.Concern{Object: "API server", Reason: "DamagedFile", Since: d.Since, Message: d.String() + "; all else goes on", Next: "look at it, then delete it there"})
	}
	all = slices.Concat(all, s.space.concerns(), s.sightings.concerns(), renewalConcerns(&s.renewal), publishConcerns(&s.publishing), webhookConcerns(&s.webhook), keepingConcerns(&s.keeping), rebuildingConcerns(s.cluster.Name, &s.rebuilding))
	if s.history != nil {
		all = append(all, s.history.concerns()...)
	}
	return ordered(all)
}

func ordered(all []api.Concern) []api.Concern {
	slices.SortFunc(all, func(a, b api.Concern) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Message, b.Message))
	})
	return all
}

// heldConcerns are nodes that do not accept the current store.
func heldConcerns(cluster string, held []string) []api.Concern {
	if len(held) == 0 {
		return nil
	}
	return []api.Concern{{
		Object: "cluster " + cluster, Reason: "StoreRebuilt",
		Message: fmt.Sprintf("held: %s keep what they have from the earlier store", strings.Join(held, ", ")),
		Next:    "apply everything that belongs here, then `weft node release` makes them accept it",
	}}
}

// exportConcerns are what peers do not learn about this cluster, and why.
func exportConcerns(cluster string, problems map[string]string) (out []api.Concern) {
	for key, problem := range problems {
		c := exported(cluster, key)
		c.Reason = "NotExported"
		c.Message = fmt.Sprintf("%s is not exported to peers as it should be: %s", c.Object, problem)
		out = append(out, c)
	}
	return out
}

// exported returns a concern that names the object in a key of the state or of the export,
// and how to correct it.
func exported(cluster, key string) api.Concern {
	again := func(object string) api.Concern {
		return api.Concern{Object: object, Next: "correct it and apply it again"}
	}
	if name, _, _, _, ok := wire.ParseNodesKey(key); ok {
		return api.Concern{Object: "node " + name, Node: name, Next: "restart its agent; `weft node list` shows what it is registered with"}
	}
	if name, ok := wire.ParseRegistrationKey(key); ok {
		return api.Concern{Object: "node " + name, Node: name, Next: "add it again with `weft node add`"}
	}
	if ns, pod, ok := wire.ParseEndpointKey(key); ok {
		return again("pod " + ns + "/" + pod)
	}
	if n, ok := wire.ParseIdentityIDKey(key); ok {
		return api.Concern{Object: fmt.Sprintf("identity %d", n), Next: "apply the pods that have it again, `weft get identities` lists them"}
	}
	if plural, ns, name, ok := wire.ParseObjectKey(key); ok {
		if ns != "" {
			name = ns + "/" + name
		}
		return again(strings.TrimSuffix(plural, "s") + " " + name)
	}
	for _, r := range wire.Resources {
		ref, ok := r.ParseStateKey(key, cluster)
		if !ok {
			continue
		}
		switch r {
		case wire.Services:
			return api.Concern{Object: "service " + ref.Namespace + "/" + ref.Name, Next: "split the service, or raise the store's limit on requests"}
		case wire.EndpointSlices:
			return api.Concern{Object: "endpointslice " + ref.Namespace + "/" + ref.Name, Next: "split the slice, or raise the store's limit on requests"}
		case wire.ServiceExports:
			return api.Concern{Object: "serviceexport " + ref.Namespace + "/" + ref.Name, Next: "export fewer annotations, or raise the store's limit on requests"}
		}
	}
	return api.Concern{Object: "entry " + key, Next: "raise the store's limit on requests"}
}

// Grace periods of nodes. A restarting agent is away for a second or two, and reads
// everything before it is ready.
const (
	silentGrace   = 5 * time.Second
	startingGrace = 10 * time.Second
	storeGrace    = 5 * time.Second
	// The agents of a large cluster are asked in turn.
	aheadGrace = 15 * time.Second
)

func nodeConcerns(nodes []api.NodeStatus, r reach) (out []api.Concern) {
	for _, n := range nodes {
		c := api.Concern{Object: "node " + n.Name, Node: n.Name}
		switch n.State {
		case api.NodeNeverConnected:
			c.Reason, c.Since, c.Grace = "NodeNeverConnected", n.Since, startingGrace
			c.Message, c.Next = fmt.Sprintf("node %s has never connected", n.Name), "start its agent"
			out = append(out, c)
		case api.NodeStarting:
			c.Reason, c.Since, c.Grace = "AgentStarting", n.Since, startingGrace
			c.Message, c.Next = fmt.Sprintf("agent on %s has been starting for {age}", n.Name), "check its log"
			out = append(out, c)
		case api.NodeSilent:
			c.Reason, c.Since, c.Grace = "AgentSilent", n.LastSeen, silentGrace
			if c.Since.IsZero() {
				c.Since = n.Since
			}
			c.Message, c.Next = fmt.Sprintf("agent on %s has not answered for {age} (its traffic continues)", n.Name), "start it, or `weft node delete "+n.Name+"` if the machine is gone"
			if _, lost := r.node(end{r.own, n.Name}); lost {
				c.Reason, c.Message = "NodeDown", fmt.Sprintf("node %s is down: neither its agent nor its tunnels have answered for {age}", n.Name)
			}
			out = append(out, c)
		}
		if c, ok := storeConcern(n); ok {
			out = append(out, c)
		}
		for _, p := range n.Problems {
			out = append(out, nodeProblem(n.Cluster, n.Name, p))
		}
	}
	return out
}

// storeConcern says why an agent that answers cannot read its store. Gossip and traffic
// continue, but changes, policies above all, do not arrive.
func storeConcern(n api.NodeStatus) (api.Concern, bool) {
	if n.Store == nil || !n.Store.Behind || n.State == api.NodeSilent {
		return api.Concern{}, false
	}
	lag := api.Words(time.Duration(n.Store.LagSeconds * float64(time.Second)))
	if n.Store.Read.IsZero() {
		lag = "more than " + lag // it has not read anything since it started
	}
	c := api.Concern{
		Object: "node " + n.Name, Node: n.Name, Reason: "StoreNotRead", Since: n.Store.Since, Grace: storeGrace, Dated: true,
		Message: fmt.Sprintf("node %s cannot read its store (%s): its policies are %s old", n.Name, n.Store.Cause, lag),
		Next:    "is TCP 2379 open between them, and is etcdEndpoints in its join bundle right?",
	}
	if strings.Contains(n.Store.Cause, "certificate") {
		c.Next = "give it a new join bundle with `weft node add " + n.Name + " --write join.yaml`"
	}
	return c, true
}

// aheadConcerns are nodes that have read a later revision than the store has: it was
// restored from an older copy.
func aheadConcerns(nodes []api.NodeStatus, revision int64) (out []api.Concern) {
	for _, n := range nodes {
		if n.Store == nil || n.Store.Revision <= revision || n.State == api.NodeSilent {
			continue
		}
		out = append(out, api.Concern{
			Object: "node " + n.Name, Node: n.Name, Reason: "AheadOfStore", Grace: aheadGrace,
			Message: fmt.Sprintf("node %s is at revision %d but its store is only at %d: the store was restored from an older copy", n.Name, n.Store.Revision, revision),
			Next:    "restart its agent",
		})
	}
	return out
}

// mostStrangerLines is how many removed nodes have a line each.
const mostStrangerLines = 10

// strangerConcerns are agents that answer although their nodes were removed.
func strangerConcerns(cluster string, strangers map[string]time.Time) (out []api.Concern) {
	for _, name := range slices.Sorted(maps.Keys(strangers)) {
		out = append(out, api.Concern{
			Object: "node " + name, Node: name, Reason: "NodeRemoved", Since: strangers[name], Grace: silentGrace,
			Message: fmt.Sprintf("%s was removed from cluster %s and still runs", name, cluster), Next: "stop its agent",
		})
	}
	if len(out) <= mostStrangerLines {
		return out
	}
	first := slices.MinFunc(out, func(a, b api.Concern) int { return a.Since.Compare(b.Since) })
	first.Message = fmt.Sprintf("%d nodes that are not registered in cluster %s run agents, for example %s", len(out), cluster, first.Node)
	first.Next = "stop their agents"
	return []api.Concern{first}
}

// nodeProblem turns what an agent reports about its node into a concern. Most problems are
// rows that a kernel table lacks; the line says where all of them are listed, because it
// names only one.
func nodeProblem(cluster, node string, p api.NodeProblem) api.Concern {
	c := api.Concern{Object: "node " + node, Node: node, Since: p.Since, Part: p.Table + " " + p.Error, Next: "`weft debug table problems --node " + node + "` lists them"}
	// The agent keeps trying, so the problem goes once its cause is gone.
	mend := "correct that on " + node + "; its agent keeps trying"
	cause, advice := api.Advice(p.Error)
	switch {
	case p.Table == wire.ProblemShares:
		return shareConcern(node, p)
	case p.Table == wire.ProblemMasquerades:
		c.Reason, c.Message = "NoPortLeft", fmt.Sprintf("node %s: %s", node, p.Error)
		c.Next = "see to which addresses with `weft observe --reason no-port`; let pods keep connections open, or spread over more addresses or nodes"
	case p.Table == wire.ProblemTunnels:
		c.Reason, c.Message = "TunnelDown", fmt.Sprintf("tunnel on %s is down: %s", node, cause)
		c.Next = cmp.Or(advice, mend)
	case p.Table == wire.ProblemPeers:
		c.Reason, c.Message = "TunnelNotUpdated", fmt.Sprintf("tunnel on %s is not brought up to date: %s", node, cause)
		c.Next = cmp.Or(advice, mend)
	case p.Table == wire.ProblemProbes, p.Table == wire.ProblemPaths && p.Row == "":
		c.Reason, c.Message = "PathsNotWatched", fmt.Sprintf("node %s does not probe its paths, so traffic is not moved away from dead nodes: %s", node, cause)
		c.Next = cmp.Or(advice, mend)
	case p.Table == wire.ProblemCertificates:
		c.Reason, c.Message, c.Next = "CertificateEnds", fmt.Sprintf("node %s: %s", node, cause), cmp.Or(advice, mend)
	case p.Table == wire.ProblemFiles:
		c.Reason, c.Message, c.Next = "FileNotWritten", fmt.Sprintf("node %s: %s", node, cause), cmp.Or(advice, mend)
	case p.Table == wire.ProblemParts:
		c.Reason, c.Message, c.Next = "AgentImpaired", fmt.Sprintf("agent on %s: %s", node, cause), cmp.Or(advice, mend)
	case p.Table == wire.ProblemValues:
		c.Reason, c.Message = "ValueNotRead", fmt.Sprintf("node %s cannot use %s of its store: %s", node, p.Row, p.Error)
		if p.Rows > 1 {
			c.Message = fmt.Sprintf("node %s cannot use %d values of its store (for example %s): %s", node, p.Rows, p.Row, p.Error)
		}
		c.Next = "is the agent older than its API server? `weft debug table rejected --node " + node + "` lists them"
	case p.Table == wire.ProblemDamages:
		c.Reason, c.Message, c.Next = "DamagedFile", fmt.Sprintf("node %s: %s", node, cause), advice
	case p.Table == wire.ProblemPrograms:
		c.Reason, c.Message = "ProgramsMissing", fmt.Sprintf("node %s: traffic is not checked as it should be: %s: %s", node, p.Row, cause)
		c.Next = cmp.Or(advice, mend)
	case p.Table == wire.ProblemPods:
		what := "pod " + p.Row
		if p.Rows > 1 {
			what = fmt.Sprintf("%d pods (for example %s)", p.Rows, p.Row)
		}
		c.Object, c.Reason, c.Message = "pod "+p.Row, "PodWithoutNetwork", fmt.Sprintf("%s on node %s: its network is not ready: %s", what, node, cause)
		c.Next = cmp.Or(advice, mend)
	case p.Table == "nodes" && p.Error == wire.NotRegistered && p.Rows == 1:
		gone := strings.TrimPrefix(p.Row, cluster+"/")
		c.Object, c.Reason, c.Message = "node "+gone, "NodeRemoved", fmt.Sprintf("%s was removed from cluster %s and still runs", gone, cluster)
		c.Node, c.Next = gone, "stop its agent"
	case p.Rows > 1:
		c.Reason, c.Message = "NotInKernel", fmt.Sprintf("node %s: %d rows of %s are not in the kernel (for example %s): %s", node, p.Rows, p.Table, p.Row, p.Error)
	case p.Row != "":
		c.Reason, c.Message = "NotInKernel", fmt.Sprintf("node %s: %s %s is not in the kernel: %s", node, p.Table, p.Row, p.Error)
	default:
		c.Reason, c.Message = "NotInKernel", fmt.Sprintf("node %s: %s: %s", node, p.Table, p.Error)
	}
	return c
}

// unready reports whether a node with this problem is not ready: a whole part does not work,
// not just one row.
func unready(p api.NodeProblem) bool {
	return p.Table == wire.ProblemTunnels || p.Table == wire.ProblemProbes || p.Table == wire.ProblemPaths && p.Row == ""
}

// halfJoined reports whether only one of two clusters has added the other. A Cilium cluster
// does not say, and nothing is sent to it either way.
func halfJoined(p api.PeerStatus) bool {
	return !p.Cilium && (p.Control.State == api.LinkInvited || !p.Added.IsZero() && (!p.Invited || p.AddedUs != nil && !*p.AddedUs))
}

// linkGrace is the grace period of peers: two clusters add each other one after the other,
// and a broken link is usually back after a few tries.
const linkGrace = 5 * time.Second

func peerConcerns(own string, peers []api.PeerStatus, r reach) (out []api.Concern) {
	for _, p := range peers {
		add := func(c api.Concern) {
			c.Object = "peer " + p.Name
			out = append(out, c)
		}
		var next string
		switch {
		case p.Control.State == api.LinkInvited && p.Cilium:
			// It may read this cluster, and no more was asked for.
		case p.Control.State == api.LinkInvited:
			add(api.Concern{
				Reason: "HalfJoined", Since: p.Control.Since, Grace: linkGrace, Message: p.Name + " was invited but has not been added here",
				Next: fmt.Sprintf("add the file of its `weft peer invite %s`, or `weft peer remove %s`", own, p.Name),
			})
		case p.Control.State == api.LinkRemoving:
			add(api.Concern{Reason: "BeingRemoved", Since: p.Control.Since, Grace: linkGrace, Message: p.Name + " is being removed", Next: "check the API server's log if this persists"})
		case p.Control.State == api.LinkConnecting:
			add(linkConcern(p, "control link to "+p.Name+" is not up yet", "is its API server running, and TCP 2379 to it open?"))
		case p.Control.State == api.LinkDown:
			add(linkConcern(p, "control link to "+p.Name+" is down", "is its API server running, and TCP 2379 to it open? Traffic continues with the last known state"))
		case p.Control.State == api.LinkRefused:
			p.Control.Error, next = api.Advice(p.Control.Error)
			add(linkConcern(p, "peer "+p.Name+": nothing is imported", cmp.Or(next, "compare `weft peer list` in both clusters, and add it again if it was rebuilt")))
		}
		if halfJoined(p) && p.Control.State != api.LinkInvited {
			since := p.Added
			if p.AddedUsSince.After(since) {
				since = p.AddedUsSince
			}
			add(api.Concern{
				Reason: "HalfJoined", Since: since, Grace: linkGrace, Message: fmt.Sprintf("%s was added here, but has not added %s", p.Name, own),
				Next: fmt.Sprintf("give it the file of `weft peer invite %s`", p.Name),
			})
		}
		if p.Cilium && !p.Added.IsZero() && p.Control.State != api.LinkRemoving {
			add(api.Concern{
				Reason: "NoTunnels", Since: p.Added, Message: fmt.Sprintf("%s runs Cilium, so there are no tunnels to its nodes: everything to its pods is dropped, and its backends are not used", p.Name),
				Next: fmt.Sprintf("run Weft on its nodes and add it again, or `weft peer remove %s`", p.Name),
			})
		}
		for _, m := range p.Mirrors {
			if !m.Synced && p.Control.State == api.LinkUp {
				add(api.Concern{Reason: "MirrorIncomplete", Since: p.Control.Since, Part: m.Resource, Message: fmt.Sprintf("%s of peer %s are not complete yet", m.Resource, p.Name), Next: "check the API servers' logs in both clusters if this persists"})
			}
		}
		for _, node := range p.DeadNodes {
			to := end{p.Name, node}
			if _, lost := r.node(to); lost {
				add(api.Concern{Reason: "NodeDown", Since: p.DeadSince[node], Grace: silentGrace, Message: fmt.Sprintf("%s is down: neither its agent nor its tunnels have answered for {age}", to), Next: "ask its operator to start it, or to delete it there"})
			} else {
				add(api.Concern{Reason: "PeerAgentSilent", Since: p.DeadSince[node], Grace: silentGrace, Message: fmt.Sprintf("%s's agent on %s does not answer", p.Name, node), Next: "ask its operator to start it; its traffic continues"})
			}
		}
	}
	return out
}

// linkConcern is a control link that is not up, with the cause. One that changes from one
// cause to another has not been up in between.
func linkConcern(p api.PeerStatus, message, next string) api.Concern {
	if p.Control.Error != "" {
		message += ": " + p.Control.Error
	}
	return api.Concern{Reason: "ControlLink", Since: cmp.Or(p.Control.NotUpSince, p.Control.Since), Grace: linkGrace, Message: message, Next: next}
}

func refusalConcerns(s *api.Status) (out []api.Concern) {
	add := func(from, node string, r api.Refusal, next string) {
		out = append(out, api.Concern{
			Object: from, Node: node, Reason: "ClaimRefused", Part: r.Resource + " " + r.Reason, Next: next,
			Message: fmt.Sprintf("%s: %d × %s refused: %s (for example %s)", from, r.Count, r.Resource, r.Reason, r.Example),
		})
	}
	for _, r := range s.Refused {
		add("node "+r.Node, r.Node, r, "restart its agent; if that does not help, do not trust the node")
	}
	for _, p := range s.Peers {
		for _, r := range p.Refused {
			add("peer "+r.Cluster, "", r, "ask its operator to correct it; the rest of its export is used")
		}
	}
	return out
}

// shareConcern says which pod or node has used up its share of a table.
func shareConcern(node string, p api.NodeProblem) api.Concern {
	c := api.Concern{Object: "pod " + p.Row, Node: node, Reason: "ShareUsedUp", Since: p.Since, Next: fmt.Sprintf("see what it sends and receives: `weft observe --from-pod %s`, `--to-pod %s`", p.Row, p.Row)}
	switch {
	case p.Row == "":
		c.Object, c.Next = "node "+node, "see which of its processes connect to pods"
		c.Message = fmt.Sprintf("node %s %s", node, p.Error)
	case p.Row == wire.NodePortShare:
		c.Object, c.Next = "node "+node, "see who connects to its node ports: `weft observe --node "+node+"`"
		c.Message = fmt.Sprintf("what clients open through the node ports of node %s %s", node, p.Error)
	case p.Rows > 1:
		c.Message = fmt.Sprintf("%d pods on node %s have each used up their shares, for example %s, which %s", p.Rows, node, p.Row, p.Error)
	default:
		c.Message = fmt.Sprintf("pod %s on node %s %s", p.Row, node, p.Error)
	}
	return c
}
