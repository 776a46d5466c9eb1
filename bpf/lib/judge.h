/* Decisions about packets, and judging known flows again after a change. */
#pragma once

#include "policy.h"
#include "revision.h"
#include "translate.h"

/* What becomes of a packet. */
enum course {
	GO,         /* the way of its flow */
	GO_UNHEARD, /* the same, over a path that does not answer: the packet does not prove
		     * that the flow lives (see lately) */
	BEGIN,      /* the way of the flow that it has just opened */
	OPEN,       /* it belongs to no live flow: may it open one? */
	TURN_AWAY,  /* dropped, and the pod that sent it is told if refuse.h says so */
	REFUSE,     /* dropped under the policy that the flow was opened under */
	DROP,       /* dropped in silence */
	RESET,      /* its connection ends, and the pod that sent it is told */
};

/* Decides on a course for a reason. */
inline_always enum course because(struct work *w, enum course course, __u32 why)
{
	w->why = why;
	return course;
}

/* What rejudge returns besides reasons. */
enum {
	KEEP = 0,
	GONE = 100, /* the backend was removed from the service */
	RENEW = 101, /* the address has a new pod: this is not its flow */
};

inline_always void count_again(void)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&judged_again, &zero);

	if (n)
		++*n;
}

/* The verdict holds again. */
inline_always int keep(struct flow *f, __u32 revision)
{
	if (unlikely(f->flags & FLOW_WAITS))
		__sync_fetch_and_and(&f->flags, ~FLOW_WAITS);
	f->revision = revision;
	return KEEP;
}

/* Judges a flow again, in the direction in which it was opened. A flow that is refused
 * keeps its row and its old revision, so every packet of it, either way, is judged
 * again. Were it deleted, a retransmission of the answering pod would open it as that
 * pod's own flow. */
once int rejudge(const struct settings *s, struct packet *p, const struct flow_key *key, struct flow *f)
{
	if (!s || !p || !key || !f)
		return REASON_FAILED;
	int remote = !!(f->flags & FLOW_REMOTE_INITIATED);
	struct addr a = key->local; /* the remote address later: the stack is short */
	__u32 revision = s->revision + address_revision(&a); /* before the rows: see revision.h */
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &a);
	struct place at = {};
	__be16 port;
	int why, verdict, sent;

	count_again();
	if (!ep || ep->ifindex != f->ifindex)
		return RENEW;
	if (ep->held)
		return REASON_HELD;
	a = *other_side(key, f);
	revision += address_revision(&a);
	/* Nobody else is involved, or it is the node itself (kubelet's probes), which
	 * always reaches its pods. */
	if (f->flags & FLOW_LOOP || (remote && f->via == VIA_STACK && f->identity == IDENTITY_HOST))
		return keep(f, revision + identity_revision(f->identity));

	why = locate(s, &a, &at);
	port = f->flags & FLOW_SERVICE ? f->bport : key->rport;
	if (why == REASON_NODE_ADDRESS && at.node && !remote && offered(&a, port, key->proto))
		why = 0;
	revision += identity_revision(at.identity);
	/* A backend that was removed from its service keeps its open connections for
	 * as long as it exists, even while its node is unknown. Other flows choose a
	 * backend again. */
	if (f->flags & (FLOW_SERVICE | FLOW_MEMBER) && !is_member(&a, port, f->service) &&
	    (!established(f, key->proto) || (why && why != REASON_NO_TUNNEL) || at.via != f->via ||
	     at.identity == IDENTITY_UNKNOWN_MEMBER))
		return GONE;
	sent = same(&p->src, &key->local);
	/* What once went through a tunnel never becomes traffic of the stack, whoever
	 * has the address now. The event names who had it then. */
	if (f->via == VIA_TUNNEL && why != REASON_NODE_ADDRESS && (at.via == VIA_STACK || at.flags & IP_FORMER)) {
		p->src_identity = sent ? ep->identity : f->identity;
		p->dst_identity = sent ? f->identity : ep->identity;
		return REASON_FORMER_MEMBER;
	}
	p->src_identity = sent ? ep->identity : at.identity;
	p->dst_identity = sent ? at.identity : ep->identity;
	if (remote)
		port = key->lport;
	verdict = judge(s, p, ep->set, at.identity, DIR_PORT(remote ? INGRESS : EGRESS, port));
	if (verdict)
		return verdict;
	if (why && (!remote || why == REASON_NODE_ADDRESS || (why == REASON_NO_TUNNEL && f->flags & FLOW_REPLIED)))
		return why;
	f->identity = at.identity;
	f->rule = p->rule;
	f->node = at.node;
	f->cluster = at.cluster;
	f->via = at.via;
	return keep(f, revision);
}

/* The flow may not go on. */
inline_always enum course refuse(struct work *w, struct flow *f, __u32 why, __u64 now)
{
	name_service(&w->p, &w->key, f);
	tried(f, why, now);
	return because(w, REFUSE, why);
}

/* Drops a packet that is refused, and counts it in the direction of its flow's policy. */
inline_always int drop_refused(struct __sk_buff *skb, struct packet *p, const struct flow *f, __u32 why)
{
	return drop(skb, p, why, f->flags & FLOW_REMOTE_INITIATED ? INGRESS : EGRESS);
}

/* Reports an allowed new flow if tracing is on. */
inline_always void trace(struct __sk_buff *skb, struct packet *p, const struct settings *s, __u8 via, __u32 dir)
{
	static const __u8 way[] = {0, REASON_TO_STACK, REASON_DELIVERED, REASON_TUNNELLED};

	if (s->trace)
		report(skb, p, EVENT_NEW_FLOW, dir == INGRESS ? REASON_DELIVERED : way[via & 3], dir);
}
