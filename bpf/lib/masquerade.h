/* Masquerade: what a pod sends to the world comes from its node's address, because nobody
 * out there knows the way to a pod.
 *
 *	pod → world   ── masquerade ──►     node → world
 *	pod ← world   ◄── unmasquerade ──   node ← world
 *
 * It sits at the node's device, after the pod's policy and the stack's routes and
 * firewall, and before them on the way back: the flow is the pod's own. Connections that
 * the world opens to a pod are not masqueraded, and nothing is towards native prefixes.
 *
 * A port is kept for as long as its flow is: it is free when no row has it or the row's
 * flow is over, and no socket of the node would get the answers. The agent chooses the
 * range outside of those that the node's own connections get.
 */
#pragma once

#include "icmp.h"

/* The last destination for which no port was free. Looking through all of them takes
 * milliseconds, so it is not repeated for every packet. */
struct exhausted {
	struct addr remote;
	__be16 rport;
	__u8 proto;
	__u8 pad[5];
	__u64 until;
};

ARRAY(exhausted, MAP_PERCPU_ARRAY, struct exhausted, 1);

#define EXHAUSTED_NS (100 * 1000 * 1000ULL)

/* A search for a free port. In a row of each CPU, because the stack is short. */
struct search {
	struct flow_key pod;    /* as the pod sends it */
	struct flow_key answer; /* as the world answers; lport is the port tried */
	struct flow_key other;  /* scratch */
	struct masquerade row;  /* scratch */
	__u32 first;            /* of the range */
	__u64 now;
	__u32 count; /* its size */
	__u32 start;
	__u8 ipv6;
	__u8 found;
	__u8 full;
	__u8 pad[5];
};

ARRAY(search, MAP_PERCPU_ARRAY, struct search, 1);

/* What a search works on. */
struct searching {
	struct __sk_buff *skb;
	struct search *t;
};

inline_always const struct masquerading *read_masquerading(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&masquerading, &zero);
}

/* What the world sees of a packet's family; null: the pod's own address. */
inline_always const struct addr *seen_outside(const struct masquerading *m, const struct packet *p)
{
	const struct addr *a;

	if (!m)
		return 0;
	a = p->ipv6 ? &m->addr[1] : &m->addr[0];
	return a->w[0] | a->w[1] | a->w[2] | a->w[3] ? a : 0;
}

inline_always int is_native(const struct addr *a)
{
	struct prefix_key key = {.bits = 128, .addr = *a};

	return bpf_map_lookup_elem(&native, &key) != 0;
}

/* Is the pod's flow with this key still alive? The key is as the packet has it on the
 * way out: through a service, remote is the backend. The key changes. */
part int alive(struct flow_key *key, __u64 now)
{
	struct flow *f = bpf_map_lookup_elem(&flows, key);

	if (f && f->flags & FLOW_ANSWERS)
		f = find_service_flow(key, f);
	return f && (now <= f->seen || now - f->seen <= lifetime(f, key->proto));
}

/* Would a socket of the node get what the world answers? */
inline_always int has_socket(struct __sk_buff *skb, const struct search *t)
{
	const struct flow_key *k = &t->answer;
	__u32 size = t->ipv6 ? sizeof(struct sock_tuple6) : sizeof(struct sock_tuple4);
	struct sock_tuple6 tuple = {};
	void *sock;

	if (t->ipv6) {
		__builtin_memcpy(tuple.saddr, &k->remote, sizeof(tuple.saddr));
		__builtin_memcpy(tuple.daddr, &k->local, sizeof(tuple.daddr));
		tuple.sport = k->rport;
		tuple.dport = k->lport;
	} else {
		struct sock_tuple4 *v4 = (void *)&tuple;

		v4->saddr = k->remote.w[3];
		v4->daddr = k->local.w[3];
		v4->sport = k->rport;
		v4->dport = k->lport;
	}
	if (k->proto == PROTO_TCP)
		sock = bpf_skc_lookup_tcp(skb, &tuple, size, THIS_NETNS, 0);
	else if (k->proto == PROTO_UDP)
		sock = bpf_sk_lookup_udp(skb, &tuple, size, THIS_NETNS, 0);
	else
		return 0;
	if (!sock)
		return 0;
	bpf_sk_release(sock);
	return 1;
}

/* Tries the pod's own port first, then the range from a random place on. */
static long try_port(__u32 i, struct searching *s)
{
	struct search *t = s->t;
	struct masquerade *old;
	__u32 port;
	long err;

	if (i) {
		port = t->start + i;
		port = t->first + port % t->count;
	} else {
		port = ntohs(t->pod.lport);
		if (t->pod.proto != PROTO_SCTP && !is_icmp(t->pod.proto) && port - t->first >= t->count)
			return 0;
	}
	t->answer.lport = htons(port);
	old = bpf_map_lookup_elem(&masquerades, &t->answer);
	if (old) {
		t->row = *old;
		t->other = t->answer;
		t->other.local = t->row.addr;
		t->other.lport = t->row.port;
		if (alive(&t->other, t->now))
			return 0;
		t->other = t->answer;
		t->other.local = t->row.addr;
		t->other.lport = t->row.port;
		bpf_map_delete_elem(&masquerades, &t->other);
		bpf_map_delete_elem(&masquerades, &t->answer);
	}
	if (has_socket(s->skb, t))
		return 0;
	t->row = (struct masquerade){.addr = t->pod.local, .port = t->pod.lport, .answer = 1};
	err = bpf_map_update_elem(&masquerades, &t->answer, &t->row, ROW_NEW);
	if (err == -EXISTS)
		return 0;
	t->found = !err;
	t->full = !!err;
	return 1;
}

/* Gives a flow a port of the node at mine. Returns 0 with *port filled in, or a reason. */
part int open_masquerade(struct __sk_buff *skb, const struct masquerading *m, const struct flow_key *pod,
			 const struct addr *mine, __be16 *port)
{
	__u32 zero = 0;
	struct search *t = bpf_map_lookup_elem(&search, &zero);
	struct exhausted *e = bpf_map_lookup_elem(&exhausted, &zero);
	struct searching s = {.skb = skb, .t = t};

	if (!t || !e)
		return REASON_FAILED;
	*t = (struct search){
		.pod = *pod, .answer = *pod, .now = bpf_ktime_get_coarse_ns(), .first = m->first,
		.ipv6 = mine->w[0] | mine->w[1] ? 1 : 0,
	};
	t->answer.local = *mine;
	/* SCTP's checksum covers its ports, so they cannot be changed. */
	if (pod->proto != PROTO_SCTP && m->last >= m->first)
		t->count = m->last - m->first + 1;
	if (t->now < e->until && e->rport == pod->rport && e->proto == pod->proto && same(&e->remote, &pod->remote))
		return REASON_NO_PORT;
	if (t->count)
		t->start = bpf_get_prandom_u32() % t->count;
	bpf_loop(t->count + 1, try_port, &s, 0);
	if (t->full)
		return REASON_FLOW_TABLE_FULL;
	if (!t->found) {
		*e = (struct exhausted){
			.remote = pod->remote, .rport = pod->rport, .proto = pod->proto, .until = t->now + EXHAUSTED_NS,
		};
		return REASON_NO_PORT;
	}
	t->row = (struct masquerade){.addr = *mine, .port = t->answer.lport};
	if (bpf_map_update_elem(&masquerades, &t->pod, &t->row, ROW_ANY)) {
		bpf_map_delete_elem(&masquerades, &t->answer);
		return REASON_FLOW_TABLE_FULL;
	}
	*port = t->answer.lport;
	return 0;
}

/* A pod's error about what the world sent it: the quote is of the node's packet. */
once int masquerade_error(struct __sk_buff *skb, struct packet *p)
{
	struct about *about = error_about();
	struct addr mine;
	struct masquerade *row;
	struct quote *q;
	int why;

	if (!p || !about)
		return REASON_FAILED;
	q = &about->quote;
	why = read_quote(skb, p, q);
	if (why)
		return why;
	about->flow = (struct flow_key){
		.local = q->dst, .remote = q->src, .lport = q->dport, .rport = q->sport, .proto = q->proto,
	};
	if (is_icmp(q->proto)) {
		about->flow.lport = q->sport;
		about->flow.rport = icmp_port(q->dport, !q->asks);
	}
	row = bpf_map_lookup_elem(&masquerades, &about->flow);
	if (!row || row->answer)
		return 0; /* of a connection that is not masqueraded */
	mine = row->addr;
	why = restore_quote(skb, q, DESTINATION, &mine, row->port);
	return why ? why : rewrite(skb, p, SOURCE, &mine, 0);
}

/* Lets what a pod of this node sends to the world come from the node, if it has to.
 * Returns 0 or a reason. */
once int masquerade(struct __sk_buff *skb, struct packet *p)
{
	const struct masquerading *m = read_masquerading();
	const struct addr *outside;
	struct masquerade *row;
	struct flow_key key;
	struct addr mine;
	__be16 port = 0;
	struct flow *f;
	int why;

	if (!p)
		return REASON_FAILED;
	outside = seen_outside(m, p);
	if (!m || !outside)
		return 0;
	if (p->error)
		return masquerade_error(skb, p);
	mine = *outside;
	sent_key(&key, p);
	row = bpf_map_lookup_elem(&masquerades, &key);
	/* The node's address may have changed. */
	if (row && !row->answer && same(&row->addr, &mine))
		return rewrite(skb, p, SOURCE, &mine, row->port);
	if (is_native(&p->dst))
		return 0;
	f = bpf_map_lookup_elem(&flows, &key);
	if (f && f->flags & FLOW_REMOTE_INITIATED)
		return 0;
	/* Nobody answers it. */
	if (is_icmp(p->proto) && p->asks == TELLS)
		return rewrite(skb, p, SOURCE, &mine, p->sport);
	why = open_masquerade(skb, m, &key, &mine, &port);
	return why ? why : rewrite(skb, p, SOURCE, &mine, port);
}

/* An error about what a pod sent to the world. Returns 0 or a reason. */
once int unmasquerade_error(struct __sk_buff *skb, struct packet *p)
{
	struct about *about = error_about();
	struct masquerade *row;
	struct addr pod;
	struct quote *q;
	int why;

	if (!p || !about)
		return REASON_FAILED;
	q = &about->quote;
	if (read_quote(skb, p, q))
		return 0; /* the node will know */
	about->flow = (struct flow_key){
		.local = q->src, .remote = q->dst, .lport = q->sport, .rport = q->dport, .proto = q->proto,
	};
	if (is_icmp(q->proto))
		about->flow.rport = icmp_port(q->dport, q->asks);
	row = bpf_map_lookup_elem(&masquerades, &about->flow);
	if (!row || !row->answer)
		return 0;
	pod = row->addr;
	why = restore_quote(skb, q, SOURCE, &pod, row->port);
	return why ? why : rewrite(skb, p, DESTINATION, &pod, 0);
}

/* Turns what the world answers to the node into an answer to the pod that asked; leaves
 * anything else alone. Returns 0 or a reason. */
once int unmasquerade(struct __sk_buff *skb, struct packet *p)
{
	const struct masquerading *m = read_masquerading();
	const struct addr *outside;
	struct masquerade *row;
	struct flow_key key;
	struct addr pod;

	if (!p)
		return REASON_FAILED;
	outside = seen_outside(m, p);
	if (!outside || !same(&p->dst, outside))
		return 0;
	if (p->error)
		return unmasquerade_error(skb, p);
	received_key(&key, p);
	row = bpf_map_lookup_elem(&masquerades, &key);
	if (!row || !row->answer)
		return 0;
	pod = row->addr;
	return rewrite(skb, p, DESTINATION, &pod, row->port);
}
