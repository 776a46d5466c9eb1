/* What backends answer to clients outside, on its way to them: see nodeport.h. */
#pragma once

#include "nodeport.h"

/* A backend's answer to the ingress address: it goes to the client, and at the node's device
 * it gets the address of the node port. */
once int to_client(struct __sk_buff *skb, const struct settings *s)
{
	struct work *w = working();
	struct about *about = error_about();
	struct flow_key *key;
	struct masquerade *row;
	struct place from = {};
	struct packet *p;
	struct addr client;
	struct flow *f;
	__u64 now = bpf_ktime_get_coarse_ns();
	int why = 0;

	if (!w || !s || !about)
		return ACT_SHOT;
	p = &w->p;
	key = &about->flow;
	if (p->error) {
		why = read_quote(skb, p, &about->quote);
		if (why || !same(&about->quote.src, &p->dst))
			return drop(skb, p, REASON_INVALID, INGRESS);
		set_key(key, &about->quote.src, &about->quote.dst, about->quote.sport, about->quote.dport, about->quote.proto);
	} else {
		received_key(key, p);
	}
	f = bpf_map_lookup_elem(&flows, key);
	row = bpf_map_lookup_elem(&masquerades, key);
	/* An error is about another protocol than its own. */
	if (!f || f->flags & FLOW_ANSWERS || (p->error ? expired(f, key->proto, now) : over(f, p, now)) || !row || !row->answer || row->kind != OF_CLIENT)
		return drop(skb, p, REASON_NODE_CLOSED, INGRESS);
	client = row->addr;
	if (p->error) {
		resolve(s, &p->src, &from);
		if (from.cluster != f->cluster)
			return drop(skb, p, REASON_SPOOFED_SOURCE, INGRESS);
		why = restore_quote(skb, &about->quote, SOURCE, &client, row->port);
		if (!why)
			why = rewrite(skb, p, DESTINATION, &client, 0);
	} else {
		advance(f, p, 0, now);
		why = rewrite(skb, p, DESTINATION, &client, row->port);
	}
	return why ? drop(skb, p, why, INGRESS) : leave(skb, REASON_TO_STACK, INGRESS, ACT_NEXT);
}

/* Lets what a backend elsewhere answers a client leave as the node port. What is no such
 * answer is left alone. Returns 0 or a reason. */
once int leaves(struct __sk_buff *skb, struct packet *p)
{
	struct masquerade *row;
	struct flow_key key;

	if (!p)
		return REASON_FAILED;
	if (p->error)
		return masquerade_error(skb, p);
	sent_key(&key, p);
	row = bpf_map_lookup_elem(&masquerades, &key);
	if (!row || row->answer || row->kind != EXPOSED)
		return 0;
	return leave_as(skb, p, row);
}
