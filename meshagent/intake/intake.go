// Package intake turns keys of the cluster's etcd into rows.
//
// Local and remote keys are treated alike, and the row says where it comes from. It
// decodes values and checks their form; package program leaves out what conflicts or
// exceeds a peer's rights.
package intake

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/statedb"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/policy"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Prefixes are everything that an agent reads, each with its own reflector. Copies of what
// peers export come before their canaries.
var Prefixes = []string{
	wire.StatePrefix,
	wire.AgentsPrefix,
	wire.CachePrefix,
	wire.CiliumCachePrefix,
	wire.CiliumSyncedPrefix,
	wire.ClusterConfigPrefix,
}

// Intake writes imported rows. Several reflectors may call Apply at once.
type Intake struct {
	own    string
	tables *tables.Tables
	names  names // used only in a transaction: there is one at a time

	// mu guards gossip and changed. Keys are no row: tables are shown to people.
	mu      sync.Mutex
	gossip  wire.GossipKeys
	changed chan struct{}
}

// New makes an intake for the cluster of this name.
func New(own string, t *tables.Tables) *Intake {
	return &Intake{own: own, tables: t, names: names{}, changed: make(chan struct{})}
}

// GossipKeys are the keys of the cluster's gossip, none before they have been read, and a
// channel that is closed when they change.
func (in *Intake) GossipKeys() (wire.GossipKeys, <-chan struct{}) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.gossip, in.changed
}

// Apply writes one batch as one transaction.
func (in *Intake) Apply(events []store.Event) {
	t := in.tables
	txn := t.DB.WriteTxn(append(t.Imported(), t.Problems)...)
	some := t.Rejected.NumObjects(txn) > 0
	ips := t.WriteIPs(txn)
	for _, e := range events {
		w := writer{in: in, t: t, txn: txn, ips: ips}
		err := w.apply(e)
		fine := err == nil || e.Deleted && errors.Is(err, errKey)
		if fine && !some {
			continue
		}
		rejected := &tables.Rejected{StoreKey: e.Key, Cluster: w.cluster, Since: time.Now()}
		problem := &tables.Problem{Table: wire.ProblemValues, Row: e.Key, Attempts: 1}
		old := tables.Get(txn, t.Rejected, rejected.Key())
		if fine {
			if old != nil {
				tables.Drop(txn, t.Rejected, rejected)
				tables.Drop(txn, t.Problems, problem)
			}
			continue
		}
		if old != nil {
			rejected.Since = old.Since
		}
		some = true
		// The row stays as it was: a value that cannot be read must not remove anything.
		rejected.Error = err.Error()
		tables.Put(txn, t.Rejected, rejected)
		problem.Since, problem.Error = rejected.Since, rejected.Error
		tables.Put(txn, t.Problems, problem)
	}
	ips.Flush()
	txn.Commit()
}

// writer writes the rows of one event.
type writer struct {
	in      *Intake
	t       *tables.Tables
	txn     statedb.WriteTxn
	ips     *tables.IPWriter
	cluster string
}

func (w *writer) apply(e store.Event) error {
	w.cluster = w.in.own
	switch {
	case strings.HasPrefix(e.Key, wire.StatePrefix):
		return w.state(e)
	case e.Key == wire.GossipKey:
		return w.gossip(e)
	case e.Key == wire.AccessKey:
		return part(w, e, wire.Unmarshal[wire.Access], func(c *tables.Cluster, v *wire.Access) { c.Access = v })
	case strings.HasPrefix(e.Key, wire.CachePrefix):
		return w.cache(e)
	case strings.HasPrefix(e.Key, wire.CiliumCachePrefix):
		return w.cilium(e)
	case strings.HasPrefix(e.Key, wire.CiliumSyncedPrefix):
		return w.synced(e)
	case strings.HasPrefix(e.Key, wire.ClusterConfigPrefix):
		name, ok := wire.ParseClusterConfigKey(e.Key)
		if !ok {
			return errKey
		}
		w.cluster = name
		return part(w, e, wire.ParseClusterConfig, func(c *tables.Cluster, v *wire.ClusterConfig) { c.Config = v })
	}
	return nil
}

// errKey is the error for a key that no parser accepts. Such a key has no row, so its
// deletion is no error.
var errKey = errors.New("not a key of this form")

// part writes one part of a cluster's row.
func part[V any](w *writer, e store.Event, read func([]byte) (V, error), set func(*tables.Cluster, *V)) error {
	v, err := value(e, read)
	if err != nil {
		return err
	}
	tables.Change(w.txn, w.t.Clusters, &tables.Cluster{Name: w.cluster}, func(c *tables.Cluster) bool {
		set(c, v)
		return !c.Empty()
	})
	return nil
}

// value reads the event's value; nil for a deleted key.
func value[V any](e store.Event, read func([]byte) (V, error)) (*V, error) {
	if e.Deleted {
		return nil, nil
	}
	v, err := read(e.Value)
	if err != nil {
		return nil, err
	}
	return &v, nil
}

func (w *writer) state(e store.Event) error {
	switch {
	case e.Key == wire.ClusterKey:
		if e.Deleted {
			return fmt.Errorf("the store has lost its cluster record; keeping the last known one")
		}
		return part(w, e, wire.Unmarshal[wire.Cluster], func(c *tables.Cluster, v *wire.Cluster) { c.Own = v })
	case e.Key == wire.RotationKey:
		return part(w, e, wire.Unmarshal[wire.Rotation], func(c *tables.Cluster, v *wire.Rotation) { c.Rotation = v })
	case e.Key == wire.OwnLivenessKey:
		return part(w, e, wire.Unmarshal[wire.PeerLiveness], func(c *tables.Cluster, v *wire.PeerLiveness) { c.Liveness = v })
	case strings.HasPrefix(e.Key, wire.PeersPrefix):
		name, ok := wire.ParsePeerKey(e.Key)
		if !ok {
			return errKey
		}
		w.cluster = name
		return part(w, e, wire.Unmarshal[wire.Peer], func(c *tables.Cluster, v *wire.Peer) {
			if v != nil && !v.Connected {
				v = nil // invited, but not added here
			}
			c.Peer = v
		})
	case strings.HasPrefix(e.Key, wire.FormerPrefix):
		return w.former(e)
	case strings.HasPrefix(e.Key, wire.NodesPrefix):
		return w.node(e)
	case strings.HasPrefix(e.Key, wire.RegistrationsPrefix):
		v, err := value(e, wire.Unmarshal[wire.Registration])
		if err != nil {
			return err
		}
		name, ok := wire.ParseRegistrationKey(e.Key)
		if !ok {
			return errKey
		}
		tables.Change(w.txn, w.t.Nodes, &tables.Node{Cluster: w.cluster, Name: name}, func(n *tables.Node) bool {
			n.Registration = v
			if v == nil && n.Withdrawn {
				n.State = nil
			}
			return !n.Empty()
		})
		return nil
	case strings.HasPrefix(e.Key, wire.EndpointsPrefix):
		return w.endpoint(e)
	case strings.HasPrefix(e.Key, wire.IdentityIDPrefix):
		n, ok := wire.ParseIdentityIDKey(e.Key)
		if !ok {
			return errKey
		}
		return w.identity(e, n)
	case strings.HasPrefix(e.Key, wire.ObjectsPrefix):
		return w.object(e)
	}
	return nil
}

func (w *writer) former(e store.Event) error {
	name, ok := wire.ParseFormerKey(e.Key)
	if !ok {
		return errKey
	}
	v, err := value(e, wire.Unmarshal[wire.Former])
	if err != nil {
		return err
	}
	row := &tables.Former{}
	if v != nil {
		row.Former = *v
	}
	row.Name = name
	return write(w, w.t.Former, row, v != nil)
}

func (w *writer) node(e store.Event) error {
	name, entry, _, _, ok := wire.ParseNodesKey(e.Key)
	if !ok {
		return errKey
	}
	if entry != wire.NodeEntryNode {
		return nil // read by the API server, which answers with an Endpoint
	}
	v, err := value(e, wire.Unmarshal[wire.NodeState])
	if err != nil {
		return err
	}
	if v != nil && v.Name != name {
		return fmt.Errorf("node %q speaks of itself as %q", name, v.Name)
	}
	tables.Change(w.txn, w.t.Nodes, &tables.Node{Cluster: w.cluster, Name: name}, func(n *tables.Node) bool {
		// The last state of a registered node is kept when its agent goes silent.
		if v != nil || n.Registration == nil {
			n.State = v
		}
		n.Withdrawn = v == nil
		return !n.Empty()
	})
	return nil
}

func (w *writer) endpoint(e store.Event) error {
	namespace, name, ok := wire.ParseEndpointKey(e.Key)
	if !ok {
		return errKey
	}
	v, err := value(e, wire.Unmarshal[wire.Endpoint])
	if err != nil {
		return err
	}
	if v != nil && (v.Namespace != namespace || v.Pod != name || !v.IP.IsValid() || v.Second.BitLen() == v.IP.BitLen()) {
		return fmt.Errorf("endpoint speaks of %s/%s at %v", v.Namespace, v.Pod, v.IPs())
	}
	var before *wire.Endpoint
	if old := tables.Get(w.txn, w.t.Pods, namespace+"/"+name); old != nil {
		before = old.Endpoint
	}
	tables.Change(w.txn, w.t.Pods, &tables.Pod{Namespace: namespace, Name: name}, func(p *tables.Pod) bool {
		p.Endpoint = v
		return p.Object != nil || p.Endpoint != nil
	})
	var now []netip.Addr
	if v != nil {
		now = v.IPs()
	}
	if before != nil {
		for _, ip := range before.IPs() {
			if !slices.Contains(now, ip) {
				w.ownIP(before, ip, false)
			}
		}
	}
	for _, ip := range now {
		w.ownIP(v, ip, true)
	}
	return nil
}

// ownIP writes an address of a local pod in the same form as a remote one. A late
// deletion of a pod does not remove the address from the pod that has it now.
func (w *writer) ownIP(ep *wire.Endpoint, ip netip.Addr, there bool) {
	if there {
		w.ips.Put(&tables.IP{Cluster: w.cluster, Prefix: whole(ip), Identity: ep.Identity, Host: ep.NodeIP, Namespace: ep.Namespace, Pod: ep.Pod, NamedPorts: ep.NamedPorts})
		return
	}
	if old := w.ips.Get(w.cluster, whole(ip)); old != nil && old.Namespace == ep.Namespace && old.Pod == ep.Pod {
		w.ips.Drop(w.cluster, whole(ip))
	}
}

func (w *writer) identity(e store.Event, n identity.Number) error {
	v, err := value(e, func(b []byte) (identity.Labels, error) { return identity.ParseLabels(string(b)) })
	if err != nil {
		return err
	}
	row := &tables.Identity{Cluster: w.cluster, Number: n}
	if v == nil {
		tables.Drop(w.txn, w.t.Identities, row)
		return nil
	}
	one := w.in.names.one
	for i, l := range *v { // otherwise each is a part of the text, which would stay as a whole
		(*v)[i] = identity.Label{Source: one(l.Source), Key: one(l.Key), Value: one(l.Value)}
	}
	row.Labels = *v
	tables.Put(w.txn, w.t.Identities, row)
	return nil
}

func (w *writer) gossip(e store.Event) error {
	if e.Deleted {
		return nil // a pool without keys would fall apart
	}
	keys, err := wire.Unmarshal[wire.GossipKeys](e.Value)
	if err != nil {
		return fmt.Errorf("gossip keys cannot be read") // never with their content
	}
	w.in.mu.Lock()
	defer w.in.mu.Unlock()
	w.in.gossip = keys
	close(w.in.changed)
	w.in.changed = make(chan struct{})
	return nil
}

func (w *writer) cache(e store.Event) error {
	cluster, entry, node, ok := wire.ParseCacheKey(e.Key)
	if !ok {
		return errKey
	}
	w.cluster = cluster
	switch entry {
	case wire.CacheEntryCluster:
		return part(w, e, wire.Unmarshal[wire.ExportCluster], func(c *tables.Cluster, v *wire.ExportCluster) { c.Export = v })
	case wire.CacheEntryLiveness:
		return part(w, e, wire.Unmarshal[wire.PeerLiveness], func(c *tables.Cluster, v *wire.PeerLiveness) { c.Liveness = v })
	}
	v, err := value(e, wire.Unmarshal[wire.ExportNode])
	if err != nil {
		return err
	}
	cluster, node = w.in.names.one(cluster), strings.Clone(node) // without the rest of the key
	tables.Change(w.txn, w.t.Nodes, &tables.Node{Cluster: cluster, Name: node}, func(n *tables.Node) bool {
		if n.Export = v; v != nil {
			v.Name = n.Name
		}
		return !n.Empty()
	})
	return nil
}

func (w *writer) synced(e store.Event) error {
	cluster, resource, ok := wire.ParseCacheSyncedKey(e.Key)
	if !ok {
		return nil // another kind of canary
	}
	w.cluster = cluster
	tables.Change(w.txn, w.t.Clusters, &tables.Cluster{Name: cluster}, func(c *tables.Cluster) bool {
		c.Synced = maps.Clone(c.Synced)
		if e.Deleted {
			delete(c.Synced, resource)
			return !c.Empty()
		}
		if c.Synced == nil {
			c.Synced = map[wire.Resource]time.Time{}
		}
		at, err := wire.ParseTime(e.Value)
		if err != nil {
			at = time.Time{} // the key's presence is what counts
		}
		c.Synced[resource] = at
		return true
	})
	return nil
}

func readObject[V any](b []byte) (V, error) {
	var v V
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("read %T: %w", v, err)
	}
	return v, nil
}

func readService(b []byte) (service.Service, error) {
	v, err := readObject[corev1.Service](b)
	if err != nil {
		return service.Service{}, err
	}
	return service.FromKubernetes(&v)
}

func (w *writer) object(e store.Event) error {
	plural, namespace, name, ok := wire.ParseObjectKey(e.Key)
	if !ok {
		return errKey
	}
	switch plural {
	case manifest.Namespaces:
		v, err := value(e, readObject[corev1.Namespace])
		if err != nil {
			return err
		}
		return write(w, w.t.Namespaces, &tables.Namespace{Name: name, Object: v}, v != nil)
	case manifest.Pods:
		v, err := value(e, readObject[corev1.Pod])
		if err != nil {
			return err
		}
		tables.Change(w.txn, w.t.Pods, &tables.Pod{Namespace: namespace, Name: name}, func(p *tables.Pod) bool {
			p.Object = v
			return p.Object != nil || p.Endpoint != nil
		})
	case manifest.Services:
		v, err := value(e, readService)
		if err != nil {
			return err
		}
		row := &tables.Service{Cluster: w.cluster}
		if v != nil {
			row.Service = *v
		}
		row.Namespace, row.Name = namespace, name
		return write(w, w.t.Services, row, v != nil)
	case manifest.EndpointSlices:
		v, err := value(e, readObject[discoveryv1.EndpointSlice])
		if err != nil {
			return err
		}
		row := &tables.Slice{Cluster: w.cluster}
		if v != nil {
			row.Slice, row.Derived = service.SliceFromKubernetes(v), v.Labels[discoveryv1.LabelManagedBy] == wire.ManagedBy
		}
		row.Namespace, row.Name = namespace, name
		return write(w, w.t.Slices, row, v != nil)
	case manifest.ServiceExports:
		_, err := value(e, readObject[mcs.ServiceExport])
		return err // what follows from it, the API server writes
	case manifest.ServiceImports:
		v, err := value(e, readObject[*mcs.ServiceImport])
		if err != nil {
			return err
		}
		row := &tables.Import{Namespace: namespace, Name: name}
		if v != nil {
			row.Object = *v
		}
		return write(w, w.t.Imports, row, v != nil)
	case manifest.CIDRGroups:
		v, err := value(e, policy.ParseGroup)
		if err != nil {
			return err
		}
		row := &tables.Policy{Kind: plural, Name: name}
		if v != nil {
			row.Group = *v
		}
		return write(w, w.t.Policies, row, v != nil)
	default:
		if !manifest.IsPolicy(plural) {
			return nil // of a newer version
		}
		row := &tables.Policy{Kind: plural, Namespace: namespace, Name: name}
		v, err := value(e, policy.ParseStored)
		if err != nil {
			return err
		}
		if v != nil {
			row.Policies = *v
		}
		return write(w, w.t.Policies, row, v != nil)
	}
	return nil
}

// write puts the row or removes it.
func write[P any](w *writer, t statedb.RWTable[P], row P, there bool) error {
	if there {
		tables.Put(w.txn, t, row)
	} else {
		tables.Drop(w.txn, t, row)
	}
	return nil
}
