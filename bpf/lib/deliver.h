/* Delivery into a pod, the same wherever the packet comes from. */
#pragma once

#include "icmp.h"
#include "judge.h"

/* Finds the pod of this node that receives the packet. */
inline_always struct endpoint *receiver(struct work *w, const struct settings *s)
{
	w->revision = (s ? s->revision : 0) + address_revision(&w->p.dst); /* before the row: see revision.h */
	return bpf_map_lookup_elem(&endpoints, &w->p.dst);
}

/* Judges a packet for ep that belongs to no flow, and fills in a new one. Returns 0 or a
 * reason. */
once int open_ingress(struct work *w, const struct settings *s, const struct endpoint *ep, const struct origin *o,
		      struct flow *f)
{
	if (!w || !s || !ep || !o || !f)
		return REASON_FAILED;
	struct packet *p = &w->p;
	struct addr a = p->src;
	__u32 revision = w->revision + address_revision(&a); /* before the rows: see revision.h */
	struct place from = {};
	int why = 0;

	/* An answer without a request, or the end of no connection. */
	if (is_icmp(p->proto) && !p->asks)
		return REASON_INVALID;
	if (p->proto == PROTO_TCP && p->tcp_flags & TCP_RST)
		return REASON_INVALID;

	if (o->host) {
		from.identity = IDENTITY_HOST;
	} else if (o->via == VIA_POD) {
		locate(s, &a, &from);
	} else {
		resolve(s, &a, &from);
		/* Only members send through tunnels, and they send nowhere else. */
		if (o->via == VIA_TUNNEL && !from.member)
			return REASON_SPOOFED_SOURCE;
		if (o->via == VIA_STACK) {
			why = in_the_clear(&from);
			if (why)
				return why;
		}
	}
	revision += identity_revision(from.identity);
	p->src_identity = from.identity;
	p->dst_identity = ep->identity;
	if (!o->host)
		why = judge(s, p, ep->set, from.identity, DIR_PORT(INGRESS, p->dport));
	if (why)
		return why;
	*f = (struct flow){
		.seen = bpf_ktime_get_coarse_ns(), .revision = revision,
		.identity = from.identity, .rule = p->rule, .node = from.node, .cluster = from.cluster,
		.via = o->via, .flags = FLOW_REMOTE_INITIATED, .ifindex = ep->ifindex,
		.owner = o->host ? NODE_ITSELF : p->pod,
		.said[INGRESS] = {p->seq, p->ack},
	};
	if (p->proto == PROTO_TCP && p->tcp_flags & TCP_FIN)
		f->flags |= FLOW_FIN_REMOTE;
	return 0;
}

/* The headers that change on delivery, written at once: the last byte of before is an
 * IPv6 packet's hop limit. */
struct head {
	struct ethhdr eth;
	__u8 before[8];
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
} __attribute__((packed, aligned(2)));

/* Sends the packet into the pod. */
part int hand_over(struct __sk_buff *skb, struct packet *p, const struct endpoint *ep,
			    const struct origin *o)
{
	struct head head = {.eth.proto = p->ipv6 ? htons(ETH_IPV6) : htons(ETH_IP)};
	struct head *now;
	__u32 check;

	if (o->through)
		return leave(skb, REASON_DELIVERED, INGRESS, ACT_NEXT);
	__builtin_memcpy(head.eth.dest, ep->mac, 6);
	__builtin_memcpy(head.eth.source, ep->host_mac, 6);
	__u32 ifindex = ep->ifindex;
	if (p->l3 == 0 && bpf_skb_change_head(skb, ETH_HLEN, 0))
		return drop(skb, p, REASON_FAILED, INGRESS);
	now = (struct head *)(long)skb->data;
	if ((void *)(now + 1) > (void *)(long)skb->data_end)
		return drop(skb, p, REASON_FAILED, INGRESS);
	/* The mesh counts as one hop, which ends here. TTL 0 and 1 were dropped before. */
	__builtin_memcpy(&head.before, &now->before, sizeof(head) - sizeof(head.eth));
	if (p->ipv6) {
		head.before[7]--;
	} else {
		head.ttl--;
		check = head.check + htons(0x0100);
		head.check = check + (check >> 16);
	}
	if (bpf_skb_store_bytes(skb, 0, &head, sizeof(head), 0))
		return drop(skb, p, REASON_FAILED, INGRESS);
	return leave(skb, REASON_DELIVERED, INGRESS, bpf_redirect_peer(ifindex, 0));
}

once int deliver_error(struct __sk_buff *skb, struct packet *p, const struct settings *s,
		       const struct endpoint *ep, const struct origin *o)
{
	if (!p || !s || !ep || !o)
		return ACT_SHOT;
	int why = ep->held ? REASON_HELD : error_for_pod(skb, p, s, o);

	return why ? drop(skb, p, why, INGRESS) : hand_over(skb, p, ep, o);
}

/* Finds the flow of a packet for a pod. translated tells whether the packet is an answer in a
 * translated flow. */
inline_always struct flow *find_received(struct work *w, int *translated)
{
	struct flow *f;

	received_key(&w->key, &w->p);
	f = bpf_map_lookup_elem(&flows, &w->key);
	*translated = f && f->flags & FLOW_ANSWERS;
	return *translated ? find_translated(&w->key, f) : f;
}

/* Decides about a packet of the flow f. */
inline_always enum course decide_received(struct work *w, const struct settings *s, const struct origin *o,
					  struct flow *f, __u64 now)
{
	int why;

	if (over(f, &w->p, now))
		return OPEN;
	if (unlikely(!holds_with(w->revision, &w->key, f))) {
		why = rejudge(s, &w->p, &w->key, f);
		if (why == RENEW)
			return OPEN;
		if (why && why != GONE) /* GONE is dealt with at the pod's next packet */
			return refuse(w, f, why, now);
	}
	if (f->via != o->via)
		return because(w, DROP, REASON_SPOOFED_SOURCE);
	return GO;
}

/* Decides about a packet of no flow: it opens one, or is dropped. */
inline_always enum course decide_to_receive(struct work *w, const struct settings *s, const struct endpoint *ep,
					    const struct origin *o, int claimed)
{
	struct flow *f = fresh_flow();
	int why;

	if (!f)
		return because(w, DROP, REASON_FAILED);
	received_key(&w->key, &w->p);
	why = open_ingress(w, s, ep, o, f);
	if (!why)
		why = claimed && clashes(&w->key, f->seen) ? REASON_FLOW_CLASH : store(&w->key, f);
	return why && why != ELSEWHERE ? because(w, DROP, why) : BEGIN;
}

/* Delivers a packet that its flow f lets in. */
inline_always int deliver_flow(struct __sk_buff *skb, struct work *w, const struct settings *s,
			       const struct endpoint *ep, const struct origin *o)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct packet *p = &w->p;
	enum course course;
	struct flow *f;
	int why, translated;

	p->dst_identity = ep->identity;
	if (ep->held)
		return drop(skb, p, REASON_HELD, INGRESS);

	/* Find. */
	f = find_received(w, &translated);

	/* Decide. */
	course = f ? decide_received(w, s, o, f, now) : OPEN;
	if (unlikely(course == OPEN)) {
		if (f)
			forget_worked_on(f);
		course = decide_to_receive(w, s, ep, o, translated);
		translated = 0;
	}

	/* Act. */
	switch (course) {
	case GO:
		advance(f, p, 0, now);
		break;
	case BEGIN:
		trace(skb, p, s, o->via, INGRESS);
		break;
	case REFUSE:
		return drop_refused(skb, p, f, w->why);
	default:
		return drop(skb, p, w->why, INGRESS);
	}
	if (translated) {
		why = untranslate(skb, p, &w->key);
		if (why)
			return drop(skb, p, why, INGRESS);
	}
	return hand_over(skb, p, ep, o);
}

/* Delivers a packet to ep, its receiver, if the pod's policy allows it. */
inline_always int deliver(struct __sk_buff *skb, struct work *w, const struct settings *s,
			  const struct endpoint *ep, const struct origin *o)
{
	w->p.pod = ep->ifindex;
	if (unlikely(w->p.ttl <= 1 && !o->through))
		return drop(skb, &w->p, REASON_TTL_EXCEEDED, INGRESS);
	return unlikely(w->p.error) ? deliver_error(skb, &w->p, s, ep, o) : deliver_flow(skb, w, s, ep, o);
}
