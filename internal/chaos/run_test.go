package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/meshtest"
	"github.com/weft-mesh/weft/store/storetest"
)

// How long the mesh may take, of virtual time.
const (
	// settle is from the moment at which everything was mended until every map is as
	// wanted: links are tried again at least every 30 s. It is looked every poll, because
	// what passes of a mesh's time costs ours.
	settle = 2 * time.Minute
	poll   = 5 * time.Second
	// patience is how long an API server that works may refuse an operator, while
	// another takes the leadership.
	patience = 20 * time.Second
)

// Run is what one simulation came to.
type Run struct {
	Seed  uint64
	Steps int
	// Broken are the promises that were broken, in words; none if all is well. At is how
	// many steps had been made when the first was.
	Broken []string
	At     int
	Time   time.Duration // virtual
}

// Simulate carries out steps on the mesh of a seed, mends what is broken at the end, and
// checks what is promised. t is that of a synctest bubble.
func Simulate(t *testing.T, seed uint64, steps []Step, say func(string)) Run {
	r := newRunner(t, seed, say)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	defer func() { cancel(); watching.Wait() }()
	r.raise()
	for _, c := range r.clusters {
		watching.Go(func() { r.watchIdentities(ctx, c) })
	}
	for _, s := range steps {
		r.step(s)
		if r.failed() {
			return r.run()
		}
	}
	for _, s := range r.m.mending() {
		r.step(s)
	}
	r.say("everything is mended")
	r.settled()
	return r.run()
}

func newRunner(t *testing.T, seed uint64, say func(string)) *runner {
	return &runner{
		t: t, m: newModel(random(seed)), say: say, seed: seed, began: time.Now(),
		clusters: map[string]*meshtest.Cluster{}, protected: map[protection]pod{}, meaning: map[identity.Number]string{},
		since: map[string]time.Time{}, copies: map[string]storetest.Copy{}, known: map[string]map[protection]pod{}, flows: map[flow]memory{}, backing: map[backing]backed{},
	}
}

type runner struct {
	t        *testing.T
	seed     uint64
	m        *model
	mesh     *meshtest.Mesh
	clusters map[string]*meshtest.Cluster
	say      func(string)
	began    time.Time
	steps    int
	// since is when what a node or cluster was told, or is connected by, changed last.
	since map[string]time.Time
	// copies are of stores, by cluster.
	copies map[string]storetest.Copy
	// known is what nodes knew when the copies were made.
	known map[string]map[protection]pod
	// flows are those that are established.
	flows map[flow]memory

	mu        sync.Mutex // guards what follows
	broken    []string
	at        int
	protected map[protection]pod
	backing   map[backing]backed
	failing   map[string]bool    // nodes on which kernel writes fail
	sparing   map[string]string  // those of them on which not all do, as in FailKernel
	tried     int                // writes on such nodes
	refused   map[string]refusal // of their writes
	meaning   map[identity.Number]string
}

func (r *runner) run() Run {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Run{Seed: r.seed, Steps: r.steps, Broken: r.broken, At: r.at, Time: time.Since(r.began)}
}

// fail notes a broken promise. A few are enough.
func (r *runner) fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failLocked(format, args...)
}

func (r *runner) failLocked(format string, args ...any) {
	if len(r.broken) == 0 {
		r.at = r.steps
	}
	if len(r.broken) < 12 {
		r.broken = append(r.broken, fmt.Sprintf(format, args...))
	}
}

func (r *runner) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.broken) > 0
}

// within checks something until it holds, for a while at most.
func (r *runner) within(d time.Duration, check func()) {
	for end := time.Now().Add(d); !r.failed(); {
		check()
		if !r.failed() || !time.Now().Before(end) {
			return
		}
		r.forgive()
		r.mesh.Pass(poll)
	}
}

func (r *runner) forgive() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = nil
}

// raise raises the mesh that the model describes.
func (r *runner) raise() {
	var all []string
	for _, c := range r.m.clusters {
		all = append(all, c.name)
	}
	mesh, clusters := meshtest.New(r.t, all...)
	r.mesh, r.failing, r.sparing, r.refused = mesh, map[string]bool{}, map[string]string{}, map[string]refusal{}
	for i, c := range r.m.clusters {
		r.clusters[c.name] = clusters[i]
		for range c.servers[1:] {
			clusters[i].AddServer()
		}
		for _, n := range c.nodes {
			r.tap(clusters[i].Node(), n.name)
		}
		for j, other := range clusters[:i] {
			if c.joined(r.m.clusters[j]) {
				mesh.Join(clusters[i], other)
			}
		}
	}
	mesh.Pass(lag)
}

// ends are the clusters of a link.
func (r *runner) ends(link string) (from, to *meshtest.Cluster) {
	a, b, _ := strings.Cut(link, ">")
	return r.clusters[a], r.clusters[b]
}

func (r *runner) node(name string) *meshtest.Node {
	for _, c := range r.clusters {
		if n := c.Nodes[name]; n != nil {
			return n
		}
	}
	return nil
}

func (r *runner) server(name string) *meshtest.Server {
	for _, c := range r.clusters {
		for _, s := range c.Servers {
			if s.Name == name {
				return s
			}
		}
	}
	return nil
}

// step makes one step, if it makes sense, and looks whether all is well.
func (r *runner) step(s Step) {
	if !r.m.allows(s) {
		return
	}
	r.steps++
	r.say(s.String())
	r.m.apply(s)
	r.unprotect(s)
	r.perform(s)
	r.touch(s)
	if s.Then > 0 {
		r.mesh.Pass(s.Then)
		r.look()
	}
}

// touch notes that a step disturbs what may be expected of a node or a cluster.
func (r *runner) touch(s Step) {
	now := time.Now()
	if s.Do == Wait {
		return
	}
	if c, srv := r.m.server(s.On); srv != nil {
		r.since[c.name] = now
	}
	if s.Do == Meet || s.Do == Part {
		a, b := r.m.pair(s.On)
		r.since[a.name], r.since[b.name] = now, now
	}
	if s.changes() {
		r.since[objectsOf(s.On)] = now
	} else {
		r.since[s.On] = now
	}
}

// objectsOf is the key of a cluster's objects in since.
func objectsOf(cluster string) string { return "objects of " + cluster }

var faultsByName = map[string]storetest.Fault{
	"": storetest.Works, "cut": storetest.Cut, "unheard": storetest.Unheard, "unanswered": storetest.Unanswered, "suspended": storetest.Suspended,
}

// perform makes a step happen in the mesh.
func (r *runner) perform(s Step) {
	c, n, srv, fault := r.clusters[s.On], r.node(s.On), r.server(s.On), faultsByName[s.With]
	switch s.Do {
	case StopAgent:
		n.Stop()
	case StartAgent:
		n.Start()
	case Reboot, LoseNode:
		n.Stop()
		if s.Do == Reboot {
			n.Reboot()
		} else {
			n.LoseDisk()
		}
		r.tap(n, s.On)
		n.Start()
	case CutAgent, HealAgent:
		n.Link.Set(fault)
	case Isolate, Join:
		n.SetData(s.With == "out", s.With == "in")
	case FailKernel, MendKernel:
		r.mu.Lock()
		r.failing[s.On], r.sparing[s.On] = s.Do == FailKernel, s.With
		delete(r.refused, s.On)
		r.mu.Unlock()
	case StopServer:
		srv.Stop()
	case KillServer:
		srv.Kill()
	case StartServer:
		srv.Start()
	case LoseServer:
		srv.LoseDisk()
	case CutServer, HealServer:
		srv.Link.Set(fault)
	case CutControl, HealControl:
		from, to := r.ends(s.On)
		r.mesh.SetControl(from, to, fault)
	case CutData, HealData:
		from, to := r.ends(s.On)
		r.mesh.SetData(from, to, s.Do == CutData)
	case TakeStore, GiveStore:
		c.Store.SetAway(s.Do == TakeStore)
	case Compact:
		c.Store.Store.Compact()
	case Backup:
		r.copies[s.On], r.known[s.On] = c.Store.Copy(), r.copiedWith(s.On)
	case PutBack:
		r.restore(s)
	case LoseStore:
		c.Restarting(c.Store.Lose)
	case Meet:
		a, b := r.m.pair(s.On)
		r.add(a.name, b.name)
		r.add(b.name, a.name)
	case Part:
		a, b := r.m.pair(s.On)
		r.call(s, a.name, http.MethodDelete, "/v1/peers/"+b.name, nil, nil)
	case Depose:
		c.Depose()
	case CutLeader:
		r.cutLeader(s, fault)
	case LoseIdentities:
		r.loseIdentities(s)
	case Wait:
	default:
		r.change(s)
	}
}

// restore puts back the copy of a store as `weft restore` does, or underneath the API servers
// that run, as an etcd of its own may be.
func (r *runner) restore(s Step) {
	c, compacted := r.clusters[s.On], s.With == "compacted"
	if s.With == underneath {
		c.Store.PutBack(r.copies[s.On])
		return
	}
	c.Restore(r.copies[s.On], compacted)
}

// add makes a cluster a peer of another, which invites it.
func (r *runner) add(to, peer string) {
	var in json.RawMessage
	asked := Step{Do: Meet, On: to, With: peer}
	if r.call(asked, peer, http.MethodPost, "/v1/peers/invite", api.InviteRequest{Peer: to}, &in) {
		r.call(asked, to, http.MethodPost, "/v1/peers", in, nil)
	}
}

// change makes an operator's change.
func (r *runner) change(s Step) {
	method, path, body := http.MethodPost, "/v1/apply", ""
	switch s.Do {
	case AddPod:
		body = podManifest(parsePod(s.With))
	case AddPolicy:
		body = policyManifest(s.With)
	case AddService:
		name, affinity, _ := strings.Cut(s.With, " ")
		body = serviceManifest(name, affinity)
	case DeletePod:
		method, path = http.MethodDelete, "/v1/objects/pods/"+namespace+"/"+s.With
	case DropPolicy:
		method, path = http.MethodDelete, "/v1/objects/ciliumnetworkpolicies/"+namespace+"/"+s.With
	case DropService:
		method, path = http.MethodDelete, "/v1/objects/services/"+namespace+"/"+s.With
	}
	r.call(s, s.On, method, path, []byte(body), nil)
}

// call calls a cluster's API for a step, with a few attempts: an API server that was just
// mended may need a moment. It reports whether it was not refused.
func (r *runner) call(s Step, cluster, method, path string, body, into any) bool {
	text, raw := body.([]byte)
	if !raw {
		text, _ = json.Marshal(body)
	}
	began := time.Now()
	for {
		err := r.server(r.m.cluster(cluster).answers().name).Call(method, path, text, into)
		if err == nil {
			return true
		}
		if time.Since(began) > patience {
			r.fail("%s works and refuses to %s (%s): %v", cluster, s.Do, s.With, err)
			return false
		}
		r.mesh.Pass(time.Second)
	}
}

// look checks what can be told at any time.
func (r *runner) look() {
	synctest.Wait()
	r.checkMeaning()
	r.checkLiving()
	r.checkBackends()
	r.checkParted()
	r.checkPolicies(false)
	r.checkFlows()
	r.checkStatus()
	r.checkAway()
}

// settled checks what must hold once everything works: soon, and then still.
func (r *runner) settled() {
	all := func() {
		r.checkWanted()
		r.checkPolicies(true)
		r.checkCalm()
	}
	r.mesh.Pass(poll)
	r.within(settle, all)
	r.mesh.Pass(lag)
	r.look()
	all()
	if !r.failed() {
		r.checkFresh()
	}
}

// tap puts the runner between a node's agent and its kernel.
func (r *runner) tap(n *meshtest.Node, name string) {
	m := n.Maps()
	onTable(r, m.IPs, name, func(a bpf.Addr) {
		if p, ok := r.protected[protection{name, a}]; ok {
			r.failLocked("%s deleted %v, the address of %s, which lives", name, a, p.app)
		}
	})
	onTable(r, m.Endpoints, name, func(a bpf.Addr) {
		if p, ok := r.protected[protection{name, a}]; ok && p.node == name {
			r.failLocked("%s deleted the endpoint %v of %s, which lives", name, a, p.app)
		}
	})
	onTable(r, m.Members, name, func(k bpf.MemberKey) {
		if b, ok := r.backing[backing{name, k}]; ok {
			r.failLocked("%s deleted the backend %v of service %s, which lives", name, k.Addr, b.service)
		}
	})
	onTable(r, m.Prefixes, name, nil)
	onTable(r, m.Services, name, nil)
	onTable(r, m.Backends, name, nil)
	onTable(r, m.Classes, name, nil)
	onTable(r, m.Policy, name, nil)
	onTable(r, m.Sets, name, nil)
}
