/* Parsing: from bytes to the fields that all decisions use. */
#pragma once

#include "maps.h"

struct packet {
	struct addr src;
	struct addr dst;
	__be16 sport; /* ICMP of either family: the identifier; 0 for types without one */
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
	__u8 ttl;     /* as it arrived; of IPv6, the hop limit */
	__u8 ipv6;
	__u32 pod;     /* device of the pod that is charged for the packet: the sender if it is
			* on this node, otherwise the receiver once it is known */

	/* Filled in on the way, for the event. */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule;
	__u32 set;
	struct addr service; /* the pod used; only with a port */
	__be16 service_port;
	__be16 own_port; /* the pod's, if sport is no longer that */
	__u8 direct;     /* the pod's socket speaks to the service's backend itself */
	__u8 pad[7];

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
	__u32 revision;      /* of the settings and the pod that receives p, see receiver */
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

/* Headers between IPv6 and its transport, and bytes before that. Honest traffic has one
 * or two, and less than a hundred. */
#define MAX_EXTENSIONS 6
#define MAX_HEADERS 1024

/* The part an ICMP packet plays in its flow. */
enum icmp_sense {
	ANSWERS,
	ASKS,
	TELLS, /* expects no answer: each type is a one-way flow of its own */
};

inline_always int is_icmp(__u8 proto)
{
	return proto == PROTO_ICMP || proto == PROTO_ICMPV6;
}

/* The type of an echo request, as in a packet's dport. */
inline_always __be16 echo_of(__u8 proto)
{
	return proto == PROTO_ICMP ? htons(ICMP_ECHO) : htons(ICMPV6_ECHO);
}

/* Turns the type of an answer into that of the request. */
inline_always enum icmp_sense sense_of(__u8 proto, __u8 *type)
{
	if (proto == PROTO_ICMPV6) {
		if (*type == ICMPV6_ECHO)
			return ASKS;
		if (*type != ICMPV6_ECHO_REPLY)
			return TELLS;
		*type = ICMPV6_ECHO;
		return ANSWERS;
	}
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

inline_always int is_error(__u8 proto, __u8 type)
{
	if (proto == PROTO_ICMPV6)
		return type < ICMPV6_ECHO;
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

/* The same for IPv6, whose words are in network order too. */
inline_always void set_ipv6(struct addr *a, const __u64 ip[2])
{
	__u64 words[2] = {ip[0], ip[1]};

	__builtin_memcpy(__builtin_assume_aligned(a, 8), words, sizeof(*a));
}

/* Is it in ::/64, where no host is? In a map, an address there would be an IPv4 address,
 * or none. */
inline_always int nobodys(const struct addr *a)
{
	return !(a->w[0] | a->w[1]);
}

/* Is it in fe80::/10 or ff02::/16? No router forwards to it. */
inline_always int on_link(const struct addr *a)
{
	__u32 top = ntohl(a->w[0]);

	return top >> 22 == 0xfe80 >> 6 || top >> 16 == 0xff02;
}

inline_always int same(const struct addr *a, const struct addr *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

/* The fragment that a packet is. */
struct piece {
	__be32 id;
	__u16 off; /* in bytes */
	__u16 more;
};

inline_always struct fragment_key fragment_key_of(const struct packet *p, __be32 id)
{
	/* Senders number their datagrams, so the next one gets another slot. */
	__u32 slot = (p->dst.w[3] >> 24) + ntohl(id) + p->proto;
	struct fragment_key key = {.pod = p->pod, .slot = slot % FRAGMENT_SLOTS};

	if (!p->pod)
		key.src = p->src;
	return key;
}

/* Stores the first fragment's ports for the fragments that follow. */
once int leave_ports(const struct packet *p, __be32 id)
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

/* The mark of a fragment that waits for the first of its datagram, see early.h. */
#define EARLY (0x57u << 25) /* the mark's upper seven bits */
#define EARLY_BITS (0x7fu << 25)
#define WAITS_SHIFT 20 /* how often it has waited, five bits; below them is its device */
#define WAITS_MAX 31u
#define DEVICE_BITS ((1u << WAITS_SHIFT) - 1)

inline_always int is_early(const struct __sk_buff *skb)
{
	return (skb->mark & (EARLY_BITS | DEVICE_BITS)) == (EARLY | skb->ifindex);
}

once int find_ports(struct packet *p, __be32 id)
{
	if (!p)
		return REASON_FAILED;
	struct fragment_key key = fragment_key_of(p, id);
	const struct fragment *row = bpf_map_lookup_elem(&fragments, &key);

	/* Without ports there is no flow and no verdict: see early.h. */
	if (!row || row->id != id || row->proto != p->proto || !same(&row->src, &p->src) || !same(&row->dst, &p->dst))
		return REASON_FRAGMENT;
	p->sport = row->sport;
	p->dport = row->dport;
	p->asks = row->asks;
	p->headless = 1;
	return 0;
}

/* Does a link need this ICMPv6 before anybody can talk? It is the stack's, as ARP is, but
 * only where it cannot travel further, and only if the sender may say it: a pod is no
 * router, and a router is believed about routes. */
inline_always int keeps_link(const struct packet *p, __u8 type)
{
	switch (type) {
	case ICMPV6_LISTENER_QUERY:
	case ICMPV6_ROUTER_ADVERTISEMENT:
		return !p->pod && on_link(&p->dst);
	case ICMPV6_LISTENER_REPORT:
	case ICMPV6_LISTENER_DONE:
	case ICMPV6_LISTENER_REPORT_V2:
	case ICMPV6_ROUTER_SOLICITATION:
	case ICMPV6_NEIGHBOUR_SOLICITATION:
	case ICMPV6_NEIGHBOUR_ADVERTISEMENT:
		return on_link(&p->dst);
	}
	return 0;
}

inline_always int parse_icmp(struct packet *p, struct icmphdr *icmp)
{
	__u8 type = icmp->type;

	p->icmp = htons(type << 8 | icmp->code);
	if (is_error(p->proto, type)) {
		p->error = 1;
		return 0;
	}
	/* Redirects would change routes, and anybody can forge the next hop's address,
	 * which no other node has. */
	if (type == (p->proto == PROTO_ICMP ? ICMP_REDIRECT : ICMPV6_REDIRECT))
		return REASON_NOT_SUPPORTED;
	if (p->proto == PROTO_ICMPV6 && type > ICMPV6_ECHO_REPLY)
		return keeps_link(p, type) ? REASON_NOT_OURS : REASON_NOT_SUPPORTED;
	p->asks = sense_of(p->proto, &type);
	p->dport = htons(type);
	if (p->asks != TELLS)
		p->sport = icmp->id;
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
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		if ((p->proto == PROTO_ICMPV6) != p->ipv6)
			return REASON_NOT_SUPPORTED;
		if (l4 + sizeof(struct icmphdr) > end)
			return REASON_INVALID;
		return parse_icmp(p, l4);
	}
	return REASON_NOT_SUPPORTED;
}

/* Walks over the extension headers between an IPv6 header and what it carries, and notes
 * in frag what the fragment's header says. proto is the first header's number on entry
 * and that of the transport on return, with its offset as the result; negative: a
 * reason. A routing header on its way would make the packet's destination another one. */
once int skip_extensions(struct __sk_buff *skb, __u32 off, __u8 *proto, struct piece *frag)
{
	union {
		struct ipv6ext ext;
		struct ipv6frag frag;
	} h;

	if (!proto || !frag)
		return -REASON_FAILED;
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		switch (*proto) {
		case PROTO_HOP_BY_HOP:
		case PROTO_OPTIONS:
		case PROTO_ROUTING:
		case PROTO_FRAGMENT:
			break;
		default:
			return off;
		}
		if (bpf_skb_load_bytes(skb, off, &h, sizeof(h)))
			return -REASON_INVALID;
		if (*proto == PROTO_FRAGMENT) {
			frag->id = h.frag.id;
			frag->off = ntohs(h.frag.off) & IPV6_OFFSET;
			frag->more = ntohs(h.frag.off) & IPV6_MORE;
			off += sizeof(h.frag);
			*proto = h.frag.next;
			if (frag->off)
				return off;
			continue;
		}
		if (*proto == PROTO_ROUTING && h.ext.left)
			return -REASON_NOT_SUPPORTED;
		*proto = h.ext.next;
		off += (h.ext.len + 1) * 8;
	}
	return -REASON_NOT_SUPPORTED;
}

/* Reads an IPv4 header. Returns 0 with l4 and frag filled in, or a reason. */
inline_always int parse_ipv4(struct packet *p, const struct iphdr *ip, struct piece *frag)
{
	__u32 hlen = (ip->version_ihl & 0xf) * 4;
	__u16 off = ntohs(ip->frag_off);

	set_mapped(&p->src, ip->saddr);
	set_mapped(&p->dst, ip->daddr);
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->l4 = p->l3 + hlen;
	if (hlen < sizeof(*ip) || ntohs(ip->tot_len) < hlen)
		return REASON_INVALID;
	frag->id = htonl(ntohs(ip->id));
	frag->off = (off & IP_OFFSET) * 8;
	frag->more = off & IP_MORE;
	return 0;
}

/* Reads an IPv6 header and its extensions, likewise. */
inline_always int parse_ipv6(struct __sk_buff *skb, struct packet *p, const struct ipv6hdr *ip, struct piece *frag)
{
	int l4 = p->l3 + sizeof(*ip);
	__u8 proto = ip->next;

	p->ipv6 = 1;
	set_ipv6(&p->src, ip->saddr);
	set_ipv6(&p->dst, ip->daddr);
	p->ttl = ip->hop_limit;
	if (unlikely(proto != PROTO_TCP && proto != PROTO_UDP)) {
		l4 = skip_extensions(skb, l4, &proto, frag);
		if (l4 < 0)
			return -l4;
	}
	p->proto = proto;
	p->l4 = l4;
	/* Whoever has no address yet talks to its link alone. */
	if (unlikely(nobodys(&p->dst) || (nobodys(&p->src) && !on_link(&p->dst))))
		return REASON_INVALID;
	return 0;
}

/* Reads a packet whose IP header starts at l3. Returns 0 or a reason. */
inline_always int parse_ip(struct __sk_buff *skb, struct packet *p, __u32 l3)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct piece frag = {};
	struct iphdr *ip;
	__u32 l4;
	int why;

	/* Headers are almost always in the linear part. */
	if (unlikely(data + l3 + 60 > end)) {
		__u32 want = l3 + 120, have = end - data;
		if (skb->len > have) {
			bpf_skb_pull_data(skb, skb->len < want ? skb->len : want);
			data = (void *)(long)skb->data;
			end = (void *)(long)skb->data_end;
		}
	}

	ip = data + l3;
	if ((void *)(ip + 1) > end)
		return REASON_INVALID;
	if (likely(ip->version_ihl >> 4 == 4)) {
		p->l3 = l3;
		why = parse_ipv4(p, ip, &frag);
	} else {
		if (ip->version_ihl >> 4 != 6)
			return REASON_NOT_SUPPORTED;
		if (data + l3 + sizeof(struct ipv6hdr) > end)
			return REASON_INVALID;
		p->l3 = l3;
		why = parse_ipv6(skb, p, data + l3, &frag);
	}
	if (why)
		return why;
	if (unlikely(frag.off)) {
		/* A fragment that overlaps the TCP header could show the pod other
		 * ports than it showed us. */
		if (p->proto == PROTO_TCP && frag.off < sizeof(struct tcphdr))
			return REASON_INVALID;
		why = find_ports(p, frag.id);
		if (!why && is_early(skb))
			skb->mark = 0;
		return why;
	}
	l4 = p->l4;
	FORGET(l4);
	if (l4 > MAX_HEADERS)
		return REASON_NOT_SUPPORTED;
	why = parse_transport(p, data + l4, end);
	if (why)
		return why;
	if (unlikely(frag.more))
		leave_ports(p, frag.id);
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
	if (likely(eth->proto == htons(ETH_IP) || eth->proto == htons(ETH_IPV6)))
		return parse_ip(skb, p, ETH_HLEN);
	return eth->proto == htons(ETH_ARP) ? REASON_NOT_OURS : REASON_NOT_SUPPORTED;
}

/* Reads a packet on a lane. Nobody keeps a link there: what is not for pods or the node by
 * its address is nobody's. */
inline_always int parse_lane(struct __sk_buff *skb, struct packet *p)
{
	int why = tunnel_l3 ? parse_eth(skb, p) : parse_ip(skb, p, 0);

	return why == REASON_NOT_OURS ? REASON_NOT_SUPPORTED : why;
}
