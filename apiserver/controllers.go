package apiserver

import (
	"context"
	"net/http"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/declared"
	"github.com/weft-mesh/weft/apiserver/endpoints"
	"github.com/weft-mesh/weft/apiserver/export"
	"github.com/weft-mesh/weft/apiserver/identities"
	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/apiserver/mcs"
	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/apiserver/peering"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/apiserver/sources/kubernetes"
	"github.com/weft-mesh/weft/apiserver/sources/manifests"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// controllers are the parts that write without being asked. They run on the API server
// that leads, for one term, and write through its fence.
//
// A server's own certificates, the space on its disk and the history of its etcd are not
// among them: each server takes care of its own, above all while nobody can lead because
// the store is full.
type controllers struct {
	endpoints *endpoints.Controller
	exporter  *export.Exporter
	// sources are where objects come from beside `weft apply`.
	manifests  *manifests.Source
	kubernetes *kubernetes.Source
	mcs        *mcs.Controller
	peering    *peering.Peering
	peers      http.Handler // the API of the peers, whose mirrors run here
	joiner     *declared.Joiner
	objects    *kubernetes.Objects
}

// kubernetesAccess returns how to reach Kubernetes; nil if it is not followed.
func (s *server) kubernetesAccess() func() (*rest.Config, error) {
	if !s.conf.Kubernetes {
		return nil
	}
	return kubernetes.Access{Kubeconfig: s.conf.Kubeconfig, Context: s.conf.KubeContext}.Config
}

// lead runs the controllers for one term. It implements leader.Config's Lead.
func (s *server) lead(ctx context.Context, st store.Store) error {
	first, last := s.split.Range(s.cluster.ID)
	allocator, err := identities.NewAllocator(st, first, last)
	if err != nil {
		return err
	}
	collect := identities.DefaultCollectorConfig()
	collect.InUse, collect.Log = s.identitiesInUse, s.log
	collector := identities.NewCollector(allocator, collect)
	kept := store.NewKept(st, s.log)
	kept.Note(s.lasting...) // what is missing already is written again too
	p := s.newPeering(st)
	own := &kubernetes.Objects{Access: s.kubernetesAccess(), Namespace: s.conf.kubernetesNamespace()}
	joiner := declared.New(declared.Config{Cluster: s.cluster.Name, Peering: p, Kubernetes: own, Caller: declared.HTTPS{}, Log: s.log})
	c := &controllers{
		peering: p, joiner: joiner, objects: own,
		endpoints: endpoints.New(endpoints.Config{State: s.state, Store: st, Allocator: allocator, Cluster: s.cluster.Name, Log: s.log}),
		exporter:  export.New(export.Config{State: s.state, Store: st, Cluster: s.cluster, Log: s.log}),
		manifests: manifests.New(manifests.Config{Dir: s.conf.Manifests, Registry: s.newRegistry(st).Owned(api.OwnerManifests), Log: s.log}),
		kubernetes: kubernetes.New(kubernetes.Config{
			Access: s.kubernetesAccess(), UID: s.conf.KubernetesUID, Registry: s.newRegistry(st).Owned(api.OwnerKubernetes),
			Nodes: s.newRegistrar(st, leader.Users(st, s.store)), Peers: joiner, IPAM: s.conf.IPAM, Agents: s.census.agents, Store: st, Name: s.self.Name, Log: s.log,
		}),
	}
	set := mcs.Config{Cluster: s.cluster, State: s.state, Store: st, Registry: s.newRegistry(st).Owned(api.OwnerMCS), Log: s.log}
	if access := s.kubernetesAccess(); access != nil {
		set.Outside = &kubernetes.ClusterSet{Access: access}
	}
	c.mcs = mcs.New(set)
	mux := http.NewServeMux()
	c.peering.Mount(mux)
	mux.HandleFunc("/", unknownPath)
	c.peers = mux

	g, ctx := errgroup.WithContext(ctx)
	persist := func(what string, work func(context.Context) error) {
		g.Go(func() error { return store.Persist(ctx, s.log, what, work) })
	}
	g.Go(func() error { return c.endpoints.Run(ctx) })
	g.Go(func() error { return collector.Run(ctx) })
	g.Go(func() error { return c.manifests.Run(ctx) })
	g.Go(func() error { return c.kubernetes.Run(ctx) })
	// Peers see a store that was lost only once it has everything again.
	g.Go(func() error {
		if !s.rebuild(ctx, st, c.kubernetes) {
			return nil
		}
		g.Go(func() error { return c.exporter.Run(ctx) })
		g.Go(func() error { return c.mcs.Run(ctx) })
		return c.peering.Run(ctx)
	})
	if s.conf.KubernetesNamespace != "" {
		g.Go(func() error { return s.keeper(st).Run(ctx) })
		g.Go(func() error { return s.recordMembers(ctx) })
	}
	g.Go(func() error { return s.gossiper.write(ctx, st) })
	g.Go(func() error { return s.watchConcerns(ctx) })
	g.Go(func() error { return kept.Keep(ctx, s.fixed()...) })
	if s.publisher != nil {
		g.Go(func() error { return s.publisher.Run(ctx) })
	}
	s.runKubernetesObjects(func(work func(context.Context) error) { g.Go(func() error { return work(ctx) }) }, c)
	persist("telling agents how to reach the API servers", func(ctx context.Context) error {
		return s.tellAccess(ctx, st, c.kubernetes.APIServers, c.peering.Moved)
	})
	persist("writing what is wrong with endpoints", func(ctx context.Context) error {
		return problems.Publish(ctx, st, c.endpoints, endpoints.ProblemPrefixes()...)
	})
	persist("writing what is not exported", func(ctx context.Context) error {
		return problems.Publish(ctx, st, c.exporter, wire.NotExportedPrefix)
	})
	persist("writing what is wrong with manifests", func(ctx context.Context) error {
		return problems.Publish(ctx, st, c.manifests, wire.SourceProblemsKey(api.OwnerManifests))
	})
	persist("writing what is wrong with Kubernetes", func(ctx context.Context) error {
		return problems.Publish(ctx, st, c.kubernetes, wire.SourceProblemsKey(api.OwnerKubernetes))
	})
	persist("writing what is wrong with service exports", func(ctx context.Context) error {
		return problems.Publish(ctx, st, c.mcs, wire.SourceProblemsKey(api.OwnerMCS))
	})
	persist("writing what is wrong with Peer objects", func(ctx context.Context) error {
		return problems.Publish(ctx, st, c.joiner, wire.SourceProblemsKey(declared.ProblemsOf))
	})
	persist("writing since when concerns exist", func(ctx context.Context) error { return s.sightings.write(ctx, st) })
	s.controllers.Store(c)
	// At once, not only when all of them have ended: requests go to the next one.
	stop := context.AfterFunc(ctx, func() { s.controllers.CompareAndSwap(c, nil) })
	defer func() { stop(); s.controllers.CompareAndSwap(c, nil) }()
	return g.Wait()
}

func (s *server) newPeering(st store.Store) *peering.Peering {
	return peering.New(peering.Config{
		Cluster: s.cluster, Store: st, Users: leader.Users(st, s.store), Authority: s.foundation,
		EtcdEndpoints: s.etcdEndpoints, GossipAddresses: s.wanGossip, GossipKey: s.wanKey, Declares: s.conf.Kubernetes,
		Limit: mirror.Limit{Entries: s.conf.PeerEntries, Bytes: s.conf.PeerBytes}, Rate: mirror.Rate{Changes: s.conf.PeerChanges, Bytes: s.conf.PeerHistoryBytes}, Dialer: s.edges.Peers, Log: s.log,
	})
}

// problemRows are what the controllers could not do: as they say themselves if they run
// here, so that it shows also while the store takes no writes, and else as they wrote it.
func (s *server) problemRows() problems.Rows {
	rows := s.board.Rows()
	c := s.controllers.Load()
	if c == nil {
		return rows
	}
	replace := func(src problems.Source, prefixes ...string) {
		if own, looked := src.Problems(); looked {
			rows = rows.With(own, prefixes...)
		}
	}
	replace(c.endpoints, endpoints.ProblemPrefixes()...)
	replace(c.exporter, wire.NotExportedPrefix)
	replace(c.manifests, wire.SourceProblemsKey(api.OwnerManifests))
	replace(c.kubernetes, wire.SourceProblemsKey(api.OwnerKubernetes))
	replace(c.mcs, wire.SourceProblemsKey(api.OwnerMCS))
	replace(c.joiner, wire.SourceProblemsKey(declared.ProblemsOf))
	return rows
}
