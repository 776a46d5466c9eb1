/* Telling a pod that its connection is gone. */
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

/* Turns the pod's TCP packet round into a reset from whom it was meant for. Its
 * number is the very next the pod expects, so it is taken without a challenge.
 * Returns 0 or why not; the packet is spoilt then. */
once int turn_into_reset(struct __sk_buff *skb, const struct packet *p)
{
	if (!p)
		return REASON_FAILED;
	struct {
		struct ethhdr eth;
		struct iphdr ip;
		struct tcphdr tcp;
	} __attribute__((packed, aligned(2))) r;
	struct {
		__be32 src, dst;
		__be16 proto, len;
	} pseudo;
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp;
	__wsum sum;

	/* Options would shift the checksum that the device was told to fill in. */
	if (p->l3 != ETH_HLEN || p->l4 != ETH_HLEN + sizeof(struct iphdr) || p->headless)
		return REASON_PATH_DOWN;
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) || bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(ip), &tcp, sizeof(tcp)))
		return REASON_FAILED;

	__builtin_memset(&r, 0, sizeof(r));
	__builtin_memcpy(r.eth.dest, eth.source, 6);
	__builtin_memcpy(r.eth.source, eth.dest, 6);
	r.eth.proto = eth.proto;
	r.ip.version_ihl = 0x45;
	r.ip.tot_len = htons(RESET_LEN - ETH_HLEN);
	r.ip.ttl = 64;
	r.ip.protocol = PROTO_TCP;
	r.ip.saddr = ip.daddr;
	r.ip.daddr = ip.saddr;
	r.tcp.source = tcp.dest;
	r.tcp.dest = tcp.source;
	r.tcp.doff = sizeof(tcp) / 4 << 4;
	if (tcp.flags & TCP_ACK) {
		r.tcp.flags = TCP_RST;
		r.tcp.seq = tcp.ack_seq;
	} else {
		__u32 taken = ntohs(ip.tot_len) - sizeof(ip) - (tcp.doff >> 4) * 4;
		taken += !!(tcp.flags & TCP_SYN) + !!(tcp.flags & TCP_FIN);
		r.tcp.flags = TCP_RST | TCP_ACK;
		r.tcp.ack_seq = htonl(ntohl(tcp.seq) + taken);
	}
	pseudo.src = r.ip.saddr;
	pseudo.dst = r.ip.daddr;
	pseudo.proto = htons(PROTO_TCP);
	pseudo.len = htons(sizeof(tcp));
	struct iphdr iph = r.ip;
	struct tcphdr tcph = r.tcp;
	r.ip.check = fold(bpf_csum_diff(0, 0, &iph, sizeof(iph), 0));
	sum = bpf_csum_diff(0, 0, &pseudo, sizeof(pseudo), 0);
	r.tcp.check = fold(bpf_csum_diff(0, 0, &tcph, sizeof(tcph), sum));

	if (bpf_skb_change_tail(skb, RESET_LEN, 0) ||
	    bpf_skb_store_bytes(skb, 0, &r, sizeof(r), STORE_FIX_CSUM))
		return REASON_FAILED;
	return 0;
}

/* Leaves with a reset to the pod instead of its packet. */
inline_always int reset(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	int why = turn_into_reset(skb, p);

	if (why)
		return drop(skb, p, why, EGRESS);
	report(skb, p, EVENT_RESET, reason, EGRESS);
	return leave(skb, REASON_RESET_SENT, EGRESS, bpf_redirect_peer(skb->ifindex, 0));
}
