/* Flows: finding, ageing, making and forgetting them. */
#pragma once

#include "packet.h"
#include "sequence.h"
#include "share.h"

/* The connection as the pod that sends p sees it. */
inline_always struct flow_key sent_key(const struct packet *p)
{
	struct flow_key key = {
		.local = p->src, .remote = p->dst,
		.lport = p->sport, .rport = p->dport, .proto = p->proto,
	};
	if (p->proto == PROTO_ICMP)
		key.rport = p->asks ? 0 : htons(1);
	return key;
}

/* The connection as the pod that receives p sees it. */
inline_always struct flow_key received_key(const struct packet *p)
{
	struct flow_key key = {
		.local = p->dst, .remote = p->src,
		.lport = p->dport, .rport = p->sport, .proto = p->proto,
	};
	if (p->proto == PROTO_ICMP)
		key.rport = p->asks ? htons(1) : 0;
	return key;
}

inline_always struct reply_key reply_key_of(const struct flow_key *key, const struct addr *backend, __be16 bport)
{
	return (struct reply_key){
		.local = key->local, .backend = *backend,
		.lport = key->lport, .bport = bport, .proto = key->proto,
	};
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

/* Would its end be noticed? Others find another backend in silence. */
inline_always int established(const struct flow *f, __u8 proto)
{
	return proto == PROTO_TCP && f->flags & FLOW_REPLIED;
}

/* Was it heard while its path is dead? Two nodes do not find at the same moment
 * that the path between them is back: who is asked by the first to know answers.
 * What a pod sends on open TCP over a silent or dead path is not noted, and a
 * path that gives no answer is silent for probe.DoubtTime, which is as long as
 * this, before it is dead: so only the other side counts. */
inline_always int lately(const struct flow *f, __u64 now)
{
	return now < f->seen + 500 * 1000 * 1000ULL;
}

inline_always int opens(const struct packet *p)
{
	return p->proto == PROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* A flow that p cannot belong to any more: silent for too long, or closed and
 * now opened again with the same ports. */
inline_always int over(const struct flow *f, const struct packet *p, __u64 now)
{
	if (now > f->seen && now - f->seen > lifetime(f, p->proto))
		return 1;
	return opens(p) && closing(f);
}

/* Notes that p passed, at the time now, or at none if that is 0. Flags are only
 * added and times only grow, so a lost race is a later one. A deleted row may
 * already hold another flow: it gets a flag or a time that is not its own, at
 * worst a shorter life. */
inline_always void advance(struct flow *f, const struct packet *p, int from_pod, __u64 now)
{
	__u32 add = 0;

	if (from_pod == !!(f->flags & FLOW_REMOTE_INITIATED))
		add |= FLOW_REPLIED;
	if (p->proto == PROTO_TCP && !p->headless && (add & ~f->flags || matters(f, p, from_pod, now)))
		add = follow(f, p, from_pod, add);
	if (add & ~f->flags)
		__sync_fetch_and_or(&f->flags, add);
	if (f->seen < now) /* spares the cache line between two ticks */
		f->seen = now;
}

/* Names, for the event, the service that p's flow goes through, and its backend. */
inline_always void name_service(struct packet *p, const struct flow_key *key, const struct flow *f)
{
	if (!(f->flags & FLOW_SERVICE))
		return;
	p->service = key->remote.w[3];
	p->service_port = key->rport;
	if (same(&p->src, &key->local)) {
		p->dst = f->backend;
		p->dport = f->bport;
	}
}

part int forget(const struct flow_key *key, const struct flow *f)
{
	__u32 owner = f->owner;

	if (f->flags & FLOW_SERVICE) {
		struct reply_key reply = reply_key_of(key, &f->backend, f->bport);
		struct reply *row = bpf_map_lookup_elem(&replies, &reply);

		/* Another flow may have claimed the answers since this one ended. */
		if (row && same(&row->remote, &key->remote) && row->rport == key->rport)
			bpf_map_delete_elem(&replies, &reply);
	}
	if (!bpf_map_delete_elem(&flows, key)) /* of two that forget it one gives it back */
		release(owner);
	return 0;
}

/* Finds the flow that goes through a service and whose backend is key->remote. key
 * becomes that flow's. */
part struct flow *find_service_flow(struct flow_key *key)
{
	struct reply_key reply = reply_key_of(key, &key->remote, key->rport);
	struct reply *row = bpf_map_lookup_elem(&replies, &reply);
	struct flow *f;

	if (!row)
		return 0;
	key->remote = row->remote;
	key->rport = row->rport;
	f = bpf_map_lookup_elem(&flows, key);
	if (f && same(&f->backend, &reply.backend) && f->bport == reply.bport)
		return f;
	return 0;
}

/* Is there a live flow whose answers look like those of local ↔ remote? One that
 * is over or about to be gives way. */
inline_always int clashes(const struct flow_key *key, __u64 now)
{
	struct flow *f = bpf_map_lookup_elem(&flows, key);

	if (!f)
		return 0;
	if (!closing(f) && (now < f->seen || now - f->seen <= lifetime(f, key->proto)))
		return 1;
	forget(key, f);
	return 0;
}

/* Claims backend's answers for the flow `key`. */
inline_always int claim_replies(const struct flow_key *key, const struct flow *f, __u64 now)
{
	struct reply_key reply = reply_key_of(key, &f->backend, f->bport);
	struct reply row = {.remote = key->remote, .rport = key->rport}, *old;
	struct flow_key other = *key;
	long err;

	/* The pod talks to the backend itself, from the same port. */
	other.remote = f->backend;
	other.rport = f->bport;
	if (clashes(&other, now))
		return REASON_FLOW_CLASH;

	/* Or to the same backend through another service. */
	old = bpf_map_lookup_elem(&replies, &reply);
	if (old && (!same(&old->remote, &key->remote) || old->rport != key->rport)) {
		other.remote = old->remote;
		other.rport = old->rport;
		if (clashes(&other, now))
			return REASON_FLOW_CLASH;
	}
	err = bpf_map_update_elem(&replies, &reply, &row, ROW_ANY);
	return err ? REASON_FLOW_TABLE_FULL : 0;
}

/* Is the answer of remote already another flow's, that goes through a service? */
part int claimed(const struct flow_key *key, __u64 now)
{
	struct reply_key reply = reply_key_of(key, &key->remote, key->rport);
	struct reply *old = bpf_map_lookup_elem(&replies, &reply);
	struct flow_key other = *key;

	if (!old)
		return 0;
	other.remote = old->remote;
	other.rport = old->rport;
	return clashes(&other, now);
}

/* Forgets the flow that is `back` from the end of those the owner opened beyond
 * its share, if nobody has answered it. */
inline_always int give_up(struct share *sh, __u32 owner, __u32 back)
{
	__u32 zero = 0;
	struct flow_key *key = bpf_map_lookup_elem(&given_up, &zero);
	struct flow *f;

	if (!key)
		return 0;
	*key = sh->newest[(sh->next - back) % NEWEST]; /* a copy: others write there */
	f = bpf_map_lookup_elem(&flows, key);
	if (!f || f->owner != owner || f->flags & FLOW_REPLIED)
		return 0;
	forget(key, f);
	__sync_fetch_and_add(&sh->evicted, 1);
	return 1;
}

/* Makes room in what the owner holds: the oldest of its newest flows goes, else
 * the last but one. The last may be the other row of the packet under way, to a
 * pod next door. */
inline_always int make_room(struct share *sh, __u32 owner)
{
	if (give_up(sh, owner, NEWEST) || give_up(sh, owner, 2))
		return 1;
	__sync_fetch_and_add(&sh->next, 1); /* others' turn */
	return 0;
}

/* Stores a flow of its owner. Nothing is evicted for it: a live connection is
 * worth more than a new one. Only an owner that has all it may have swaps a flow
 * of its own, unanswered, for it. */
part int store(const struct flow_key *key, const struct flow *f)
{
	__u32 owner = f->owner;
	struct share *sh;
	int why = charge(owner, 0);
	long err;

	if (likely(why == WITHIN_SHARE)) {
		err = bpf_map_update_elem(&flows, key, f, ROW_NEW);
		if (likely(!err))
			return 0;
		release(owner);
		/* Its first packets came on two CPUs: the other's flow is as good. */
		if (err == -EXISTS)
			return 0;
	}
	sh = share_of(owner);
	if (!sh)
		return REASON_FAILED;
	if (why == REASON_FLOW_TABLE_FULL && make_room(sh, owner))
		why = charge(owner, 1);
	if (why == BEYOND_SHARE) {
		err = bpf_map_update_elem(&flows, key, f, ROW_NEW);
		if (!err) {
			sh->newest[sh->next % NEWEST] = *key;
			__sync_fetch_and_add(&sh->next, 1);
			return 0;
		}
		release(owner);
		if (err == -EXISTS)
			return 0;
	}
	__sync_fetch_and_add(&sh->refused, 1);
	return REASON_FLOW_TABLE_FULL;
}

/* Stores a judged flow. */
inline_always int remember(const struct flow_key *key, const struct flow *f)
{
	return claimed(key, f->seen) ? REASON_FLOW_CLASH : store(key, f);
}

/* Stores one that goes through a service. */
part int remember_service(const struct flow_key *key, const struct flow *f)
{
	struct reply_key reply;
	int why = claim_replies(key, f, f->seen);

	if (why)
		return why;
	why = store(key, f);
	if (!why)
		return 0;
	reply = reply_key_of(key, &f->backend, f->bport);
	bpf_map_delete_elem(&replies, &reply);
	return why;
}
