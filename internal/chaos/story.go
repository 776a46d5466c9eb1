package chaos

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// lag is how long a change may take to reach an agent whose links work, of virtual time. In
// between, old policies may hold.
const lag = 10 * time.Second

// telling is how long something may be broken until status names it: a link that is silent
// is given up first.
const telling = time.Minute

// retried is how soon an agent tries again what its kernel refused.
const retried = 15 * time.Second

// story is steps that only together reach what is drawn too seldom: each is of a promise that
// nothing else here would see broken.
type story struct {
	name string
	tell func(r *rand.Rand, m *model) []Step
}

// stories are told now and then in a seed, and each alone.
var stories = []story{
	{"a kernel refuses what it is asked", choke},
	{"an agent starts on an old copy", resume},
	{"an agent starts and its kernel refuses some writes", stumble},
	{"identities are lost", unlearn},
}

// one of storyEvery steps begins a story.
const storyEvery = 60

// steps are those of a seed's mesh in which only this happens.
func (s story) steps(seed uint64) []Step {
	r := random(seed)
	m := newModel(r)
	var steps []Step
	for _, step := range append(setup(m, r), s.tell(r, m)...) {
		if m.allows(step) {
			m.apply(step)
			steps = append(steps, step)
		}
	}
	return steps
}

// couple draws a cluster, one of its nodes and a peer.
func couple(r *rand.Rand, m *model) (c *cluster, n *node, peer *cluster) {
	c = one(r, m.clusters)
	for _, other := range m.clusters {
		if other != c && c.joined(other) {
			peer = other
		}
	}
	return c, one(r, c.nodes), peer
}

// late is a change of a pod that no other step has.
func late(c *cluster, n *node) Step {
	const name = "late-1"
	if _, ok := c.wants.pods[name]; ok {
		return Step{Do: DeletePod, On: c.name, With: name}
	}
	return Step{Do: AddPod, On: c.name, With: fmt.Sprintf("%s db %s", name, n.name)}
}

// choke lets a kernel refuse a change until status has to say so.
func choke(r *rand.Rand, m *model) []Step {
	c, n, _ := couple(r, m)
	change := late(c, n)
	change.Then = telling + 2*retried
	return []Step{{Do: FailKernel, On: n.name}, change, {Do: MendKernel, On: n.name, Then: pause(r)}}
}

// resume starts an agent while its cluster's store has an old copy of a peer that it cannot
// read: what the agent knows beyond that has to stay.
func resume(r *rand.Rand, m *model) []Step {
	c, n, peer := couple(r, m)
	if peer == nil {
		return nil
	}
	link := c.name + ">" + peer.name
	change := late(peer, one(r, peer.nodes))
	change.Then = 3 * lag
	return []Step{
		{Do: Backup, On: c.name}, change, {Do: CutControl, On: link, With: "cut"}, {Do: PutBack, On: c.name, Then: time.Second},
		{Do: StopAgent, On: n.name}, {Do: StartAgent, On: n.name, Then: 2 * lag}, {Do: HealControl, On: link, Then: pause(r)},
	}
}

// stumble starts an agent, which makes a generation of policy, while its kernel refuses some of
// what it writes: what passes has to pass meanwhile.
func stumble(r *rand.Rand, m *model) []Step {
	c, n, _ := couple(r, m)
	for _, name := range sorted(c.wants.pods) {
		if p := c.wants.pods[name]; p.app == "web" { // that the policy is about
			n = m.node(p.node)
		}
	}
	steps := []Step{
		{Do: AddPolicy, On: c.name, With: "no-db"}, {Do: Wait, On: n.name, Then: 3 * lag},
		{Do: StopAgent, On: n.name}, {Do: FailKernel, On: n.name, With: one(r, []string{"policies", "some"})}, {Do: StartAgent, On: n.name},
	}
	for range 6 {
		steps = append(steps, Step{Do: Wait, On: n.name, Then: time.Duration(1+r.IntN(400)) * time.Millisecond})
	}
	return append(steps, Step{Do: MendKernel, On: n.name, Then: pause(r)})
}

// unlearn takes away for a while what a cluster's store has of a peer's identities: who passed
// because of what it is does no longer.
func unlearn(r *rand.Rand, m *model) []Step {
	c, _, peer := couple(r, m)
	if peer == nil {
		return nil
	}
	return []Step{{Do: AddPolicy, On: c.name, With: "no-db", Then: 3 * lag}, {Do: LoseIdentities, On: c.name + ">" + peer.name, Then: pause(r)}}
}
