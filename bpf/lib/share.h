/* Shares: what one pod may hold of the tables that all pods use.
 *
 * Each row of flows is charged to the pod that opened it, or to the node. An
 * owner is sure of its share. Beyond it, it takes from what is common, and may
 * hold EAGER times as much of that as is left free: a greedy one leaves a fifth
 * to others, who need not wait until it gives something back. A row of replies
 * belongs to a row of flows and needs no account of its own.
 *
 * What is full to an owner is not full to others. It may swap: see store in flow.h.
 */
#pragma once

#include "maps.h"

#define NODE_ITSELF 0u     /* owner of what the node opens: probes of its pods */
#define COMMON 0xffffffffu /* the row of shares that counts what is held beyond them */
#define EAGER 4

/* The account of an owner, made when it is first needed; null: no room for it. */
part struct share *share_of(__u32 owner)
{
	__u32 zero = 0;
	struct share *sh = bpf_map_lookup_elem(&shares, &owner), *blank;

	if (likely(sh))
		return sh;
	blank = bpf_map_lookup_elem(&no_share, &zero);
	if (!blank)
		return 0;
	bpf_map_update_elem(&shares, &owner, blank, ROW_NEW);
	return bpf_map_lookup_elem(&shares, &owner);
}

inline_always const struct budget *read_budget(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&budgets, &zero);
}

inline_always __s64 sure_of(const struct budget *b, __u32 owner)
{
	return owner == NODE_ITSELF ? b->node : b->each;
}

inline_always void take(struct share *sh)
{
	__sync_fetch_and_add(&sh->opened, 1);
	__sync_fetch_and_add(&sh->used, 1);
}

enum {
	WITHIN_SHARE = 0,
	BEYOND_SHARE = 1,
};

/* Charges a row to its owner; forced: although it has no claim to one. Returns
 * where it lies, or FLOW_TABLE_FULL. CPUs that ask at the same moment may overshoot by a row
 * each; what was taken is counted exactly. */
once int charge(__u32 owner, int forced)
{
	const struct budget *b = read_budget();
	struct share *sh = share_of(owner), *common;
	__s64 sure, beyond;

	if (!b || !sh)
		return REASON_FAILED;
	sure = sure_of(b, owner);
	beyond = sh->used + 1 - sure;
	if (unlikely(beyond > 0 && !forced)) {
		common = share_of(COMMON);
		if (!common)
			return REASON_FAILED;
		if (beyond > EAGER * (b->common - common->used))
			return REASON_FLOW_TABLE_FULL;
	}
	__sync_fetch_and_add(&sh->opened, 1); /* first: see drift in share.go */
	if (unlikely(__sync_fetch_and_add(&sh->used, 1) >= sure)) {
		common = share_of(COMMON);
		if (common)
			take(common);
		return BEYOND_SHARE;
	}
	return WITHIN_SHARE;
}

/* Gives back what charge took. */
inline_always void release(__u32 owner)
{
	const struct budget *b = read_budget();
	struct share *sh = bpf_map_lookup_elem(&shares, &owner);

	if (!b || !sh)
		return;
	if (unlikely(__sync_fetch_and_add(&sh->used, -1) > sure_of(b, owner))) {
		owner = COMMON; /* not by share_of: the stack is short */
		sh = bpf_map_lookup_elem(&shares, &owner);
		if (sh)
			__sync_fetch_and_add(&sh->used, -1);
	}
}

/* May the owner tell of one more event? While the buffer is half empty everybody
 * may; then each only so often a second, or one pod's would be all there is. */
inline_always int may_tell(struct share *sh, __u64 now)
{
	__u32 second = now >> 30;

	if (sh->second != second) { /* a lost race: a few more are told */
		sh->second = second;
		sh->told = 0;
	}
	if (__sync_fetch_and_add(&sh->told, 1) < events_each)
		return 1;
	if (bpf_ringbuf_query(&events, RING_UNREAD) < events_bytes / 2)
		return 1;
	__sync_fetch_and_add(&sh->suppressed, 1);
	__sync_fetch_and_add(&sh->unsaid, 1);
	return 0;
}
