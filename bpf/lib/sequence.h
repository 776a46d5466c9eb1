/* TCP sequence numbers: what ends a connection must belong to it.
 *
 * A reset or FIN with a number far from the connection's, left over from an earlier
 * connection with the same ports or sent by somebody guessing, does not change the
 * flow. It is forwarded all the same: the receiver knows its numbers exactly, and its
 * answer to a wrong one (RFC 5961) lets a side that lost its state recover.
 *
 * Each side's numbers are noted once per tick of the clock, or when they have moved on
 * by NOTED_EVERY: otherwise two CPUs carrying the two directions would contend for the
 * row on every packet. A number is therefore judged by its distance from the last one
 * noted, either its sender's own or the one its receiver expects. One in 8,192 random
 * numbers is close enough to pass.
 *
 * Numbers wrap around: distances are differences modulo 2^32.
 */
#pragma once

#include "packet.h"

#define NOTED_EVERY (1u << 16)
#define NEAR (1u << 18)  /* NOTED_EVERY, a segment of 64 KiB, and some lost on the way here */
#define AHEAD (1u << 24) /* more than a sender ever has in flight */

inline_always int within(__u32 from, __u32 to, __u32 behind, __u32 ahead)
{
	return to - from + behind <= behind + ahead;
}

inline_always int is_near(__u32 a, __u32 b)
{
	return within(a, b, NEAR, NEAR);
}

inline_always int known(const struct said *s)
{
	return s->seq | s->ack;
}

/* Does the packet need a closer look? Most do not. */
inline_always int matters(const struct flow *f, const struct packet *p, int from_pod, __u64 now)
{
	const struct said *own = &f->said[from_pod ? EGRESS : INGRESS];
	__u32 moved = (p->seq - own->seq) | (p->ack - own->ack);

	return p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) || moved >= (f->seen < now ? 1 : NOTED_EVERY);
}

/* Notes the packet's numbers if it belongs to the connection. Returns the flags it sets
 * on the flow: those in add, and those of a FIN or reset; 0 if it does not belong. */
part __u32 follow(struct flow *f, const struct packet *p, int from_pod, __u32 add)
{
	struct said *own = &f->said[from_pod ? EGRESS : INGRESS], *other = &f->said[from_pod ? INGRESS : EGRESS];
	struct said now = {.seq = p->seq, .ack = p->ack};
	int acks = p->tcp_flags & TCP_ACK;
	int expected = other->ack && is_near(other->ack, p->seq);
	int close, plausible;

	if (p->tcp_flags & TCP_SYN && !acks) {
		if (!known(own) || !(f->flags & FLOW_REPLIED)) {
			*own = now;
			if (!(add & FLOW_REPLIED)) /* the opener may start over with other numbers */
				*other = (struct said){};
		} else if (!is_near(own->seq, p->seq)) {
			/* The ports are used again, or somebody forges it: the answer
			 * will tell. */
			f->again = p->seq;
		}
		return add;
	}
	if (p->tcp_flags & TCP_SYN && f->again && p->ack == f->again + 1) {
		*other = (struct said){.seq = f->again};
		*own = now;
		f->again = 0;
		return add;
	}
	if (known(own)) {
		close = expected || is_near(own->seq, p->seq);
		plausible = expected || (within(own->seq, p->seq, NEAR, AHEAD) &&
					 (!known(other) || within(other->seq, p->ack, AHEAD, AHEAD)));
	} else if (known(other)) {
		close = expected || (acks && is_near(other->seq, p->ack));
		plausible = (other->ack && within(other->ack, p->seq, AHEAD, AHEAD)) ||
			    (acks && within(other->seq, p->ack, AHEAD, AHEAD));
	} else {
		close = plausible = 1;
	}
	if (p->tcp_flags & TCP_RST) /* its ack number may be anything */
		return close ? add | FLOW_RESET : 0;
	if (p->tcp_flags & TCP_FIN && close)
		add |= from_pod ? FLOW_FIN_LOCAL : FLOW_FIN_REMOTE;
	if (!plausible)
		return 0;
	/* A retransmission does not move the numbers back. */
	if (!known(own) || p->seq - own->seq < AHEAD || !within(own->seq, p->seq, AHEAD, AHEAD))
		*own = now;
	return add;
}
