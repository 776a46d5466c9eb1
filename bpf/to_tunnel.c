//go:build ignore

/* to_tunnel: what goes into a lane. The source must be an address of this node (its ingress
 * address stands for clients of node ports; with its own outside of the mesh it only answers) or
 * of one of its pods, because the far side trusts it.
 *
 * The kernel's routes know only lane 0. What the node itself sends, above all its
 * answers to probes, is moved here to the lane that its pods use: the other must be
 * idle, or its key could not be changed without loss.
 */
#include "lib/host.h"

/* The device of the lane in use towards a member's node; 0 if not known. */
once __u32 lane_to(const struct settings *s, const struct packet *p)
{
	if (!s || !p)
		return 0;
	struct place at = {};
	struct node *n;
	__u32 node;

	resolve(s, &p->dst, &at);
	node = at.node;
	n = bpf_map_lookup_elem(&nodes, &node);
	if (!node || !n || !n->keyed)
		return 0;
	return n->lane ? s->tunnel_ifindex[1] : s->tunnel_ifindex[0];
}

SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
	const struct settings *s = read_settings();
	struct work *w = begin(0);
	struct packet *p = &w->p;
	int why, mine;

	if (!w)
		return leave(skb, REASON_FAILED, EGRESS, ACT_SHOT);
	why = parse_lane(skb, p);
	/* A later fragment of the node's own: only the first has ports, and it was noted. */
	if (why && why != REASON_FRAGMENT)
		return drop(skb, p, why, EGRESS);
	if (!s || !s->revision)
		return drop(skb, p, REASON_NOT_READY, EGRESS);
	mine = own(s, &p->src);
	if (mine || (!bpf_map_lookup_elem(&endpoints, &p->src) && !is_ingress(s, p->ipv6, &p->src))) {
		__u32 ifindex = lane_to(s, p);

		if (!mine)
			why = process_answers(skb, p, s, why != 0);
		else if (!why)
			why = note_sent(p, s);
		if (why && why != REASON_FRAGMENT)
			return drop(skb, p, why, EGRESS);
		if (ifindex && ifindex != skb->ifindex)
			return leave(skb, REASON_CHANGED_TUNNEL, EGRESS, bpf_redirect(ifindex, 0));
	}
	return leave(skb, REASON_ENTERED_TUNNEL, EGRESS, ACT_NEXT);
}
