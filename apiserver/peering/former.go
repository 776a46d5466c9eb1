package peering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// parted returns the record of a removed peer: its CIDRs, plus those left from an
// earlier removal that have not been forgotten.
func parted(former wire.Former, peer wire.Peer, now time.Time) wire.Former {
	out := wire.Former{Name: peer.Name, PodCIDRs: slices.Clone(peer.PodCIDRs), Removed: now}
	if former.Forgotten.IsZero() {
		out.PodCIDRs = outside(append(out.PodCIDRs, former.PodCIDRs...), nil)
	}
	return out
}

// rejoined returns what remains blocked when a peer is added again: CIDRs it had
// before and no longer has; false if there are none.
func rejoined(former wire.Former, old, peer wire.Peer) (wire.Former, bool) {
	out := wire.Former{Name: peer.Name, Removed: peer.Added}
	if former.Forgotten.IsZero() && len(former.PodCIDRs) > 0 {
		out = former
	}
	if old.Connected {
		out.PodCIDRs = append(slices.Clone(out.PodCIDRs), old.PodCIDRs...)
	}
	out.PodCIDRs = outside(out.PodCIDRs, peer.PodCIDRs)
	return out, len(out.PodCIDRs) > 0
}

// outside drops CIDRs that lie within others or within another one of cidrs.
func outside(cidrs, others []netip.Prefix) []netip.Prefix {
	cidrs = slices.Clone(cidrs)
	slices.SortFunc(cidrs, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
	})
	var out []netip.Prefix
	for _, p := range cidrs {
		if !within(p, others) && !within(p, out) {
			out = append(out, p)
		}
	}
	return out
}

func within(p netip.Prefix, all []netip.Prefix) bool {
	return slices.ContainsFunc(all, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
}

func overlaps(p netip.Prefix, all []netip.Prefix) bool { return slices.ContainsFunc(all, p.Overlaps) }

// former reads the record of a removed peer, and returns it with the condition that
// it has not changed. If there is none, it returns the zero value.
func (p *Peering) former(ctx context.Context, cluster string) (wire.Former, store.Cond, error) {
	key := wire.FormerKey(cluster)
	kv, err := p.conf.Store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return wire.Former{}, store.Cond{Key: key}, nil
	}
	if err != nil {
		return wire.Former{}, store.Cond{}, err
	}
	f, err := wire.Unmarshal[wire.Former](kv.Value)
	return f, store.Cond{Key: key, Modified: kv.Modified}, err
}

// Former lists the removed peers whose CIDRs are blocked, ordered by name.
func (p *Peering) Former(ctx context.Context) ([]api.FormerPeer, error) {
	return formerOf(ctx, p.conf.Cluster.Name, p.conf.Store)
}

func formerOf(ctx context.Context, own string, s store.Store) ([]api.FormerPeer, error) {
	kvs, _, err := s.List(ctx, wire.FormerPrefix)
	if err != nil {
		return nil, err
	}
	var out []api.FormerPeer
	for _, kv := range kvs {
		f, err := wire.Unmarshal[wire.Former](kv.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kv.Key, err)
		}
		if f.Forgotten.IsZero() {
			out = append(out, blocked(own, f))
		}
	}
	return out, nil
}

func blocked(own string, f wire.Former) api.FormerPeer {
	return api.FormerPeer{
		Cluster: own, Name: f.Name, PodCIDRs: f.PodCIDRs, Removed: f.Removed,
		AgeSeconds: max(0, time.Since(f.Removed).Seconds()),
	}
}

// Forget unblocks the CIDRs of a former peer: from then on nodes treat them as world.
// what may also be a CIDR, for one that nodes block although no record explains it.
// Forgetting twice changes nothing.
func (p *Peering) Forget(ctx context.Context, what string) (*api.FormerPeer, error) {
	p.changing.Lock()
	defer p.changing.Unlock()
	if cidr, err := netip.ParsePrefix(what); err == nil {
		return p.forgetCIDR(ctx, cidr)
	}
	if err := wire.CheckClusterName(what); err != nil {
		return nil, api.Invalid("name a peer that was removed, or a CIDR", "%v", err)
	}
	f, unchanged, err := p.former(ctx, what)
	if err != nil {
		return nil, err
	}
	if unchanged.Modified == 0 {
		return nil, api.NotFound("`weft status` lists former peers; you can also name a CIDR", "cluster %q has no former peer %q", p.conf.Cluster.Name, what)
	}
	return p.forget(ctx, f, unchanged)
}

func (p *Peering) forgetCIDR(ctx context.Context, cidr netip.Prefix) (*api.FormerPeer, error) {
	if cidr != cidr.Masked() || cidr.Bits() == 0 || cidr.Addr().Is4In6() {
		return nil, api.Invalid("write it as 10.2.0.0/16, without bits outside the mask", "%v cannot be the CIDR of a cluster", cidr)
	}
	if overlaps(cidr, p.conf.Cluster.PodCIDRs) {
		return nil, api.Conflict("", "%v belongs to this cluster, %s", cidr, p.conf.Cluster.Name)
	}
	peers, err := p.list(ctx)
	if err != nil {
		return nil, err
	}
	for _, peer := range peers {
		if peer.Connected && overlaps(cidr, peer.PodCIDRs) {
			return nil, api.Conflict("", "%v belongs to peer %s", cidr, peer.Name)
		}
	}
	former, err := p.Former(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range former {
		if overlaps(cidr, f.PodCIDRs) {
			return nil, api.Conflict(fmt.Sprintf("`weft peer forget %s`", f.Name), "%v belonged to former peer %s", cidr, f.Name)
		}
	}
	name := strings.ReplaceAll(cidr.String(), "/", "-")
	f, unchanged, err := p.former(ctx, name)
	if err != nil {
		return nil, err
	}
	f.Name, f.PodCIDRs = name, []netip.Prefix{cidr}
	return p.forget(ctx, f, unchanged)
}

func (p *Peering) forget(ctx context.Context, f wire.Former, unchanged store.Cond) (*api.FormerPeer, error) {
	answer := blocked(p.conf.Cluster.Name, f)
	if !f.Forgotten.IsZero() {
		return &answer, nil
	}
	f.Forgotten = time.Now().UTC()
	if f.Removed.IsZero() {
		f.Removed = f.Forgotten
	}
	if err := p.commit(ctx, []store.Cond{unchanged}, store.Put(wire.FormerKey(f.Name), wire.Marshal(f))); err != nil {
		return nil, err
	}
	p.conf.Log.Info("former peer forgotten: its pod CIDRs are no longer blocked", "peer", f.Name, "podCIDRs", f.PodCIDRs)
	return &answer, nil
}
