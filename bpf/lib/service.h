/* Choosing a service's backend. Needs neither a packet nor a flow. */
#pragma once

#include "place.h"

/* Where a new flow goes. */
struct target {
	struct addr addr;
	__be16 port;
	__u16 told;    /* enum told: why it is that */
	__u32 service; /* whose backend it is; 0: nobody's */
};

#define NO_TIER 256
#define DRAWS 16                /* tickets drawn at random before all slots are tried in turn */
#define MANY_DRAWS 256          /* likewise, if backends weigh more or less */
#define PROBES 128              /* slots of a Maglev table that are tried */
#define MAX_TRIES (1u << 22)    /* in all; below 1 << 23, the most that bpf_loop accepts */

/* A choice in progress. Each backend of a group holds as many tickets as the group's
 * weight, and tickets are tried until one names a backend whose path is alive. The
 * first DRAWS are drawn at random: this is exactly fair, and quick unless most backends
 * are dead. A backend that weighs less than others of its group is rejected now and then;
 * that may have to be repeated, so MANY_DRAWS are made then: shares are right as long as a
 * fiftieth of all weight is alive. Then every slot is tried once, in an order shuffled for
 * this choice, so a live backend is found whenever there is one. Loops use bpf_loop, whose
 * body is verified once.
 *
 * With Maglev, who asks begins at a slot of the tier's table and goes on in steps of its own:
 * everywhere the same ones. Where PROBES slots lead to nobody alive, tickets are tried. */
struct choice {
	const struct settings *s;
	const struct service *svc;
	const struct balancing *how; /* null: evenly and at random */
	struct target *to;
	__u32 groups; /* usable ones of the current tier, a bit mask */
	__u32 total;  /* their tickets */
	__u32 slots;  /* and their slots */
	__u32 hash;   /* of who asks, for Maglev */
	__u32 key;    /* the slot of the Maglev table that comes next, then that of the shuffle */
	__u32 from;   /* tiers below were given up */
	__u32 tier;   /* current: the lowest from there with a usable group, or NO_TIER */
	__u8 bits;    /* of the shuffle: the fewest that number all slots */
	__u8 found;
	__u8 silence; /* enum silence */
	__u8 silent;  /* a silent path was passed over */
}; /* the stack is short: 64 bytes */

enum silence {
	NOT_YET, /* alive paths come first */
	WILL_DO, /* silent paths do as well: no path is alive */
	NEVER,
};

inline_always int usable(struct choice *c, __u8 path)
{
	if (path == PATH_SILENT)
		c->silent = 1;
	return path == PATH_ALIVE || (path == PATH_SILENT && c->silence == WILL_DO);
}

/* The cluster of a group, of which it may have only a part of the backends. */
inline_always __u32 cluster_in(__u32 group)
{
	return group & ((1u << CLUSTER_BITS) - 1);
}

/* How many tickets each backend of the i-th group holds. */
inline_always __u32 tickets(const struct choice *c, __u32 i)
{
	return unlikely(c->how) ? c->how->weights[i] : c->svc->group[i].weight;
}

inline_always __u32 draws(const struct choice *c)
{
	return unlikely(c->how) ? MANY_DRAWS : DRAWS;
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
	if (!g->count || !g->weight || g->tier < c->from || g->tier > c->tier)
		return 0;
	if (cluster != c->s->cluster) {
		struct cluster *row = bpf_map_lookup_elem(&clusters, &cluster);
		if (!row || !usable(c, row->path))
			return 0;
	}
	if (g->tier < c->tier) {
		c->tier = g->tier;
		c->total = 0;
		c->slots = 0;
		c->groups = 0;
	}
	c->total += g->count * tickets(c, i);
	c->slots += g->count * g->weight;
	c->groups |= 1u << i;
	return 0;
}

/* Chooses the backend in a slot, if it can be reached. One that is drawn may be rejected. */
inline_always long take_slot(const struct slot_key *key, struct choice *c, int drawn)
{
	struct backend *b = bpf_map_lookup_elem(&backends, key);
	struct place at = {};
	__u32 node, cluster;

	if (!b || (drawn && unlikely(b->reject) && (bpf_get_prandom_u32() & 0xffff) < b->reject))
		return 0;
	node = b->node;
	cluster = cluster_in(key->cluster);
	if (!node) { /* on this node, outside the mesh, or on a node that is not known yet */
		if (locate_backend(c->s, &b->addr, &at))
			return 0;
		node = at.node;
	}
	if (node) {
		struct node *n = bpf_map_lookup_elem(&nodes, &node);

		if (!cluster && n) /* of a Maglev table */
			cluster = n->cluster;
		if (!usable(c, path_to(c->s, node, cluster)) || !lane_of(c->s, n))
			return 0;
	}
	c->to->addr = b->addr;
	c->to->port = b->port;
	c->found = 1;
	return 1;
}

/* Which slot a ticket is for. */
struct pick {
	const struct choice *c;
	__u32 ticket;
	__u32 drawn;
	struct slot_key key; /* not that of a slot, if the ticket is for none */
};

static long pick_group(__u32 i, struct pick *p)
{
	const struct choice *c = p->c;
	__u32 each, share;

	if (i >= MAX_GROUPS || !(c->groups >> i))
		return 1;
	if (!(c->groups >> i & 1))
		return 0;
	each = p->drawn ? tickets(c, i) : c->svc->group[i].weight;
	share = each * c->svc->group[i].count;
	if (p->ticket >= share) {
		p->ticket -= share;
		return 0;
	}
	if (!each)
		return 1;
	p->key.cluster = c->svc->group[i].cluster;
	p->key.slot = p->ticket / each;
	return 1;
}

/* Chooses the backend that a ticket names, if it can be reached: a ticket that was drawn, or
 * one of those that every slot has as many of as its group's own weight says, which is one. */
inline_always long choose(__u32 ticket, struct choice *c, int drawn)
{
	struct pick p = {.c = c, .ticket = ticket, .drawn = drawn, .key.service = c->svc->id};

	bpf_loop(MAX_GROUPS, pick_group, &p, 0);
	return take_slot(&p.key, c, drawn);
}

/* The i-th number of a shuffle in which each of 0 … mask occurs once, because every
 * step is reversible. */
inline_always __u32 shuffled(const struct choice *c, __u32 i)
{
	__u32 bits = c->bits & 31, mask = (1u << bits) - 1, half = (bits + 1) / 2;
	__u32 more = (c->key ^ c->key >> 16) * 0x85ebca6bu;
	__u32 last = (more ^ more >> 13) * 0xc2b2ae35u;

	i = (i + c->key) * (more | 1) & mask;
	i ^= i >> half;
	i = (i + last) * (more >> 16 | 1) & mask;
	i ^= i >> half;
	return i * (last >> 16 | 1) & mask;
}

/* Begins a shuffle of all slots. */
inline_always void shuffle(struct choice *c)
{
	__u32 mask = (c->slots - 1) | 1;

	mask |= mask >> 1;
	mask |= mask >> 2;
	mask |= mask >> 4;
	mask |= mask >> 8;
	mask |= mask >> 16;
	c->bits = __builtin_popcount(mask);
	c->key = bpf_get_prandom_u32();
}

static long ask_ticket(__u32 i, struct choice *c)
{
	__u32 first = draws(c), ticket;
	int drawn = likely(i < first);

	if (drawn) {
		/* Not the remainder, which the first tickets would have more often than the last. */
		ticket = (__u64)bpf_get_prandom_u32() * c->total >> 32;
	} else {
		i -= first;
		ticket = shuffled(c, i);
		if (ticket >= c->slots)
			return 0;
	}
	return choose(ticket, c, drawn);
}

/* ---- Maglev ---- */

inline_always __u32 mixed(__u32 h, __u32 word)
{
	h = (h ^ word) * 0xcc9e2d51u;
	h ^= h >> 15;
	return h * 0x1b873593u;
}

/* Who asks, and how: both ports and the protocol. */
#define ASKS(port, front, proto) ((__u64)(proto) << 32 | (__u32)(port) << 16 | (front))
#define ONLY_ALIVE (1ULL << 40)

/* What stays the same wherever a connection is seen. The service's address is not part of it:
 * that of a node port is another one on each node. */
inline_always __u32 hash_of(const struct addr *client, __u64 asks)
{
	__u32 h = 0x77656674;

	for (int i = 0; i < 4; i++)
		h = mixed(h, client->w[i]);
	return mixed(mixed(h, asks), asks >> 32);
}

/* The number of the backend in a slot of the tier's table. NO_TABLE: it was just removed, or
 * there is no room for it. */
#define NO_TABLE (1u << 16)

part __u32 listed(const struct choice *c, __u32 slot)
{
	struct maglev_key at = {.service = c->svc->id, .piece = slot / PIECE, .tier = c->tier};
	const struct balancing *how = c->how;
	struct maglev *m;

	if (!how)
		return NO_TABLE;
	at.generation = how->generation;
	m = bpf_map_lookup_elem(&maglev, &at);
	return m ? m->backend[slot % PIECE] : NO_TABLE;
}

/* Tries the next slot of the tier's table. */
static long ask_slot(__u32 i, struct choice *c)
{
	struct slot_key key = {.service = c->svc->id};
	const struct balancing *how = c->how;

	key.slot = listed(c, c->key);
	if (key.slot == NO_TABLE || !how || how->slots < 2)
		return 1;
	if (key.slot && take_slot(&key, c, 0))
		return 1;
	c->key += mixed(c->hash, how->slots) % (how->slots - 1) + 1;
	if (c->key >= how->slots)
		c->key -= how->slots;
	return 0;
}

/* Tries the tier's Maglev table, if it has one. */
inline_always void ask_table(struct choice *c)
{
	if (!c->how->slots)
		return;
	c->key = c->hash % c->how->slots;
	bpf_loop(PROBES, ask_slot, c, 0);
}

/* Tries the tickets of the next tier. */
static long ask_next_tier(__u32 i, struct choice *c)
{
	__u32 slots;

	c->tier = NO_TIER;
	c->groups = 0;
	c->total = 0;
	c->slots = 0;
	bpf_loop(MAX_GROUPS, consider_group, c, 0);
	if (c->tier >= NO_TIER) {
		if (c->silence != NOT_YET || !c->silent)
			return 1;
		c->silence = WILL_DO;
		c->from = 0;
		return 0;
	}
	if (unlikely(c->how)) {
		ask_table(c);
		if (c->found)
			return 1;
	}
	shuffle(c);
	slots = 1u << (c->bits & 31);
	bpf_loop(draws(c) + (slots < MAX_TRIES ? slots : MAX_TRIES), ask_ticket, c, 0);
	c->from = c->tier + 1;
	return !!c->found;
}

/* Fills in a backend's address and port for a client that asks. A silent path is used if none is
 * alive, unless asks has ONLY_ALIVE. Returns 0 or a reason. */
once int choose_backend(const struct settings *s, const struct service *svc, struct target *to, const struct addr *client, __u64 asks)
{
	if (!s || !svc || !to || !client)
		return REASON_FAILED;
	struct choice c = {.s = s, .svc = svc, .to = to, .silence = asks & ONLY_ALIVE ? NEVER : NOT_YET};

	if (unlikely(svc->timeout[2] & SERVICE_BALANCED)) {
		c.groups = svc->id; /* on the stack, see once */
		c.how = bpf_map_lookup_elem(&balancing, &c.groups);
		c.hash = hash_of(client, asks);
	}
	/* Every group may be a tier of its own, and be tried with alive paths, then silent. */
	bpf_loop(2 * MAX_GROUPS + 2, ask_next_tier, &c, 0);
	return c.found ? 0 : REASON_NO_BACKEND;
}

/* Is this a backend of the service? */
part int is_member(const struct addr *a, __be16 port, __u32 service)
{
	struct member_key key = {.addr = *a, .service = service, .port = port};

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
	if (!m || m->terminating || locate_backend(s, &member.addr, &at))
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

#define FIRST_NODE_PORT 30000
#define LAST_NODE_PORT 32767

/* Is this a node port of another node of the cluster? */
once int at_other_node(const struct addr *a, __be16 port)
{
	if (!a)
		return 0;
	struct addr key = *a;
	__u16 number = ntohs(port);
	struct ip_info *ip;

	if (number < FIRST_NODE_PORT || number > LAST_NODE_PORT)
		return 0;
	ip = bpf_map_lookup_elem(&ips, &key);
	return ip && ip->flags & IP_NODE && ip->node;
}

/* The service at an address and port, for pods and processes of the node. A node port is the
 * same at each node of the cluster, so that another node's leads from here where our own does:
 * no tunnel carries it there. */
part struct service *service_at(const struct settings *s, const struct service_key *front)
{
	struct service *svc = bpf_map_lookup_elem(&services, front);
	struct service_key ours = *front;

	if (svc || !at_other_node(&ours.addr, ours.port))
		return svc;
	ours.addr = s->exposed[ours.addr.w[2] != htonl(0xffff) || ours.addr.w[0] || ours.addr.w[1]];
	return bpf_map_lookup_elem(&services, &ours);
}

/* Chooses a backend for a new connection of a client, which may be outside of the mesh, from
 * its port to the one in to. Returns 0 or a reason. */
inline_always int choose_for(const struct settings *s, const struct service *svc, const struct addr *client,
			     const __be16 *port, const __u8 *proto, struct target *to, int outside)
{
	int session = session_of(svc) != 0, why;

	if (unlikely(svc->timeout[2] & SERVICE_RANGED) && !admits(svc, client))
		return REASON_SOURCE_RANGE;
	if (unlikely(session) && find_session(s, svc, client, to, outside))
		return 0;
	/* A client that stays with its backend has the same one from all of its ports. */
	why = choose_backend(s, svc, to, client, ASKS(session ? 0 : *port, to->port, *proto));
	if (unlikely(session) && !why)
		keep_session(svc, client, to, outside);
	return why;
}
