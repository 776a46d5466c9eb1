//go:build ignore

/* from_tunnel: what comes out of a lane. The tunnel has proved which node sent it; the
 * source address tells which of that node's pods did.
 */
#include "lib/deliver.h"
#include "lib/early.h"
#include "lib/host.h"
#include "lib/leaves.h"

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	const struct settings *s = read_settings();
	struct work *w = begin(0);
	struct packet *p = &w->p;
	struct origin o = {.via = VIA_TUNNEL};
	struct endpoint *ep;
	struct addr dst;
	int why, act;

	if (!w)
		return leave(skb, REASON_FAILED, INGRESS, ACT_SHOT);
	why = parse_lane(skb, p);
	if (unlikely(why == REASON_FRAGMENT)) {
		dst = p->dst;
		ep = receiver(w, s);
		act = NO_ROOM;
		if (ep || (s && (own(s, &p->dst) || is_ingress(s, p->ipv6, &p->dst) || of_machine(s, &dst))))
			act = wait_for_first(skb, p, ep ? RECEIVED_BY(ep->ifindex) : OUTSIDERS, INGRESS, 0);
		if (act != NO_ROOM)
			return act;
	}
	if (why)
		return drop(skb, p, why, INGRESS);
	if (!s || !s->revision)
		return drop(skb, p, REASON_NOT_READY, INGRESS);
	ep = receiver(w, s);
	if (ep)
		return deliver(skb, w, s, ep, &o);
	if (own(s, &p->dst)) {
		why = asked_for(skb, p);
		return why ? drop(skb, p, why, INGRESS) : leave(skb, REASON_TO_STACK, INGRESS, ACT_NEXT);
	}
	if (is_ingress(s, p->ipv6, &p->dst))
		return to_client(skb, s);
	why = reaches_process(s, p);
	return why ? drop(skb, p, why, INGRESS) : leave(skb, REASON_TO_STACK, INGRESS, ACT_NEXT);
}
