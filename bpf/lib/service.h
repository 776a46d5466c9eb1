/* Choosing a service's backend. Needs neither a packet nor a flow: see aim. */
#pragma once

#include "place.h"

/* Where a new flow goes. */
struct target {
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 service; /* whose backend it is; 0: nobody's */
};

#define NO_TIER 256
#define DRAWS 16                /* tickets drawn at random before all are tried in turn */
#define MAX_TRIES (1u << 22)    /* below 1 << 23, the most that bpf_loop accepts */

/* A choice in progress. Each backend of a group holds as many tickets as the group's
 * weight, and tickets are tried until one names a backend whose path is alive. The
 * first DRAWS are drawn at random: this is exactly fair, and quick unless most backends
 * are dead. Then every ticket is tried once, in an order shuffled for this choice, so
 * a live backend is found whenever there is one. Loops use bpf_loop, whose body is
 * verified once. */
struct choice {
	const struct settings *s;
	const struct service *svc;
	struct target *to;
	__u32 from;   /* tiers below were given up */
	__u32 tier;   /* current: the lowest from there with a usable group, or NO_TIER */
	__u32 groups; /* its usable groups, a bit mask */
	__u32 total;  /* their tickets */
	__u32 mask;   /* of the shuffle: the smallest 2^bits - 1 that covers all tickets */
	__u32 half;   /* bits / 2, rounded up */
	__u32 key[3];
	__u8 alive;    /* only alive paths will do */
	__u8 found;
	__u8 doubtful; /* silent paths will do: no path is alive */
	__u8 silent;   /* a silent path was passed over */
};

inline_always int usable(struct choice *c, __u8 path)
{
	if (path == PATH_SILENT)
		c->silent = 1;
	return path == PATH_ALIVE || (path == PATH_SILENT && c->doubtful);
}

/* The cluster of a group, of which it may have only a part of the backends. */
inline_always __u32 cluster_in(__u32 group)
{
	return group & ((1u << CLUSTER_BITS) - 1);
}

inline_always __u32 tickets(const struct group *g)
{
	return g->count * g->weight;
}

/* One pass finds the tier and counts its tickets. */
static long consider_group(__u32 i, struct choice *c)
{
	const struct group *g;
	__u32 cluster;

	if (i >= MAX_GROUPS || i >= c->svc->groups)
		return 1;
	g = &c->svc->group[i];
	cluster = cluster_in(g->cluster);
	if (!tickets(g) || g->tier < c->from || g->tier > c->tier)
		return 0;
	if (cluster != c->s->cluster) {
		struct cluster *row = bpf_map_lookup_elem(&clusters, &cluster);
		if (!row || !usable(c, row->path))
			return 0;
	}
	if (g->tier < c->tier) {
		c->tier = g->tier;
		c->total = 0;
		c->groups = 0;
	}
	c->total += tickets(g);
	c->groups |= 1u << i;
	return 0;
}

/* Chooses the backend that a ticket names, if it can be reached. */
inline_always long choose(__u32 ticket, struct choice *c)
{
	const struct service *svc = c->svc;
	struct slot_key key = {.service = svc->id};
	struct place at = {};
	struct backend *b;
	__u32 node;

	for (int i = 0; i < MAX_GROUPS; i++) {
		__u32 share = tickets(&svc->group[i]), count = svc->group[i].count;

		if (!(c->groups >> i))
			return 0;
		if (!(c->groups >> i & 1))
			continue;
		if (ticket >= share) {
			ticket -= share;
			continue;
		}
		if (!count)
			return 0;
		key.cluster = svc->group[i].cluster;
		key.slot = ticket % count;
		break;
	}
	b = bpf_map_lookup_elem(&backends, &key);
	if (!b)
		return 0;
	node = b->node;
	if (!node) { /* on this node, outside the mesh, or on a node that is not known yet */
		if (locate(c->s, &b->addr, &at))
			return 0;
		node = at.node;
	}
	if (node && (!usable(c, path_to(c->s, node, cluster_in(key.cluster))) || !lane_of(c->s, bpf_map_lookup_elem(&nodes, &node))))
		return 0;
	c->to->addr = b->addr;
	c->to->port = b->port;
	c->found = 1;
	return 1;
}

/* The i-th number of a shuffle in which each of 0 … mask occurs once, because every
 * step is reversible. */
inline_always __u32 shuffled(const struct choice *c, __u32 i)
{
	__u32 half = c->half & 31;

	i = (i + c->key[0]) * (c->key[1] | 1) & c->mask;
	i ^= i >> half;
	i = (i + c->key[2]) * (c->key[1] >> 16 | 1) & c->mask;
	i ^= i >> half;
	return i * (c->key[2] >> 16 | 1) & c->mask;
}

static long ask_ticket(__u32 i, struct choice *c)
{
	__u32 ticket;

	if (i < DRAWS) {
		ticket = bpf_get_prandom_u32();
		if (c->total)
			ticket %= c->total;
	} else {
		ticket = shuffled(c, i - DRAWS);
	}
	return ticket < c->total ? choose(ticket, c) : 0;
}

/* Tries the tickets of the next tier. */
static long ask_next_tier(__u32 i, struct choice *c)
{
	__u32 mask, key;

	c->tier = NO_TIER;
	c->groups = 0;
	c->total = 0;
	bpf_loop(MAX_GROUPS, consider_group, c, 0);
	if (c->tier >= NO_TIER) {
		if (c->doubtful || c->alive || !c->silent)
			return 1;
		c->doubtful = 1;
		c->from = 0;
		return 0;
	}
	mask = (c->total - 1) | 1;
	mask |= mask >> 1;
	mask |= mask >> 2;
	mask |= mask >> 4;
	mask |= mask >> 8;
	mask |= mask >> 16;
	c->mask = mask;
	c->half = (__builtin_popcount(mask) + 1) / 2;
	/* One random number: most choices end with the first draw. */
	key = bpf_get_prandom_u32();
	c->key[0] = key;
	key = (key ^ key >> 16) * 0x85ebca6bu;
	c->key[1] = key;
	key = (key ^ key >> 13) * 0xc2b2ae35u;
	c->key[2] = key;
	bpf_loop(DRAWS + (mask < MAX_TRIES ? mask + 1 : MAX_TRIES), ask_ticket, c, 0);
	c->from = c->tier + 1;
	return !!c->found;
}

/* Fills in a backend's address and port. A silent path is used if none is alive, unless
 * alive is set. Returns 0 or a reason. */
once int choose_backend(const struct settings *s, const struct service *svc, struct target *to, int alive)
{
	if (!s || !svc || !to)
		return REASON_FAILED;
	struct choice c = {.s = s, .svc = svc, .to = to, .alive = !!alive};

	/* Every group may be a tier of its own, and be tried with alive paths, then silent. */
	bpf_loop(2 * MAX_GROUPS + 2, ask_next_tier, &c, 0);
	return c.found ? 0 : REASON_NO_BACKEND;
}

/* Does the flow's backend still belong to its service? */
inline_always int still_member(const struct flow *f)
{
	struct member_key key = {.addr = f->backend, .service = f->service, .port = f->bport};

	return bpf_map_lookup_elem(&members, &key) != 0;
}

/* ---- Session affinity ---- */

/* For how long a client stays with its backend, ns; 0: it does not. */
inline_always __u64 session_of(const struct service *svc)
{
	__u32 seconds = svc->timeout[0] | svc->timeout[1] << 8 | (__u32)(svc->timeout[2] & ~SERVICE_FLAGS) << 16;

	return seconds * 1000000000ULL;
}

/* Finds the backend that the client was last given, if that still takes connections and
 * its path is alive. Returns 1 with to filled in, or 0. */
once int find_session(const struct settings *s, const struct service *svc, const struct addr *client, struct target *to,
		      int outside)
{
	if (!s || !svc || !client || !to)
		return 0;
	struct affinity_key key = {.client = *client, .service = svc->id};
	struct affinity *last = outside ? bpf_map_lookup_elem(&visitors, &key) : bpf_map_lookup_elem(&affinities, &key);
	__u64 now = bpf_ktime_get_coarse_ns();
	struct member_key member = {};
	struct place at = {};
	struct member *m;
	__u32 node;

	if (!last || (now > last->seen && now - last->seen > session_of(svc)))
		return 0;
	member.addr = last->backend;
	member.service = svc->id;
	member.port = last->port;
	m = bpf_map_lookup_elem(&members, &member);
	if (!m || m->terminating || locate(s, &member.addr, &at))
		return 0;
	node = at.node;
	if (node && (path_to(s, node, at.cluster) != PATH_ALIVE || !lane_of(s, bpf_map_lookup_elem(&nodes, &node))))
		return 0;
	last->seen = now;
	to->addr = member.addr;
	to->port = member.port;
	return 1;
}

once int keep_session(const struct service *svc, const struct addr *client, const struct target *to, int outside)
{
	if (!svc || !client || !to)
		return 0;
	struct affinity_key key = {.client = *client, .service = svc->id};
	struct affinity row = {.seen = bpf_ktime_get_coarse_ns(), .backend = to->addr, .port = to->port};

	if (outside)
		bpf_map_update_elem(&visitors, &key, &row, ROW_ANY);
	else
		bpf_map_update_elem(&affinities, &key, &row, ROW_ANY);
	return 0;
}

/* ---- Source ranges ---- */

/* May the client use the service? One that has ranges and no row of them yet is for nobody. */
once int admits(const struct service *svc, const struct addr *client)
{
	if (!svc || !client)
		return 0;
	struct range_key key = {.bits = 32 + 128, .service = svc->id, .addr = *client};

	return bpf_map_lookup_elem(&sources, &key) != 0;
}

/* Chooses a backend for a new connection of a client, which may be outside of the mesh. Returns
 * 0 or a reason. */
inline_always int choose_for(const struct settings *s, const struct service *svc, const struct addr *client,
			     struct target *to, int outside)
{
	int session = session_of(svc) != 0, why;

	if (unlikely(svc->timeout[2] & SERVICE_RANGED) && !admits(svc, client))
		return REASON_SOURCE_RANGE;
	if (unlikely(session) && find_session(s, svc, client, to, outside))
		return 0;
	why = choose_backend(s, svc, to, 0);
	if (unlikely(session) && !why)
		keep_session(svc, client, to, outside);
	return why;
}
