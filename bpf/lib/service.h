/* Which backend answers a new flow to a service. */
#pragma once

#include "place.h"

#define PROBES 16   /* slots looked at before a group counts as dead */
#define ATTEMPTS 4  /* groups given up before the service does, for either kind of path */

/* A choice under way. Loops are bpf_loop's, whose body the verifier reads once. */
struct choice {
	const struct settings *s;
	const struct service *svc;
	struct flow *f;
	__u32 skip;   /* groups given up, a bit mask */
	__u32 tier;   /* lowest so far with a usable group */
	__u32 total;  /* shares of that tier so far */
	__u32 group;  /* drawn so far, MAX_GROUPS: none */
	__u32 start;  /* slot to begin with */
	__u32 found;
	__u32 doubtful; /* silent paths will do: there are no others */
};

inline_always int usable(const struct choice *c, __u8 path)
{
	return path == PATH_ALIVE || (path == PATH_SILENT && c->doubtful);
}

/* One pass finds the lowest tier alive and draws from it: a group of share w
 * replaces the one drawn so far with probability w / total, which in the end
 * is w / sum for each. */
static long consider_group(__u32 i, struct choice *c)
{
	const struct group *g;
	__u32 cluster, share;

	if (i >= MAX_GROUPS || i >= c->svc->groups)
		return 1;
	g = &c->svc->group[i];
	cluster = g->cluster;
	share = g->count * g->weight;
	if (!share || c->skip >> i & 1 || g->tier > c->tier)
		return 0;
	if (cluster != c->s->cluster) {
		struct cluster *row = bpf_map_lookup_elem(&clusters, &cluster);
		if (!row || !usable(c, row->path))
			return 0;
	}
	if (g->tier < c->tier) {
		c->tier = g->tier;
		c->total = 0;
	}
	c->total += share;
	if (c->total && bpf_get_prandom_u32() % c->total < share)
		c->group = i;
	return 0;
}

static long consider_slot(__u32 i, struct choice *c)
{
	struct slot_key key = {.service = c->svc->id};
	struct backend *b;
	__u32 count;

	if (c->group >= MAX_GROUPS)
		return 1;
	count = c->svc->group[c->group].count;
	if (i >= count)
		return 1;
	key.cluster = c->svc->group[c->group].cluster;
	/* Neighbours are often pods of one node, and die together. */
	key.slot = count > PROBES ? bpf_get_prandom_u32() % count : c->start + i;
	if (key.slot >= count)
		key.slot -= count;
	b = bpf_map_lookup_elem(&backends, &key);
	if (!b || (b->node && !usable(c, path_to(c->s, b->node, key.cluster))))
		return 0;
	c->f->backend = b->addr;
	c->f->bport = b->port;
	c->found = 1;
	return 1;
}

/* Fills in f's backend. Silent paths will do when no other is left, unless only
 * those alive are asked for. Returns 0 or NO_BACKEND. */
once int choose_backend(const struct settings *s, const struct service *svc, struct flow *f, int alive)
{
	if (!s || !svc || !f)
		return REASON_FAILED;
	struct choice c = {.s = s, .svc = svc, .f = f};

	for (int i = 0; i < 2 * ATTEMPTS; i++) {
		__u32 count;

		if (i == ATTEMPTS) {
			if (alive)
				break;
			c.doubtful = 1;
			c.skip = 0;
		} else if (c.group == MAX_GROUPS) {
			continue; /* no group is left for this kind of path */
		}
		c.tier = 256;
		c.total = 0;
		c.group = MAX_GROUPS;
		bpf_loop(MAX_GROUPS, consider_group, &c, 0);
		if (c.group >= MAX_GROUPS)
			continue;
		count = svc->group[c.group].count;
		c.start = count ? bpf_get_prandom_u32() % count : 0;
		bpf_loop(PROBES, consider_slot, &c, 0);
		if (c.found) {
			f->service = svc->id;
			f->flags |= FLOW_SERVICE;
			return 0;
		}
		c.skip |= 1u << c.group;
	}
	return REASON_NO_BACKEND;
}

/* Is the flow's backend still one of its service's? */
inline_always int still_member(const struct flow *f)
{
	struct member_key key = {.addr = f->backend, .service = f->service, .port = f->bport};

	return bpf_map_lookup_elem(&members, &key) != 0;
}
