/* The only ways out of a program: all are counted, and drops are reported. */
#pragma once

#include "packet.h"
#include "share.h"

inline_always void count(struct __sk_buff *skb, __u32 reason, __u32 dir)
{
	__u32 row = reason << 1 | dir;
	struct counter *c = bpf_map_lookup_elem(&counters, &row);

	if (c) {
		c->packets++;
		c->bytes += skb->len;
	}
}

part int fill(struct event *e, const struct __sk_buff *skb, const struct packet *p)
{
	__builtin_memset(e, 0, sizeof(*e));
	e->src = p->src;
	e->dst = p->dst;
	if (p->service_port)
		e->service = p->service;
	e->service_port = p->service_port;
	e->src_identity = p->src_identity;
	e->dst_identity = p->dst_identity;
	e->rule = p->rule;
	e->set = p->set;
	e->ifindex = skb->ifindex;
	e->sport = is_icmp(p->proto) ? p->icmp : p->own_port ? p->own_port : p->sport;
	e->dport = is_icmp(p->proto) ? 0 : p->dport;
	e->bytes = skb->len;
	e->proto = p->proto;
	e->tcp_flags = p->tcp_flags;
	return 0;
}

/* Waking the agent costs a new connection more than all the rest. The agent looks every 20 ms
 * unasked, and is woken only when much has come since: by the events of that moment, not by
 * all that follow until it has read them. */
#define MOMENT 4096 /* bytes; if more are written at once, nobody is woken before those 20 ms */

inline_always __u64 wakeup(void)
{
	__u64 much = events_bytes / 8, unread = bpf_ringbuf_query(&events, RING_UNREAD);

	return unread >= much && unread < much + MOMENT ? RING_WAKE : RING_LET_SLEEP;
}

once int report(struct __sk_buff *skb, struct packet *p, __u32 type, __u32 reason, __u32 dir)
{
	if (!p)
		return 0;
	const struct settings *s = read_settings();
	struct share *sh = share_of(p->pod);
	__u64 now = bpf_ktime_get_boot_ns();
	struct event *e;

	if (sh && !may_tell(sh, now))
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		__u32 zero = 0;
		__u64 *n = bpf_map_lookup_elem(&lost, &zero);
		if (n)
			++*n;
		return 0;
	}
	fill(e, skb, p);
	e->time = now;
	e->policy_gen = s ? s->policy_gen : 0;
	e->type = type;
	e->reason = reason;
	e->dir = dir;
	if (sh && sh->unsaid)
		e->suppressed = __sync_lock_test_and_set(&sh->unsaid, 0);
	bpf_ringbuf_submit(e, wakeup());
	return 0;
}

/* The way out for a packet that goes on. */
inline_always int leave(struct __sk_buff *skb, __u32 reason, __u32 dir, int action)
{
	count(skb, reason, dir);
	return action;
}

/* The way out for a packet that is dropped. */
inline_always int drop(struct __sk_buff *skb, struct packet *p, __u32 reason, __u32 dir)
{
	count(skb, reason, dir);
	report(skb, p, EVENT_DROP, reason, dir);
	return ACT_SHOT;
}

/* The way out for a packet that could not be parsed or is not ours to judge. */
inline_always int leave_unread(struct __sk_buff *skb, struct packet *p, __u32 reason, __u32 dir)
{
	if (reason < FIRST_DROP)
		return leave(skb, reason, dir, ACT_NEXT);
	return drop(skb, p, reason, dir);
}
