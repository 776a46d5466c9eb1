// Package kubernetes makes the objects of a cluster what its Kubernetes API server has, and
// tells that what nobody else knows: what is wrong with an object, and which nodes have a network.
//
// What an object must be like is decided in package registry, and what a node may be in
// package nodes. Nothing is derived here.
package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/declared"
	"github.com/weft-mesh/weft/apiserver/journal"
	"github.com/weft-mesh/weft/apiserver/nodes"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Registry takes the objects.
type Registry interface {
	// Update changes what has changed.
	Update(ctx context.Context, d registry.Delta) (*registry.Outcome, error)
	// Held lists what it has from Kubernetes.
	Held(ctx context.Context) ([]registry.Ref, error)
	// Turn differs once objects or registrations of nodes have changed, by whomever.
	Turn(ctx context.Context) (journal.Turn, error)
}

// Nodes takes the nodes.
type Nodes interface {
	// Registered returns every registration, by name.
	Registered(ctx context.Context) (map[string]nodes.Registered, error)
	// Declare registers nodes, or what has changed of them, and says which cannot be. One that
	// would take the place of another object of its name is confirmed first.
	Declare(ctx context.Context, requests []api.NodeRequest, source string, confirm func(context.Context, api.NodeRequest) (bool, error)) (refused map[string]error, err error)
	// Withdraw removes the node that a source has declared for an object, and nothing of any
	// other. An empty uid is any.
	Withdraw(ctx context.Context, node, uid, source string) error
	// Settle finishes withdrawals of an earlier term.
	Settle(ctx context.Context) error
}

// Peers joins clusters as Peer objects say.
type Peers interface {
	// Held lists the peers that objects have joined.
	Held(ctx context.Context) ([]string, error)
	// Want says which objects there are: all of them.
	Want(objects []declared.Object)
}

// Config of a Source.
type Config struct {
	// Access returns how to reach Kubernetes; nil if it is not followed. What came from
	// there then stays, and the status says so.
	Access func() (*rest.Config, error)
	// UID, if not empty, is that of the namespace kube-system in the cluster to follow from
	// now on.
	UID      string
	Registry Registry
	Nodes    Nodes
	// Peers may be nil: then Peer objects have no effect.
	Peers Peers
	// IPAM says who gives nodes their pod CIDRs.
	IPAM nodes.IPAM
	// Agents says what is known of each node's agent.
	Agents func() map[string]Agent
	// Store remembers which cluster is followed.
	Store store.Store
	// Name is this API server's, for events.
	Name string
	Log  *slog.Logger
}

// Source follows a Kubernetes cluster:
//
//	list and watch ─► strip, convert ─► mirror (is it believed?) ─► changed objects, together ─► registry
//
// Nothing is written before everything was listed once: a pod must not come before the
// policies that are about it.
type Source struct {
	conf    Config
	news    chan struct{} // problems may have changed
	work    chan struct{} // something may have to be written
	mirrors map[string]*mirror
	reports *reports

	mu     sync.Mutex // guards what follows, and the mirrors
	dirty  map[registry.Ref]bool
	access error // why no requests can be made
	host   string
	// away is since when the API server has not answered; zero if it does.
	away    time.Time
	awayWhy error
	begun   bool // everything was written once
	looked  bool
	foreign string // why this is not the cluster that was followed before
	failing error  // why nothing can be written
	kept    int    // objects that are there although nobody follows Kubernetes
	// wrong is what is wrong with an object, and homeless the pods on nodes that are not
	// registered, by node.
	wrong    map[registry.Ref]trouble
	homeless map[string]map[registry.Ref]bool
	// unready are nodes that cannot be registered.
	unready map[string]unready
	// untold are nodes of which Kubernetes could not be told whether they have a network.
	untold map[string]error
	// departed are the UIDs of nodes that are gone, until their registrations are.
	departed map[string]string
	start    map[string]func() // starts to follow a custom resource
	stop     map[string]context.CancelFunc
}

// New makes a Source.
func New(c Config) *Source {
	s := &Source{
		conf: c, news: make(chan struct{}, 1), work: make(chan struct{}, 1), mirrors: map[string]*mirror{},
		dirty: map[registry.Ref]bool{}, wrong: map[registry.Ref]trouble{}, homeless: map[string]map[registry.Ref]bool{},
		unready: map[string]unready{}, untold: map[string]error{}, departed: map[string]string{}, start: map[string]func(){}, stop: map[string]context.CancelFunc{},
	}
	for _, r := range resources {
		s.mirrors[r.plural] = newMirror(s, r)
	}
	s.reports = newReports(c.Name)
	return s
}

// How often access is tried again that cannot be had, and the API server asked whether it is
// there: the only thing that is done by the clock while nothing changes.
const (
	accessPause = 5 * time.Second
	probePause  = 5 * time.Second
	probeLimit  = 4 * time.Second
	remindEvery = 60 // probes
)

// Begun reports whether everything that Kubernetes has was written once.
func (s *Source) Begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun
}

// Run follows Kubernetes until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	if s.conf.Access == nil {
		return store.Persist(ctx, s.conf.Log, "looking for objects of Kubernetes", s.idle)
	}
	// The client's own log repeats each failure; the status says what lasts.
	ctx = klog.NewContext(ctx, klog.New(nil))
	c, ok := s.open(ctx)
	if !ok {
		return nil
	}
	for err := s.remember(ctx); err != nil; err = s.remember(ctx) {
		s.note(func() { s.failing, s.looked = err, true })
		if !sleep(ctx, firstRetry) {
			return nil
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range resources {
		m := s.mirrors[r.plural]
		follow := func(ctx context.Context) {
			from := all{c, r, func(err error) { s.failed(m, err) }}
			g.Go(func() error { return m.settle(ctx, from) })
			g.Go(func() error { return m.follow(ctx, from) })
		}
		if !r.custom {
			follow(ctx)
			continue
		}
		s.start[r.plural] = func() {
			inner, cancel := context.WithCancel(ctx)
			s.stop[r.plural] = cancel
			follow(inner)
		}
	}
	g.Go(func() error { return s.probe(ctx, c) })
	g.Go(func() error { return s.reports.run(ctx, c) })
	g.Go(func() error { return s.write(ctx, c) })
	g.Go(func() error { return s.serve(ctx, c) })
	g.Go(func() error { return s.watchRegister(ctx) })
	return g.Wait()
}

// open returns a client, once there can be one; false if ctx ends first.
func (s *Source) open(ctx context.Context) (*client, bool) {
	for {
		conf, err := s.conf.Access()
		if err == nil {
			var c *client
			if c, err = newClient(conf); err == nil {
				s.note(func() { s.access, s.host = nil, c.host })
				return c, true
			}
		}
		s.note(func() { s.access, s.looked = err, true })
		if !sleep(ctx, accessPause) {
			return nil, false
		}
	}
}

// idle says what came from Kubernetes if nobody follows it.
func (s *Source) idle(ctx context.Context) error {
	held, err := s.conf.Registry.Held(ctx)
	if err != nil {
		return err
	}
	s.note(func() { s.kept, s.looked = len(held), true })
	<-ctx.Done()
	return nil
}

// remember begins with what an earlier term has written. It is believed until Kubernetes says
// otherwise.
func (s *Source) remember(ctx context.Context) error {
	held, err := s.conf.Registry.Held(ctx)
	if err != nil {
		return err
	}
	if err := s.conf.Nodes.Settle(ctx); err != nil {
		return err
	}
	register, err := s.conf.Nodes.Registered(ctx)
	if err != nil {
		return err
	}
	var joined []string
	if s.conf.Peers != nil {
		if joined, err = s.conf.Peers.Held(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range held {
		m := s.mirrors[ref.Plural]
		if m == nil {
			continue
		}
		m.rows[name{ref.Namespace, ref.Name}] = &row{}
		if m.custom {
			s.mirrors[definitions].rows[name{"", m.definition()}] = &row{}
		}
	}
	for _, peer := range joined {
		s.mirrors[peers].rows[name{"", peer}] = &row{}
		s.mirrors[definitions].rows[name{"", s.mirrors[peers].definition()}] = &row{}
	}
	for node, reg := range register {
		if reg.Source == api.OwnerKubernetes {
			s.mirrors[machines].rows[name{"", node}] = &row{uid: reg.UID}
		}
	}
	return nil
}

// watchRegister has the writer look at the register when somebody has changed it.
func (s *Source) watchRegister(ctx context.Context) error {
	return store.Persist(ctx, s.conf.Log, "following the register of nodes", func(ctx context.Context) error {
		return store.Follow(ctx, s.conf.Store, wire.RegistrationsTurnKey, func(store.Batch) error {
			signal(s.work)
			return nil
		})
	})
}

// follow lists and watches a resource until ctx ends.
func (m *mirror) follow(ctx context.Context, from all) error {
	r := cache.NewReflectorWithOptions(from, m.sample, m, cache.ReflectorOptions{
		Name: "weft", TypeDescription: m.plural,
		// After an outage, all are read again within some seconds.
		Backoff: &wait.Backoff{Duration: 500 * time.Millisecond, Cap: 5 * time.Second, Steps: 10, Factor: 2, Jitter: 0.5},
	})
	r.RunWithContext(ctx)
	return nil
}

// probe asks the API server whether it is there until ctx ends.
func (s *Source) probe(ctx context.Context, c *client) error {
	for n := 0; ; {
		inner, cancel := context.WithTimeout(ctx, probeLimit)
		err := c.probe(inner)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		s.note(func() {
			switch {
			case err == nil:
				s.away, s.awayWhy = time.Time{}, nil
			case s.away.IsZero():
				s.away = time.Now()
				fallthrough
			default:
				if errors.Is(err, context.DeadlineExceeded) {
					err = errors.New("no answer")
				}
				s.awayWhy = err
			}
		})
		if n++; n%remindEvery == 0 {
			s.remind()
		}
		if !sleep(ctx, probePause) {
			return nil
		}
	}
}

// remind has events written again of what still is not applied as it is, where those of
// before are about to expire.
func (s *Source) remind() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, t := range s.wrong {
		m := s.mirrors[ref.Plural]
		if r := m.rows[name{ref.Namespace, ref.Name}]; r != nil {
			s.reports.tell(m.resource, ref, r.uid, t)
		}
	}
}

// APIServers are the endpoints of Kubernetes itself, default/kubernetes; false while they are
// not known.
func (s *Source) APIServers() ([]netip.Addr, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var addrs []netip.Addr
	r := s.mirrors[manifest.EndpointSlices].rows[name{metav1.NamespaceDefault, itself}]
	if r == nil || r.text == nil {
		return nil, false
	}
	var slice discoveryv1.EndpointSlice
	if json.Unmarshal(r.text, &slice) != nil || slice.Labels[discoveryv1.LabelServiceName] != itself {
		return nil, false
	}
	for _, e := range slice.Endpoints {
		for _, text := range e.Addresses {
			if ip, err := netip.ParseAddr(text); err == nil && !slices.Contains(addrs, ip.Unmap()) {
				addrs = append(addrs, ip.Unmap())
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, len(addrs) > 0
}

// itself is how Kubernetes names its own service, and the slice of its endpoints.
const itself = "kubernetes"

// note changes what is known to be wrong.
func (s *Source) note(change func()) {
	s.mu.Lock()
	change()
	s.mu.Unlock()
	signal(s.news)
}

// dirt marks an object that has changed. The mutex is held.
func (s *Source) dirt(m *mirror, n name) {
	s.dirty[m.ref(n)] = true
	signal(s.work)
}

// changed is called when a resource was listed. The mutex is held.
func (s *Source) changed(plural string) {
	signal(s.work)
	signal(s.news)
}
