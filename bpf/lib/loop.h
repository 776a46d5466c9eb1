/* A pod that reaches itself through a service.
 *
 *	client side           server side
 *	pod:c → vip:v   ──►   vip:c → pod:b
 *	vip:v → pod:c   ◄──   pod:b → vip:c
 *
 * Each side is a flow of the same pod. The server's has v in bport, where other
 * flows have the backend's port. If another flow of the pod has one of its keys, the server
 * sees another port than c (see claim.h). No policy is asked: nobody else is involved. */
#pragma once

#include "claim.h"
#include "deliver.h"

/* Stores both sides. The fresh flow is the client's, with its backend, and is then
 * turned into the server's. Returns 0 or a reason. */
once int open_loop(const struct flow_key *key)
{
	struct flow *f = fresh_flow();

	if (!key || !f)
		return REASON_FAILED;
	struct flow_key side; /* used for both: the stack is short */
	__be16 bport = f->bport, sport;
	int why;

	loop_server(&side, key, bport, key->lport);
	why = loop_clashes(&side, key, f->seen);
	side = *key;
	f->flags |= FLOW_LOOP;
	f->via = VIA_POD;
	why = remember(&side, f, why);
	if (why && why != ELSEWHERE)
		return why;
	sport = other_port(f, key->lport);
	f->flags = FLOW_LOOP | FLOW_REMOTE_INITIATED;
	if (sport != key->lport) {
		if (why == ELSEWHERE) /* and it has another port */
			return 0;
		f->flags |= (__u32)key->lport << FLOW_PORT;
	}
	f->said[EGRESS] = (struct said){};
	f->backend = (struct addr){};
	f->bport = key->rport;
	loop_server(&side, key, bport, sport);
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
	__be16 sport = answers ? f->bport : other_port(f, key->lport);
	__be16 dport = answers ? other_port(f, key->rport) : f->bport;
	struct flow *other;
	struct endpoint *ep;
	int why;

	if (answers) {
		other_key.lport = dport;
		other_key.rport = f->bport;
	} else {
		loop_server(&other_key, key, f->bport, sport);
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
