/* The node itself as one end of a flow through a tunnel. A tunnel proves which node
 * sent a packet, not that the sender is entitled to anything here: the node's own
 * servers (etcd, APIs, metrics) are closed to pods, whatever their cluster. */
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
