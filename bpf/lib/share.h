/* Shares: how much one pod may hold of the tables that all pods use.
 *
 * Each flow is charged to the pod that opened it, or to the node. An owner is
 * guaranteed its share. Beyond it, it takes from the common part, of which it may hold
 * up to EAGER times as much as is left free: a greedy owner leaves a fifth for others,
 * who need not wait until it gives something back. The second row of a flow through a
 * service needs no account of its own: the table has room for two rows of every flow.
 *
 * An owner that has reached its limit may swap: see store in flow.h.
 */
#pragma once

#include "maps.h"

#define NODE_ITSELF 0u     /* owner of what the node opens: probes of its pods */
#define OUTSIDERS 0xfffffffeu /* of what clients outside open to pods elsewhere, through node ports */
#define COMMON 0xffffffffu /* the row that counts what all owners hold beyond their shares */
#define EAGER 4

/* The account of an owner, created when first needed; null if there is no room. */
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

/* Charges a flow to its owner; forced skips the check of its limit. Returns WITHIN_SHARE,
 * BEYOND_SHARE or a reason. CPUs that charge at the same moment may exceed the limit by
 * a row each; what was taken is counted exactly. */
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

/* May the owner send one more event? Always up to events_each a second, so that no
 * pod's events crowd out another's; more only while the ring is less than half full. */
inline_always int may_tell(struct share *sh, __u64 now)
{
	__u32 second = now >> 30;

	if (sh->second != second) { /* losing a race lets a few more through */
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
