/* Flows: looking up, ageing, creating and deleting them. */
#pragma once

#include "packet.h"
#include "sequence.h"
#include "share.h"

/* rport of an ICMP flow, by the type of the request. */
inline_always __be16 icmp_port(__be16 type, int asked_by_local)
{
	return asked_by_local ? type : type | htons(ASKED_BY_REMOTE);
}

/* Fills in a key in words of 64 bits, because it is hashed in words at once: see
 * set_mapped. */
inline_always void set_key(struct flow_key *key, const struct addr *local, const struct addr *remote, __be16 lport,
			   __be16 rport, __u8 proto)
{
	__u64 rest = lport | (__u64)rport << 16 | (__u64)proto << 32;

	key->local = *local;
	key->remote = *remote;
	__builtin_memcpy(__builtin_assume_aligned(&key->lport, 8), &rest, sizeof(rest));
}

/* The connection as seen by the pod that sends p. */
inline_always void sent_key(struct flow_key *key, const struct packet *p)
{
	__be16 rport = p->dport;

	if (is_icmp(p->proto))
		rport = icmp_port(rport, p->asks);
	set_key(key, &p->src, &p->dst, p->sport, rport, p->proto);
}

/* The connection as seen by the pod that receives p. */
inline_always void received_key(struct flow_key *key, const struct packet *p)
{
	__be16 lport = p->dport, rport = p->sport;

	if (is_icmp(p->proto)) {
		lport = p->sport;
		rport = icmp_port(p->dport, !p->asks);
	}
	set_key(key, &p->dst, &p->src, lport, rport, p->proto);
}

/* The other port of a row, see FLOW_PORT; port if it has none. */
inline_always __be16 other_port(const struct flow *f, __be16 port)
{
	__be16 other = f->flags >> FLOW_PORT;

	return unlikely(other) ? other : port;
}

/* The key of the answers that the other side of a translated flow sends. */
inline_always void answers_key(struct flow_key *answers, const struct flow_key *key, const struct flow *f)
{
	set_key(answers, &key->local, &f->backend, other_port(f, key->lport), f->bport, key->proto);
}

/* Is this row, which has the key at, for the answers of the flow with this key? */
inline_always int answers_of(const struct flow *row, const struct flow_key *at, const struct flow_key *key)
{
	return row->flags & FLOW_ANSWERS && same(&row->backend, &key->remote) && row->bport == key->rport &&
	       other_port(row, at->lport) == key->lport && !(row->flags & FLOW_BESIDE) == !key->beside;
}

inline_always int closing(const struct flow *f)
{
	const __u32 both = FLOW_FIN_LOCAL | FLOW_FIN_REMOTE;

	return f->flags & FLOW_RESET || (f->flags & both) == both;
}

inline_always __u64 lifetime(const struct flow *f, __u8 proto)
{
	if (proto != PROTO_TCP)
		return not_tcp_ns;
	if (closing(f))
		return tcp_closing_ns;
	return f->flags & FLOW_REPLIED ? tcp_established_ns : tcp_opening_ns;
}

/* Would the pod notice its end? Other flows can move to another backend silently. */
inline_always int established(const struct flow *f, __u8 proto)
{
	return proto == PROTO_TCP && f->flags & FLOW_REPLIED;
}

/* Was the other side heard although the path is dead? Two nodes do not notice at the
 * same moment that the path between them is back, and the pod answers whoever
 * noticed first. Only the other side can have set seen: what a pod sends on open TCP
 * over a silent or dead path does not, and a path is silent for probe.DoubtTime,
 * which is as long as this, before it is dead. */
inline_always int lately(const struct flow *f, __u64 now)
{
	return now < f->seen + 500 * 1000 * 1000ULL;
}

#define NODE_GRACE (1000 * 1000 * 1000ULL)

inline_always int opens(const struct packet *p)
{
	return p->proto == PROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* The node of f is unknown: does f wait for it? The node may be missing only for a
 * moment, while its entry is written again, and a reset cannot be taken back. Flows
 * that were never answered do not wait. */
part int waits(struct flow *f, const struct packet *p, __u64 now)
{
	if (!(f->flags & FLOW_REPLIED) || closing(f) || opens(p))
		return 0;
	if (!(f->flags & FLOW_WAITS)) {
		f->seen = now;
		__sync_fetch_and_or(&f->flags, FLOW_WAITS);
	}
	return now < f->seen + NODE_GRACE;
}

/* Notes that somebody still tries, although the packet is dropped for this reason: the
 * row stays for that long. */
inline_always void tried(struct flow *f, __u32 why, __u64 now)
{
	if (why != REASON_NO_TUNNEL || !(f->flags & FLOW_WAITS))
		f->seen = now;
}

/* Was this flow of the protocol idle for too long? */
inline_always int expired(const struct flow *f, __u8 proto, __u64 now)
{
	return now > f->seen && now - f->seen > lifetime(f, proto);
}

/* p cannot belong to this flow any longer: it was idle for too long, or it was closed
 * and p opens a new connection with the same ports. */
inline_always int over(const struct flow *f, const struct packet *p, __u64 now)
{
	return expired(f, p->proto, now) || (opens(p) && closing(f));
}

/* Notes that p passed at the time now. Flags are only set and times only grow, so an
 * older time changes nothing, and losing a race merely delays an update. A deleted row may
 * already hold another flow, which then gets a wrong flag or time: at worst it
 * expires early. */
inline_always void advance(struct flow *f, const struct packet *p, int from_pod, __u64 now)
{
	__u32 add = 0;

	if (from_pod == !!(f->flags & FLOW_REMOTE_INITIATED))
		add |= FLOW_REPLIED;
	if (p->proto == PROTO_TCP && !p->headless && (add & ~f->flags || matters(f, p, from_pod, now)))
		add = follow(f, p, from_pod, add);
	if (add & ~f->flags)
		__sync_fetch_and_or(&f->flags, add);
	if (f->seen < now) /* saves writing the cache line within one tick */
		f->seen = now;
}

ARRAY(promoted, MAP_PERCPU_ARRAY, struct flow_key, 1); /* scratch: the stack is short */

/* Gives a key that was another flow's answers' to the flow beside them, so that its packets
 * go on finding it; if there is none, to nobody. In this order, a packet always finds one of
 * the two. */
inline_always void promote(struct flow_key *key)
{
	__u32 zero = 0;
	struct flow_key *at = bpf_map_lookup_elem(&promoted, &zero);
	struct flow *f, *row;

	key->beside = 1;
	f = bpf_map_lookup_elem(&flows, key);
	key->beside = 0;
	if (!at || !f || bpf_map_update_elem(&flows, key, f, ROW_ANY)) {
		bpf_map_delete_elem(&flows, key);
		return;
	}
	answers_key(at, key, f);
	row = bpf_map_lookup_elem(&flows, at);
	key->beside = 1;
	if (row && answers_of(row, at, key))
		__sync_fetch_and_and(&row->flags, ~FLOW_BESIDE);
	bpf_map_delete_elem(&flows, key);
	key->beside = 0;
}

/* Deletes the row for the answers of a translated flow, unless it is another flow's by now. */
inline_always void disclaim(const struct flow_key *key, const struct flow *f)
{
	struct flow_key answers;
	struct flow *row;

	answers_key(&answers, key, f);
	row = bpf_map_lookup_elem(&flows, &answers);
	if (!row || !answers_of(row, &answers, key))
		return;
	if (unlikely(row->flags & FLOW_SHARED))
		promote(&answers);
	else
		bpf_map_delete_elem(&flows, &answers);
}

part int forget(const struct flow_key *key, const struct flow *f)
{
	__u32 owner = f->owner;

	if (f->flags & FLOW_TRANSLATED)
		disclaim(key, f);
	if (!bpf_map_delete_elem(&flows, key)) /* if two CPUs delete it, only one gives it back */
		release(owner);
	return 0;
}

/* Deletes the flow of the packet that is being worked on. */
once int forget_worked_on(const struct flow *f)
{
	struct work *w = working();

	return w && f ? forget(&w->key, f) : 0;
}

/* Is the local pod of the flow gone, or the pod of this node that opened it? Without
 * its pod a flow carries nothing, but would hold a share for hours. */
part int pod_gone(const struct flow_key *key, const struct flow *f)
{
	struct endpoint *ep;

	if (!f->ifindex) /* the node's own */
		return 0;
	ep = bpf_map_lookup_elem(&endpoints, &key->local);
	if (!ep || ep->ifindex != f->ifindex)
		return 1;
	if (f->owner == NODE_ITSELF || f->owner == f->ifindex)
		return 0;
	ep = bpf_map_lookup_elem(&endpoints, &key->remote);
	return !ep || ep->ifindex != f->owner;
}

/* Finds the flow that this row, found by key, is for the answers of, and turns key into that
 * flow's key. */
part struct flow *find_translated(struct flow_key *key, const struct flow *answers)
{
	struct addr backend = key->remote;
	__be16 bport = key->rport, lport = key->lport;
	struct flow *f;

	key->remote = answers->backend;
	key->rport = answers->bport;
	if (unlikely(answers->flags & ~FLOW_ANSWERS)) {
		key->lport = other_port(answers, lport);
		key->beside = !!(answers->flags & FLOW_BESIDE);
	}
	f = bpf_map_lookup_elem(&flows, key);
	if (f && f->flags & FLOW_TRANSLATED && same(&f->backend, &backend) && f->bport == bport &&
	    other_port(f, key->lport) == lport)
		return f;
	return 0;
}

/* Has only the remote side spoken in f? In a loop, that is the pod. */
inline_always int unanswered_by_pod(const struct flow *f)
{
	return (f->flags & (FLOW_REMOTE_INITIATED | FLOW_REPLIED | FLOW_LOOP)) == FLOW_REMOTE_INITIATED;
}

/* Does this key belong to a live flow, directly or for its answers? A flow that is over or
 * closing is deleted. So is one in which the pod has never spoken: a backend's answer that
 * came late, after its flow was given up, looks like one, and would lock the pod out. */
once int clashes(const struct flow_key *key, __u64 now)
{
	if (!key)
		return 0;
	struct flow_key of = *key;
	struct flow *f = bpf_map_lookup_elem(&flows, &of);

	if (f && f->flags & FLOW_ANSWERS) {
		f = find_translated(&of, f);
		if (!f) {
			of = *key;
			promote(&of);
		}
	}
	if (!f)
		return 0;
	if (!closing(f) && !unanswered_by_pod(f) && (now < f->seen || now - f->seen <= lifetime(f, of.proto)))
		return 1;
	forget(&of, f);
	return 0;
}

struct pair {
	struct flow_key pod, answer;
};

ARRAY(unmasked, MAP_PERCPU_ARRAY, struct pair, 1); /* scratch: the stack is short */

/* Turns the key of a row in masquerades into that of the other one of its pair. */
inline_always void other_of_pair(struct flow_key *key, const struct masquerade *row)
{
	key->local = row->addr;
	key->lport = row->port;
	if (row->other)
		key->rport = row->other;
}

/* Deletes a pair of rows in masquerades: who deletes the pod's owns the other (see
 * masquerade.h). Returns 0 if it did. */
inline_always int delete_pair(const struct flow_key *pod, const struct flow_key *answer)
{
	int err = bpf_map_delete_elem(&masquerades, pod);

	if (!err)
		bpf_map_delete_elem(&masquerades, answer);
	return err;
}

/* Deletes both pairs of rows of what a client opened to a backend elsewhere, by the key of its
 * flow: see nodeport.h. */
inline_always void unmask_client(const struct flow_key *key, struct pair *both)
{
	struct masquerade *row = bpf_map_lookup_elem(&masquerades, key);
	struct flow_key *inside = &both->pod, *front = &both->answer;

	if (!row || !row->answer || row->kind != OF_CLIENT)
		return;
	both->pod = *key;
	both->pod.local = row->addr;
	both->pod.lport = row->port;
	*front = both->pod;
	if (delete_pair(&both->pod, key))
		return;
	set_key(inside, &front->remote, &front->local, front->rport, front->lport, front->proto);
	row = bpf_map_lookup_elem(&masquerades, inside);
	if (!row || row->answer || row->kind != EXPOSED)
		return;
	*front = *inside;
	other_of_pair(front, row);
	delete_pair(inside, front);
}

/* Deletes the rows that the flow has in masquerades. */
part void unmask(const struct flow_key *key, const struct flow *f)
{
	__u32 zero = 0;
	struct pair *both = bpf_map_lookup_elem(&unmasked, &zero);
	struct masquerade *row;

	if (!both)
		return;
	if (f->owner == OUTSIDERS && f->via == VIA_TUNNEL) {
		unmask_client(key, both);
		return;
	}
	if (f->via != VIA_STACK)
		return;
	both->pod = *key;
	if (f->flags & FLOW_TRANSLATED)
		answers_key(&both->pod, key, f);
	row = bpf_map_lookup_elem(&masquerades, &both->pod);
	if (!row || row->answer)
		return;
	both->answer = both->pod;
	other_of_pair(&both->answer, row);
	delete_pair(&both->pod, &both->answer);
}

/* Gives up the back-th newest of the flows that the owner opened beyond its share,
 * unless it has been answered. */
inline_always int give_up(struct share *sh, __u32 owner, __u32 back)
{
	__u32 zero = 0;
	struct flow_key *key = bpf_map_lookup_elem(&given_up, &zero);
	struct flow *f;

	if (!key)
		return 0;
	*key = sh->newest[(sh->next - back) % NEWEST]; /* a copy: other CPUs write there */
	f = bpf_map_lookup_elem(&flows, key);
	if (!f || f->owner != owner || f->flags & (FLOW_REPLIED | FLOW_ANSWERS))
		return 0;
	unmask(key, f);
	forget(key, f);
	__sync_fetch_and_add(&sh->evicted, 1);
	return 1;
}

/* Makes room in what the owner holds: the oldest in newest goes, or else the last but
 * one. The last may be the other row of the current packet, if it goes to a pod of
 * this node. */
inline_always int make_room(struct share *sh, __u32 owner)
{
	if (give_up(sh, owner, NEWEST) || give_up(sh, owner, 2))
		return 1;
	__sync_fetch_and_add(&sh->next, 1); /* try others next time */
	return 0;
}

/* Charges an owner for a new flow. Returns what charge does. No other owner's flow is
 * evicted for it: a live connection is worth more than a new one. An owner that has
 * reached its limit gives up an unanswered flow of its own. */
once int admit(__u32 owner)
{
	int why = charge(owner, 0);
	struct share *sh;

	if (likely(why != REASON_FLOW_TABLE_FULL))
		return why;
	sh = share_of(owner);
	if (!sh)
		return REASON_FAILED;
	if (make_room(sh, owner))
		return charge(owner, 1);
	__sync_fetch_and_add(&sh->refused, 1);
	return REASON_FLOW_TABLE_FULL;
}

/* What put returns besides reasons. */
enum {
	STORED = 0,
	ELSEWHERE = 103, /* another CPU stored the same flow a moment ago */
};

/* Writes an admitted flow. Returns STORED, ELSEWHERE or a reason. */
part int put(const struct flow_key *key, const struct flow *f, int admitted)
{
	__u32 owner = f->owner;
	int err = bpf_map_update_elem(&flows, key, f, ROW_NEW);
	const struct flow *old;
	struct share *sh;

	if (likely(!err && admitted == WITHIN_SHARE))
		return 0;
	if (err)
		release(owner);
	/* Two CPUs got its first packets: the other CPU's flow will do. */
	if (err == -EXISTS) {
		old = bpf_map_lookup_elem(&flows, key);
		return old && old->flags & FLOW_ANSWERS ? REASON_FLOW_CLASH : ELSEWHERE;
	}
	sh = share_of(owner);
	if (err) {
		if (sh && err == -TOO_BIG)
			__sync_fetch_and_add(&sh->refused, 1);
		return unwritten(err);
	}
	if (sh) {
		sh->newest[sh->next % NEWEST] = *key;
		__sync_fetch_and_add(&sh->next, 1);
	}
	return 0;
}

/* Admits and writes a flow. Returns what put does. */
part int store(const struct flow_key *key, const struct flow *f)
{
	int why = admit(f->owner);

	return why > BEYOND_SHARE ? why : put(key, f, why);
}
