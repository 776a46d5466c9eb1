package apiserver

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/apiserver/enroll"
	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/apiserver/members"
	"github.com/weft-mesh/weft/apiserver/nodes"
	"github.com/weft-mesh/weft/apiserver/peering"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// The server's own certificates are renewed every certificateRenewal, long before they
// expire; after a failure it tries again every renewalRetry.
const (
	certificateRenewal = 30 * 24 * time.Hour
	renewalRetry       = time.Hour
)

// server is an API server at work.
type server struct {
	*foundation
	log   *slog.Logger
	began time.Time

	split       identity.Split
	wanKey      []byte // of gossip among clusters
	election    *leader.Election
	controllers atomic.Pointer[controllers] // nil: this server does not lead
	self        wire.Server
	siblings    *siblings
	lasting     []store.Op // what fixed keys held at the start

	registry     *registry.Registry
	manifests    *semaphore.Weighted // bytes of manifests that are worked on
	registrar    *nodes.Registrar
	enroller     *enroll.Enroller    // nil: nodes are added by operators alone
	enrolling    *semaphore.Weighted // requests to enroll
	reviewing    *semaphore.Weighted // of Kubernetes about policies
	joining      *semaphore.Weighted // of other clusters
	publisher    *enroll.Publisher   // tells agents where to; nil without enroller
	directory    *peering.Directory
	board        *problems.Board
	state        *state.Cache
	counts       *counts
	census       *census
	memory       *memory
	sightings    *sightings
	gossiper     *gossiper
	space        *space
	history      *history         // nil: an existing etcd takes care of its own
	members      *members.Members // nil: an existing etcd is used
	renewal      failing
	publishing   failing  // what the publisher does
	keeping      failing  // of what a lost store needs, in Kubernetes
	rebuilding   failing  // a store that was lost
	webhook      failing  // what keeps Kubernetes asking
	refusals     refusals // of requests to enroll
	agents       *agents
	metrics      *metrics
	serviceTable *serviceTable

	mu   sync.RWMutex // guards cert
	cert *tls.Certificate
}

// Run serves until ctx ends or a part fails. When it returns, nothing that it started is
// still running. Everything is in the store, so killing it does no harm.
func Run(ctx context.Context, conf Config) error {
	err := run(ctx, conf, nil)
	if errors.Is(err, embedded.ErrRemoved) && conf.KubernetesNamespace != "" {
		return putRemovedAside(conf, err)
	}
	return err
}

// run is Run; ready, if not nil, is called with the API's URL once it listens.
func run(ctx context.Context, conf Config, ready func(*server, string)) error {
	if err := conf.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if err := checkAdvertise(conf); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	began := time.Now()
	asked := ctx // ends when somebody wants this server to stop
	f, err := lay(ctx, conf, nil)
	if err != nil {
		return fmt.Errorf("start API server: %w", err)
	}
	// Closed after everything that uses it has ended.
	defer f.close()

	listener, err := net.Listen("tcp", conf.Listen)
	if err != nil {
		return fmt.Errorf("start API server: %w", listenError("listen", conf.Listen, err))
	}
	defer listener.Close()
	url := "https://" + f.advertised(listener.Addr())
	s, err := build(ctx, f, url, began, func() bool { return asked.Err() != nil })
	if err != nil {
		return fmt.Errorf("start API server: %w", err)
	}
	defer s.agents.close()

	g, ctx := errgroup.WithContext(ctx)
	if err := s.serveMetrics(ctx, g); err != nil {
		return fmt.Errorf("start API server: %w", err)
	}
	g.Go(func() error { return s.serve(ctx, tls.NewListener(listener, s.tls()), s.handler()) })
	s.work(ctx, g)
	if f.etcd != nil {
		g.Go(func() error { return f.explainRemoved(f.etcd.Wait(ctx)) })
		g.Go(func() error { return s.history.Run(ctx) })
		g.Go(func() error { return s.members.Run(ctx) })
	}
	// Written last: whoever finds the operator's context finds a server that answers.
	if err := f.writeAdmin(url, nil); err != nil {
		g.Go(func() error { return err })
	}
	conf.Log.Info("API server is ready", "cluster", f.cluster.Name, "id", f.cluster.ID, "url", url, "generation", f.cluster.Generation, "after", time.Since(s.began))
	if ready != nil {
		ready(s, url)
	}
	return g.Wait()
}

// work runs the parts that need nothing of this machine but its disk.
func (s *server) work(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return s.registry.Run(ctx) })
	g.Go(func() error { return s.election.Run(ctx) })
	g.Go(func() error { return s.directory.Run(ctx) })
	g.Go(func() error { return s.board.Run(ctx) })
	g.Go(func() error { return s.state.Run(ctx) })
	g.Go(func() error { return s.counts.Run(ctx) })
	g.Go(func() error { return s.census.Run(ctx) })
	g.Go(func() error { return s.serviceTable.Run(ctx) })
	g.Go(func() error { return s.memory.Run(ctx) })
	g.Go(func() error { return s.sightings.follow(ctx, s.store) })
	g.Go(func() error { return s.gossiper.Run(ctx) })
	g.Go(func() error { return s.space.Run(ctx) })
	g.Go(func() error { return s.attend(ctx) })
	g.Go(func() error { return renew(ctx, s.log, &s.renewal, s.renewAll) })
}

// build makes the parts, but does not run them. stopped reports whether the server was asked
// to stop.
func build(ctx context.Context, f *foundation, url string, began time.Time, stopped func() bool) (*server, error) {
	s := &server{foundation: f, log: f.conf.Log, began: began}
	id, err := serverID(f.conf.DataDir, url)
	if err != nil {
		return nil, err
	}
	s.self = wire.Server{ID: id, Name: f.conf.name(), URL: url, Version: cmp.Or(f.conf.Version, version()), Started: began.UTC(), Gossip: f.at(f.conf.GossipPort), WANGossip: f.at(f.conf.WANGossipPort)}
	s.election = leader.New(leader.Config{Store: f.store, Self: s.self, Lead: s.lead, Stopped: stopped, Log: s.log})
	if err := s.renewCertificate(); err != nil {
		return nil, err
	}
	s.siblings = newSiblings(f)
	var alarm store.Alarm
	if f.etcd != nil {
		alarm = s.store // an existing etcd is on another disk, and may not be ours alone
		if s.members, err = s.openMembers(ctx); err != nil {
			return nil, err
		}
		s.history = &history{turn: historyTurn, quota: f.conf.EtcdQuotaBytes, usage: s.store.Usage, compact: s.store.Compact, log: s.log}
	}
	s.space = newSpace(f.conf.DataDir, f.conf.DiskReserveBytes, alarm, s.log)
	if err := s.space.begin(ctx); err != nil {
		return nil, err
	}
	if s.wanKey, err = secretKey(ctx, s.store, wire.WANGossipKey); err != nil {
		return nil, err
	}
	if _, err := nodes.GossipKeys(ctx, s.store); err != nil {
		return nil, err
	}
	if s.lasting, err = s.readFixed(ctx); err != nil {
		return nil, err
	}
	s.registry = s.newRegistry(s.store)
	s.manifests = semaphore.NewWeighted(manifestsAtOnce)
	s.enrolling = semaphore.NewWeighted(enrollAtOnce)
	s.reviewing, s.joining = semaphore.NewWeighted(reviewsAtOnce), semaphore.NewWeighted(joinsAtOnce)
	if err := s.admitNodes(); err != nil {
		return nil, err
	}
	s.registrar = s.newRegistrar(s.store, s.store)
	if s.split, err = identity.SplitFor(int(f.cluster.MaxConnectedClusters)); err != nil {
		return nil, err
	}
	s.directory = peering.NewDirectory(f.cluster.Name, s.store, s.log)
	s.board = problems.NewBoard(s.store, s.log)
	s.state = state.New(s.store, s.log)
	s.counts = newCounts(s.state)
	s.census = newCensus(s.store, s.log)
	s.serviceTable = newServiceTable(f.cluster.Name, s.store, s.log)
	if s.memory, err = openMemory(f.conf.DataDir, f.cluster.Generation, s.store, s.log); err != nil {
		return nil, err
	}
	s.sightings = newSightings(func() bool { return s.controllers.Load() != nil }, s.log)
	if s.gossiper, err = newGossiper(s, s.wanKey); err != nil {
		return nil, err
	}
	s.agents = &agents{clients: map[agentAt]*api.Client{}, port: api.AgentPort, conf: f.rootTLS()}
	s.metrics = newMetrics(s)
	return s, nil
}

// newRegistrar returns the register on the store, or through a leader's fence.
func (s *server) newRegistrar(st store.Store, users store.Users) *nodes.Registrar {
	return nodes.New(nodes.Config{
		Cluster: s.cluster, Store: st, Users: users, Authority: s.foundation,
		Server: s.self.URL, Names: append(slices.Clone(s.conf.AdvertiseNames), s.conf.Cluster, s.conf.Advertise.String()), EtcdEndpoints: s.etcdEndpoints, Others: s.otherURLs, Seeds: s.gossipSeeds,
	})
}

// newRegistry returns the registry on the store, or through a leader's fence.
func (s *server) newRegistry(st store.Store) *registry.Registry {
	return registry.New(st, registry.Config{Cluster: s.cluster.Name, ServiceCIDR: s.cluster.ServiceCIDR, IPv6ServiceCIDR: s.cluster.IPv6ServiceCIDR, Kubernetes: s.conf.Kubernetes, Waits: s.waits, Audit: s.auditObject, Log: s.log})
}

// fixed returns the keys that are written at the start and then only read. Without them,
// agents do not believe the store or API servers do not start.
func (s *server) fixed() []string {
	keys := []string{wire.ClusterKey, wire.GossipKey, wire.WANGossipKey, wire.AuthorityKey}
	if s.etcd != nil {
		keys = append(keys, wire.LineageKey, wire.ExportLineageKey)
	}
	return keys
}

// readFixed returns the writes that restore the fixed keys as they are.
func (s *server) readFixed(ctx context.Context) (ops []store.Op, err error) {
	for _, key := range s.fixed() {
		kv, err := s.store.Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ops = append(ops, store.Put(key, kv.Value))
	}
	return ops, nil
}

// identitiesInUse returns the numbers that endpoints have, whatever the allocator's
// references say.
func (s *server) identitiesInUse(ctx context.Context) (map[identity.Number]bool, error) {
	kvs, _, err := s.store.List(ctx, wire.EndpointsPrefix)
	if err != nil {
		return nil, err
	}
	used := make(map[identity.Number]bool, len(kvs))
	for _, kv := range kvs {
		e, err := wire.Unmarshal[wire.Endpoint](kv.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kv.Key, err)
		}
		used[e.Identity] = true
	}
	return used, nil
}

// tls returns the API's TLS settings. Certificate and roots are looked up for each
// connection, because both may change.
func (s *server) tls() *tls.Config {
	clients := s.clientAuth()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			s.mu.RLock()
			defer s.mu.RUnlock()
			return &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"},
				Certificates: []tls.Certificate{*s.cert},
				ClientCAs:    s.authority.Pool(), ClientAuth: clients,
			}, nil
		},
	}
}

func (s *server) renewCertificate() error {
	pair, err := s.authority.Issue(s.serverRequest("apiserver"))
	if err != nil {
		return err
	}
	cert, err := pair.TLS()
	if err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cert = &cert
	return nil
}

// renewAll renews every certificate of this process. The embedded etcd's is a file that
// is read for each connection.
func (s *server) renewAll() error {
	err := errors.Join(s.renewCertificate(), s.issueRoot())
	if s.etcd != nil {
		_, _, etcdErr := s.issueEtcd()
		_, _, memberErr := s.issueMember()
		err = errors.Join(err, etcdErr, memberErr)
	}
	return err
}

// renew renews the certificates until ctx ends.
func renew(ctx context.Context, log *slog.Logger, failing *failing, all func() error) error {
	timer := time.NewTimer(certificateRenewal)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		err := all()
		failing.note(log, "cannot renew the API server's certificates; retrying every hour", err)
		if timer.Reset(certificateRenewal); err != nil {
			timer.Reset(renewalRetry)
		}
	}
}

// renewalConcerns says that the server's certificates are growing old.
func renewalConcerns(failing *failing) []api.Concern {
	return failing.concern(api.Concern{
		Object: "API server", Reason: "CertificateNotRenewed", Message: "its certificates cannot be renewed",
		Next: "correct that, or restart it: they expire a year after they were issued",
	})
}

// serve answers on a listener until ctx ends, then gives requests a moment to finish.
func (s *server) serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	h := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerPatience,
		// Streams end with the server.
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// Whoever has a certificate, peers too, may open connections.
		IdleTimeout: idlePatience,
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), closePatience)
	defer cancel()
	err := h.Shutdown(patience)
	if errors.Is(err, context.DeadlineExceeded) {
		err = h.Close()
	}
	<-ended
	return err
}

func (s *server) serveMetrics(ctx context.Context, g *errgroup.Group) error {
	if s.conf.MetricsAddress == "" {
		return nil
	}
	listener, err := net.Listen("tcp", s.conf.MetricsAddress)
	if err != nil {
		return listenError("metrics-address", s.conf.MetricsAddress, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics.serve())
	g.Go(func() error { return s.serve(ctx, listener, mux) })
	return nil
}
