/* Claiming the answers of a translated flow, at a source port that tells them apart.
 *
 *	pod:p → service A   ──►   pod:p → backend
 *	pod:p → service B   ──►   pod:q → backend
 *	pod:p → backend     ──►   pod:r → backend
 *
 * A flow's answers arrive under the key that a flow with the backend itself would have. If
 * another live flow of the pod has it, the one that is opened later gets a port at which no
 * other has: a random one of the whole range, that of a flow which is over included. Its row
 * remembers that port, and the row for its answers the pod's own (see FLOW_PORT). Policy and
 * events know the pod's own port alone.
 */
#pragma once

#include "ports.h"

/* The server's side of a pod that reaches itself through a service: see loop.h. */
inline_always void loop_server(struct flow_key *server, const struct flow_key *client, __be16 bport, __be16 sport)
{
	set_key(server, &client->local, &client->remote, bport, sport, client->proto);
}

/* Is a loop's server side with this key in the way of its client side, or of another flow? */
inline_always int loop_clashes(const struct flow_key *server, const struct flow_key *client, __u64 now)
{
	return (server->lport == client->lport && server->rport == client->rport) || clashes(server, now);
}

/* Writes a row for answers in place of one that is over. Returns 0, -EXISTS if the key is a
 * live flow's, or another error. */
inline_always int claim_at(const struct flow_key *at, const struct flow *row, __u64 now)
{
	int err = bpf_map_update_elem(&flows, at, row, ROW_NEW);

	if (err != -EXISTS || clashes(at, now))
		return err;
	return bpf_map_update_elem(&flows, at, row, ROW_NEW);
}

static long try_source(__u32 i, const __u32 *unused)
{
	__u32 zero = 0;
	struct flow *row = bpf_map_lookup_elem(&answers, &zero), *f = fresh_flow();
	struct search *t = searching();
	int err;

	if (!row || !f || !t)
		return 1;
	t->answer.lport = htons(port_to_try(t, i));
	if (t->answer.lport == t->pod.lport)
		return 0;
	if (f->flags & FLOW_LOOP) {
		loop_server(&t->other, &t->pod, f->bport, t->answer.lport);
		if (loop_clashes(&t->other, &t->pod, t->now))
			return 0;
	}
	err = claim_at(&t->answer, row, t->now);
	if (err == -EXISTS)
		return 0;
	t->found = !err;
	t->why = err ? unwritten(err) : 0;
	return 1;
}

/* Claims the answers of the fresh flow at another port than the pod's. Returns 0 or a reason. */
once int claim_elsewhere(const struct flow_key *key)
{
	__u32 zero = 0;
	struct flow *row = bpf_map_lookup_elem(&answers, &zero), *f = fresh_flow();
	struct search *t = searching();

	if (!key || !row || !f || !t)
		return REASON_FAILED;
	if (key->proto == PROTO_SCTP) /* its checksum covers its ports */
		return REASON_FLOW_CLASH;
	begin_search(t, key);
	t->answer.remote = f->backend;
	t->answer.rport = f->bport;
	t->answer.beside = 0;
	search_all(t);
	row->flags |= (__u32)key->lport << FLOW_PORT;
	bpf_loop(TRIES + WALK, try_source, &zero, 0);
	if (t->why)
		return t->why;
	if (!t->found)
		return REASON_NO_PORT;
	f->flags |= (__u32)t->answer.lport << FLOW_PORT;
	return 0;
}

/* Claims the answers of the fresh flow. taken tells that it cannot have the pod's own port.
 * Returns 0 or a reason. */
inline_always int claim_answers(const struct flow_key *key, const struct flow *f, int taken)
{
	__u32 zero = 0;
	struct flow *row = bpf_map_lookup_elem(&answers, &zero), *old;
	struct flow_key at;
	int err;

	if (!row)
		return REASON_FAILED;
	*row = (struct flow){
		.seen = f->seen, .flags = FLOW_ANSWERS | (key->beside ? FLOW_BESIDE : 0),
		.backend = key->remote, .bport = key->rport, .ifindex = f->ifindex, .owner = f->owner,
	};
	if (unlikely(taken))
		return claim_elsewhere(key);
	answers_key(&at, key, f);
	err = bpf_map_update_elem(&flows, &at, row, ROW_NEW);
	if (likely(!err))
		return 0;
	old = bpf_map_lookup_elem(&flows, &at);
	if (old && answers_of(old, &at, key))
		return 0;
	err = claim_at(&at, row, f->seen);
	if (err == -EXISTS)
		return claim_elsewhere(key);
	return err ? unwritten(err) : 0;
}

/* Gives back the port that the fresh flow has claimed, if another CPU has stored the flow with
 * another one. */
inline_always void give_back(const struct flow_key *key, const struct flow *f)
{
	struct flow *stored = bpf_map_lookup_elem(&flows, key);

	if (!stored || stored->flags >> FLOW_PORT != f->flags >> FLOW_PORT)
		disclaim(key, f);
}

/* Stores the fresh flow, which is judged and translated. Returns what put does. The row for
 * its answers is claimed only once the flow is admitted, because it is hard to take back:
 * another CPU may be storing the same flow, and needs it. */
part int remember(const struct flow_key *key, const struct flow *f, int taken)
{
	int admitted = admit(f->owner), why;

	if (admitted > BEYOND_SHARE)
		return admitted;
	why = claim_answers(key, f, taken);
	if (why) {
		release(f->owner);
		return why;
	}
	why = put(key, f, admitted);
	if (unlikely(why == ELSEWHERE && f->flags >> FLOW_PORT))
		give_back(key, f);
	if (why && why != ELSEWHERE && !bpf_map_lookup_elem(&flows, key))
		disclaim(key, f);
	return why;
}

/* ---- A flow beside another's answers ---- */

/* Makes the fresh flow one beside the answers that have its key, which gets the mark. */
inline_always void stand_beside(struct flow_key *key, struct flow *f)
{
	key->beside = 1;
	if (f->flags & FLOW_SERVICE)
		return;
	/* If its socket was given the backend, it has no room for the service's address as well,
	 * but goes on knowing whose backend that is. */
	f->flags |= FLOW_DIRECT;
	f->backend = key->remote;
	f->bport = key->rport;
}

/* Notes a flow that was stored under this key in the row that it is beside, so that the key
 * becomes its own with the end of the other (see promote). Returns 0 or a reason. */
once int share_key(const struct flow_key *marked)
{
	struct flow_key key;
	struct flow *f;

	if (!marked)
		return REASON_FAILED;
	key = *marked;
	key.beside = 0;
	f = bpf_map_lookup_elem(&flows, &key);
	if (f && f->flags & FLOW_ANSWERS) {
		__sync_fetch_and_or(&f->flags, FLOW_SHARED);
		return 0;
	}
	/* The other has just ended: the sender tries again, with the key as it is. */
	key.beside = 1;
	f = bpf_map_lookup_elem(&flows, &key);
	if (f)
		forget(&key, f);
	return REASON_FAILED;
}
