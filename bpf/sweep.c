//go:build ignore

/* sweep: deletes flows that the agent found to be over, each only if it still is.
 * Between the agent's look and its word a new connection may have come to use the
 * same ports; deleting that one would cut it off from its backend. What is left of
 * that moment is the few instructions from here to the deletion.
 */
#include "lib/flow.h"

#define SWEPT_AT_ONCE 4096 /* flows named to one run, as in sweep.go */

/* What the agent asks for. */
struct sweep {
	__u64 now;   /* as in flow.seen */
	__u32 count; /* rows of doomed that are meant, from the first */
	__u32 pad;
};

ARRAY(doomed, MAP_ARRAY, struct flow_key, SWEPT_AT_ONCE);

/* settle: corrects an account by what the agent found. */
struct settlement {
	__u32 owner;
	__u32 pad;
	__s64 add;
};

SEC("syscall")
int settle(struct settlement *asked)
{
	__u32 owner = asked->owner;
	struct share *sh = share_of(owner);

	if (sh)
		__sync_fetch_and_add(&sh->used, asked->add);
	return 0;
}

struct sweeping {
	__u64 now;
	__u32 count;
	__u32 gone;
};

static long sweep_one(__u32 i, struct sweeping *s)
{
	struct flow_key *key;
	struct flow *f;

	if (i >= s->count)
		return 1;
	key = bpf_map_lookup_elem(&doomed, &i);
	if (!key)
		return 1;
	f = bpf_map_lookup_elem(&flows, key);
	if (!f || s->now <= f->seen || s->now - f->seen <= lifetime(f, key->proto))
		return 0;
	forget(key, f);
	s->gone++;
	return 0;
}

/* Returns how many were deleted. */
SEC("syscall")
int sweep(struct sweep *asked)
{
	struct sweeping s = {.now = asked->now, .count = asked->count};

	bpf_loop(SWEPT_AT_ONCE, sweep_one, &s, 0);
	return s.gone;
}
