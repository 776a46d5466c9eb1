//go:build ignore

/* sweep: deletes flows that the agent found expired or without a pod, each only if it
 * still is. Between the agent's look and its request a new connection may have started
 * to use the same ports, and deleting that one would cut it off from its backend.
 * Checking here reduces that window to a few instructions.
 */
#include "lib/masquerade.h"

#define SWEPT_AT_ONCE 4096 /* flows per run, as in sweep.go */

/* The agent's request. */
struct sweep {
	__u64 now;   /* as in flow.seen */
	__u32 count; /* rows of doomed to look at */
	__u32 pad;
};

ARRAY(doomed, MAP_ARRAY, struct flow_key, SWEPT_AT_ONCE);

/* settle: corrects an account by the drift that the agent found. */
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
	if (!f || f->flags & FLOW_ANSWERS)
		return 0;
	if ((s->now <= f->seen || s->now - f->seen <= lifetime(f, key->proto)) && !pod_gone(key, f))
		return 0;
	forget(key, f);
	s->gone++;
	return 0;
}

/* Returns how many flows were deleted. */
SEC("syscall")
int sweep(struct sweep *asked)
{
	struct sweeping s = {.now = asked->now, .count = asked->count};

	bpf_loop(SWEPT_AT_ONCE, sweep_one, &s, 0);
	return s.gone;
}

/* sweep_masquerades: deletes the rows of masqueraded connections whose flow is over. */
static long sweep_masquerade(void *map, const struct flow_key *key, const struct masquerade *row, struct sweeping *s)
{
	struct flow_key k = *key, pod = *key;
	struct masquerade is = *row;

	if (is.answer)
		other_of_pair(&pod, &is);
	if (in_use(&pod, is.kind, s->now)) {
		if (is.kind == OF_POD)
			s->count++;
		return 0;
	}
	if (!is.answer) {
		/* The pod's row first: see masquerade.h. */
		if (bpf_map_delete_elem(&masquerades, &k))
			return 0;
		s->gone++;
		other_of_pair(&k, &is);
		if (!bpf_map_delete_elem(&masquerades, &k))
			s->gone++;
		return 0;
	}
	/* Without the pod's row it is half of a pair. */
	pod = k;
	other_of_pair(&pod, &is);
	if (!bpf_map_lookup_elem(&masquerades, &pod) && !bpf_map_delete_elem(&masquerades, &k))
		s->gone++;
	return 0;
}

struct swept_masquerades {
	__u64 now;   /* as in flow.seen */
	__u32 rows;  /* out: those of pods' connections, which are in use */
	__u32 gone;  /* out: those that were deleted */
};

SEC("syscall")
int sweep_masquerades(struct swept_masquerades *asked)
{
	struct sweeping s = {.now = asked->now};

	bpf_for_each_map_elem(&masquerades, sweep_masquerade, &s, 0);
	asked->rows = s.count;
	asked->gone = s.gone;
	return 0;
}
