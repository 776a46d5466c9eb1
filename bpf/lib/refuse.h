/* Refusals: telling a pod at once that what it asks for cannot work. */
#pragma once

#include "reset.h"
#include "translate.h"

/* 1 with the agent's option --unreachable=drop: nobody is told anything. */
volatile const __u32 swallow_unreachable;

/* What a pod is told about a packet of its own that was dropped. */
enum answer {
	SILENCE,
	REFUSAL,  /* a TCP reset, or ICMP unreachable for other protocols */
	EXCEEDED, /* ICMP time exceeded, which traceroute waits for */
};

/* A packet is refused if the cause is certain and sending it again would not help.
 * Every reason is listed; the compiler complains about a missing one.
 *
 * A service without backends is refused under default deny too: policy applies to
 * backends, and there is none. In all other cases policy comes first, so a pod that
 * is denied learns nothing about what it may not reach. */
inline_always enum answer answer_to(enum reason reason)
{
	switch (reason) {
	case REASON_NO_BACKEND:    /* no reachable backend, or no such service or port */
	case REASON_NO_ENDPOINT:   /* an address of this node that no pod has */
	case REASON_NO_TUNNEL:     /* a member's address on no known node, or on one whose key is not known yet */
	case REASON_PATH_DOWN:     /* probes found the node dead; the client may have another choice */
	case REASON_FLOW_CLASH:    /* fails while the other flow is open; another source port works */
	case REASON_FORMER_MEMBER: /* its cluster was removed; blocked until an operator says otherwise */
	case REASON_NODE_ADDRESS:  /* no process behind a service listens there */
	case REASON_NOT_SUPPORTED: /* a protocol that is never carried */
		return REFUSAL;
	case REASON_TTL_EXCEEDED:
		return EXCEEDED;

	/* Policy drops silently, as in Cilium: the pod must not learn what is there. */
	case REASON_POLICY_DENIED:
	case REASON_UNKNOWN_MEMBER:
	case REASON_SOURCE_RANGE: /* as in kube-proxy */
	/* Temporary: a retransmission gets through. */
	case REASON_HELD:
	case REASON_NO_POLICY:
	case REASON_NOT_READY:
	case REASON_FAILED:
	case REASON_FLOW_TABLE_FULL:
	case REASON_NO_PORT:
	/* Not the pod's own address, so the answer would be for somebody else. */
	case REASON_SPOOFED_SOURCE:
	/* Malformed, or nobody is waiting for an answer. */
	case REASON_INVALID:
	case REASON_FRAGMENT:
	/* Never the reason for a packet on its way out of a pod. */
	case REASON_PLAINTEXT:
	case REASON_NODE_CLOSED:
	/* Not drops. */
	case REASON_DELIVERED:
	case REASON_TUNNELLED:
	case REASON_TO_STACK:
	case REASON_NOT_OURS:
	case REASON_RESET_SENT:
	case REASON_ENTERED_TUNNEL:
	case REASON_CHANGED_TUNNEL:
	case REASON_EARLY_FRAGMENT:
		break;
	}
	return SILENCE;
}

/* A pod gets ERRORS_AT_ONCE ICMP errors, then one per ERROR_EVERY (ns): enough for
 * a resolver and its retries, too few to mirror a flood. */
#define ERROR_EVERY (10 * 1000 * 1000ULL)
#define ERRORS_AT_ONCE 100

/* By the pod's device: the time (ns) up to which its allowance of one error per
 * ERROR_EVERY is spent. */
struct {
	__uint(type, MAP_LRU_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1024);
} errors_sent SEC(".maps");

inline_always int may_send_error(__u32 pod)
{
	__u64 now = bpf_ktime_get_coarse_ns(), *sent = bpf_map_lookup_elem(&errors_sent, &pod), next = now;

	if (sent && *sent > now)
		next = *sent;
	if (next > now + (ERRORS_AT_ONCE - 1) * ERROR_EVERY)
		return 0;
	next += ERROR_EVERY;
	bpf_map_update_elem(&errors_sent, &pod, &next, ROW_ANY);
	return 1;
}

/* Bytes of a packet that an error quotes. An SCTP client looks for its INIT in them. */
#define QUOTED 128

struct quoted {
	__u8 bytes[QUOTED];
};

ARRAY(quoted, MAP_PERCPU_ARRAY, struct quoted, 1);

/* Turns the pod's packet into an ICMP error about it, sent by `from`. Returns 0 or a
 * reason; the packet may be spoilt then. */
once int turn_into_error(struct __sk_buff *skb, const struct packet *p, __u32 type_code, const struct addr *from)
{
	if (!p || !from)
		return REASON_FAILED;
	struct icmphdr icmp = {.type = type_code >> 8, .code = type_code};
	__u32 zero = 0, proto = p->ipv6 ? PROTO_ICMPV6 : PROTO_ICMP, at = ETH_HLEN + ip_size(p);
	struct quoted *q = bpf_map_lookup_elem(&quoted, &zero);
	long len = ip_len(skb, p), sum;

	if (!q)
		return REASON_FAILED;
	__builtin_memset(q, 0, sizeof(*q));
	if (len > sizeof(*q))
		len = sizeof(*q);
	/* Checked where it is used: the verifier of 6.1 does not know a copy by its original. */
	FORGET(len);
	if (len < sizeof(struct iphdr) + 8 || len > sizeof(*q) || bpf_skb_load_bytes(skb, ETH_HLEN, q->bytes, len))
		return REASON_FAILED;
	/* The field that the error is about: the header's type of what follows. */
	if (p->ipv6 && icmp.type == ICMPV6_PARAMETER)
		icmp.seq = htons(__builtin_offsetof(struct ipv6hdr, next));
	sum = begin_answer(skb, p, from, proto, sizeof(icmp) + len);
	if (sum < 0)
		return REASON_FAILED;
	/* The checksum of ICMP knows no pseudo header. The rest of a short quote is zero and
	 * does not change the sum. */
	sum = bpf_csum_diff(0, 0, &icmp, sizeof(icmp), p->ipv6 ? sum : 0);
	icmp.check = fold(bpf_csum_diff(0, 0, q, sizeof(*q), sum));
	if (bpf_skb_store_bytes(skb, at, &icmp, sizeof(icmp), STORE_FIX_CSUM) ||
	    bpf_skb_store_bytes(skb, at + sizeof(icmp), q->bytes, len, STORE_FIX_CSUM))
		return REASON_FAILED;
	return 0;
}

/* The ICMP error that answers a packet, as type << 8 | code. UDP sockets fail at port
 * unreachable; SCTP heeds only protocol unreachable or, with IPv6, an unknown next header
 * (RFC 9260, section 10); a ping has no port. */
inline_always __u32 unreachable(const struct packet *p, __u32 reason)
{
	int protocol = p->proto == PROTO_SCTP || reason == REASON_NOT_SUPPORTED;

	if (p->ipv6) {
		if (p->proto == PROTO_ICMPV6)
			return ICMPV6_UNREACHABLE << 8 | ICMPV6_ADDRESS_UNREACHABLE;
		if (protocol)
			return ICMPV6_PARAMETER << 8 | ICMPV6_UNKNOWN_NEXT_HEADER;
		return ICMPV6_UNREACHABLE << 8 | ICMPV6_PORT_UNREACHABLE;
	}
	if (p->proto == PROTO_ICMP)
		return ICMP_UNREACHABLE << 8 | ICMP_HOST_UNREACHABLE;
	return ICMP_UNREACHABLE << 8 | (protocol ? ICMP_PROTOCOL_UNREACHABLE : ICMP_PORT_UNREACHABLE);
}

inline_always int multicast(const struct addr *a, int ipv6)
{
	return ipv6 ? ntohl(a->w[0]) >> 24 == 0xff : ntohl(a->w[3]) >> 28 >= 0xe;
}

/* May the pod that sent p be answered at all? */
inline_always int answerable(const struct __sk_buff *skb, const struct packet *p)
{
	struct addr src = p->src;
	struct endpoint *ep;

	if (p->l3 != ETH_HLEN || p->error || p->headless)
		return 0;
	/* What it carries is behind headers that were not followed to their end. */
	if (p->ipv6 && !p->proto)
		return 0;
	/* Never answer an ICMP error; only a request is certainly not one. */
	if (is_icmp(p->proto) && p->asks != ASKS)
		return 0;
	if (p->proto == PROTO_TCP && p->tcp_flags & TCP_RST)
		return 0;
	/* Nor multicast or broadcast. */
	if (multicast(&p->dst, p->ipv6) || skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST)
		return 0;
	ep = bpf_map_lookup_elem(&endpoints, &src);
	return ep && ep->ifindex == skb->ifindex && !ep->held;
}

/* Turns the pod's packet into the answer to it. Returns 0, or a reason if the pod
 * gets no answer. */
inline_always int answer(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	enum answer kind = answer_to(reason);
	const struct settings *s = read_settings();
	struct addr dst;
	int why;

	if (kind == SILENCE || swallow_unreachable || !s || !answerable(skb, p))
		return reason;
	why = sent_to(skb, p, &dst);
	if (why)
		return why;
	why = undo_translate(skb, p, &dst);
	if (why)
		return why;
	if (p->service_port && !p->direct)
		dst = p->service;
	/* IP options would move the checksum, which a device may still have to fill in. */
	if (kind == REFUSAL && p->proto == PROTO_TCP && p->l4 == ETH_HLEN + ip_size(p))
		return turn_into_reset(skb, p);
	if (!may_send_error(skb->ifindex))
		return reason;
	if (kind == REFUSAL)
		return turn_into_error(skb, p, unreachable(p, reason), &dst);
	dst = s->internal[!!p->ipv6];
	return turn_into_error(skb, p, (p->ipv6 ? ICMPV6_TIME_EXCEEDED : ICMP_TIME_EXCEEDED) << 8, &dst);
}

/* The way out for a pod's packet that is dropped. The pod is told if answer_to says so. */
once int turn_away(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	if (!p)
		return ACT_SHOT;
	count(skb, reason, EGRESS);
	if (answer(skb, p, reason)) {
		report(skb, p, EVENT_DROP, reason, EGRESS);
		return ACT_SHOT;
	}
	report(skb, p, EVENT_REFUSED, reason, EGRESS);
	return bpf_redirect_peer(skb->ifindex, 0);
}
