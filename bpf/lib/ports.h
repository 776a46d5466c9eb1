/* Searching for a free port: see masquerade.h and claim.h, which say what is free. */
#pragma once

#include "flow.h"

#define TRIES 64        /* ports drawn at random from those that belong to nobody */
#define FIRST_PORT 1024 /* of the whole range, which ends at 65535 */
#define WALK 512        /* of that, ports tried in turn after random ones */

/* A search for a free port. In a row of each CPU, because the stack is short. */
struct search {
	struct flow_key pod;    /* as the pod sends it */
	struct flow_key answer; /* as it is answered; lport is the port tried */
	struct flow_key other;  /* scratch */
	struct masquerade row;  /* scratch */
	__u32 first;            /* of the range */
	__u64 now;
	__u32 common; /* ports that belong to nobody */
	__u32 own;    /* then these are tried, from own_first on */
	__u32 own_first;
	__u8 ipv6;
	__u8 found;
	__u8 why; /* nothing can be written: a reason */
	__u8 kind; /* of the rows, enum masquerade_kind */
};

ARRAY(search, MAP_PERCPU_ARRAY, struct search, 1);

inline_always struct search *searching(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&search, &zero);
}

inline_always void begin_search(struct search *t, const struct flow_key *pod)
{
	__builtin_memset(t, 0, sizeof(*t)); /* in place: the stack is short */
	t->pod = *pod;
	t->answer = *pod;
	t->now = bpf_ktime_get_coarse_ns();
}

/* Searches the whole range: TRIES + WALK ports of it. */
inline_always void search_all(struct search *t)
{
	t->first = FIRST_PORT;
	t->common = 65536 - FIRST_PORT;
	t->own = WALK;
	t->own_first = FIRST_PORT + bpf_get_prandom_u32() % (65536 - FIRST_PORT - WALK);
}

/* The i-th port to try, in host order. */
inline_always __u32 port_to_try(const struct search *t, __u32 i)
{
	if (i >= TRIES)
		return t->own_first + i - TRIES;
	return t->first + (t->common ? bpf_get_prandom_u32() % t->common : 0);
}
