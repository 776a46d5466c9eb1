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

/* p cannot belong to this flow any longer: it was idle for too long, or it was closed
 * and p opens a new connection with the same ports. */
inline_always int over(const struct flow *f, const struct packet *p, __u64 now)
{
	if (now > f->seen && now - f->seen > lifetime(f, p->proto))
		return 1;
	return opens(p) && closing(f);
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

part int forget(const struct flow_key *key, const struct flow *f)
{
	__u32 owner = f->owner;

	if (f->flags & FLOW_SERVICE) {
		struct reply_key reply = reply_key_of(key, &f->backend, f->bport);
		struct reply *row = bpf_map_lookup_elem(&replies, &reply);

		/* Another flow may have claimed this row since this one ended. */
		if (row && same(&row->remote, &key->remote) && row->rport == key->rport)
			bpf_map_delete_elem(&replies, &reply);
	}
	if (!bpf_map_delete_elem(&flows, key)) /* if two CPUs delete it, only one gives it back */
		release(owner);
	return 0;
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

/* Finds the flow through a service whose backend is key->remote, and turns key into
 * that flow's key. */
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

/* Has only the remote side spoken in f? */
inline_always int unanswered_by_pod(const struct flow *f)
{
	return (f->flags & (FLOW_REMOTE_INITIATED | FLOW_REPLIED)) == FLOW_REMOTE_INITIATED;
}

/* Is there a live flow with this key? One that is over or closing is deleted. So is one
 * in which the pod has never spoken: a backend's answer that came late, after its flow
 * was given up, looks like one, and would lock the pod out. */
inline_always int clashes(const struct flow_key *key, __u64 now)
{
	struct flow *f = bpf_map_lookup_elem(&flows, key);

	if (!f)
		return 0;
	if (!closing(f) && !unanswered_by_pod(f) && (now < f->seen || now - f->seen <= lifetime(f, key->proto)))
		return 1;
	forget(key, f);
	return 0;
}

/* Claims the backend's answers for the flow with this key. Returns 0 or a reason. */
inline_always int claim_replies(const struct flow_key *key, const struct flow *f, __u64 now)
{
	struct reply_key reply = reply_key_of(key, &f->backend, f->bport);
	struct reply row = {.remote = key->remote, .rport = key->rport}, *old;
	struct flow_key other = *key;
	long err;

	/* The pod may talk to the backend directly from the same port, */
	other.remote = f->backend;
	other.rport = f->bport;
	if (clashes(&other, now))
		return REASON_FLOW_CLASH;

	/* or to the same backend through another service. */
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

/* Do answers from remote already belong to a flow through a service? */
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
	if (!f || f->owner != owner || f->flags & FLOW_REPLIED)
		return 0;
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
part int admit(__u32 owner)
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

/* Writes an admitted flow. Returns 0 or a reason. */
part int put(const struct flow_key *key, const struct flow *f, int admitted)
{
	__u32 owner = f->owner;
	long err = bpf_map_update_elem(&flows, key, f, ROW_NEW);
	struct share *sh;

	if (likely(!err && admitted == WITHIN_SHARE))
		return 0;
	if (err)
		release(owner);
	/* Two CPUs got its first packets: the other CPU's flow will do. */
	if (err == -EXISTS)
		return 0;
	sh = share_of(owner);
	if (!sh)
		return err ? REASON_FAILED : 0;
	if (!err) {
		sh->newest[sh->next % NEWEST] = *key;
		__sync_fetch_and_add(&sh->next, 1);
		return 0;
	}
	__sync_fetch_and_add(&sh->refused, 1);
	return REASON_FLOW_TABLE_FULL;
}

/* Admits and writes a flow. Returns 0 or a reason. */
part int store(const struct flow_key *key, const struct flow *f)
{
	int why = admit(f->owner);

	return why > BEYOND_SHARE ? why : put(key, f, why);
}

/* Stores a judged flow. */
inline_always int remember(const struct flow_key *key, const struct flow *f)
{
	return claimed(key, f->seen) ? REASON_FLOW_CLASH : store(key, f);
}

/* Stores a judged flow that goes through a service. The row in replies is claimed only
 * once the flow is admitted, because it is hard to take back: another CPU may be storing
 * the same flow, and needs it. */
part int remember_service(const struct flow_key *key, const struct flow *f)
{
	int admitted = admit(f->owner), why;
	struct reply_key reply;

	if (admitted > BEYOND_SHARE)
		return admitted;
	why = claim_replies(key, f, f->seen);
	if (why) {
		release(f->owner);
		return why;
	}
	why = put(key, f, admitted);
	if (why && !bpf_map_lookup_elem(&flows, key)) {
		reply = reply_key_of(key, &f->backend, f->bport);
		bpf_map_delete_elem(&replies, &reply);
	}
	return why;
}
