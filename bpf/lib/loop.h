/* A pod that reaches itself through a service.
 *
 *	client side           server side
 *	pod:c → vip:v   ──►   vip:c → pod:b
 *	vip:v → pod:c   ◄──   pod:b → vip:c
 *
 * Each side is a flow of the same pod. The server's has v in bport, where other
 * flows have the backend's port. No policy is asked: nobody else is involved. */
#pragma once

#include "deliver.h"

inline_always struct flow_key loop_server(const struct flow_key *client, __be16 bport)
{
	struct flow_key key = *client;

	key.lport = bport;
	key.rport = client->lport;
	return key;
}

/* Stores both sides. The fresh flow is the client's, with its backend, and is then
 * turned into the server's. Returns 0 or a reason. */
once int open_loop(const struct flow_key *key)
{
	struct flow *f = fresh_flow();

	if (!key || !f)
		return REASON_FAILED;
	struct flow_key side = loop_server(key, f->bport); /* used for both: the stack is short */
	__be16 bport = f->bport;
	int why;

	if (clashes(&side, f->seen))
		return REASON_FLOW_CLASH;
	side = *key;
	f->flags |= FLOW_LOOP;
	f->via = VIA_POD;
	why = remember_service(&side, f);
	if (why && why != ELSEWHERE)
		return why;
	f->flags = FLOW_LOOP | FLOW_REMOTE_INITIATED;
	f->said[EGRESS] = (struct said){};
	f->backend = (struct addr){};
	f->bport = key->rport;
	side = loop_server(key, bport);
	why = store(&side, f);
	if (why == ELSEWHERE)
		return 0;
	/* The client's side alone would swallow its packets for as long as it tries. */
	if (why) {
		side = *key;
		f = bpf_map_lookup_elem(&flows, &side);
		if (f)
			forget(&side, f);
	}
	return why;
}

/* Sends p, which belongs to the flow f, back into its own pod. */
once int loop(struct __sk_buff *skb, struct packet *p, const struct flow_key *key, const struct flow *f)
{
	if (!p || !key || !f)
		return ACT_SHOT;
	int answers = !!(f->flags & FLOW_REMOTE_INITIATED);
	struct origin o = {.via = VIA_POD};
	struct addr pod = key->local, vip = key->remote;
	struct flow_key other_key = *key;
	__be16 sport = answers ? f->bport : key->lport;
	__be16 dport = answers ? key->rport : f->bport;
	struct flow *other;
	struct endpoint *ep;
	int why;

	if (answers) {
		other_key.lport = key->rport;
		other_key.rport = f->bport;
	} else {
		other_key = loop_server(key, f->bport);
	}
	other = bpf_map_lookup_elem(&flows, &other_key);
	if (!other || other->flags & FLOW_ANSWERS)
		return drop(skb, p, REASON_INVALID, EGRESS);
	advance(other, p, 0, bpf_ktime_get_coarse_ns());

	why = rewrite(skb, p, DESTINATION, &pod, dport);
	if (!why)
		why = rewrite(skb, p, SOURCE, &vip, sport);
	if (why)
		return drop(skb, p, why, EGRESS);
	ep = bpf_map_lookup_elem(&endpoints, &pod);
	if (!ep)
		return drop(skb, p, REASON_NO_ENDPOINT, EGRESS);
	return hand_over(skb, p, ep, &o);
}
