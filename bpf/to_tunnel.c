//go:build ignore

/* to_tunnel: what goes into a lane. Only this node's own addresses do: the far
 * side believes the source.
 */
#include "lib/events.h"

SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
	const struct settings *s = read_settings();
	struct packet p = {};
	int why = tunnel_l3 ? parse_eth(skb, &p) : parse_ip(skb, &p, 0);

	/* A later fragment of the node's own has ports only its first one told. */
	if (why && why != REASON_FRAGMENT)
		return leave_unread(skb, &p, why, EGRESS);
	if (!s || !s->revision)
		return drop(skb, &p, REASON_NOT_READY, EGRESS);
	if (!same(&p.src, &s->internal) && !bpf_map_lookup_elem(&endpoints, &p.src))
		return drop(skb, &p, REASON_SPOOFED_SOURCE, EGRESS);
	return leave(skb, REASON_ENTERED_LANE, EGRESS, ACT_OK);
}
