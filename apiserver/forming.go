package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/apiserver/formation"
	"github.com/weft-mesh/weft/apiserver/keeping"
	"github.com/weft-mesh/weft/apiserver/members"
	kubernetessource "github.com/weft-mesh/weft/apiserver/sources/kubernetes"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// In Kubernetes, API servers find each other, and a store that is lost begins again:
//
//	empty disk ──► do others answer? ──► join them
//	                   │ no
//	                   └──► has more than half lost it, or is this the first? ──► begin, with what
//	                                                                              Kubernetes keeps
//
// A store that has begun again is a new generation: agents keep what they have, and peers are
// not let in, until Kubernetes was read, and every agent has reported.

// forms says whether this API server finds the others by Kubernetes, and has a store of its own.
func (f *foundation) forms() bool {
	return f.conf.KubernetesNamespace != "" && len(f.conf.EtcdEndpoints) == 0
}

func (f *foundation) kubernetes() (kubernetes.Interface, error) {
	conf, err := (kubernetessource.Access{Kubeconfig: f.conf.Kubeconfig, Context: f.conf.KubeContext}).Config()
	if err != nil {
		return nil, err
	}
	conf.UserAgent = "weft-apiserver"
	return kubernetes.NewForConfig(conf)
}

// form returns the bundle with which an API server with an empty disk joins the others; nil if
// it has a store or begins one.
func (f *foundation) form(ctx context.Context) (*api.ServerBundle, error) {
	if embedded.Begun(f.etcdDir()) {
		return nil, nil
	}
	client, err := f.kubernetes()
	if err != nil {
		return nil, fmt.Errorf("find the other API servers by Kubernetes: %w", err)
	}
	b, err := formation.Form(ctx, formation.Config{
		Client: client, Namespace: f.conf.KubernetesNamespace, Cluster: f.conf.Cluster, Name: f.conf.name(), Address: f.conf.Advertise, Port: f.peerPort(),
		Dial: func(x api.Context) (formation.Servers, error) { return api.NewClient(x) }, Log: f.conf.Log,
	})
	if err != nil {
		return nil, err
	}
	if b != nil {
		f.conf.Log.Info("the other API servers admit this one", "endpoints", b.EtcdEndpoints)
		return b, f.takeOver(*b)
	}
	if f.kept, err = f.readKept(ctx, client); err != nil || f.kept == nil {
		return nil, err
	}
	return nil, f.adopt(f.kept.Authority, "to begin the store again with what Kubernetes keeps")
}

func (f *foundation) readKept(ctx context.Context, client kubernetes.Interface) (*keeping.Kept, error) {
	k, err := keeping.Read(ctx, client, f.conf.KubernetesNamespace, f.conf.Cluster, f.conf.ID)
	if err != nil {
		return nil, fmt.Errorf("read what Kubernetes keeps of the store: %w", err)
	}
	return k, nil
}

// refill brings an empty store to what Kubernetes keeps of the one that was lost. What is
// interrupted begins again: only afterwards the store has a cluster.
func (f *foundation) refill(ctx context.Context) error {
	switch _, err := f.store.Get(ctx, wire.ClusterKey); {
	case err == nil:
		return nil
	case !errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("read the cluster record: %w", err)
	}
	if f.kept == nil {
		client, err := f.kubernetes()
		if err != nil {
			return err
		}
		if f.kept, err = f.readKept(ctx, client); err != nil || f.kept == nil {
			return err
		}
	}
	f.conf.Log.Warn("the store was lost, and begins again with what Kubernetes keeps", "identities", f.kept.Identities)
	ops := append([]store.Op{store.Put(wire.RebuildingKey, wire.TimeText(time.Now()))}, f.kept.Writes...)
	if err := store.Write(ctx, f.store, ops...); err != nil {
		return fmt.Errorf("fill the store: %w", err)
	}
	return nil
}

// putRemovedAside lets an API server join again at its next start that the others have
// removed, because its pod was on another node meanwhile.
func putRemovedAside(conf Config, removed error) error {
	dir := filepath.Join(conf.DataDir, "etcd")
	aside := dir + "-removed"
	if err := errors.Join(os.RemoveAll(aside), os.Rename(dir, aside)); err != nil {
		return errors.Join(removed, err)
	}
	return fmt.Errorf("the other API servers have removed this one: its store is now %s, and it joins them again at its next start: %w", aside, embedded.ErrRemoved)
}

// keeper keeps in Kubernetes what a lost store needs.
func (s *server) keeper(st store.Store) *keeping.Keeper {
	return &keeping.Keeper{
		Client: s.kubernetesCluster().Client, Namespace: s.conf.KubernetesNamespace, Mesh: s.cluster.Name, ID: uint32(s.cluster.ID), CA: s.authority.Bundle, Store: st, Log: s.log,
		Tell: func(err error) {
			s.keeping.note(s.log, "Kubernetes does not keep what a lost store would need; retrying", err)
		},
	}
}

// keepingGrace is how long Kubernetes may be behind.
const keepingGrace = 15 * time.Second

// keepingConcerns says that a lost store could not begin again as it was.
func keepingConcerns(failing *failing) []api.Concern {
	return failing.concern(api.Concern{
		Object: "Kubernetes", Reason: "NotKept", Grace: keepingGrace,
		Message: "Kubernetes does not keep what a lost store could not get back: identity numbers, the certificate authority and peers",
		Next:    "correct that, and keep a backup until then (`weft backup`); it is tried again",
	})
}

// membersTurn is how often the record of the store's members is compared.
const membersTurn = 10 * time.Second

// recordMembers keeps Kubernetes knowing which API servers have the store, until ctx ends. An
// API server that loses its disk has to know.
func (s *server) recordMembers(ctx context.Context) error {
	cluster := s.kubernetesCluster()
	tick := time.NewTicker(membersTurn)
	defer tick.Stop()
	for {
		if all := s.storeMembers(); len(all) > 0 {
			client, err := cluster.Client(ctx)
			if err == nil {
				err = formation.Follow(ctx, client, s.conf.KubernetesNamespace, all)
			}
			if err != nil && ctx.Err() == nil {
				s.log.Debug("recording which API servers have the store", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// storeMembers are the API servers that have a part of the store, by name. With an existing
// etcd there are none.
func (s *server) storeMembers() map[string]netip.Addr {
	all := map[string]netip.Addr{}
	for _, m := range s.stores() {
		if m.State == members.Invited {
			continue
		}
		if m.Name == s.self.Name {
			all[m.Name] = s.conf.Advertise
		} else if a, err := netip.ParseAddrPort(m.Address); err == nil {
			all[m.Name] = a.Addr()
		}
	}
	return all
}

// rebuildTurn is how often a store that was lost is looked at until it is whole again.
const rebuildTurn = time.Second

// rebuild returns true once the store has everything: at once, unless it was lost and begins
// again. Then nodes use it from now on.
func (s *server) rebuild(ctx context.Context, st store.Store, source interface{ Begun() bool }) bool {
	defer s.rebuilding.note(s.log, "", nil)
	for ctx.Err() == nil {
		missing, err := s.missing(ctx, st, source)
		switch {
		case err == nil && missing == "":
			if err = s.rebuilt(ctx, st); err == nil {
				return true
			}
		case err == nil:
			s.rebuilding.note(s.log, "the store was lost, and is filled again", errors.New(missing))
		}
		if err != nil && ctx.Err() == nil {
			s.rebuilding.note(s.log, "the store was lost, and cannot be filled again yet", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rebuildTurn):
		}
	}
	return false
}

// missing says what a store that begins again does not have yet; empty once it has all.
func (s *server) missing(ctx context.Context, st store.Store, source interface{ Begun() bool }) (string, error) {
	switch _, err := st.Get(ctx, wire.RebuildingKey); {
	case errors.Is(err, store.ErrNotFound):
		return "", nil
	case err != nil:
		return "", err
	}
	if !source.Begun() {
		return "waiting for what Kubernetes has", nil
	}
	kvs, err := listAll(ctx, st, wire.RegistrationsPrefix, wire.NodesPrefix, wire.EndpointsPrefix, wire.RefusedPrefix, wire.ObjectKindPrefix(manifest.Pods))
	if err != nil {
		return "", err
	}
	var silent []string
	for key := range kvs {
		if node, ok := wire.ParseRegistrationKey(key); ok && (kvs[wire.NodeKey(node)] == nil || kvs[wire.NodeSyncedKey(node)] == nil) {
			silent = append(silent, node)
		}
	}
	if len(silent) > 0 {
		slices.Sort(silent)
		return "waiting for the agents of nodes " + strings.Join(silent, ", "), nil
	}
	refused := map[string]bool{}
	for key, value := range kvs {
		if all, err := wire.Unmarshal[[]api.Refusal](value); strings.HasPrefix(key, wire.RefusedPrefix) && err == nil {
			for _, r := range all {
				refused[r.Node] = true
			}
		}
	}
	n := 0
	for key := range kvs {
		if node, kind, ns, pod, ok := wire.ParseNodesKey(key); ok && kind == wire.NodeEntryEndpoint &&
			kvs[wire.ObjectKey(manifest.Pods, ns, pod)] != nil && kvs[wire.EndpointKey(ns, pod)] == nil && !refused[node] {
			n++
		}
	}
	if n > 0 {
		return fmt.Sprintf("waiting for the identities of %s", api.Count(n, "endpoint")), nil
	}
	return "", nil
}

func listAll(ctx context.Context, st store.Store, prefixes ...string) (map[string][]byte, error) {
	all := map[string][]byte{}
	for _, prefix := range prefixes {
		kvs, _, err := st.List(ctx, prefix)
		if err != nil {
			return nil, err
		}
		for _, kv := range kvs {
			all[kv.Key] = kv.Value
		}
	}
	return all, nil
}

// rebuilt ends the rebuilding of a store, if it was one.
func (s *server) rebuilt(ctx context.Context, st store.Store) error {
	if _, err := st.Get(ctx, wire.RebuildingKey); errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if _, err := release(ctx, st, store.Delete(wire.RebuildingKey)); err != nil {
		return err
	}
	s.log.Info("the store that was lost is whole again")
	return nil
}

// release says that a store is complete: nodes use it from now on. What also is written with it.
func release(ctx context.Context, st store.Store, also ...store.Op) (wire.Cluster, error) {
	for {
		kv, err := st.Get(ctx, wire.ClusterKey)
		if err != nil {
			return wire.Cluster{}, err
		}
		c, err := wire.Unmarshal[wire.Cluster](kv.Value)
		if err != nil {
			return c, err
		}
		c.Released = true
		_, done, err := st.Commit(ctx, store.Txn{
			If:   []store.Cond{{Key: wire.ClusterKey, Modified: kv.Modified}},
			Then: append([]store.Op{store.Put(wire.ClusterKey, wire.Marshal(c))}, also...),
		})
		if err != nil || done {
			return c, err
		}
	}
}

// rebuildingGrace is how long agents may take to report to a store that begins again.
const rebuildingGrace = 15 * time.Second

// rebuildingConcerns says what a store that was lost still lacks.
func rebuildingConcerns(cluster string, failing *failing) []api.Concern {
	return failing.concern(api.Concern{
		Object: "cluster " + cluster, Reason: "StoreRebuilding", Grace: rebuildingGrace,
		Message: "the store was lost and begins again; until it is whole, nodes keep what they have, and peers what they know",
		Next:    "start the agents that are missing; a node that is lost for good has to be deleted from Kubernetes; `weft node release` does not wait for the rest",
	})
}
