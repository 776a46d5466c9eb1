/* Rewriting addresses and ports, with their checksums. */
#pragma once

#include "packet.h"

enum side {
	SOURCE,
	DESTINATION,
};

/* Changes the address and port of one side of the packet. Returns 0 or a reason. */
once int rewrite(struct __sk_buff *skb, struct packet *p, enum side side, const struct addr *to,
			__be16 port)
{
	if (!p || !to)
		return REASON_FAILED;
	struct addr *addr = side == SOURCE ? &p->src : &p->dst;
	__be16 *was = side == SOURCE ? &p->sport : &p->dport;
	__be32 from = addr->w[3], ip = to->w[3];
	__be16 old = *was;
	__u32 l4 = p->l4, l3 = p->l3, check = 0, flags = 0;
	long err = 0;

	if (p->proto == PROTO_TCP) {
		check = l4 + 16;
	} else if (p->proto == PROTO_UDP) {
		check = l4 + 6;
		flags = CSUM_ZERO_IS_NONE;
	} else if (old != port) {
		return REASON_NOT_SUPPORTED; /* SCTP's checksum covers its ports */
	}
	/* Later fragments have neither ports nor a checksum. */
	if (!p->headless && check) {
		err |= bpf_l4_csum_replace(skb, check, from, ip, CSUM_PSEUDO | flags | sizeof(ip));
		if (old != port) {
			__be16 new = port;
			err |= bpf_l4_csum_replace(skb, check, old, port, flags | sizeof(port));
			err |= bpf_skb_store_bytes(skb, l4 + (side == SOURCE ? 0 : 2), &new, sizeof(new), 0);
		}
	}
	err |= bpf_l3_csum_replace(skb, l3 + 10, from, ip, sizeof(ip));
	err |= bpf_skb_store_bytes(skb, l3 + (side == SOURCE ? 12 : 16), &ip, sizeof(ip), 0);
	if (err)
		return REASON_FAILED;
	*addr = *to;
	*was = port;
	return 0;
}
