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
 * A port belongs to a flow for as long as that lives. Ports are drawn at random from a
 * range that the agent chooses, beside the one from which the node's own connections get
 * theirs. Each pod has a few to itself, so that no other can leave it without one.
 *
 * A row of what the pod sends is deleted before the row of its answers, and whoever
 * deleted it may delete that one: two CPUs cannot both take the port.
 */
#pragma once

#include "icmp.h"
#include "ports.h"

/* Of the range, one port in OWN_SHARE belongs to one pod alone. Pods with the same
 * remainder of their number share theirs. */
#define OWN_SHARE 4
#define OWN_PARTS 256

/* What a search for a masquerade works on. */
struct masking {
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

/* Is the connection of a pair of rows still alive, under the key of what a pod sends? That is
 * as the packet has it on the way out: through a service, remote is the backend. The key
 * changes. */
part int in_use(struct flow_key *key, __u8 kind, __u64 now)
{
	struct flow *f = kind == OF_CLIENT ? 0 : bpf_map_lookup_elem(&flows, key);
	struct masquerade *row;
	struct addr local;
	__be16 lport;

	if (f && f->flags & FLOW_ANSWERS)
		f = kind == OF_POD ? find_translated(key, f) : 0;
	if (!f && kind != OF_POD) {
		if (kind == EXPOSED) { /* a backend elsewhere: what the client sends tells */
			local = key->local;
			lport = key->lport;
			key->local = key->remote;
			key->lport = key->rport;
			key->remote = local;
			key->rport = lport;
		}
		row = bpf_map_lookup_elem(&masquerades, key);
		if (!row || row->answer || row->kind != OF_CLIENT)
			return 0;
		key->local = row->addr;
		key->lport = row->port;
		f = bpf_map_lookup_elem(&flows, key);
	}
	return f && !(f->flags & FLOW_ANSWERS) && (now <= f->seen || now - f->seen <= lifetime(f, key->proto));
}

/* Fills in what a socket is looked for by. Returns its size. */
inline_always __u32 tuple_of(struct sock_tuple6 *tuple, const struct flow_key *k, int ipv6)
{
	struct sock_tuple4 *v4 = (void *)tuple;

	if (!ipv6) {
		*v4 = (struct sock_tuple4){k->remote.w[3], k->local.w[3], k->rport, k->lport};
		return sizeof(*v4);
	}
	__builtin_memcpy(tuple->saddr, &k->remote, sizeof(tuple->saddr));
	__builtin_memcpy(tuple->daddr, &k->local, sizeof(tuple->daddr));
	tuple->sport = k->rport;
	tuple->dport = k->lport;
	return sizeof(*tuple);
}

/* Would a socket of the node get what the world answers? */
inline_always int has_socket(struct __sk_buff *skb, const struct search *t)
{
	const struct flow_key *k = &t->answer;
	struct sock_tuple6 tuple = {};
	__u32 size = tuple_of(&tuple, k, t->ipv6);
	void *sock;

	if (t->kind != OF_POD) /* at the ingress address the node has none */
		return 0;
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

/* Takes the port of answer, a row of answers, from a flow that is over. The row of its pod
 * is the lock. Returns 0 if the flow is alive, or if somebody else is at it. */
inline_always int reclaim(struct search *t, const struct masquerade *answer)
{
	struct masquerade *row;

	t->other = t->answer;
	other_of_pair(&t->other, answer);
	if (in_use(&t->other, answer->kind, t->now))
		return 0;
	t->other = t->answer; /* in_use changed it */
	other_of_pair(&t->other, answer);
	row = bpf_map_lookup_elem(&masquerades, &t->other);
	if (!row || row->answer || row->port != t->answer.lport || !same(&row->addr, &t->answer.local))
		return 0; /* half of a pair: the sweep deletes it */
	if (bpf_map_delete_elem(&masquerades, &t->other))
		return 0;
	bpf_map_delete_elem(&masquerades, &t->answer);
	return 1;
}

/* Tries a port: random ones of those that belong to nobody, then the pod's own. */
static long try_port(__u32 i, struct masking *s)
{
	struct search *t = s->t;
	struct masquerade *old;
	__u32 port;
	int err;

	if (t->pod.proto == PROTO_SCTP) /* its checksum covers its ports */
		port = ntohs(t->pod.lport);
	else if (t->kind == OF_CLIENT && !i) /* its own, so that it can be recognized */
		port = ntohs(t->pod.lport);
	else
		port = port_to_try(t, i);
	t->answer.lport = htons(port);
	old = bpf_map_lookup_elem(&masquerades, &t->answer);
	if (old && !reclaim(t, old))
		return 0;
	if (has_socket(s->skb, t))
		return 0;
	t->row = (struct masquerade){.addr = t->pod.local, .port = t->pod.lport, .answer = 1, .kind = t->kind};
	err = bpf_map_update_elem(&masquerades, &t->answer, &t->row, ROW_NEW);
	if (err == -EXISTS)
		return 0;
	t->found = !err;
	t->why = err ? unwritten(err) : 0;
	return 1;
}

/* Begins the search for a port of the address mine. */
inline_always void begin_mask(struct search *t, const struct flow_key *pod, const struct addr *mine)
{
	begin_search(t, pod);
	t->answer.local = *mine;
	t->ipv6 = mine->w[0] | mine->w[1] ? 1 : 0;
}

/* Finds a port in so many tries, and writes both rows. Returns 0 with the port in t->answer,
 * or a reason. */
inline_always int search_port(struct __sk_buff *skb, struct search *t, __u32 tries)
{
	struct masking s = {.skb = skb, .t = t};
	int err;

	bpf_loop(tries, try_port, &s, 0);
	if (t->why)
		return t->why;
	if (!t->found)
		return REASON_NO_PORT;
	t->row = (struct masquerade){.addr = t->answer.local, .port = t->answer.lport, .kind = t->kind};
	err = bpf_map_update_elem(&masquerades, &t->pod, &t->row, ROW_ANY);
	if (!err)
		return 0;
	bpf_map_delete_elem(&masquerades, &t->answer);
	return unwritten(err);
}

/* Gives a flow of the pod with this number a port of the node at mine. Returns 0 with
 * *port filled in, or a reason. */
part int open_masquerade(struct __sk_buff *skb, const struct flow_key *pod, const struct addr *mine, __u16 id,
			 __be16 *port)
{
	const struct masquerading *m = read_masquerading();
	struct search *t = searching();
	__u32 count;
	int why;

	if (!t || !m)
		return REASON_FAILED;
	if (m->first > m->last)
		return REASON_NO_PORT;
	count = m->last - m->first + 1;
	begin_mask(t, pod, mine);
	t->first = m->first;
	t->own = count / OWN_SHARE / OWN_PARTS;
	t->common = count - t->own * OWN_PARTS;
	t->own_first = t->first + t->common + id % OWN_PARTS * t->own;
	why = search_port(skb, t, pod->proto == PROTO_SCTP ? 1 : TRIES + t->own);
	*port = t->answer.lport;
	return why;
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
	if (!row || row->answer || row->kind == OF_CLIENT)
		return 0; /* of a connection that is not masqueraded */
	if (row->other) {
		mine = q->src; /* stays as it is */
		why = restore_quote(skb, q, SOURCE, &mine, row->other);
		if (why)
			return why;
	}
	mine = row->addr;
	why = restore_quote(skb, q, DESTINATION, &mine, row->port);
	return why ? why : rewrite(skb, p, SOURCE, &mine, 0);
}

/* Lets what a backend answers a client leave as the node port, which row names. Returns 0 or a
 * reason. */
part int leave_as(struct __sk_buff *skb, struct packet *p, const struct masquerade *row)
{
	struct addr a;
	int why;

	if (unlikely(row->other)) {
		a = p->dst; /* stays as it is */
		why = rewrite(skb, p, DESTINATION, &a, row->other);
		if (why)
			return why;
	}
	a = row->addr;
	return rewrite(skb, p, SOURCE, &a, row->port);
}

/* Lets what ep, a pod of this node, sends to the world come from the node, if it has to.
 * Returns 0 or a reason. */
once int masquerade(struct __sk_buff *skb, struct packet *p, const struct endpoint *ep)
{
	const struct addr *outside;
	struct masquerade *row;
	struct flow_key key;
	struct addr mine;
	__be16 port = 0;
	struct flow *f;
	int why;

	if (!p || !ep)
		return REASON_FAILED;
	if (p->error)
		return masquerade_error(skb, p);
	sent_key(&key, p);
	row = bpf_map_lookup_elem(&masquerades, &key);
	if (row && !row->answer && row->kind == EXPOSED) /* the answer of a node port */
		return leave_as(skb, p, row);
	outside = seen_outside(read_masquerading(), p);
	if (!outside)
		return 0;
	mine = *outside;
	if (row && !row->answer && same(&row->addr, &mine))
		return rewrite(skb, p, SOURCE, &mine, row->port);
	if (is_native(&p->dst))
		return 0;
	f = bpf_map_lookup_elem(&flows, &key);
	if (f && f->flags & FLOW_REMOTE_INITIATED)
		return 0;
	/* It was answered under the pod's own address. */
	if (f && !row && f->flags & FLOW_REPLIED)
		return 0;
	/* Nobody answers it. */
	if (is_icmp(p->proto) && p->asks == TELLS)
		return rewrite(skb, p, SOURCE, &mine, p->sport);
	why = open_masquerade(skb, &key, &mine, ep->id, &port);
	return why ? why : rewrite(skb, p, SOURCE, &mine, port);
}

/* The node itself sends an echo: if a pod has its identifier, it is the node's now. What
 * else the node sends has a port from its own range, or one that it had before. */
once int take_identifier(const struct packet *p)
{
	struct flow_key key, pod;
	struct masquerade *row;

	if (!p || !is_icmp(p->proto) || p->asks != ASKS)
		return 0;
	sent_key(&key, p);
	row = bpf_map_lookup_elem(&masquerades, &key);
	if (!row || !row->answer || row->kind != OF_POD)
		return 0;
	pod = key;
	pod.local = row->addr;
	pod.lport = row->port;
	if (!bpf_map_delete_elem(&masquerades, &pod))
		bpf_map_delete_elem(&masquerades, &key);
	return 0;
}

/* An error about what a node port answered, already turned into one for its backend, which
 * is elsewhere: it saw the ingress address instead of the client. Returns 0 or a reason. */
once int error_to_elsewhere(struct __sk_buff *skb, struct packet *p)
{
	struct about *about = error_about();
	struct masquerade *row;
	struct addr ingress;
	int why;

	if (!p || !about)
		return REASON_FAILED;
	set_key(&about->flow, &about->quote.dst, &p->dst, about->flow.rport, about->flow.lport, about->quote.proto);
	row = bpf_map_lookup_elem(&masquerades, &about->flow);
	if (!row || row->answer || row->kind != OF_CLIENT)
		return 0;
	ingress = row->addr;
	why = restore_quote(skb, &about->quote, DESTINATION, &ingress, row->port);
	return why ? why : rewrite(skb, p, SOURCE, &ingress, 0);
}

/* An error about what a pod, or a node port, sent to the world. Returns 0 or a reason. */
once int unmasquerade_error(struct __sk_buff *skb, struct packet *p)
{
	struct about *about = error_about();
	struct masquerade *row;
	struct addr pod;
	struct quote *q;
	int why, exposed;

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
	if (!row || !row->answer || row->kind == OF_CLIENT || !same(&p->dst, &q->src))
		return 0;
	exposed = row->kind == EXPOSED;
	about->flow.lport = row->port; /* for error_to_elsewhere */
	if (row->other) {
		about->flow.rport = row->other;
		pod = q->dst; /* stays as it is */
		why = restore_quote(skb, q, DESTINATION, &pod, row->other);
		if (why)
			return why;
		q->dport = row->other; /* for error_to_elsewhere */
	}
	pod = row->addr;
	why = restore_quote(skb, q, SOURCE, &pod, row->port);
	if (!why)
		why = rewrite(skb, p, DESTINATION, &pod, 0);
	return why || !exposed ? why : error_to_elsewhere(skb, p);
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
	if (p->error)
		return unmasquerade_error(skb, p);
	outside = seen_outside(m, p);
	if (!outside || !same(&p->dst, outside))
		return 0;
	/* The world opens connections to the node, not to its pods. */
	if (opens(p))
		return 0;
	received_key(&key, p);
	row = bpf_map_lookup_elem(&masquerades, &key);
	if (!row || !row->answer || row->kind != OF_POD)
		return 0;
	pod = row->addr;
	return rewrite(skb, p, DESTINATION, &pod, row->port);
}
