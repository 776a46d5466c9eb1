package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// model is what is up and what operators want, as far as steps depend on it.
type model struct {
	clusters []*cluster
	control  map[string]string // fault of from>to; absent: none
	data     map[string]bool   // lost from>to
	born     int               // incarnations of pods and services so far
	meetings int               // so far
}

type cluster struct {
	name    string
	servers []*server
	nodes   []*node
	away    bool // its store
	empty   bool // its store, which is a new one
	wants   objects
	copied  *objects // with the last copy of its store; nil: there is none
}

type server struct {
	name string
	up   bool
	// killed says that it did not say so when it ended.
	killed bool
	fault  string // of its link to the store; "": none
}

type node struct {
	name    string
	up      bool   // its agent
	fault   string // of its link to the store; "": none
	lost    string // which packets are lost: "out", "in" or ""
	failing bool   // kernel writes
}

// objects are what operators have applied.
type objects struct {
	pods     map[string]pod   // by name
	policies map[string]bool  // by name, see policies
	services map[string]offer // by name, which is also the app of their backends
	// peers are the meetings at which a cluster became a peer, by its name: both sides know
	// the same one unless one of them has removed the other or its store went back.
	peers map[string]int
}

// offer is a service.
type offer struct {
	affinity string
	born     int // tells services of one name apart
}

type pod struct {
	node, app string
	born      int // tells pods of one name apart
}

func (o objects) clone() objects {
	return objects{maps.Clone(o.pods), maps.Clone(o.policies), maps.Clone(o.services), maps.Clone(o.peers)}
}

var (
	names = []string{"east", "west", "north"}
	apps  = []string{"client", "web", "db"}
	// faults of a link, by storetest's names.
	faults = []string{"cut", "unheard", "unanswered"}
)

// underneath is how a store is put back that is not the API servers' own: while they run.
const underneath = "underneath"

// newModel draws a mesh: two clusters or three, of one node or two, and up to three API
// servers. A third cluster may know no peer at first.
func newModel(r *rand.Rand) *model {
	m := &model{control: map[string]string{}, data: map[string]bool{}}
	late := r.IntN(3) // 0: it joins late
	for _, name := range names[:2+r.IntN(2)] {
		c := &cluster{name: name, wants: objects{map[string]pod{}, map[string]bool{}, map[string]offer{}, map[string]int{}}}
		for i := range 1 + r.IntN(3) {
			c.servers = append(c.servers, &server{name: fmt.Sprintf("%s-server-%d", name, i+1), up: true})
		}
		for i := range 1 + r.IntN(2) {
			c.nodes = append(c.nodes, &node{name: fmt.Sprintf("%s-%d", name, i+1), up: true})
		}
		for _, other := range m.clusters {
			if len(m.clusters) == 1 || late > 0 {
				m.meet(c, other)
			}
		}
		m.clusters = append(m.clusters, c)
	}
	return m
}

func (m *model) cluster(name string) *cluster {
	for _, c := range m.clusters {
		if c.name == name {
			return c
		}
	}
	return nil
}

// pair are the clusters of from>to.
func (m *model) pair(on string) (from, to *cluster) {
	a, b, _ := strings.Cut(on, ">")
	return m.cluster(a), m.cluster(b)
}

func (m *model) meet(a, b *cluster) {
	m.meetings++
	a.wants.peers[b.name], b.wants.peers[a.name] = m.meetings, m.meetings
}

// joined reports whether both know each other from the same meeting.
func (a *cluster) joined(b *cluster) bool {
	return a.wants.peers[b.name] != 0 && a.wants.peers[b.name] == b.wants.peers[a.name]
}

// restartable reports whether all API servers that run would start again.
func (c *cluster) restartable() bool {
	return !slices.ContainsFunc(c.servers, func(s *server) bool { return s.up && s.fault != "" })
}

func (m *model) node(name string) *node {
	_, n := m.find(name)
	return n
}

// of is the cluster of a node.
func (m *model) of(node string) *cluster {
	c, _ := m.find(node)
	return c
}

func (m *model) find(name string) (*cluster, *node) {
	for _, c := range m.clusters {
		for _, n := range c.nodes {
			if n.name == name {
				return c, n
			}
		}
	}
	return nil, nil
}

func (m *model) server(name string) (*cluster, *server) {
	for _, c := range m.clusters {
		for _, s := range c.servers {
			if s.name == name {
				return c, s
			}
		}
	}
	return nil, nil
}

// working are the API servers that run and reach their store, if it is there.
func (c *cluster) working() (out []*server) {
	for _, s := range c.servers {
		if s.up && s.fault == "" && !c.away && !c.empty {
			out = append(out, s)
		}
	}
	return out
}

// answers is an API server that operators get an answer from, nil if there is none.
func (c *cluster) answers() *server {
	if all := c.working(); len(all) > 0 {
		return all[0]
	}
	return nil
}

// allows reports whether a step makes sense now; the runner leaves out those that do not, so
// that any part of a list of steps is one too.
func (m *model) allows(s Step) bool {
	c, n := m.cluster(s.On), m.node(s.On)
	of, srv := m.server(s.On)
	switch s.Do {
	case StopAgent:
		return n != nil && n.up
	case StartAgent:
		return n != nil && !n.up
	case Reboot, LoseNode:
		return n != nil && n.up && n.fault == "" && !n.failing
	case CutAgent:
		return n != nil && n.fault == ""
	case HealAgent:
		return n != nil && n.fault != ""
	case Isolate:
		return n != nil && n.lost == ""
	case Join:
		return n != nil && n.lost != ""
	case FailKernel:
		return n != nil && n.up && !n.failing
	case MendKernel:
		return n != nil && n.failing
	case StopServer, KillServer:
		return srv != nil && srv.up && srv.fault == ""
	case StartServer:
		return srv != nil && !srv.up && srv.fault == "" && !of.away
	case LoseServer:
		return srv != nil && !srv.up && !of.empty // its authority would be lost
	case CutServer:
		return srv != nil && srv.up && srv.fault == ""
	case HealServer:
		return srv != nil && srv.fault != ""
	case CutControl:
		return m.control[s.On] == ""
	case HealControl:
		return m.control[s.On] != ""
	case CutData:
		return !m.data[s.On]
	case HealData:
		return m.data[s.On]
	case Wait:
		return n != nil
	case LoseIdentities:
		a, b := m.pair(s.On)
		return a != nil && b != nil && a.answers() != nil && a.joined(b)
	case TakeStore, Depose, Compact:
		return c != nil && !c.away
	case CutLeader:
		return c != nil && c.answers() != nil && len(c.working()) > 1
	case LoseStore:
		return c != nil && !c.away && !c.empty && c.copied != nil && c.restartable()
	case Meet:
		a, b := m.pair(s.On)
		return a != nil && b != nil && a.answers() != nil && b.answers() != nil && !a.joined(b) &&
			m.control[a.name+">"+b.name] == "" && m.control[b.name+">"+a.name] == ""
	case Part:
		a, b := m.pair(s.On)
		return a != nil && b != nil && a.answers() != nil && a.wants.peers[b.name] != 0
	case GiveStore:
		return c != nil && c.away
	case Backup:
		return c != nil && !c.away && !c.empty
	case PutBack:
		return c != nil && !c.away && c.copied != nil && (s.With == underneath && !c.empty || s.With != underneath && c.restartable())
	}
	if c == nil || c.answers() == nil {
		return false
	}
	switch s.Do {
	case AddPod:
		name, app, at := parsePod(s.With)
		had, ok := c.wants.pods[name]
		return !ok || had.node == at && had.app != app
	case DeletePod:
		return c.wants.pods[s.With] != pod{}
	case AddPolicy:
		return !c.wants.policies[s.With]
	case DropPolicy:
		return c.wants.policies[s.With]
	case AddService:
		name, affinity, _ := strings.Cut(s.With, " ")
		return c.wants.services[name].affinity != affinity
	case DropService:
		return c.wants.services[s.With] != offer{}
	}
	return false
}

// apply makes a step that is allowed happen in the model.
func (m *model) apply(s Step) {
	c, n := m.cluster(s.On), m.node(s.On)
	_, srv := m.server(s.On)
	switch s.Do {
	case StopAgent, StartAgent:
		n.up = s.Do == StartAgent
	case Reboot, LoseNode: // its pods start again
		for _, c := range m.clusters {
			for name, p := range c.wants.pods {
				if p.node == s.On {
					m.born++
					p.born = m.born
					c.wants.pods[name] = p
				}
			}
		}
	case CutAgent, HealAgent:
		n.fault = s.With
	case Isolate, Join:
		n.lost = s.With
	case FailKernel, MendKernel:
		n.failing = s.Do == FailKernel
	case StopServer, KillServer, StartServer:
		srv.up, srv.killed = s.Do == StartServer, s.Do == KillServer
	case CutServer, HealServer:
		srv.fault = s.With
	case CutControl:
		m.control[s.On] = s.With
	case HealControl:
		delete(m.control, s.On)
	case CutData:
		m.data[s.On] = true
	case HealData:
		delete(m.data, s.On)
	case TakeStore, GiveStore:
		c.away = s.Do == TakeStore
	case Backup:
		copied := c.wants.clone()
		c.copied = &copied
	case PutBack:
		c.wants, c.empty = c.copied.clone(), false
	case LoseStore:
		c.empty = true
	case Meet:
		m.meet(m.pair(s.On))
	case Part:
		a, b := m.pair(s.On)
		delete(a.wants.peers, b.name)
	case AddPod:
		name, app, at := parsePod(s.With)
		had := c.wants.pods[name]
		if had == (pod{}) {
			m.born++
			had = pod{node: at, born: m.born}
		}
		had.app = app
		c.wants.pods[name] = had
	case DeletePod:
		delete(c.wants.pods, s.With)
	case AddPolicy:
		c.wants.policies[s.With] = true
	case DropPolicy:
		delete(c.wants.policies, s.With)
	case AddService:
		name, affinity, _ := strings.Cut(s.With, " ")
		had := c.wants.services[name]
		if had.born == 0 {
			m.born++
			had.born = m.born
		}
		had.affinity = affinity
		c.wants.services[name] = had
	case DropService:
		delete(c.wants.services, s.With)
	}
}

// parsePod reads what AddPod has in With: the pod's name, its app and its node.
func parsePod(with string) (name, app, at string) {
	parts := strings.Fields(with)
	return parts[0], parts[1], parts[2]
}

// sorted are the keys of a map in order: choices must not depend on Go's.
func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
