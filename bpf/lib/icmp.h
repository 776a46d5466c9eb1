/* ICMP errors belong to the flow of the packet they quote. */
#pragma once

#include "judge.h"

/* The headers of the quoted packet. */
struct quote {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
	__u16 l3;
	__u16 l4;
	__u8 proto;
	__u8 asks;
	__u8 ipv6;
};

/* What an error is about. */
struct about {
	struct quote quote;
	struct flow_key flow;
};

ARRAY(about, MAP_PERCPU_ARRAY, struct about, 1); /* scratch: the stack is short */

inline_always struct about *error_about(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&about, &zero);
}

/* Reads the addresses of a quoted IPv4 packet. Returns the offset of its transport header,
 * or 0. */
inline_always __u32 read_quoted_ipv4(struct __sk_buff *skb, struct quote *q)
{
	struct iphdr ip;
	__u32 hlen;

	if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)))
		return 0;
	hlen = (ip.version_ihl & 0xf) * 4;
	if (ip.version_ihl >> 4 != 4 || hlen < sizeof(ip) || ip.frag_off & htons(IP_OFFSET))
		return 0;
	q->src = mapped(ip.saddr);
	q->dst = mapped(ip.daddr);
	q->proto = ip.protocol;
	return q->l3 + hlen;
}

inline_always __u32 read_quoted_ipv6(struct __sk_buff *skb, struct quote *q)
{
	struct piece frag = {};
	struct ipv6hdr ip;
	int l4;
	__u8 proto;

	if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)) || ip.version_class >> 4 != 6)
		return 0;
	set_ipv6(&q->src, ip.saddr);
	set_ipv6(&q->dst, ip.daddr);
	if (nobodys(&q->src) || nobodys(&q->dst))
		return 0;
	proto = ip.next;
	l4 = skip_extensions(skb, q->l3 + sizeof(ip), &proto, &frag);
	q->proto = proto;
	return l4 < 0 || frag.off ? 0 : l4;
}

once int read_quote(struct __sk_buff *skb, const struct packet *p, struct quote *q)
{
	if (!p || !q)
		return REASON_FAILED;
	__be16 l4[4];
	__u32 off;

	q->l3 = p->l4 + sizeof(struct icmphdr);
	q->ipv6 = p->ipv6;
	off = p->ipv6 ? read_quoted_ipv6(skb, q) : read_quoted_ipv4(skb, q);
	if (!off || bpf_skb_load_bytes(skb, off, l4, sizeof(l4)))
		return REASON_INVALID;
	q->l4 = off;
	q->sport = l4[0];
	q->dport = l4[1];
	if (is_icmp(q->proto)) {
		__u8 type = ntohs(l4[0]) >> 8;

		if (is_error(q->proto, type))
			return REASON_INVALID;
		q->asks = sense_of(q->proto, &type);
		q->sport = q->asks == TELLS ? 0 : l4[2];
		q->dport = htons(type);
	}
	return 0;
}

/* Changes the address and port of one side of the quoted packet. The quoted IPv4
 * header's checksum balances the change of address, so that only the port changes the
 * error's own checksum; IPv6 has no such thing. The quoted transport's checksum, which
 * nobody looks at, is left alone. */
once int restore_quote(struct __sk_buff *skb, const struct quote *q, enum side side, const struct addr *to, __be16 port)
{
	if (!q || !to)
		return REASON_FAILED;
	__u32 check = q->l3 - sizeof(struct icmphdr) + 2;
	int icmp = is_icmp(q->proto);
	__be16 old = side == SOURCE || icmp ? q->sport : q->dport, new = port;
	__u32 at = icmp ? q->l4 + 4 : q->l4 + (side == SOURCE ? 0 : 2);
	struct change by = change_of(side == SOURCE ? &q->src : &q->dst, to, q->ipv6);
	struct addr ip = *to;
	long err;

	if (q->ipv6) {
		err = bpf_l4_csum_replace(skb, check, by.from, by.to, by.size);
		err |= bpf_skb_store_bytes(skb, q->l3 + (side == SOURCE ? 8 : 24), &ip, sizeof(ip), 0);
	} else {
		err = bpf_l3_csum_replace(skb, q->l3 + 10, by.from, by.to, by.size);
		err |= bpf_skb_store_bytes(skb, q->l3 + (side == SOURCE ? 12 : 16), &ip.w[3], sizeof(ip.w[3]), 0);
	}
	if (old != port) {
		err |= bpf_l4_csum_replace(skb, check, old, port, sizeof(port));
		err |= bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0);
	}
	return err ? REASON_FAILED : 0;
}

/* Can the sender of an error have seen a packet of the flow? The error must arrive the
 * way the flow goes and, if through a tunnel, from the flow's cluster. The node itself
 * may report on any flow. */
part int on_path(const struct settings *s, const struct packet *p, const struct flow *f, const struct origin *o)
{
	struct place from = {};

	if (o->host)
		return 1;
	if (f->via != o->via)
		return 0;
	if (o->via != VIA_TUNNEL)
		return 1;
	resolve(s, &p->src, &from);
	return from.cluster == f->cluster;
}

/* Finds the flow that an error for a pod is about. Returns 0 with error_about's flow
 * filled in, or a reason. */
once int flow_of_error(struct __sk_buff *skb, const struct packet *p, const struct settings *s, const struct origin *o)
{
	struct about *about = error_about();
	struct flow *f;
	int why;

	if (!p || !s || !o || !about)
		return REASON_FAILED;
	why = read_quote(skb, p, &about->quote);
	if (why)
		return why;
	if (!same(&about->quote.src, &p->dst))
		return REASON_INVALID;
	about->flow = (struct flow_key){
		.local = about->quote.src, .remote = about->quote.dst,
		.lport = about->quote.sport, .rport = about->quote.dport, .proto = about->quote.proto,
	};
	if (is_icmp(about->quote.proto))
		about->flow.rport = icmp_port(about->quote.dport, about->quote.asks);
	f = bpf_map_lookup_elem(&flows, &about->flow);
	if (f && f->flags & FLOW_ANSWERS)
		f = find_translated(&about->flow, f);
	if (!f)
		return REASON_INVALID;
	return on_path(s, p, f, o) ? 0 : REASON_SPOOFED_SOURCE;
}

/* May an error pass as part of its flow? Policy is asked about the flow, not about
 * errors. Returns 0 or a reason. */
inline_always int judge_error(const struct settings *s, struct packet *p, const struct flow_key *key, struct flow *f)
{
	__be16 type = p->dport;
	__u8 proto = p->proto;
	int why;

	if (likely(holds(s, key, f)))
		return 0;
	p->proto = key->proto;
	p->dport = key->rport & ~htons(ASKED_BY_REMOTE);
	why = rejudge(s, p, key, f);
	p->proto = proto;
	p->dport = type;
	if (why == RENEW)
		return REASON_INVALID;
	return why == GONE ? 0 : why; /* GONE is dealt with at the pod's next packet */
}

/* Translates an error about a translated flow to what the pod sent. Returns 0 or a reason. */
once int restore_error(struct __sk_buff *skb, struct packet *p)
{
	struct about *about = error_about();
	struct addr service;
	int why;

	if (!p || !about)
		return REASON_FAILED;
	if (unlikely(about->quote.sport != about->flow.lport)) {
		service = about->flow.local; /* stays as it is */
		why = restore_quote(skb, &about->quote, SOURCE, &service, about->flow.lport);
		if (why)
			return why;
	}
	if (same(&about->quote.dst, &about->flow.remote))
		return 0;
	service = about->flow.remote;
	why = restore_quote(skb, &about->quote, DESTINATION, &service, about->flow.rport);
	/* An error from the backend itself becomes one from the service. */
	if (!why && same(&p->src, &about->quote.dst))
		why = rewrite(skb, p, SOURCE, &service, 0);
	return why;
}

/* An error for a pod about what it sent. Returns 0 or a reason. */
inline_always int error_for_pod(struct __sk_buff *skb, struct packet *p, const struct settings *s, const struct origin *o)
{
	struct about *about = error_about();
	struct flow *f;
	int why = flow_of_error(skb, p, s, o);

	if (why)
		return why;
	if (!about || !(f = bpf_map_lookup_elem(&flows, &about->flow)) || f->flags & FLOW_ANSWERS)
		return REASON_INVALID; /* deleted in between */
	why = judge_error(s, p, &about->flow, f);
	return why ? why : restore_error(skb, p);
}
