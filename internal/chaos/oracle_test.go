package chaos

import (
	"slices"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/meshtest"
	"github.com/weft-mesh/weft/policy"
)

// No packet passes against policy: what a node's maps let pass, the policies of its cluster
// allow, by the evaluator that knows no tables. A node that was cut off, or whose cluster
// just changed, is given lag; a pod's labels are those that its number stands for, because
// a node cannot know of others sooner than its peers say.

// asked are the ports at which pods are tried.
var asked = []uint16{80, 8080}

// labelsOf are the labels of a pod.
func labelsOf(cluster, app string) identity.Labels {
	return identity.PodLabels(namespace, nil, map[string]string{"app": app}, "default", cluster)
}

// checkPolicies compares what the maps decide with what the policies mean: at any time that
// nothing passes against them, and once settled that what they allow does pass.
func (r *runner) checkPolicies(settled bool) {
	known := r.labels()
	for _, c := range r.m.clusters {
		if !settled && !(r.calm(c.name, lag) && r.calm(objectsOf(c.name), lag)) {
			continue
		}
		world := policy.World{Cluster: c.name, Identities: known}
		for _, name := range sorted(c.wants.policies) {
			parsed, err := policy.Parse([]byte(policyManifest(name)))
			if err != nil {
				r.t.Fatal(err)
			}
			world.Policies = append(world.Policies, parsed...)
		}
		rows := endpoints(r.clusters[c.name])
		for _, name := range sorted(c.wants.pods) {
			p := c.wants.pods[name]
			n := r.m.node(p.node)
			if e, ok := rows[name]; ok && n.up && n.fault == "" && !n.failing && !c.away && (settled || r.calm(p.node, lag) && e.Labels.String() == labelsOf(c.name, p.app).String()) {
				r.checkPod(world, r.node(p.node), bpf.AddrOf(e.IP), labelsOf(c.name, p.app), settled)
			}
		}
	}
}

// labels are those of all identities that any cluster has now.
func (r *runner) labels() map[identity.Number]identity.Labels {
	out := map[identity.Number]identity.Labels{}
	for _, c := range r.clusters {
		for _, e := range endpoints(c) {
			out[e.Identity] = e.Labels
		}
	}
	return out
}

func (r *runner) checkPod(w policy.World, n *meshtest.Node, pod bpf.Addr, labels identity.Labels, settled bool) {
	row, ok, _ := n.Maps().Endpoints.Lookup(pod)
	if !ok || row.Held != 0 {
		if settled {
			r.fail("%s: pod %v is not ready to receive", n.Name, pod)
		}
		return
	}
	var peers []identity.Number
	for _, info := range meshtest.Rows(n, n.Maps().IPs) {
		if id := identity.Number(info.Identity); w.Identities[id] != nil && !slices.Contains(peers, id) {
			peers = append(peers, id)
		}
	}
	slices.Sort(peers)
	for _, peer := range peers {
		for _, dir := range []bpf.Direction{bpf.Egress, bpf.Ingress} {
			for _, port := range asked {
				got, _ := bpftest.Judge(n.Maps(), pod, uint32(peer), dir, 6, port)
				want := policy.Evaluate(w, policy.Flow{Subject: labels, Direction: policy.Direction(dir), Peer: peer, Proto: 6, Port: port}).Allow
				if got && !want || settled && got != want {
					r.fail("%s: %s %v, port %d, peer %v: the maps say %v, the policies %v", n.Name, []string{"egress of", "ingress of"}[dir], pod, port, w.Identities[peer], got, want)
				}
			}
		}
	}
}
