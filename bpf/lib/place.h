/* Where an address is, who has it, and whether the path there lives. */
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

/* Who hands a packet over to a pod. */
struct origin {
	__u8 via;
	__u8 host;    /* this node's own */
	__u8 through; /* already on its way into the pod: only let it pass */
};

/* What the tables say of an address that is no pod of this node. Exact before
 * longest prefix: most addresses are pods. */
inline_always void resolve_key(const struct settings *s, const struct prefix_key *key, struct place *at)
{
	struct ip_info *ip;

	*at = (struct place){.identity = IDENTITY_WORLD, .via = VIA_STACK};
	if (same(&key->addr, &s->internal)) {
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
		at->identity = IDENTITY_UNKNOWN_MEMBER;
}

inline_always void resolve(const struct settings *s, const struct addr *a, struct place *at)
{
	struct prefix_key key = {.bits = 128, .addr = *a};

	resolve_key(s, &key, at);
}

/* Finds the place packets to a go to. Returns 0 or why there is none. */
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
	/* No service has it, or not yet: the stack would send it by the default route. */
	if (at->flags & IP_SERVICE)
		return REASON_NO_BACKEND;
	/* Another node takes nothing from pods, and its own address is outside of
	 * the tunnels: the stack would send it there in the clear. */
	if (at->flags & IP_NODE)
		return REASON_NODE_ADDRESS;
	if (at->via != VIA_TUNNEL)
		return 0;
	/* Who had the address is gone. Whoever answers there now is somebody else. */
	if (at->flags & IP_FORMER)
		return REASON_FORMER_MEMBER;
	/* An address of ours that no pod has: the stack would send it somewhere. */
	if (at->flags & IP_LOCAL)
		return REASON_NO_ENDPOINT;
	/* A member, no node: any other way out would be unencrypted. */
	if (!at->node)
		return REASON_NO_TUNNEL;
	return 0;
}

/* May a packet that came neither out of a tunnel nor from this node itself be
 * from there? Outside of tunnels a source address proves nothing, so what must
 * not come that way is dropped. Returns 0 or why not. */
inline_always int in_the_clear(const struct place *from)
{
	if (from->flags & IP_FORMER)
		return REASON_FORMER_MEMBER;
	if (from->member || from->flags & (IP_NODE | IP_SERVICE))
		return REASON_PLAINTEXT;
	return from->identity == IDENTITY_HOST ? REASON_SPOOFED_SOURCE : 0;
}

/* What is the path to a node like? Clusters are judged on their own, so that one
 * write takes a lost one out. */
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

/* The lane that carries packets to a node; 0: none does. */
inline_always __u32 lane_of(const struct settings *s, const struct node *n)
{
	if (!n || !n->keyed)
		return 0;
	return n->lane ? s->tunnel_ifindex[1] : s->tunnel_ifindex[0];
}

/* Can something new begin over the path to a node? Returns 0 or why not. */
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
