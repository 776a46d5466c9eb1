package apiserver

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/wire"
)

// status describes the cluster, its nodes and its peers. Objects are counted in the store,
// without reading their values.
func (s *server) status(ctx context.Context) (*api.Status, error) {
	out, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	counts := map[string]*int{
		wire.IdentityIDPrefix:                    &out.Cluster.Identities,
		wire.ObjectKindPrefix(manifest.Services): &out.Cluster.Services,
	}
	for _, k := range manifest.Kinds() {
		if k.Policy {
			counts[wire.ObjectKindPrefix(k.Plural)] = &out.Cluster.Policies
		}
	}
	for prefix, count := range counts {
		n, _, err := s.store.Count(ctx, prefix)
		if err != nil {
			return nil, err
		}
		*count += n
	}
	return out, nil
}

// look is status without the counts. The server calls it periodically.
func (s *server) look(ctx context.Context) (*api.Status, error) {
	rows := s.problemRows()
	register, err := s.registrar.Register(ctx)
	if err != nil {
		return nil, err
	}
	s.agents.keep(register)
	refused := rows.Refused()
	now, view := time.Now(), s.election.View()
	c := s.cluster
	out := &api.Status{
		Cluster: api.ClusterStatus{
			Name: c.Name, ID: uint32(c.ID), PodCIDRs: c.PodCIDRs, ServiceCIDR: c.ServiceCIDR, IPv6ServiceCIDR: c.IPv6ServiceCIDR,
			MaxConnectedClusters: c.MaxConnectedClusters, Generation: c.Generation,
			Version: cmp.Or(s.conf.Version, version()), UptimeSeconds: time.Since(s.began).Seconds(), Store: "embedded",
		},
		Nodes: s.nodeRows(register, refused), Refused: refused, Servers: serverRows(now, c.Name, s.self.ID, view, s.stores()), Quorum: s.quorum(),
	}
	var problems []api.Concern
	if out.Peers, out.Former, problems, err = s.peerRows(ctx, now); err != nil {
		return nil, err
	}
	if _, out.Cluster.Revision, err = s.store.Count(ctx, wire.ClusterKey); err != nil {
		return nil, err
	}
	problems = append(problems, strangerConcerns(c.Name, s.census.strangers(now, register))...)
	if len(s.conf.EtcdEndpoints) > 0 {
		out.Cluster.Store = "external"
	}
	for _, n := range out.Nodes {
		out.Cluster.Endpoints += n.Endpoints
	}
	out.Cluster.StoreVersion, out.Cluster.StoreBytes, err = s.store.Version(ctx)
	if err != nil {
		problems = append(problems, api.Concern{Object: "store", Reason: "StoreUnreachable", Message: fmt.Sprintf("store: %v", err), Next: "is etcd running on every machine that --etcd-endpoints names?"})
	}
	if c, near := quotaConcern(out.Cluster.StoreBytes, s.conf.EtcdQuotaBytes); near && len(s.conf.EtcdEndpoints) == 0 {
		problems = append(problems, c)
	}
	if err := s.addDeadNodes(ctx, out.Peers); err != nil {
		return nil, err
	}
	problems = append(problems, s.serviceTable.concerns(reachOf(c.Name, out.Nodes, out.Peers))...)
	problems = slices.Concat(problems, s.controllerConcerns(rows), s.processConcerns(), serverConcerns(s.self.ID, view, s.siblings.now(), s.stores()))
	now = time.Now()
	out.Concerns, out.Settling = api.Judge(now, s.differences(now, out, problems))
	return out, nil
}

// quotaConcern warns before etcd refuses writes: one transaction can take the last
// twentieth. An external etcd's quota is not known here.
func quotaConcern(bytes, quota int64) (api.Concern, bool) {
	return api.Concern{
		Object: "store", Reason: "StoreNearlyFull",
		Message: fmt.Sprintf("the store takes %d of the %d MiB that it may take; beyond that, writes are refused", bytes>>20, quota>>20),
		Next:    "raise --etcd-quota-bytes and restart the API server",
	}, bytes >= quota-quota/20
}

// addDeadNodes adds what each peer's gossip says about its nodes. A value that cannot be
// read counts as none; writePeers replaces it.
func (s *server) addDeadNodes(ctx context.Context, peers []api.PeerStatus) error {
	keys := make([]string, len(peers))
	for i := range peers {
		keys[i] = wire.PeerLivenessKey(peers[i].Name)
	}
	kvs, err := s.store.GetMany(ctx, keys...)
	if err != nil {
		return err
	}
	for i, kv := range kvs {
		if l, err := wire.Unmarshal[wire.PeerLiveness](kv.Value); err == nil && kv.Modified != 0 {
			peers[i].DeadNodes, peers[i].DeadSince = slices.Sorted(maps.Keys(l.Dead)), l.Dead
		}
	}
	return nil
}

func (s *server) nodeStatus(ctx context.Context) ([]api.NodeStatus, error) {
	register, err := s.registrar.Register(ctx)
	if err != nil {
		return nil, err
	}
	return s.nodeRows(register, s.problemRows().Refused()), nil
}

func (s *server) nodeRows(register map[string]wire.Registration, refused []api.Refusal) []api.NodeStatus {
	byNode := map[string]uint64{}
	for _, r := range refused {
		byNode[r.Node] += r.Count
	}
	return s.census.status(s.cluster.Name, register, s.counts.byNode(), byNode)
}

// peerRows describes the peers: as their mirrors know them if they run here, and otherwise
// as far as the store does.
func (s *server) peerRows(ctx context.Context, now time.Time) (peers []api.PeerStatus, former []api.FormerPeer, concerns []api.Concern, err error) {
	if c := s.controllers.Load(); c != nil {
		peers, concerns = c.peering.Status(), c.peering.Concerns(now)
	} else if peers, err = s.directory.Status(ctx); err != nil {
		return nil, nil, nil, err
	}
	former, err = s.directory.Former(ctx)
	return peers, former, concerns, err
}

// version returns the version of the build.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return cmp.Or(info.Main.Version, "(devel)")
}

// identities lists the identities of this cluster and of its peers.
func (s *server) identities(ctx context.Context) (*api.IdentityList, error) {
	out := &api.IdentityList{Cluster: s.cluster.Name, Identities: []api.Identity{}}
	used := map[uint32]int{}
	endpoints, _, err := s.store.List(ctx, wire.EndpointsPrefix)
	if err != nil {
		return nil, err
	}
	for _, kv := range endpoints {
		if e, err := wire.Unmarshal[wire.Endpoint](kv.Value); err == nil {
			used[uint32(e.Identity)]++
		}
	}
	own, _, err := s.store.List(ctx, wire.IdentityIDPrefix)
	if err != nil {
		return nil, err
	}
	for _, kv := range own {
		if n, ok := wire.ParseIdentityIDKey(kv.Key); ok {
			out.Identities = append(out.Identities, api.Identity{Cluster: s.cluster.Name, ID: uint32(n), Labels: string(kv.Value), Endpoints: used[uint32(n)]})
		}
	}
	cached, _, err := s.store.List(ctx, wire.Identities.AllCachePrefix())
	if err != nil {
		return nil, err
	}
	for _, kv := range cached {
		if ref, ok := wire.ParseCiliumCacheKey(kv.Key); ok {
			out.Identities = append(out.Identities, api.Identity{Cluster: ref.Cluster, ID: uint32(ref.Identity), Labels: string(kv.Value)})
		}
	}
	peers, _, err := s.store.List(ctx, wire.IPs.AllCachePrefix())
	if err != nil {
		return nil, err
	}
	for _, kv := range peers {
		if pair, err := wire.Unmarshal[wire.IPIdentityPair](kv.Value); err == nil {
			used[uint32(pair.ID)]++
		}
	}
	for i := range out.Identities {
		out.Identities[i].Endpoints = used[out.Identities[i].ID]
	}
	slices.SortFunc(out.Identities, func(a, b api.Identity) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}
