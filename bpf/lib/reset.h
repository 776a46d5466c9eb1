/* Resets: telling a pod that its connection is gone. */
#pragma once

#include "events.h"
#include "flow.h"

#define RESET_LEN (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct tcphdr))

inline_always __sum16 fold(__wsum sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Turns the pod's TCP packet into a reset from its destination. The reset has exactly
 * the sequence number that the pod expects next, so it is accepted without a challenge
 * ACK. Returns 0 or a reason; the packet may be spoilt then. */
once int turn_into_reset(struct __sk_buff *skb, const struct packet *p)
{
	if (!p)
		return REASON_FAILED;
	struct {
		__be32 src, dst;
		__be16 proto, len;
	} pseudo;
	struct ethhdr in_eth, eth;
	struct iphdr in_ip, ip = {.version_ihl = 0x45, .ttl = 64, .protocol = PROTO_TCP};
	struct tcphdr in, tcp = {.doff = sizeof(tcp) / 4 << 4};
	__wsum sum;

	/* IP options would move the checksum, which a device may still have to fill in. */
	if (p->l3 != ETH_HLEN || p->l4 != ETH_HLEN + sizeof(struct iphdr) || p->headless)
		return REASON_PATH_DOWN;
	if (bpf_skb_load_bytes(skb, 0, &in_eth, sizeof(in_eth)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &in_ip, sizeof(in_ip)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(in_ip), &in, sizeof(in)))
		return REASON_FAILED;

	__builtin_memcpy(eth.dest, in_eth.source, 6);
	__builtin_memcpy(eth.source, in_eth.dest, 6);
	eth.proto = in_eth.proto;
	ip.tot_len = htons(RESET_LEN - ETH_HLEN);
	ip.saddr = in_ip.daddr;
	ip.daddr = in_ip.saddr;
	tcp.source = in.dest;
	tcp.dest = in.source;
	if (in.flags & TCP_ACK) {
		tcp.flags = TCP_RST;
		tcp.seq = in.ack_seq;
	} else {
		__u32 taken = ntohs(in_ip.tot_len) - sizeof(in_ip) - (in.doff >> 4) * 4;
		taken += !!(in.flags & TCP_SYN) + !!(in.flags & TCP_FIN);
		tcp.flags = TCP_RST | TCP_ACK;
		tcp.ack_seq = htonl(ntohl(in.seq) + taken);
	}
	pseudo.src = ip.saddr;
	pseudo.dst = ip.daddr;
	pseudo.proto = htons(PROTO_TCP);
	pseudo.len = htons(sizeof(tcp));
	ip.check = fold(bpf_csum_diff(0, 0, &ip, sizeof(ip), 0));
	sum = bpf_csum_diff(0, 0, &pseudo, sizeof(pseudo), 0);
	tcp.check = fold(bpf_csum_diff(0, 0, &tcp, sizeof(tcp), sum));

	if (bpf_skb_change_tail(skb, RESET_LEN, 0) ||
	    bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), STORE_FIX_CSUM) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), STORE_FIX_CSUM) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + sizeof(ip), &tcp, sizeof(tcp), STORE_FIX_CSUM))
		return REASON_FAILED;
	return 0;
}

/* The way out for a packet that is answered with a reset. */
inline_always int reset(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	int why = turn_into_reset(skb, p);

	if (why)
		return drop(skb, p, why, EGRESS);
	report(skb, p, EVENT_RESET, reason, EGRESS);
	return leave(skb, REASON_RESET_SENT, EGRESS, bpf_redirect_peer(skb->ifindex, 0));
}
