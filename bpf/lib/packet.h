/* Parsing: from bytes to the fields that all decisions use. */
#pragma once

#include "maps.h"

struct packet {
	struct addr src;
	struct addr dst;
	__be16 sport; /* ICMP: the identifier; 0 for types without one */
	__be16 dport; /* ICMP: the type; for an answer, that of the request */
	__be16 icmp;  /* type, code */
	__u16 l3;     /* offset of the IP header */
	__u16 l4;     /* offset of the transport header */
	__u16 node;   /* where it goes, together with via */
	__u8 proto;
	__u8 tcp_flags;
	__u8 headless; /* a later fragment: there is no transport header */
	__u8 asks;     /* ICMP: enum icmp_sense */
	__u8 error;    /* ICMP: an error about another packet */
	__u8 via;
	__u8 ttl;     /* as it arrived */
	__u32 pod;     /* device of the pod that is charged for the packet: the sender if it is
			* on this node, otherwise the receiver once it is known */

	/* Filled in on the way, for the event. */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule;
	__u32 set;
	__be32 service; /* address the pod used */
	__be16 service_port;
	__u16 pad;

	__u32 seq;    /* TCP, in host order */
	__u32 ack;
} __attribute__((aligned(8)));

/* What a program is working on. It would fill half of the 512 bytes of stack that a
 * chain of calls has. One row per CPU is enough: programs on packets do not interrupt
 * each other, and none runs inside another. */
struct work {
	struct packet p;
	struct flow_key key; /* of p's flow */
	__u32 why;           /* the reason of a decision, see judge.h */
} __attribute__((aligned(8)));

ARRAY(work, MAP_PERCPU_ARRAY, struct work, 1);

inline_always struct work *working(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&work, &zero);
}

/* Starts on a packet that this pod is charged for; 0: not known yet. */
inline_always struct work *begin(__u32 pod)
{
	struct work *w = working();

	if (w)
		w->p = (struct packet){.pod = pod};
	return w;
}

/* The part an ICMP packet plays in its flow. */
enum icmp_sense {
	ANSWERS,
	ASKS,
	TELLS, /* expects no answer: each type is a one-way flow of its own */
};

/* Turns the type of an answer into that of the request. */
inline_always enum icmp_sense sense_of(__u8 *type)
{
	switch (*type) {
	case ICMP_ECHO:
	case ICMP_TIMESTAMP:
	case ICMP_INFO:
	case ICMP_MASK:
	case ICMP_EXT_ECHO:
		return ASKS;
	case ICMP_ECHO_REPLY:
		*type = ICMP_ECHO;
		return ANSWERS;
	case ICMP_TIMESTAMP_REPLY:
	case ICMP_INFO_REPLY:
	case ICMP_MASK_REPLY:
	case ICMP_EXT_ECHO_REPLY:
		*type -= 1;
		return ANSWERS;
	}
	return TELLS;
}

inline_always int is_error(__u8 type)
{
	return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER;
}

inline_always struct addr mapped(__be32 ip)
{
	return (struct addr){.w = {0, 0, htonl(0xffff), ip}};
}

/* The same in place, in words of 64 bits as it is copied: a CPU does not wait for a
 * word that is read as it was written. */
inline_always void set_mapped(struct addr *a, __be32 ip)
{
	__u64 words[2] = {0, (__u64)ip << 32 | htonl(0xffff)};

	__builtin_memcpy(__builtin_assume_aligned(a, 8), words, sizeof(*a));
}

inline_always int same(const struct addr *a, const struct addr *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

inline_always struct fragment_key fragment_key_of(const struct packet *p, __be16 id)
{
	/* Senders number their datagrams, so the next one gets another slot. */
	__u32 slot = (p->dst.w[3] >> 24) + ntohs(id) + p->proto;
	struct fragment_key key = {.pod = p->pod, .slot = slot % FRAGMENT_SLOTS};

	if (!p->pod)
		key.src = p->src;
	return key;
}

/* Stores the first fragment's ports for the fragments that follow. */
once int leave_ports(const struct packet *p, __be16 id)
{
	if (!p)
		return 0;
	struct fragment_key key = fragment_key_of(p, id);
	struct fragment row = {
		.src = p->src, .dst = p->dst, .id = id, .proto = p->proto,
		.sport = p->sport, .dport = p->dport, .asks = p->asks,
	};

	bpf_map_update_elem(&fragments, &key, &row, ROW_ANY);
	return 0;
}

once int find_ports(struct packet *p, __be16 id)
{
	if (!p)
		return REASON_FAILED;
	struct fragment_key key = fragment_key_of(p, id);
	const struct fragment *row = bpf_map_lookup_elem(&fragments, &key);

	/* Without ports there is no flow and no verdict. The sender retransmits. */
	if (!row || row->id != id || row->proto != p->proto || !same(&row->src, &p->src) || !same(&row->dst, &p->dst))
		return REASON_FRAGMENT;
	p->sport = row->sport;
	p->dport = row->dport;
	p->asks = row->asks;
	p->headless = 1;
	return 0;
}

inline_always int parse_transport(struct packet *p, void *l4, void *end)
{
	switch (p->proto) {
	case PROTO_TCP: {
		struct tcphdr *tcp = l4;
		if ((void *)(tcp + 1) > end)
			return REASON_INVALID;
		p->sport = tcp->source;
		p->dport = tcp->dest;
		p->tcp_flags = tcp->flags;
		p->seq = ntohl(tcp->seq);
		p->ack = ntohl(tcp->ack_seq);
		return 0;
	}
	case PROTO_UDP:
	case PROTO_SCTP: {
		__be16 *ports = l4;
		if (l4 + 8 > end)
			return REASON_INVALID;
		p->sport = ports[0];
		p->dport = ports[1];
		return 0;
	}
	case PROTO_ICMP: {
		struct icmphdr *icmp = l4;
		if ((void *)(icmp + 1) > end)
			return REASON_INVALID;
		__u8 type = icmp->type;
		p->icmp = htons(type << 8 | icmp->code);
		if (is_error(type)) {
			p->error = 1;
			return 0;
		}
		/* Redirects would change routes, and anybody can forge the next hop's
		 * address, which no other node has. */
		if (type == ICMP_REDIRECT)
			return REASON_NOT_SUPPORTED;
		p->asks = sense_of(&type);
		p->dport = htons(type);
		if (p->asks != TELLS)
			p->sport = icmp->id;
		return 0;
	}
	}
	return REASON_NOT_SUPPORTED;
}

/* Reads an IPv4 packet whose header starts at l3. Returns 0 or a reason. */
inline_always int parse_ip(struct __sk_buff *skb, struct packet *p, __u32 l3)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	/* Headers are almost always in the linear part. */
	if (unlikely(data + l3 + 40 > end)) {
		__u32 want = l3 + 80, have = end - data;
		if (skb->len > have) {
			bpf_skb_pull_data(skb, skb->len < want ? skb->len : want);
			data = (void *)(long)skb->data;
			end = (void *)(long)skb->data_end;
		}
	}

	struct iphdr *ip = data + l3;
	if ((void *)(ip + 1) > end)
		return REASON_INVALID;
	__u32 hlen = (ip->version_ihl & 0xf) * 4;
	if (ip->version_ihl >> 4 != 4)
		return REASON_NOT_SUPPORTED;
	set_mapped(&p->src, ip->saddr);
	set_mapped(&p->dst, ip->daddr);
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->l3 = l3;
	p->l4 = l3 + hlen;
	if (hlen < sizeof(*ip) || ntohs(ip->tot_len) < hlen)
		return REASON_INVALID;

	__u16 frag = ntohs(ip->frag_off);
	if (unlikely(frag & IP_OFFSET)) {
		/* A fragment that overlaps the TCP header could show the pod other
		 * ports than it showed us. */
		if (p->proto == PROTO_TCP && (frag & IP_OFFSET) * 8 < sizeof(struct tcphdr))
			return REASON_INVALID;
		return find_ports(p, ip->id);
	}
	__be16 id = ip->id;
	int why = parse_transport(p, data + l3 + hlen, end);
	if (why)
		return why;
	if (unlikely(frag & IP_MORE))
		leave_ports(p, id);
	return 0;
}

/* Reads a packet with an Ethernet header. ARP is left to the stack, which answers
 * for the pods' gateway. */
inline_always int parse_eth(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return REASON_INVALID;
	if (likely(eth->proto == htons(ETH_IP)))
		return parse_ip(skb, p, ETH_HLEN);
	return eth->proto == htons(ETH_ARP) ? REASON_NOT_OURS : REASON_NOT_SUPPORTED;
}
