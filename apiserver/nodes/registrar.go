// Package nodes keeps the register of a cluster's nodes and their addresses, and makes
// the bundles with which their agents join.
//
// Package endpoints checks what a node later claims about itself against the register.
package nodes

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

const (
	// defaultBitsIPv4 and defaultBitsIPv6 are the prefix lengths of pod CIDRs that we
	// choose. They are Kubernetes'.
	defaultBitsIPv4 = 24
	defaultBitsIPv6 = 64
	// maxName keeps the common name of an agent's certificate below 64.
	maxName  = 48
	attempts = 16
)

// Authority is the part of the cluster's certificate authority that the register needs.
type Authority interface {
	Issue(authority.Request) (authority.Pair, error)
	// Bundle returns the CA bundle, in PEM, with which agents verify the API server
	// and the store.
	Bundle() []byte
}

// Config of a Registrar.
type Config struct {
	Cluster   wire.Cluster
	Store     store.Store
	Users     store.Users
	Authority Authority
	// Server and EtcdEndpoints are what agents connect to.
	Server        string
	EtcdEndpoints func() []string
	// Names are names of API servers beside the hosts of their URLs.
	Names []string
	// Others returns the URLs of the cluster's other API servers, Seeds the host:port of
	// LAN gossip of all of them.
	Others, Seeds func() []string
}

// Registrar keeps the register. Safe for concurrent use.
type Registrar struct{ conf Config }

// New makes a Registrar.
func New(c Config) *Registrar { return &Registrar{conf: c} }

// Registered is a registration, and the store's revision at which it began: a node that was
// removed and is there again has another one.
type Registered struct {
	wire.Registration
	Began int64
}

// Registered returns every registration, by name.
func (r *Registrar) Registered(ctx context.Context) (map[string]Registered, error) {
	kvs, _, err := r.conf.Store.List(ctx, wire.RegistrationsPrefix)
	if err != nil {
		return nil, fmt.Errorf("read the register of nodes: %w", err)
	}
	register := make(map[string]Registered, len(kvs))
	for _, kv := range kvs {
		reg, err := wire.Unmarshal[wire.Registration](kv.Value)
		if err != nil {
			return nil, fmt.Errorf("read the register of nodes: %s: %w", kv.Key, err)
		}
		register[reg.Name] = Registered{reg, kv.Created}
	}
	return register, nil
}

// Register is Registered without since when.
func (r *Registrar) Register(ctx context.Context) (map[string]wire.Registration, error) {
	all, err := r.Registered(ctx)
	if err != nil {
		return nil, err
	}
	register := make(map[string]wire.Registration, len(all))
	for name, reg := range all {
		register[name] = reg.Registration
	}
	return register, nil
}

// get reads a node's registration; its Modified is 0 if there is none.
func (r *Registrar) get(ctx context.Context, node string) (store.KV, error) {
	kv, err := r.conf.Store.Get(ctx, wire.RegistrationKey(node))
	if errors.Is(err, store.ErrNotFound) {
		return store.KV{}, nil
	}
	return kv, err
}

// Add registers a node and issues its bundle. A node that is already registered gets
// new certificates, and new addresses if the request has any and sets Replace.
func (r *Registrar) Add(ctx context.Context, request api.NodeRequest) (*api.JoinBundle, error) {
	return r.AddFrom(ctx, request, "")
}

// AddFrom is Add for a node that a source declares.
func (r *Registrar) AddFrom(ctx context.Context, request api.NodeRequest, source string) (*api.JoinBundle, error) {
	reg, err := r.register(ctx, request, source)
	if err != nil {
		return nil, err
	}
	if source != "" && reg.Source != source {
		return nil, api.Conflict(fmt.Sprintf("rename the node there, or `weft node delete %s`", reg.Name), "an operator added node %s, which is not the one of %s", reg.Name, source)
	}
	if err := r.conf.Users.SetUser(ctx, agentRights(reg.Name)); err != nil {
		return nil, err
	}
	return r.bundle(ctx, reg)
}

// agentRights returns everything that an agent may do in the store.
func agentRights(node string) store.User {
	return store.User{
		Name: authority.AgentUser(node),
		Read: []string{
			wire.StatePrefix, wire.AgentsPrefix, wire.CachePrefix,
			wire.CiliumCachePrefix, wire.CiliumSyncedPrefix, wire.ClusterConfigPrefix,
		},
		Write: []string{wire.NodePrefix(node)},
	}
}

// register registers a node, or what has changed of it.
func (r *Registrar) register(ctx context.Context, request api.NodeRequest, source string) (wire.Registration, error) {
	kv, err := r.get(ctx, request.Name)
	if err != nil {
		return wire.Registration{}, err
	}
	if reg, err := wire.Unmarshal[wire.Registration](kv.Value); kv.Modified != 0 && err == nil && r.has(reg, request, source) {
		return reg, nil // without reading all others
	}
	for range attempts {
		o, err := r.roster(ctx)
		if err != nil {
			return wire.Registration{}, err
		}
		reg, ops, err := r.plan(o, request, source)
		if err != nil || len(ops) == 0 {
			return reg, err
		}
		if done, err := r.commit(ctx, o, ops); err != nil || done {
			return reg, err
		}
	}
	return wire.Registration{}, busy()
}

func busy() error {
	return api.Conflict("try again", "someone else is changing the register of nodes")
}

// has reports whether a registration has everything that a request asks for.
func (r *Registrar) has(reg wire.Registration, request api.NodeRequest, source string) bool {
	if source != "" && reg.Source != source {
		return true // it stays as it is
	}
	for _, first := range wire.OfEachFamily(r.conf.Cluster.PodCIDRs) {
		if !slices.ContainsFunc(reg.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().BitLen() == first.Addr().BitLen() }) {
			return false
		}
	}
	return (request.UID == "" || request.UID == reg.UID) &&
		(len(request.Addresses) == 0 || slices.Equal(request.Addresses, reg.Addresses)) &&
		(len(request.PodCIDRs) == 0 || slices.Equal(request.PodCIDRs, reg.PodCIDRs)) &&
		(request.Labels == nil || maps.Equal(request.Labels, reg.Labels))
}

// replaces reports whether a request is for another object than the one that is registered.
func replaces(request api.NodeRequest, old wire.Registration) bool {
	return request.UID != "" && old.UID != "" && request.UID != old.UID
}

// plan decides what a request writes; nothing if it changes nothing. The roster then has the
// node as it will be.
func (r *Registrar) plan(o *roster, request api.NodeRequest, source string) (reg wire.Registration, ops []store.Op, err error) {
	was, there := o.nodes[request.Name]
	if there && source != "" && was.Source != source {
		return was, nil, nil
	}
	old, known := was, there
	if known && replaces(request, old) {
		old, known = wire.Registration{}, false
		ops = append(ops, store.DeletePrefix(wire.NodePrefix(request.Name)))
	}
	o.remove(request.Name)
	defer func() {
		switch {
		case err == nil:
			o.put(reg)
		case there:
			o.put(was)
		}
	}()
	if reg, err = r.admit(request, old, o); err != nil {
		return reg, nil, err
	}
	if reg.Source = old.Source; !known {
		reg.Source = source
	}
	moved := !slices.Equal(old.Addresses, reg.Addresses)
	if known && !moved && old.UID == reg.UID && slices.Equal(old.PodCIDRs, reg.PodCIDRs) && maps.Equal(old.Labels, reg.Labels) {
		return reg, nil, nil
	}
	if known && moved && !request.Replace {
		return reg, nil, api.Conflict("give the address it has, or confirm that it has moved: `weft node add --replace`",
			"node %s is registered with address %s; another one would cut it off until its agent has the new bundle", reg.Name, join(old.Addresses))
	}
	return reg, append(ops, store.Put(wire.RegistrationKey(reg.Name), wire.Marshal(reg))), nil
}

// commit changes the register, unless somebody else has since the roster was read.
func (r *Registrar) commit(ctx context.Context, o *roster, ops []store.Op) (done bool, err error) {
	at, done, err := r.conf.Store.Commit(ctx, store.Txn{
		If:   []store.Cond{{Key: wire.RegistrationsTurnKey, Modified: o.turn}},
		Then: append(ops, store.Put(wire.RegistrationsTurnKey, nil)),
	})
	if err == nil && done {
		o.turn = at
	}
	return done, err
}

// peerCIDRs are the CIDRs of pods and services of the connected peers, by peer.
func (r *Registrar) peerCIDRs(ctx context.Context) (map[string][]netip.Prefix, error) {
	kvs, _, err := r.conf.Store.List(ctx, wire.PeersPrefix)
	if err != nil {
		return nil, err
	}
	out := map[string][]netip.Prefix{}
	for _, kv := range kvs {
		peer, err := wire.Unmarshal[wire.Peer](kv.Value)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", kv.Key, err)
		}
		if peer.Connected {
			out[peer.Name] = append(slices.Clone(peer.PodCIDRs), peer.ServiceCIDRs()...)
		}
	}
	return out, nil
}

// admit decides what a request registers, given the node's current registration, if any, and
// those of all other nodes.
func (r *Registrar) admit(request api.NodeRequest, old wire.Registration, others *roster) (wire.Registration, error) {
	c := r.conf.Cluster
	if mistakes := validation.IsDNS1123Subdomain(request.Name); len(mistakes) > 0 || len(request.Name) > maxName {
		return old, api.Invalid(fmt.Sprintf("use up to %d of a-z, 0-9, '-' and '.'", maxName), "%q cannot be a node's name", request.Name)
	}
	reg := wire.Registration{Name: request.Name, UID: cmp.Or(request.UID, old.UID), Addresses: request.Addresses, PodCIDRs: request.PodCIDRs, Labels: request.Labels, Added: old.Added}
	if mistakes := metav1validation.ValidateLabels(request.Labels, field.NewPath("labels")); len(mistakes) > 0 {
		return old, api.Invalid("write labels as in Kubernetes, for example topology.kubernetes.io/zone=eu-1a", "labels of node %s: %v", request.Name, mistakes.ToAggregate())
	}
	known := !old.Added.IsZero()
	if known && request.Labels == nil {
		reg.Labels = old.Labels
	}
	if !known {
		reg.Added = time.Now().UTC().Truncate(time.Second)
	}
	if known && len(reg.Addresses) == 0 {
		reg.Addresses = old.Addresses
	}
	if known && len(reg.PodCIDRs) == 0 {
		reg.PodCIDRs = old.PodCIDRs
	}
	if known && !extends(old.PodCIDRs, reg.PodCIDRs) {
		return old, api.Conflict(fmt.Sprintf("remove the node first, or leave its pod CIDR at %s", join(old.PodCIDRs)),
			"node %s has pod CIDR %s, which cannot change to %s while it is registered", old.Name, join(old.PodCIDRs), join(reg.PodCIDRs))
	}
	if len(reg.Addresses) == 0 {
		return old, api.Invalid("name the address at which other nodes reach it", "node %s has no address", reg.Name)
	}
	for _, ip := range reg.Addresses {
		if err := service.CheckAddress(ip); err != nil {
			return old, api.Invalid("name the address at which other nodes reach it", "not a node's address: %v", err)
		}
		if inside(c.PodCIDRs, ip) || inside(c.ServiceCIDRs(), ip) {
			return old, api.Invalid("give the node's own address, not one of its pods", "address %s of node %s is in a CIDR of the cluster's pods or services", ip, reg.Name)
		}
		for _, peer := range slices.Sorted(maps.Keys(others.peers)) {
			if inside(others.peers[peer], ip) {
				return old, api.Conflict("give the node an address outside the mesh", "address %s of node %s is in a CIDR of cluster %s", ip, reg.Name, peer)
			}
		}
		if other, taken := others.addresses[ip]; taken {
			return old, api.Conflict("give each node its own address", "address %s belongs to node %s", ip, other)
		}
	}
	if err := r.sameFamily(reg, old, others); err != nil {
		return old, err
	}
	for _, first := range wire.OfEachFamily(c.PodCIDRs) {
		same := func(p netip.Prefix) bool { return p.Addr().BitLen() == first.Addr().BitLen() }
		if slices.ContainsFunc(reg.PodCIDRs, same) {
			continue
		}
		free, ok := others.freeCIDR(slices.DeleteFunc(slices.Clone(c.PodCIDRs), func(p netip.Prefix) bool { return !same(p) }))
		switch {
		case ok:
			reg.PodCIDRs = append(slices.Clone(reg.PodCIDRs), free)
		case !known: // one that is known goes on without
			return old, api.Conflict("remove nodes, or extend the cluster's pod CIDRs", "no /%d is free in the cluster's pod CIDRs %s", defaultBits(first), join(c.PodCIDRs))
		}
	}
	if !known {
		reg.PodCIDRs = inOrder(c.PodCIDRs, reg.PodCIDRs)
	}
	return reg, checkCIDRs(c, reg, others)
}

// sameFamily refuses a node whose first address is of another IP family than that of the API
// server or of another node: in gossip, all of them reach each other at their first addresses.
// A node that stays where it is, is left alone.
func (r *Registrar) sameFamily(reg, old wire.Registration, others *roster) error {
	if slices.Equal(reg.Addresses, old.Addresses) {
		return nil
	}
	first := reg.Addresses[0]
	refuse := func(whose string, other netip.Addr) error {
		return api.Conflict(fmt.Sprintf("name its %s address first, and its %s address after it", service.FamilyOf(other), service.FamilyOf(first)),
			"the first address of node %s is %s, but that of %s is %s: all of a cluster need first addresses of one IP family", reg.Name, first, whose, other)
	}
	if node, found := others.ofOtherFamily(first); found {
		return refuse("node "+node, others.nodes[node].Addresses[0])
	}
	if u, err := url.Parse(r.conf.Server); err == nil {
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.BitLen() != first.BitLen() {
			return refuse("the API server", a)
		}
	}
	return nil
}

// extends reports whether all of the CIDRs are as they were, apart from those of another IP
// family at the end.
func extends(were, are []netip.Prefix) bool {
	return len(are) >= len(were) && slices.Equal(are[:len(were)], were) && !slices.ContainsFunc(are[len(were):], func(p netip.Prefix) bool {
		return slices.ContainsFunc(were, func(was netip.Prefix) bool { return was.Addr().Is4() == p.Addr().Is4() })
	})
}

// inOrder sorts a node's CIDRs by family as the cluster's are: which address of a pod is its
// first is the same on all nodes.
func inOrder(whole, cidrs []netip.Prefix) []netip.Prefix {
	later := func(p netip.Prefix) int {
		if len(whole) == 0 || p.Addr().Is4() == whole[0].Addr().Is4() {
			return 0
		}
		return 1
	}
	return slices.SortedStableFunc(slices.Values(cidrs), func(a, b netip.Prefix) int { return cmp.Compare(later(a), later(b)) })
}

func checkCIDRs(c wire.Cluster, reg wire.Registration, others *roster) error {
	for i, p := range reg.PodCIDRs {
		if !p.IsValid() || p != p.Masked() || p.Addr().BitLen()-p.Bits() < 2 {
			return api.Invalid("write it like 10.1.2.0/24, with room for at least two addresses", "%s cannot be a node's pod CIDR", p)
		}
		if !slices.ContainsFunc(c.PodCIDRs, func(whole netip.Prefix) bool { return whole.Bits() <= p.Bits() && whole.Contains(p.Addr()) }) {
			return api.Invalid("choose a part of "+join(c.PodCIDRs), "pod CIDR %s of node %s is outside the cluster's %s", p, reg.Name, join(c.PodCIDRs))
		}
		for _, q := range reg.PodCIDRs[:i] {
			if q.Overlaps(p) {
				return api.Invalid("give CIDRs that do not overlap", "pod CIDRs %s and %s overlap", q, p)
			}
		}
		if q, other, taken := others.overlapping(p); taken {
			return api.Conflict("choose one that is free", "pod CIDR %s overlaps %s of node %s", p, q, other)
		}
	}
	return nil
}

func defaultBits(of netip.Prefix) int {
	if of.Addr().Is4() {
		return defaultBitsIPv4
	}
	return defaultBitsIPv6
}

func inside(prefixes []netip.Prefix, ip netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(ip) })
}

func join[T fmt.Stringer](all []T) string {
	texts := make([]string, len(all))
	for i, v := range all {
		texts[i] = v.String()
	}
	return strings.Join(texts, ", ")
}

func (r *Registrar) bundle(ctx context.Context, reg wire.Registration) (*api.JoinBundle, error) {
	keys, err := GossipKeys(ctx, r.conf.Store)
	if err != nil {
		return nil, err
	}
	ca := r.conf.Authority
	client, err := ca.Issue(authority.Request{User: authority.AgentUser(reg.Name), Client: true})
	if err != nil {
		return nil, err
	}
	server, err := ca.Issue(r.serverRequest(reg))
	if err != nil {
		return nil, err
	}
	c := r.conf.Cluster
	named := api.NamedServers{
		Servers: append([]string{r.conf.Server}, r.conf.Others()...), EtcdEndpoints: r.conf.EtcdEndpoints(), GossipSeeds: r.conf.Seeds(),
	}
	return &api.JoinBundle{
		Cluster: c.Name, ClusterID: uint32(c.ID), MaxConnectedClusters: c.MaxConnectedClusters,
		ClusterPodCIDRs: c.PodCIDRs, ServiceCIDR: c.ServiceCIDR, IPv6ServiceCIDR: c.IPv6ServiceCIDR,
		Node: reg.Name, Addresses: reg.Addresses, PodCIDRs: reg.PodCIDRs,
		Server: r.conf.Server, Servers: named.Servers[1:], EtcdEndpoints: named.EtcdEndpoints, Named: named,
		CA: string(ca.Bundle()), Cert: string(client.Cert), Key: string(client.Key),
		ServerCert: string(server.Cert), ServerKey: string(server.Key),
		GossipKey: base64.StdEncoding.EncodeToString(keys.LAN[0]), GossipSeeds: named.GossipSeeds,
	}, nil
}

// serverRequest is for the certificate of a node's agent. One that a source has declared gets
// none for an API server or the store, to whom a kubelet could otherwise make itself by the
// address or the name that it reports. The node itself may well be on such a machine: the API
// server knows its agent by its name.
func (r *Registrar) serverRequest(reg wire.Registration) authority.Request {
	req := authority.Request{User: reg.Name, Server: true, Names: []string{reg.Name, "localhost"}, Addresses: reg.Addresses}
	if reg.Source == "" {
		return req
	}
	servers := slices.Clone(r.conf.Names)
	for _, text := range slices.Concat([]string{r.conf.Server}, r.conf.Others(), r.conf.EtcdEndpoints()) {
		if u, err := url.Parse(text); err == nil {
			servers = append(servers, u.Hostname())
		}
	}
	is := func(name string) bool {
		return slices.ContainsFunc(servers, func(s string) bool { return strings.EqualFold(s, name) })
	}
	req.Names = slices.DeleteFunc(req.Names, is)
	req.Addresses = slices.DeleteFunc(slices.Clone(req.Addresses), func(a netip.Addr) bool {
		return is(a.String()) || slices.ContainsFunc(servers, func(s string) bool {
			other, err := netip.ParseAddr(s)
			return err == nil && other.Unmap() == a.Unmap()
		})
	})
	return req
}

// Remove removes a node: first its rights, then everything it wrote and the pods that
// were declared on it, which it returns. Their endpoints follow.
func (r *Registrar) Remove(ctx context.Context, node string) (gone []types.NamespacedName, err error) {
	if _, err := r.conf.Store.Get(ctx, wire.RegistrationKey(node)); errors.Is(err, store.ErrNotFound) {
		return nil, api.NotFound("`weft node list` lists the nodes", "cluster %s has no node %q", r.conf.Cluster.Name, node)
	} else if err != nil {
		return nil, err
	}
	if err := r.conf.Users.RemoveUser(ctx, authority.AgentUser(node)); err != nil {
		return nil, err
	}
	ops := []store.Op{store.DeletePrefix(wire.NodePrefix(node))}
	pods, _, err := r.conf.Store.List(ctx, wire.ObjectKindPrefix(manifest.Pods))
	if err != nil {
		return nil, fmt.Errorf("remove node %s: %w", node, err)
	}
	for _, kv := range pods {
		var pod corev1.Pod
		if json.Unmarshal(kv.Value, &pod) == nil && pod.Spec.NodeName == node {
			ops = append(ops, store.Delete(kv.Key))
			if _, ns, name, ok := wire.ParseObjectKey(kv.Key); ok {
				gone = append(gone, types.NamespacedName{Namespace: ns, Name: name})
			}
		}
	}
	// The registration goes last, so that an interrupted removal can be repeated.
	if err = store.Write(ctx, r.conf.Store, ops...); err == nil {
		_, _, err = r.conf.Store.Commit(ctx, store.Txn{Then: []store.Op{store.Put(wire.RegistrationsTurnKey, []byte(node)), store.Delete(wire.RegistrationKey(node))}})
	}
	if err != nil {
		return nil, fmt.Errorf("remove node %s: %w", node, err)
	}
	return gone, nil
}

// GossipKeys returns the keys for gossip inside the cluster, and makes them if there
// are none.
func GossipKeys(ctx context.Context, s store.Store) (wire.GossipKeys, error) {
	for {
		kv, err := s.Get(ctx, wire.GossipKey)
		if err == nil {
			keys, err := wire.Unmarshal[wire.GossipKeys](kv.Value)
			if err == nil && len(keys.LAN) == 0 {
				err = errors.New("there are none")
			}
			if err != nil {
				return keys, fmt.Errorf("gossip keys in the store: %w", err)
			}
			return keys, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return wire.GossipKeys{}, fmt.Errorf("gossip keys: %w", err)
		}
		key := make([]byte, 32)
		rand.Read(key) // does not fail
		_, _, err = s.Commit(ctx, store.Txn{
			If:   []store.Cond{{Key: wire.GossipKey}},
			Then: []store.Op{store.Put(wire.GossipKey, wire.Marshal(wire.GossipKeys{LAN: [][]byte{key}}))},
		})
		if err != nil {
			return wire.GossipKeys{}, fmt.Errorf("gossip keys: %w", err)
		}
	}
}
