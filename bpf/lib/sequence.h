/* Sequence numbers of TCP: what ends a connection must belong to it.
 *
 * A reset or FIN whose number nobody can have meant, of a connection that used the
 * same ports before or of somebody who guesses, leaves the flow as it is. It is
 * forwarded all the same: the receiver knows its numbers exactly, and its answer to
 * a wrong one (RFC 5961) is how a peer that lost its state gets right again.
 *
 * What each side says is noted once a tick of the clock, or when it has moved on by
 * NOTED_EVERY: two CPUs that carry the two directions would otherwise fight for the
 * row with every packet. So a number is judged by its distance from the last that
 * was noted, of its sender's or of those the receiver said it expects. One in 8,192
 * wrong ones lies near enough.
 *
 * Numbers wrap around: distances are differences modulo 2^32.
 */
#pragma once

#include "packet.h"

#define NOTED_EVERY (1u << 16)
#define NEAR (1u << 18)  /* NOTED_EVERY, a segment of 64 KiB, and some that were lost before they came here */
#define AHEAD (1u << 24) /* more than a sender has under way at once */

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

/* Must the packet be looked at more closely? Most must not. */
inline_always int matters(const struct flow *f, const struct packet *p, int from_pod, __u64 now)
{
	const struct said *own = &f->said[from_pod ? EGRESS : INGRESS];
	__u32 moved = (p->seq - own->seq) | (p->ack - own->ack);

	return p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) || moved >= (f->seen < now ? 1 : NOTED_EVERY);
}

/* Notes what the packet says, if it belongs to the connection, and returns which
 * flags it gives the flow: those of add, and what it ends. */
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
			if (!(add & FLOW_REPLIED)) /* who opens may choose other numbers */
				*other = (struct said){};
		} else if (!is_near(own->seq, p->seq)) {
			/* The ports are used again, or somebody pretends it: the answer
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
	if (p->tcp_flags & TCP_RST) /* its other number means nothing */
		return close ? add | FLOW_RESET : 0;
	if (p->tcp_flags & TCP_FIN && close)
		add |= from_pod ? FLOW_FIN_LOCAL : FLOW_FIN_REMOTE;
	if (!plausible)
		return 0;
	/* What is sent again moves nothing back. */
	if (!known(own) || p->seq - own->seq < AHEAD || !within(own->seq, p->seq, AHEAD, AHEAD))
		*own = now;
	return add;
}
