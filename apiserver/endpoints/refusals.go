package endpoints

import (
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
)

// refusals counts claims of nodes that were refused, and lists those that are refused
// now. The list is no longer than the claims in the store, and a node's counts go when
// nothing is left of the node. The Controller's mutex guards it.
type refusals struct {
	cluster string
	log     *slog.Logger
	counts  map[refusalKey]*counted
	claims  map[subject]map[string]claimed // by what they are about, and node
	round   int                            // number of the current complete list
}

// subject is what claims of several nodes may be about.
type subject struct{ resource, what string }

// refusalKey is what refusals are counted by.
type refusalKey struct{ node, resource, reason string }

// counted is a count, and when one of them was last logged.
type counted struct {
	api.Refusal
	logged time.Time
}

// claimed is a claim that is refused now.
type claimed struct {
	api.Refusal
	modified int64 // revision at which the claim was made
	round    int   // of complete lists, in which it was last refused
	declared bool  // it is about a declared pod
}

// A node can make claims as fast as it likes. One of each kind is logged per logPause,
// with an example of at most exampleBytes.
const (
	logPause     = time.Minute
	exampleBytes = 300
)

func newRefusals(cluster string, log *slog.Logger) *refusals {
	return &refusals{cluster: cluster, log: log, counts: map[refusalKey]*counted{}, claims: map[subject]map[string]claimed{}}
}

// set makes these the refused claims about a subject. A claim is counted once each time
// it is made, also if it is found again by a complete list.
func (r *refusals) set(about subject, no []refused) {
	before := r.claims[about]
	delete(r.claims, about)
	if len(no) == 0 {
		return
	}
	now := map[string]claimed{}
	for _, claim := range no {
		claim.example = strings.ToValidUTF8(claim.example[:min(len(claim.example), exampleBytes)], "")
		was, known := before[claim.node]
		if !known || was.modified != claim.modified {
			r.count(about.resource, claim)
		}
		if !known || was.Reason != claim.reason || was.Example != claim.example {
			was.Refusal = r.refusal(about.resource, claim)
		}
		was.modified, was.round, was.declared = claim.modified, r.round, claim.declared
		now[claim.node] = was
	}
	r.claims[about] = now
}

func (r *refusals) refusal(resource string, no refused) api.Refusal {
	return api.Refusal{Cluster: r.cluster, Node: no.node, Resource: resource, Reason: no.reason, Count: 1, Example: no.example, Last: time.Now()}
}

func (r *refusals) count(resource string, no refused) {
	key := refusalKey{no.node, resource, no.reason}
	c := r.counts[key]
	if c == nil {
		c = &counted{}
		r.counts[key] = c
	}
	n := c.Count
	c.Refusal = r.refusal(resource, no)
	c.Count = n + 1
	if time.Since(c.logged) >= logPause {
		c.logged = time.Now()
		r.log.Warn("refused a node's claim", "node", no.node, "resource", resource, "reason", no.reason, "example", no.example, "count", c.Count)
	}
}

// settled ends a complete list: claims that were not refused again are gone, and so are
// the counts of nodes that do not exist.
func (r *refusals) settled(exists func(node string) bool) {
	for about, byNode := range r.claims {
		maps.DeleteFunc(byNode, func(_ string, c claimed) bool { return c.round < r.round })
		if len(byNode) == 0 {
			delete(r.claims, about)
		}
	}
	maps.DeleteFunc(r.counts, func(key refusalKey, _ *counted) bool { return !exists(key.node) })
}

// forget drops everything about a node that is gone. Its claims about pods have gone one
// by one.
func (r *refusals) forget(node string) {
	delete(r.claims, subject{"node", node})
	maps.DeleteFunc(r.counts, func(key refusalKey, _ *counted) bool { return key.node == node })
}

// aboutPods returns the first refused claim about each declared pod, in order of node.
// Claims about others nobody asks for, and a node can make up any number of them.
func (r *refusals) aboutPods() iter.Seq2[string, api.Refusal] {
	return func(yield func(string, api.Refusal) bool) {
		for about, byNode := range r.claims {
			first := slices.Min(slices.Collect(maps.Keys(byNode)))
			if about.resource == "endpoint" && byNode[first].declared && !yield(about.what, byNode[first].Refusal) {
				return
			}
		}
	}
}

// total returns the counts since the start.
func (r *refusals) total() (out []api.Refusal) {
	for _, key := range slices.SortedFunc(maps.Keys(r.counts), refusalKey.compare) {
		out = append(out, r.counts[key].Refusal)
	}
	return out
}

// current sums up the claims that are refused now, with the lowest example of each kind.
func (r *refusals) current() (out []api.Refusal) {
	sums := map[refusalKey]*api.Refusal{}
	for about, byNode := range r.claims {
		for node, c := range byNode {
			key := refusalKey{node, about.resource, c.Reason}
			sum := sums[key]
			if sum == nil {
				sums[key] = &c.Refusal
				continue
			}
			sum.Count, sum.Example = sum.Count+1, min(sum.Example, c.Example)
			if c.Last.After(sum.Last) {
				sum.Last = c.Last
			}
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(sums), refusalKey.compare) {
		out = append(out, *sums[key])
	}
	return out
}

func (k refusalKey) compare(other refusalKey) int {
	return slices.Compare([]string{k.node, k.resource, k.reason}, []string{other.node, other.resource, other.reason})
}
