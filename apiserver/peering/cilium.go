package peering

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/wire"
)

// A cluster that runs Cilium is read as a Weft cluster is, and may read us; only how the
// two become peers differs. Its clustermesh secret says how it is reached, and neither its
// cluster ID nor its pod CIDRs: the ID is asked for, and the CIDRs, outside of which
// nothing of it is believed, are the operator's to name.
//
// Its nodes have no tunnels of ours. Everything to its pods is dropped on the node that
// they are sent from, and its backends are not used.

// InviteCilium creates what the named cluster, which runs Cilium, needs to read us.
func (p *Peering) InviteCilium(ctx context.Context, cluster string) (*api.Invite, error) {
	return p.invite(ctx, cluster, asCilium)
}

// alike refuses to treat a peer that is known as Weft as Cilium, or the other way round.
func alike(known wire.Peer, cilium bool) error {
	switch {
	case !known.Invited && !known.Connected || known.Cilium == cilium:
		return nil
	case cilium:
		return api.Conflict(fmt.Sprintf("remove it first with `weft peer remove %s` if it runs Cilium now", known.Name), "peer %q is a Weft cluster", known.Name)
	}
	return api.Conflict(fmt.Sprintf("use --cilium, or remove it first with `weft peer remove %s` if it runs Weft now", known.Name), "peer %q is a Cilium cluster", known.Name)
}

// denied says that a peer does not let us read it.
func denied(peer wire.Peer) error {
	if peer.Cilium {
		return api.Invalid("compare the name with cluster-name in its ConfigMap cilium-config, and see which user of its etcd the certificate names",
			"cluster %q cannot be added: its etcd does not let us read %s", peer.Name, wire.ClusterConfigKey(peer.Name))
	}
	return api.Invalid("ask for "+mirror.Access(false)+" there", "cluster %q cannot be added: it does not let us read what it exports", peer.Name)
}

// AddCilium makes a cluster that runs Cilium a peer. If it is refused, the error lists
// every reason and nothing is altered. A cluster that does not answer is added only if its
// ID is given.
func (p *Peering) AddCilium(ctx context.Context, in *api.CiliumPeer) (*api.PeerStatus, error) {
	p.changing.Lock()
	defer p.changing.Unlock()
	peers, nodes, err := p.claims(ctx)
	if err != nil {
		return nil, err
	}
	own := p.conf.Cluster
	var c checker
	c.ciliumAccess(in)
	if err := c.result(in.Cluster); err != nil {
		return nil, err
	}
	peer := wire.Peer{
		Name: in.Cluster, PodCIDRs: slices.Clone(in.PodCIDRs), ServiceCIDR: in.ServiceCIDR, IPv6ServiceCIDR: in.IPv6ServiceCIDR, MaxConnectedClusters: own.MaxConnectedClusters,
		Endpoints: slices.Clone(in.Endpoints), CA: in.CA, ServerName: in.ServerName, Connected: true, Cilium: true,
	}
	secret := wire.PeerSecret{Cert: in.Cert, Key: in.Key}
	config, announced, err := p.introduction(ctx, peer, secret)
	if err != nil {
		return nil, err
	}
	as := &api.Invite{Cluster: in.Cluster, ID: in.ID, PodCIDRs: in.PodCIDRs, ServiceCIDR: in.ServiceCIDR, IPv6ServiceCIDR: in.IPv6ServiceCIDR, MaxConnectedClusters: own.MaxConnectedClusters}
	switch {
	case config != nil:
		if in.ID != 0 && in.ID != config.ID {
			c.conflict("its cluster ID is %d, not %d", config.ID, in.ID)
		}
		as.ID, as.MaxConnectedClusters = config.ID, config.Capabilities.MaxConnectedClusters
		c.number(own, as)
	case in.ID == 0:
		c.invalid("it does not answer at %s, so its cluster ID is not known: see whether TCP to it is open, or name the ID with --id to add it before it answers", strings.Join(in.Endpoints, ", "))
	default:
		c.number(own, as)
	}
	c.named(own, as)
	if len(in.PodCIDRs) == 0 && len(announced) > 0 {
		c.invalid("name its pod CIDRs with --pod-cidr; nothing outside of them is believed, and its nodes announce %s", few(announced))
	} else if len(in.PodCIDRs) == 0 {
		c.invalid("name its pod CIDRs with --pod-cidr; nothing outside of them is believed")
	} else {
		c.addresses(own, as)
	}
	c.services(own, as)
	c.besides(nodes, as)
	for _, other := range peers {
		c.against(other, as)
	}
	if err := c.result(in.Cluster); err != nil {
		return nil, err
	}
	peer.ID = identity.ClusterID(as.ID)
	return p.connect(ctx, peer, secret)
}

// introduction asks a cluster for its configuration, and which pod CIDRs its nodes
// announce; nil if it does not answer.
func (p *Peering) introduction(ctx context.Context, peer wire.Peer, secret wire.PeerSecret) (*wire.ClusterConfig, []netip.Prefix, error) {
	src, text, err := p.call(ctx, peer, secret)
	if err != nil || src == nil {
		return nil, nil, err
	}
	defer src.Close()
	if text == nil {
		return nil, nil, api.Invalid("compare the name with cluster-name in its ConfigMap cilium-config; if it has just started, try again",
			"cluster %q cannot be added: its etcd has no %s", peer.Name, wire.ClusterConfigKey(peer.Name))
	}
	config, err := wire.ParseClusterConfig(text)
	if err != nil {
		return nil, nil, api.Invalid("", "cluster %q cannot be added: its %s is not usable: %v", peer.Name, wire.ClusterConfigKey(peer.Name), err)
	}
	prefix := wire.Nodes.StatePrefix(peer.Name)
	if config.Capabilities.Cached {
		prefix = wire.Nodes.CachePrefix(peer.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	nodes, _, err := src.List(ctx, prefix)
	if err != nil {
		return &config, nil, nil // only a hint is missing
	}
	var announced []netip.Prefix
	for _, kv := range nodes {
		if n, err := wire.Unmarshal[wire.Node](kv.Value); err == nil {
			announced = append(announced, n.PodCIDRs()...)
		}
	}
	slices.SortFunc(announced, netip.Prefix.Compare)
	return &config, announced, nil
}

// few lists the first of many prefixes.
func few(all []netip.Prefix) string {
	const most = 4
	var texts []string
	for _, p := range all[:min(len(all), most)] {
		texts = append(texts, p.String())
	}
	if len(all) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(texts, ", "), len(all)-most)
	}
	return strings.Join(texts, ", ")
}

// ciliumAccess checks what comes from the secret. Whom the certificate names is up to the
// cluster: Cilium's users differ between its modes, and an external etcd has its own.
func (c *checker) ciliumAccess(in *api.CiliumPeer) {
	if len(in.Endpoints) == 0 {
		c.invalid("endpoints: there are none")
	}
	c.endpoints(in.Endpoints)
	if _, err := authority.ParseBundle([]byte(in.CA)); err != nil {
		c.invalid("trusted-ca-file: %v", err)
	} else if err := authority.CheckPair([]byte(in.Cert), []byte(in.Key), []byte(in.CA), ""); err != nil {
		c.invalid("cert-file: %v; renew it there and take its secret again", err)
	}
}
