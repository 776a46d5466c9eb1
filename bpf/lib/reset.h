/* Resets: telling a pod that its connection is gone. */
#pragma once

#include "events.h"
#include "flow.h"

inline_always __sum16 fold(__wsum sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The size of an IP header without options or extensions. */
inline_always __u32 ip_size(const struct packet *p)
{
	return p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* Bytes of the packet from its IP header on, as the header says. Negative: unreadable. */
part long ip_len(struct __sk_buff *skb, const struct packet *p)
{
	__be16 len;

	if (bpf_skb_load_bytes(skb, ETH_HLEN + (p->ipv6 ? 4 : 2), &len, sizeof(len)))
		return -1;
	return ntohs(len) + (p->ipv6 ? sizeof(struct ipv6hdr) : 0);
}

/* Reads the address that the packet is sent to; p may already name a service's backend.
 * Returns 0 or a reason. */
part int sent_to(struct __sk_buff *skb, const struct packet *p, struct addr *to)
{
	long err;

	*to = mapped(0);
	if (p->ipv6)
		err = bpf_skb_load_bytes(skb, ETH_HLEN + 24, to, sizeof(*to));
	else
		err = bpf_skb_load_bytes(skb, ETH_HLEN + 16, &to->w[3], sizeof(to->w[3]));
	return err ? REASON_FAILED : 0;
}

/* Replaces the pod's packet by one from `from` to the pod, whose last len bytes, of
 * protocol proto, the caller writes. Returns the sum of the pseudo header, with which
 * their checksum begins, or a negative number; the packet may be spoilt then. */
once long begin_answer(struct __sk_buff *skb, const struct packet *p, const struct addr *from, __u32 proto, __u32 len)
{
	if (!p || !from)
		return -1;
	/* That of IPv6 has the same sum as that of IPv4 if the addresses are mapped ones:
	 * to a checksum, 0xffff is 0. */
	struct {
		struct addr from, to;
		__be32 len, proto;
	} pseudo = {*from, p->src, htonl(len), htonl(proto)};
	struct ethhdr eth;
	__u8 mac[6];
	long err;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) ||
	    bpf_skb_change_tail(skb, ETH_HLEN + ip_size(p) + len, 0))
		return -1;
	__builtin_memcpy(mac, eth.dest, 6);
	__builtin_memcpy(eth.dest, eth.source, 6);
	__builtin_memcpy(eth.source, mac, 6);
	err = bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), STORE_FIX_CSUM);
	if (p->ipv6) {
		struct ipv6hdr ip = {.version_class = 0x60, .payload_len = htons(len), .next = proto, .hop_limit = 64};

		__builtin_memcpy(ip.saddr, from, sizeof(*from));
		__builtin_memcpy(ip.daddr, &p->src, sizeof(p->src));
		err |= bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), STORE_FIX_CSUM);
	} else {
		struct iphdr ip = {
			.version_ihl = 0x45, .tos = proto == PROTO_ICMP ? 0xc0 : 0, .ttl = 64, .protocol = proto,
			.tot_len = htons(sizeof(ip) + len), .saddr = from->w[3], .daddr = p->src.w[3],
		};

		ip.check = fold(bpf_csum_diff(0, 0, &ip, sizeof(ip), 0));
		err |= bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), STORE_FIX_CSUM);
	}
	return err ? -1 : bpf_csum_diff(0, 0, &pseudo, sizeof(pseudo), 0);
}

/* Turns the pod's TCP packet into a reset from its destination. The reset has exactly
 * the sequence number that the pod expects next, so it is accepted without a challenge
 * ACK. Returns 0 or a reason; the packet may be spoilt then. */
once int turn_into_reset(struct __sk_buff *skb, const struct packet *p)
{
	if (!p)
		return REASON_FAILED;
	struct tcphdr in, tcp = {.doff = sizeof(tcp) / 4 << 4};
	struct addr from;
	long len, sum;

	/* IP options would move the checksum, which a device may still have to fill in. */
	if (p->l3 != ETH_HLEN || p->l4 != ETH_HLEN + ip_size(p) || p->headless)
		return REASON_PATH_DOWN;
	len = ip_len(skb, p);
	if (len < 0 || sent_to(skb, p, &from) || bpf_skb_load_bytes(skb, p->l4, &in, sizeof(in)))
		return REASON_FAILED;

	tcp.source = in.dest;
	tcp.dest = in.source;
	if (in.flags & TCP_ACK) {
		tcp.flags = TCP_RST;
		tcp.seq = in.ack_seq;
	} else {
		__u32 taken = len - ip_size(p) - (in.doff >> 4) * 4;
		taken += !!(in.flags & TCP_SYN) + !!(in.flags & TCP_FIN);
		tcp.flags = TCP_RST | TCP_ACK;
		tcp.ack_seq = htonl(ntohl(in.seq) + taken);
	}
	sum = begin_answer(skb, p, &from, PROTO_TCP, sizeof(tcp));
	if (sum < 0)
		return REASON_FAILED;
	tcp.check = fold(bpf_csum_diff(0, 0, &tcp, sizeof(tcp), sum));
	return bpf_skb_store_bytes(skb, ETH_HLEN + ip_size(p), &tcp, sizeof(tcp), STORE_FIX_CSUM) ? REASON_FAILED : 0;
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
