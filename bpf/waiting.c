//go:build ignore

/* from_waiting, to_waiting: at the far end of the waiting room, see lib/early.h. What has
 * waited goes back to the device that received it; nothing else has any business here.
 */
#include "lib/early.h"

SEC("tc")
int from_waiting(struct __sk_buff *skb)
{
	if ((skb->mark & EARLY_BITS) != EARLY)
		return leave(skb, REASON_NOT_OURS, INGRESS, ACT_SHOT);
	return bpf_redirect(skb->mark & DEVICE_BITS, REDIRECT_INGRESS);
}

SEC("tc")
int to_waiting(struct __sk_buff *skb)
{
	return leave(skb, REASON_NOT_OURS, EGRESS, ACT_SHOT);
}
