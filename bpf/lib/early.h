/* Fragments that overtake the first of their datagram.
 *
 * Only the first has the ports, and without them there is no flow and no verdict. One that
 * comes before it waits: it is sent through a pair of devices whose queue lets one packet pass
 * at a time, and comes back to where it was received.
 *
 *	from_pod, from_tunnel, from_device ── waiting room's queue ── from_waiting ──► back
 *
 * The packet's mark remembers where that is and how often it has waited. A pod's packets
 * arrive without a mark; a packet with somebody else's does not wait.
 */
#pragma once

#include "events.h"

/* Who is charged for a packet may have WAITING_AT_ONCE fragments wait, and one more for each
 * WAITING_EVERY (ns): an eighth of what passes through the queue. CPUs that ask at the same
 * moment may let one more in each. */
#define WAITING_EVERY (62 * 1000 * 1000ULL)
#define WAITING_AT_ONCE 8

/* The account of what a pod of this node receives: others must not spend what it has for what it
 * sends. */
#define RECEIVED_BY(ifindex) ((ifindex) | 1u << 31)

/* The device whose queue they wait in, 0 if there is none. Written by the agent. */
ARRAY(waiting_room, MAP_ARRAY, __u32, 1);

/* By who is charged, as in shares: the time (ns) up to which its allowance is spent. */
struct {
	__uint(type, MAP_LRU_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1024);
} waited SEC(".maps");

inline_always int may_wait(__u32 owner)
{
	__u64 now = bpf_ktime_get_coarse_ns(), *spent = bpf_map_lookup_elem(&waited, &owner), next = now;

	if (spent && *spent > now)
		next = *spent;
	if (next > now + (WAITING_AT_ONCE - 1) * WAITING_EVERY)
		return 0;
	next += WAITING_EVERY;
	bpf_map_update_elem(&waited, &owner, &next, ROW_ANY);
	return 1;
}

#define NO_ROOM 0

/* Has a fragment of which p has the addresses wait, if it may. Returns an action, or
 * NO_ROOM: then it is as if nobody had asked. shared: it may be the node's own, whose stack
 * puts fragments in any order. So a copy waits, and NO_ROOM lets the packet go on; a copy that
 * waited in vain ends. */
once int wait_for_first(struct __sk_buff *skb, const struct packet *p, __u32 owner, __u32 dir, int shared)
{
	__u32 zero = 0, *room = bpf_map_lookup_elem(&waiting_room, &zero), waits = 0, mark;
	int early = is_early(skb);

	if (early) {
		waits = skb->mark >> WAITS_SHIFT & WAITS_MAX;
		skb->mark = 0;
	}
	if (!p || !room || !*room || skb->ifindex > DEVICE_BITS || waits == WAITS_MAX)
		return early && shared ? leave(skb, REASON_NOT_OURS, dir, ACT_SHOT) : NO_ROOM;
	if (!early && (skb->mark || !may_wait(owner)))
		return NO_ROOM;
	mark = EARLY | (waits + 1) << WAITS_SHIFT | skb->ifindex;
	if (!early && shared) {
		skb->mark = mark;
		bpf_clone_redirect(skb, *room, 0);
		skb->mark = 0;
		return NO_ROOM;
	}
	if (!p->l3) { /* what comes out of a lane has no Ethernet header, and needs one here */
		struct ethhdr eth = {.proto = p->ipv6 ? htons(ETH_IPV6) : htons(ETH_IP)};

		if (bpf_skb_change_head(skb, ETH_HLEN, 0) || bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0))
			return NO_ROOM;
	}
	skb->mark = mark;
	return leave(skb, REASON_EARLY_FRAGMENT, dir, bpf_redirect(*room, 0));
}
