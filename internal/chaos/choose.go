package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// weights say how often each kind of step is tried. What heals is as likely as what fails,
// but there is less to heal.
var weights = []struct {
	do Verb
	n  int
}{
	{StopAgent, 2}, {StartAgent, 4}, {Reboot, 1}, {LoseNode, 1}, {CutAgent, 2}, {HealAgent, 4},
	{Isolate, 1}, {Join, 3}, {FailKernel, 1}, {MendKernel, 4},
	{StopServer, 2}, {KillServer, 2}, {StartServer, 6}, {LoseServer, 1}, {CutServer, 3}, {HealServer, 6}, {Depose, 1}, {CutLeader, 2},
	{CutControl, 3}, {HealControl, 5}, {CutData, 2}, {HealData, 4},
	{TakeStore, 1}, {GiveStore, 5}, {Compact, 2}, {Backup, 2}, {PutBack, 2}, {LoseStore, 1}, {Meet, 4}, {Part, 1},
	{AddPod, 14}, {DeletePod, 6}, {AddPolicy, 5}, {DropPolicy, 3}, {AddService, 5}, {DropService, 2},
}

// short is how many steps most seeds have; one of longEvery has long ones, in which more meets.
const (
	short     = 22
	long      = 60
	longEvery = 8
)

// lengthOf is how many steps a seed has if nobody says otherwise.
func lengthOf(seed uint64) int {
	if seed%longEvery == 0 {
		return long
	}
	return short
}

// Steps draws n steps of a mesh. They depend on nothing but the seed.
func Steps(seed uint64, n int) (steps []Step) {
	r := random(seed)
	m := newModel(r)
	for _, s := range setup(m, r) {
		m.apply(s)
		steps = append(steps, s)
	}
	for burst := 0; len(steps) < n; burst-- {
		if burst <= 0 && r.IntN(16) == 0 {
			burst = 2 + r.IntN(5)
		}
		if burst <= 0 && r.IntN(storyEvery) == 0 {
			for _, s := range one(r, stories).tell(r, m) {
				if m.allows(s) {
					m.apply(s)
					steps = append(steps, s)
				}
			}
			continue
		}
		s := next(r, m, burst > 1)
		if burst > 1 {
			s.Then = 0
		}
		m.apply(s)
		steps = append(steps, s)
	}
	return steps
}

func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0xc4a05)) }

// setup gives every cluster a pod of each app and a service.
func setup(m *model, r *rand.Rand) (steps []Step) {
	for _, c := range m.clusters {
		for _, app := range apps[:2] {
			steps = append(steps, Step{Do: AddPod, On: c.name, With: fmt.Sprintf("%s-1 %s %s", app, app, one(r, c.nodes).name)})
		}
		steps = append(steps, Step{Do: AddService, On: c.name, With: "web none"})
	}
	steps[len(steps)-1].Then = 20 * time.Second
	return steps
}

// next draws the next step that makes sense; one that changes objects if so wanted and there
// is an API server to change them at.
func next(r *rand.Rand, m *model, object bool) Step {
	object = object && slices.ContainsFunc(m.clusters, func(c *cluster) bool { return c.answers() != nil })
	total := 0
	for _, w := range weights {
		total += w.n
	}
	for {
		at, i := r.IntN(total), 0
		for at >= weights[i].n {
			at -= weights[i].n
			i++
		}
		s := target(r, m, weights[i].do)
		if s.On != "" && m.allows(s) && (!object || s.changes()) {
			s.Then = pause(r)
			return s
		}
	}
}

// pause is mostly short, so that steps meet; now and then everything has the time to settle.
func pause(r *rand.Rand) time.Duration {
	switch r.IntN(8) {
	case 0:
		return 0
	case 1:
		return time.Duration(20+r.IntN(80)) * time.Second
	}
	return time.Duration(r.IntN(6000)) * time.Millisecond
}

// target draws what a step of this kind happens to.
func target(r *rand.Rand, m *model, do Verb) Step {
	c := one(r, m.clusters)
	n, srv := one(r, c.nodes), one(r, c.servers)
	other := one(r, m.clusters)
	s := Step{Do: do}
	switch do {
	case FailKernel:
		s.With = one(r, []string{"", "some", "policies"})
		fallthrough
	case StopAgent, StartAgent, Reboot, LoseNode, HealAgent, Join, MendKernel:
		s.On = n.name
	case CutAgent:
		s.On, s.With = n.name, one(r, faults)
	case Isolate:
		s.On, s.With = n.name, one(r, []string{"out", "in"})
	case StopServer, KillServer, StartServer, LoseServer, HealServer:
		s.On = srv.name
	case CutLeader:
		s.On, s.With = c.name, one(r, append(slices.Clip(faults), "suspended"))
	case CutServer:
		s.On, s.With = srv.name, one(r, append(slices.Clip(faults), "suspended"))
	case CutControl:
		s.With = one(r, faults)
		fallthrough
	case HealControl, CutData, HealData, Meet, Part:
		if other != c {
			s.On = c.name + ">" + other.name
		}
	case AddPod:
		app := one(r, apps)
		name, at := fmt.Sprintf("%s-%d", one(r, apps), 1+r.IntN(3)), n.name
		if had, ok := c.wants.pods[name]; ok {
			at = had.node // other labels
		}
		s.On, s.With = c.name, fmt.Sprintf("%s %s %s", name, app, at)
	case DeletePod:
		if len(c.wants.pods) > 0 {
			s.On, s.With = c.name, one(r, sorted(c.wants.pods))
		}
	case AddPolicy, DropPolicy:
		s.On, s.With = c.name, one(r, sorted(policies))
	case PutBack:
		s.On, s.With = c.name, one(r, []string{"", "", "compacted", underneath})
	case AddService:
		s.On, s.With = c.name, one(r, apps)+" "+one(r, affinities)
	case DropService:
		s.On, s.With = c.name, one(r, apps)
	default: // of a whole cluster
		s.On = c.name
	}
	return s
}

func one[T any](r *rand.Rand, all []T) T { return all[r.IntN(len(all))] }
