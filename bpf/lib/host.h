/* The node itself as one end of a flow through a tunnel. A tunnel proves which node
 * sent a packet, not that the sender is entitled to anything here: the node's own
 * servers (etcd, APIs, metrics) are closed to pods, whatever their cluster, unless they are
 * behind one of the cluster's own services. */
#pragma once

#include "icmp.h"

/* Notes what the node sends, so that the answer is let in. Returns 0, or why the
 * packet is not sent. Echoes, answers and errors need no row: see asked_for. */
once int note_sent(const struct packet *p, const struct settings *s)
{
	if (!p || !s)
		return REASON_FAILED;
	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow_key key;
	struct flow *f;
	int why;

	if (p->headless || (is_icmp(p->proto) && (p->error || !p->asks || p->dport == echo_of(p->proto))))
		return 0;
	sent_key(&key, p);
	f = bpf_map_lookup_elem(&flows, &key);
	if (f && !over(f, p, now)) {
		advance(f, p, 1, now);
		return 0;
	}
	if (f)
		forget(&key, f);
	f = fresh_flow();
	if (!f)
		return REASON_FAILED;
	*f = (struct flow){.seen = now, .identity = IDENTITY_HOST, .via = VIA_TUNNEL, .owner = NODE_ITSELF};
	why = store(&key, f);
	return why == ELSEWHERE ? 0 : why;
}

/* Does the node accept this from a tunnel? Echoes always, because they are how nodes
 * learn that a path is alive; otherwise only packets of flows that the node opened.
 * Returns 0 or a reason. */
once int asked_for(struct __sk_buff *skb, const struct packet *p)
{
	if (!p)
		return REASON_FAILED;
	struct flow_key key;
	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow *f;

	if (p->error) {
		struct quote q = {};
		int why = read_quote(skb, p, &q);

		if (why)
			return why;
		if (is_icmp(q.proto))
			return same(&q.src, &p->dst) ? 0 : REASON_INVALID;
		key = (struct flow_key){
			.local = q.src, .remote = q.dst, .lport = q.sport, .rport = q.dport, .proto = q.proto,
		};
		if (!same(&key.local, &p->dst))
			return REASON_INVALID;
		return bpf_map_lookup_elem(&flows, &key) ? 0 : REASON_INVALID;
	}
	if (is_icmp(p->proto) && p->dport == echo_of(p->proto))
		return 0;
	received_key(&key, p);
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f || over(f, p, now))
		return REASON_NODE_CLOSED;
	advance(f, p, 0, now);
	return 0;
}

/* ---- Processes behind services ----
 *
 * Pods of the cluster's other nodes speak to them at the node's own address, which their node
 * sends into the tunnel: see SCOPE_NODE. The tunnel proves that they are what they say. No
 * flow is kept for them here: whoever fills tables elsewhere would fill them here, too. */

/* Is it an address of this node outside of the mesh? */
once int of_machine(const struct settings *s, const struct addr *a)
{
	if (!s || !a)
		return 0;
	struct place at = {};

	resolve(s, a, &at);
	return at.identity == IDENTITY_HOST && !at.member && !at.flags && !own(s, a);
}

/* Is it an address of a pod of another node of this cluster, or that node's ingress address? */
inline_always int of_neighbour(const struct settings *s, const struct addr *a)
{
	struct place at = {};

	resolve(s, a, &at);
	return at.member && at.node && at.cluster == s->cluster && !(at.flags & IP_FORMER);
}

/* Does a process of this node get this from a tunnel? Returns 0 or a reason. */
once int reaches_process(const struct settings *s, const struct packet *p)
{
	if (!s || !p)
		return REASON_FAILED;
	struct addr a = p->dst;

	/* Nothing else is forwarded from a tunnel into another one or to the world. */
	if (!of_machine(s, &a))
		return REASON_NO_ENDPOINT;
	if (!offered(&a, p->dport, p->proto))
		return REASON_NODE_CLOSED;
	a = p->src;
	return of_neighbour(s, &a) ? 0 : REASON_NODE_CLOSED;
}

/* May this go into a tunnel because a process of this node answers, or the node tells of an
 * error about what was sent to one? headless: a later fragment, of which only the first has
 * ports; without that, which was looked at, nobody uses it. Returns 0 or a reason. */
once int process_answers(struct __sk_buff *skb, const struct packet *p, const struct settings *s, int headless)
{
	if (!p || !s)
		return REASON_FAILED;
	struct addr a = p->src;
	struct quote q = {};
	int why;

	if (!of_machine(s, &a))
		return REASON_SPOOFED_SOURCE;
	if (p->error) {
		why = read_quote(skb, p, &q);
		if (why)
			return why;
		if (!same(&q.dst, &a) || !same(&q.src, &p->dst) || !offered(&a, q.dport, q.proto))
			return REASON_SPOOFED_SOURCE;
	} else if (!headless && !offered(&a, p->sport, p->proto)) {
		return REASON_SPOOFED_SOURCE;
	}
	a = p->dst;
	return of_neighbour(s, &a) ? 0 : REASON_SPOOFED_SOURCE;
}
