/* Where an address is, who has it, and whether the path there is alive. */
#pragma once

#include "events.h"

enum identity {
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2,
	IDENTITY_UNKNOWN_MEMBER = 127,
};

struct place {
	__u32 identity;
	__u16 node;
	__u16 cluster;
	__u8 via;
	__u8 member;
	__u8 flags; /* enum ip_flags */
	__u8 pad;
};

/* Where a packet for a pod comes from. */
struct origin {
	__u8 via;
	__u8 host;    /* sent by this node itself */
	__u8 through; /* already being sent into the pod: no redirect is needed */
};

/* Is it this node's internal address of either family? That of one that it lacks is zero. */
inline_always int own(const struct settings *s, const struct addr *a)
{
	return (a->w[2] || !nobodys(a)) && (same(a, &s->internal[0]) || same(a, &s->internal[1]));
}

/* The first address of a node's pod CIDR, the one before its internal address, is its ingress
 * address. No pod has it: for other nodes it stands for whoever reaches them from outside of
 * the mesh through this one. A tunnel proves which node sent a packet, and nothing about a
 * client. */
inline_always int ingress_address(const struct settings *s, int ipv6, struct addr *a)
{
	*a = s->internal[!!ipv6];
	if (!(a->w[0] | a->w[1] | a->w[2]))
		return 0;
	a->w[3] = htonl(ntohl(a->w[3]) - 1);
	return 1;
}

inline_always int is_ingress(const struct settings *s, int ipv6, const struct addr *a)
{
	struct addr mine;

	return ingress_address(s, ipv6, &mine) && same(a, &mine);
}

/* Is it the first address of a prefix of this length? */
inline_always int is_first(const struct addr *a, __u32 bits)
{
	for (__u32 i = 0; i < 4; i++) {
		__u32 host = bits >= 32 * (i + 1) ? 0 : bits <= 32 * i ? ~0u : ~0u >> (bits & 31);

		if (ntohl(a->w[i]) & host)
			return 0;
	}
	return 1;
}

/* The identity of the addresses of a family that no policy names. */
part __u32 rest_of_world(int ipv6)
{
	struct prefix_key all = {.bits = ipv6 ? 0 : 96};
	struct ip_info *ip;

	if (!ipv6)
		all.addr = mapped(0);
	ip = bpf_map_lookup_elem(&prefixes, &all);
	return ip && ip->identity ? ip->identity : IDENTITY_WORLD;
}

/* Looks up an address that is not a pod of this node. Exact match before longest
 * prefix: most addresses are pods. */
inline_always void resolve_key(const struct settings *s, const struct prefix_key *key, struct place *at)
{
	struct ip_info *ip;

	*at = (struct place){.identity = IDENTITY_WORLD, .via = VIA_STACK};
	if (own(s, &key->addr)) {
		at->identity = IDENTITY_HOST;
		return;
	}
	ip = bpf_map_lookup_elem(&ips, &key->addr);
	if (!ip)
		ip = bpf_map_lookup_elem(&prefixes, key);
	if (!ip)
		return;
	at->identity = ip->identity;
	at->node = ip->node;
	at->cluster = ip->cluster;
	at->member = ip->cluster || ip->flags & IP_MEMBER;
	at->flags = ip->flags;
	if (at->node || at->member)
		at->via = VIA_TUNNEL;
	if (at->member && !at->identity)
		at->identity = ip->bits && is_first(&key->addr, ip->bits) ? rest_of_world(!nobodys(&key->addr)) :
									    IDENTITY_UNKNOWN_MEMBER;
}

inline_always void resolve(const struct settings *s, const struct addr *a, struct place *at)
{
	struct prefix_key key = {.bits = 128, .addr = *a};

	resolve_key(s, &key, at);
}

/* Finds where packets to a go. Returns 0 or why they go nowhere. */
once int locate(const struct settings *s, const struct addr *a, struct place *at)
{
	if (!s || !a || !at)
		return REASON_FAILED;
	struct prefix_key key = {.bits = 128, .addr = *a}; /* one copy for three tables: the stack is short */
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &key.addr);

	if (ep) {
		*at = (struct place){.identity = ep->identity, .via = VIA_POD};
		return 0;
	}
	resolve_key(s, &key, at);
	/* No service has it, or not yet: the stack would use the default route. */
	if (at->flags & IP_SERVICE)
		return REASON_NO_BACKEND;
	/* Nodes accept only what is behind a service from other nodes' pods, and only through
	 * tunnels: the stack would send it in the clear. Who knows that it is asks offered or
	 * locate_backend. */
	if (at->flags & IP_NODE)
		return REASON_NODE_ADDRESS;
	if (at->via != VIA_TUNNEL)
		return 0;
	/* The peer that had the address was removed: whoever answers now is someone else. */
	if (at->flags & IP_FORMER)
		return REASON_FORMER_MEMBER;
	/* In our pod CIDR, but no pod has it: the stack would send it somewhere. */
	if (at->flags & IP_LOCAL)
		return REASON_NO_ENDPOINT;
	/* A member's address on no known node: any other way out is unencrypted. */
	if (!at->node)
		return REASON_NO_TUNNEL;
	return 0;
}

/* The same for a backend of a service: it may be a process of another node. */
inline_always int locate_backend(const struct settings *s, const struct addr *a, struct place *at)
{
	int why = locate(s, a, at);

	return why == REASON_NODE_ADDRESS && at->node ? 0 : why;
}

/* Is a process behind a service that listens at this address of a node, on this port? */
once int offered(const struct addr *a, __be16 port, __u8 proto)
{
	if (!a)
		return 0;
	struct service_key key = {.addr = *a, .port = port, .proto = proto, .scope = SCOPE_NODE};

	return bpf_map_lookup_elem(&services, &key) != 0;
}

/* May a packet from this address arrive neither through a tunnel nor from this node
 * itself? Outside of tunnels a source address proves nothing, so members, nodes and
 * services are not accepted there. Returns 0 or a reason. */
inline_always int in_the_clear(const struct place *from)
{
	if (from->flags & IP_FORMER)
		return REASON_FORMER_MEMBER;
	if (from->member || from->flags & (IP_NODE | IP_SERVICE))
		return REASON_PLAINTEXT;
	return from->identity == IDENTITY_HOST ? REASON_SPOOFED_SOURCE : 0;
}

/* The state of the path to a node. A cluster has a state of its own, so that one
 * write takes a lost cluster out. */
inline_always __u8 path_to(const struct settings *s, __u32 node, __u32 cluster)
{
	struct node *n = bpf_map_lookup_elem(&nodes, &node);

	if (!n || n->path == PATH_DEAD)
		return PATH_DEAD;
	if (cluster && cluster != s->cluster) {
		struct cluster *c = bpf_map_lookup_elem(&clusters, &cluster);
		if (!c)
			return PATH_DEAD;
		if (c->path != PATH_ALIVE)
			return c->path;
	}
	return n->path;
}

/* The device of the lane to a node; 0: there is none. */
inline_always __u32 lane_of(const struct settings *s, const struct node *n)
{
	if (!n || !n->keyed)
		return 0;
	return n->lane ? s->tunnel_ifindex[1] : s->tunnel_ifindex[0];
}

/* Can a new flow use the path to a node? Returns 0 or a reason. */
inline_always int way_to(const struct settings *s, __u32 node, __u32 cluster)
{
	if (path_to(s, node, cluster) == PATH_DEAD)
		return REASON_PATH_DOWN;
	return lane_of(s, bpf_map_lookup_elem(&nodes, &node)) ? 0 : REASON_NO_TUNNEL;
}

/* Sends to a node through its lane. */
inline_always int tunnel(struct __sk_buff *skb, struct packet *p, const struct settings *s, __u32 node)
{
	__u32 ifindex = lane_of(s, bpf_map_lookup_elem(&nodes, &node));

	if (!ifindex)
		return drop(skb, p, REASON_NO_TUNNEL, EGRESS);
	return leave(skb, REASON_TUNNELLED, EGRESS, bpf_redirect(ifindex, 0));
}
