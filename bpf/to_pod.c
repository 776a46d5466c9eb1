//go:build ignore

/* to_pod: what the node's stack sends to a pod, seen on the host side of its veth.
 * These are the node's own packets and those the stack forwards; packets from other
 * pods and from tunnels are redirected into the pod and do not pass here.
 */
#include "lib/deliver.h"

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	const struct settings *s = read_settings();
	struct work *w = begin(0);
	struct packet *p = &w->p;
	struct origin o = {.via = VIA_STACK, .through = 1};
	struct endpoint *ep;
	int why;

	if (!w)
		return leave(skb, REASON_FAILED, INGRESS, ACT_SHOT);
	why = parse_eth(skb, p);
	if (why)
		return leave_unread(skb, p, why, INGRESS);
	if (!s || !s->revision)
		return drop(skb, p, REASON_NOT_READY, INGRESS);
	ep = receiver(w, s);
	if (!ep || ep->ifindex != skb->ifindex)
		return drop(skb, p, REASON_NO_ENDPOINT, INGRESS);
	o.host = !skb->ingress_ifindex;
	/* Members' packets come through tunnels. One that the stack forwards came some
	 * other way. */
	if (!o.host) {
		struct place from;
		resolve(s, &p->src, &from);
		why = in_the_clear(&from);
		if (why)
			return drop(skb, p, why, INGRESS);
	}
	return deliver(skb, w, s, ep, &o);
}
