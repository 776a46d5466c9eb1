//go:build ignore

/* from_device, to_device: the guard towards the outside. Members' packets never pass
 * here unencrypted; the world reaches pods and services only as the pods' policy allows, and
 * sees the node's address instead of theirs.
 */
#include "lib/early.h"
#include "lib/leaves.h"

/* CIDRs decide, not single addresses: the guard must not depend on which addresses
 * are known. */
inline_always __u8 cidr_flags(const struct addr *a)
{
	struct prefix_key key = {.bits = 128, .addr = *a};
	struct ip_info *ip = bpf_map_lookup_elem(&prefixes, &key);

	return ip ? ip->flags : 0;
}

/* Is it another node's own address? */
inline_always int of_node(const struct addr *a)
{
	struct addr key = *a;
	struct ip_info *ip = bpf_map_lookup_elem(&ips, &key);

	return ip && ip->flags & IP_NODE;
}

/* Why a member's packet outside of the tunnels is dropped. */
inline_always int outside(__u8 flags)
{
	return flags & IP_FORMER ? REASON_FORMER_MEMBER : REASON_PLAINTEXT;
}

/* Deals with a packet for no pod, which w has: is it for a node port? Returns an action,
 * TO_NODE, TO_POD or BEGINS. */
inline_always int knock(struct __sk_buff *skb, struct work *w, const struct settings *s)
{
	struct packet *p = &w->p;
	struct service *svc;
	int act;

	if (!s || !s->revision)
		return TO_NODE;
	if (unlikely(p->error && is_ingress(s, p->ipv6, &p->src)))
		return send_error_inside(skb, s);
	svc = exposed(skb, p);
	if (!svc)
		return TO_NODE;
	act = enter(skb, s, svc);
	return act == OPENS ? begin_inside(skb, s, svc) : act;
}

/* Has a fragment wait if it may be for a pod: by its address, or as an answer that the world
 * gives the node. */
inline_always int wait_outside(struct __sk_buff *skb, struct work *w, const struct settings *s)
{
	struct endpoint *ep = receiver(w, s);
	const struct addr *node = seen_outside(read_masquerading(), &w->p);

	if (ep)
		return wait_for_first(skb, &w->p, RECEIVED_BY(ep->ifindex), INGRESS, 0);
	return node && same(&w->p.dst, node) ? wait_for_first(skb, &w->p, OUTSIDERS, INGRESS, 1) : NO_ROOM;
}

SEC("tc")
int from_device(struct __sk_buff *skb)
{
	const struct settings *s = read_settings();
	struct work *w = begin(0);
	struct packet *p = &w->p;
	struct origin o = {.via = VIA_STACK};
	struct endpoint *ep;
	__u8 src, dst;
	int why, act = TO_NODE;

	if (!w)
		return leave(skb, REASON_FAILED, INGRESS, ACT_SHOT);
	why = parse_eth(skb, p);
	/* Packets without IP addresses are left to the node. */
	if (why && !p->l3)
		return leave(skb, REASON_NOT_OURS, INGRESS, ACT_NEXT);
	src = cidr_flags(&p->src);
	if (src & IP_MEMBER)
		return drop(skb, p, outside(src), INGRESS);
	if (unlikely(why == REASON_FRAGMENT)) {
		act = wait_outside(skb, w, s);
		if (act != NO_ROOM)
			return act;
		act = TO_NODE;
	}
	if (!why) {
		why = unmasquerade(skb, p);
		if (why)
			return drop(skb, p, why, INGRESS);
	}
	ep = receiver(w, s);
	if (!ep && !why) {
		act = knock(skb, w, s);
		if (act == TO_POD || act == BEGINS)
			ep = receiver(w, s);
		else if (act != TO_NODE)
			return act;
	}
	if (!ep) {
		dst = cidr_flags(&p->dst);
		if (dst & IP_MEMBER)
			return drop(skb, p, dst & IP_LOCAL ? REASON_NO_ENDPOINT : outside(dst), INGRESS);
		return leave(skb, REASON_NOT_OURS, INGRESS, ACT_NEXT);
	}
	if (why)
		return leave_unread(skb, p, why, INGRESS);
	if (!s || !s->revision)
		return drop(skb, p, REASON_NOT_READY, INGRESS);
	why = deliver(skb, w, s, ep, &o);
	if (unlikely(act == BEGINS && why == ACT_SHOT))
		withdraw(); /* no flow, no rows */
	return why;
}

SEC("tc")
int to_device(struct __sk_buff *skb)
{
	struct work *w = begin(0);
	struct packet *p = &w->p;
	struct endpoint *ep;
	int why;
	__u8 src, dst;

	if (!w)
		return leave(skb, REASON_FAILED, EGRESS, ACT_SHOT);
	why = parse_eth(skb, p);
	if (why && !p->l3)
		return leave(skb, REASON_NOT_OURS, EGRESS, ACT_NEXT);
	dst = cidr_flags(&p->dst);
	if (dst & IP_MEMBER)
		return drop(skb, p, outside(dst), EGRESS);
	/* This node's pods may talk to the world; other nodes' pods may not do so
	 * through us. */
	src = cidr_flags(&p->src);
	if (!(src & IP_MEMBER)) {
		if (!why)
			take_identifier(p);
		return leave(skb, REASON_NOT_OURS, EGRESS, ACT_NEXT);
	}
	if (!(src & IP_LOCAL)) {
		/* Unless they answer a client of a node port. */
		if (!why && !of_node(&p->dst)) {
			why = leaves(skb, p);
			if (why)
				return drop(skb, p, why, EGRESS);
			if (!(cidr_flags(&p->src) & IP_MEMBER))
				return leave(skb, REASON_NOT_OURS, EGRESS, ACT_NEXT);
		}
		return drop(skb, p, outside(src), EGRESS);
	}
	/* Not to nodes or services either; from_pod drops that first. */
	if (dst & IP_SERVICE)
		return drop(skb, p, REASON_NO_BACKEND, EGRESS);
	if (of_node(&p->dst))
		return drop(skb, p, REASON_NODE_ADDRESS, EGRESS);
	ep = bpf_map_lookup_elem(&endpoints, &p->src);
	if (!ep) /* the node's own internal address */
		return leave(skb, REASON_NOT_OURS, EGRESS, ACT_NEXT);
	p->pod = ep->ifindex;
	p->src_identity = ep->identity;
	if (!why)
		why = masquerade(skb, p, ep);
	else if (why == REASON_NOT_OURS) /* what keeps a link, and this is not the pod's */
		why = REASON_NOT_SUPPORTED;
	if (why)
		return drop(skb, p, why, EGRESS);
	return leave(skb, REASON_NOT_OURS, EGRESS, ACT_NEXT);
}
