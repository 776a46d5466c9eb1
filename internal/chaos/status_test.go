package chaos

import (
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
)

// `weft status` names what is broken while it is, and nothing once all is well. Agents that
// fall silent are told by gossip, which these meshes do not have, or by the end of their
// lease, a quarter of an hour later; that is not waited for here.

// expectation is what the status of a cluster must name.
type expectation struct{ cluster, what string }

// brokenFor returns what has been broken for long enough, in the words in which status names it.
func (r *runner) brokenFor(d time.Duration) (out []expectation) {
	add := func(c *cluster, what string) {
		if c.answers() != nil && r.calm(c.name, d) {
			out = append(out, expectation{c.name, what})
		}
	}
	for link := range r.m.control {
		from, to := r.m.pair(link)
		if r.calm(link, d) && from.wants.peers[to.name] != 0 {
			add(from, "peer "+to.name)
		}
	}
	for _, c := range r.m.clusters {
		for _, s := range c.servers {
			if (s.fault != "" || s.killed) && r.calm(s.name, d) {
				add(c, "API server "+r.server(s.name).Addr().String())
			}
		}
		for _, n := range c.nodes {
			if n.up && n.fault == "" && n.failing && r.calm(n.name, d) && r.refusing(n.name, d) {
				add(c, "node "+n.name)
			}
		}
		for _, other := range r.m.clusters {
			if known := other.wants.peers[c.name] != 0; known && (c.away || c.empty || !other.joined(c)) && r.calm(c.name, d) {
				add(other, "peer "+c.name)
			}
		}
	}
	return append(out, r.pathsDown(d)...)
}

// pathsDown are the lost paths between clusters: an agent on either side says so.
func (r *runner) pathsDown(d time.Duration) (out []expectation) {
	for link := range r.m.data {
		from, to := r.m.pair(link)
		if !r.calm(link, d) || !from.joined(to) {
			continue
		}
		for _, side := range [][2]*cluster{{from, to}, {to, from}} {
			c := side[0]
			ok := c.answers() != nil && r.calm(c.name, d)
			for _, n := range c.nodes {
				ok = ok && n.up && n.fault == "" && !n.failing && r.calm(n.name, d)
			}
			if ok {
				out = append(out, expectation{c.name, side[1].name})
			}
		}
	}
	return out
}

// checkStatus checks that status names what is broken.
func (r *runner) checkStatus() {
	seen := map[string][]api.Concern{}
	for _, e := range r.brokenFor(telling) {
		if _, ok := seen[e.cluster]; !ok {
			seen[e.cluster] = r.concerns(e.cluster)
		}
		named := false
		for _, c := range seen[e.cluster] {
			named = named || strings.Contains(c.Object, e.what) || strings.Contains(c.Message, e.what)
		}
		if !named {
			r.fail("status of %s does not name %q, broken for %v; it names %s", e.cluster, e.what, telling, words(seen[e.cluster]))
		}
	}
}

// checkAway checks that an API server whose store is away says so, also to whom it cannot say
// more.
func (r *runner) checkAway() {
	for _, c := range r.m.clusters {
		if !c.away || !r.calm(c.name, telling) {
			continue
		}
		for _, s := range c.servers {
			if !s.up || s.fault != "" || !r.calm(s.name, telling) {
				continue
			}
			var is api.Status
			err := r.server(s.name).Call("GET", "/v1/status", nil, &is)
			named := err != nil && strings.Contains(err.Error(), "store")
			for _, concern := range is.Concerns {
				named = named || strings.Contains(concern.Object+concern.Message, "store")
			}
			if !named {
				r.fail("status of %s does not name its store, away for %v: %v; it names %s", s.name, telling, err, words(is.Concerns))
			}
		}
	}
}

// checkCalm checks that status names nothing.
func (r *runner) checkCalm() {
	for _, c := range r.m.clusters {
		if all := r.concerns(c.name); len(all) > 0 {
			r.fail("all is well, and status of %s names %s", c.name, words(all))
		}
	}
}

func (r *runner) concerns(cluster string) []api.Concern {
	var s api.Status
	if err := r.server(r.m.cluster(cluster).answers().name).Call("GET", "/v1/status", nil, &s); err != nil {
		r.fail("status of %s: %v", cluster, err)
	}
	return s.Concerns
}

func words(all []api.Concern) string {
	var out []string
	for _, c := range all {
		out = append(out, c.Object+": "+c.Message)
	}
	return "[" + strings.Join(out, "; ") + "]"
}
