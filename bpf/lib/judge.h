/* What a changed revision does to a flow. */
#pragma once

#include "flow.h"
#include "policy.h"
#include "service.h"

/* Answers of rejudge beside reasons. */
enum {
	KEEP = 0,
	GONE = 100, /* the backend is none any more */
	RENEW = 101, /* the pod is another one: not its flow */
};

/* Judges a flow again, as what it was when it began. One that is refused keeps
 * its row and its old revision: each packet of it, either way, is judged again.
 * Forgotten, it would come back as the answering pod's own with the next packet
 * that pod repeats. */
once int rejudge(const struct settings *s, struct packet *p, const struct flow_key *key, struct flow *f)
{
	if (!s || !p || !key || !f)
		return REASON_FAILED;
	int remote = !!(f->flags & FLOW_REMOTE_INITIATED);
	struct addr a = key->local; /* then the other's: the stack is short */
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &a);
	struct place at = {};
	__be16 port;
	int why, verdict, sent;

	if (!ep || ep->ifindex != f->ifindex)
		return RENEW;
	if (ep->held)
		return REASON_HELD;
	if (f->flags & FLOW_LOOP)
		goto keep;
	/* The node itself (kubelet's probes) reaches its pods always. */
	if (remote && f->via == VIA_STACK && f->identity == IDENTITY_HOST)
		goto keep;

	a = f->flags & FLOW_SERVICE ? f->backend : key->remote;
	why = locate(s, &a, &at);
	/* A backend that was taken out of its service keeps the open connections it
	 * has for as long as it is there. Everything else begins anew. */
	if (f->flags & FLOW_SERVICE && !still_member(f) &&
	    (key->proto != PROTO_TCP || !(f->flags & FLOW_REPLIED) || why || at.via != f->via ||
	     at.identity == IDENTITY_UNKNOWN_MEMBER))
		return GONE;
	sent = same(&p->src, &key->local);
	/* What once went through a tunnel never becomes traffic of the stack, whoever
	 * has the address by now. The event names who had it. */
	if (f->via == VIA_TUNNEL && (at.via == VIA_STACK || at.flags & IP_FORMER)) {
		p->src_identity = sent ? ep->identity : f->identity;
		p->dst_identity = sent ? f->identity : ep->identity;
		return REASON_FORMER_MEMBER;
	}
	p->src_identity = sent ? ep->identity : at.identity;
	p->dst_identity = sent ? at.identity : ep->identity;
	port = remote ? key->lport : f->flags & FLOW_SERVICE ? f->bport : key->rport;
	verdict = judge(s, p, ep->set, at.identity, DIR_PORT(remote ? INGRESS : EGRESS, port));
	if (verdict)
		return verdict;
	if (why && (!remote || why == REASON_NODE_ADDRESS))
		return why;
	f->identity = at.identity;
	f->rule = p->rule;
	f->node = at.node;
	f->cluster = at.cluster;
	f->via = at.via;
keep:
	f->revision = s->revision;
	return KEEP;
}

/* Drops a packet of the flow f, under the direction whose policy f is asked. */
inline_always int refuse(struct __sk_buff *skb, struct packet *p, const struct flow_key *key, struct flow *f,
			 __u32 reason, __u64 now)
{
	name_service(p, key, f);
	f->seen = now; /* as long as somebody tries */
	return drop(skb, p, reason, f->flags & FLOW_REMOTE_INITIATED ? INGRESS : EGRESS);
}

/* Tells about an allowed new flow, if anybody wants to know. */
inline_always void trace(struct __sk_buff *skb, struct packet *p, const struct settings *s, __u8 via, __u32 dir)
{
	static const __u8 way[] = {0, REASON_TO_STACK, REASON_DELIVERED, REASON_TUNNELLED};

	if (s->trace)
		report(skb, p, EVENT_NEW_FLOW, dir == INGRESS ? REASON_DELIVERED : way[via & 3], dir);
}
