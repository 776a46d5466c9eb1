//go:build ignore

/* from_pod: what a pod sends, seen on the host side of its veth.
 *
 * 1. Find the flow that the packet belongs to.
 * 2. Decide. A packet of a known flow goes on as decided before, unless something
 *    changed that the verdict rests on, or the path died. Any other has to open a flow:
 *    a pod may use only its own address, a service chooses a backend, and the pod's
 *    policy is asked.
 * 3. Act. The packet goes to a pod of this node, into a tunnel, or to the stack; or it
 *    is dropped, and the pod may be told.
 */
#include "lib/claim.h"
#include "lib/deliver.h"
#include "lib/early.h"
#include "lib/loop.h"
#include "lib/refuse.h"
#include "lib/spoken.h"

inline_always struct flow *find(struct work *w);
inline_always enum course decide(struct __sk_buff *skb, struct work *w, const struct settings *s, struct flow *f,
				 __u64 now);
inline_always enum course decide_to_open(struct __sk_buff *skb, struct work *w, const struct settings *s,
					 struct flow **flow);
inline_always int send(struct __sk_buff *skb, struct work *w, const struct settings *s, struct flow *f, enum course how,
		       __u64 now);
once int send_first(struct __sk_buff *skb, const struct settings *s, struct flow *f);
inline_always int send_error(struct __sk_buff *skb, struct work *w, const struct settings *s);

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	const struct settings *s = read_settings();
	struct work *w = begin(skb->ifindex);
	enum course course;
	struct flow *f;
	__u64 now;
	int why, act;

	if (!w)
		return leave(skb, REASON_FAILED, EGRESS, ACT_SHOT);
	why = parse_eth(skb, &w->p);
	if (unlikely(why == REASON_FRAGMENT)) {
		act = wait_for_first(skb, &w->p, skb->ifindex, EGRESS, 0);
		if (act != NO_ROOM)
			return act;
	}
	if (why)
		return why < FIRST_DROP ? leave(skb, why, EGRESS, ACT_NEXT) : turn_away(skb, &w->p, why);
	if (!s || !s->revision)
		return drop(skb, &w->p, REASON_NOT_READY, EGRESS);
	if (unlikely(w->p.error))
		return send_error(skb, w, s);
	now = bpf_ktime_get_coarse_ns();

	/* 1. Find. */
	f = find(w);

	/* 2. Decide. */
	course = f ? decide(skb, w, s, f, now) : OPEN;
	if (course == OPEN)
		course = decide_to_open(skb, w, s, &f);

	/* 3. Act. */
	switch (course) {
	case GO:
	case GO_UNHEARD:
		if (f)
			return send(skb, w, s, f, course, now);
		break;
	case BEGIN:
		if (f)
			return send_first(skb, s, f);
		w->why = REASON_FAILED; /* deleted in between: the sender retransmits */
		break;
	case RESET:
		return reset(skb, &w->p, w->why);
	case REFUSE:
		if (f)
			return drop_refused(skb, &w->p, f, w->why);
		break;
	case TURN_AWAY:
		return turn_away(skb, &w->p, w->why);
	default:
		break;
	}
	return drop(skb, &w->p, w->why, EGRESS);
}

/* ---- 1. Find ---- */

/* Finds the flow beside another's answers, whose row has the key; null if there is none. */
part struct flow *find_beside(struct work *w)
{
	struct flow *f;

	w->key.beside = 1;
	f = bpf_map_lookup_elem(&flows, &w->key);
	if (!f)
		w->key.beside = 0;
	return f;
}

inline_always struct flow *find(struct work *w)
{
	struct flow *f, *beside;

	sent_key(&w->key, &w->p);
	f = bpf_map_lookup_elem(&flows, &w->key);
	if (unlikely(f && f->flags & FLOW_ANSWERS)) {
		beside = find_beside(w);
		return beside ? beside : f;
	}
	return f;
}

/* ---- 2. Decide: packets of known flows ---- */

/* Does the flow's service have a backend whose path is alive? One that is gone refuses whoever opens a
 * flow again. One whose address is not known, because what a socket was given is translated as well
 * (FLOW_MEMBER), is not asked for each packet. */
once int alive_elsewhere(const struct settings *s, const struct flow_key *key, const struct flow *f)
{
	if (!s || !key || !f)
		return 0;
	struct service_key front = {.addr = key->remote, .port = key->rport, .proto = key->proto};
	struct service *svc;
	struct target to = {};

	if (f->flags & FLOW_MEMBER) {
		if (f->flags & FLOW_TRANSLATED)
			return 0;
		front.addr = f->backend;
		front.port = f->bport;
	}
	svc = service_at(s, &front);
	return !svc || !choose_backend(s, svc, &to, &front.addr, ONLY_ALIVE);
}

/* Does f end here because its path is silent or dead, rather than wait for it? */
inline_always int ends(const struct settings *s, const struct flow_key *key, const struct flow *f, __u8 path, __u64 now)
{
	if (path == PATH_DEAD)
		return !established(f, key->proto) || !lately(f, now);
	if (f->flags & FLOW_REPLIED || !(f->flags & (FLOW_SERVICE | FLOW_MEMBER)))
		return 0;
	return alive_elsewhere(s, key, f);
}

/* Is this reason the end of an open connection? */
inline_always int ends_by(__u32 why, const struct packet *p, const struct flow *f)
{
	if (p->proto != PROTO_TCP || p->tcp_flags & TCP_RST)
		return 0;
	return why == REASON_FORMER_MEMBER || (why == REASON_NO_TUNNEL && f->flags & FLOW_REPLIED && !opens(p));
}

/* Decides about a packet of a flow that was judged again and may not go on. */
part enum course decide_refused(struct work *w, struct flow *f, __u32 why, __u64 now)
{
	struct packet *p = &w->p;

	name_service(p, &w->key, f);
	if (why == REASON_NO_TUNNEL && waits(f, p, now))
		return because(w, DROP, why);
	if (ends_by(why, p, f)) {
		/* The row stays for as long as that of a closed connection, for
		 * packets still on their way. */
		__sync_fetch_and_or(&f->flags, FLOW_RESET);
		f->seen = now;
		return because(w, RESET, why);
	}
	if (f->flags & FLOW_REMOTE_INITIATED)
		return refuse(w, f, why, now);
	tried(f, why, now);
	return because(w, TURN_AWAY, why);
}

/* Decides about a packet of a flow whose backend is gone, or whose path is not alive. */
part enum course decide_lost(const struct settings *s, struct work *w, struct flow *f, __u8 path, int gone)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	int open = established(f, w->p.proto);

	if (!gone && !ends(s, &w->key, f, path, now))
		return open ? GO_UNHEARD : GO;
	/* An open connection is reset; other flows may start again elsewhere. */
	if (open) {
		w->p.dst_identity = f->identity;
		name_service(&w->p, &w->key, f);
		forget_worked_on(f);
		return because(w, RESET, REASON_PATH_DOWN);
	}
	/* An answer is sent all the same: the other side was heard a moment ago and
	 * cannot get it any other way. If the path is down, it is lost there. */
	if (f->flags & FLOW_REMOTE_INITIATED)
		return GO;
	if (f->flags & (FLOW_SERVICE | FLOW_MEMBER))
		return OPEN;
	return because(w, TURN_AWAY, REASON_PATH_DOWN);
}

/* Decides about a packet of the flow f. */
inline_always enum course decide(struct __sk_buff *skb, struct work *w, const struct settings *s, struct flow *f,
				 __u64 now)
{
	struct packet *p = &w->p;
	int why, gone = 0;
	__u8 path;

	if (unlikely(f->flags & FLOW_ANSWERS)) /* another flow's: may this one be opened too? */
		return OPEN;
	if (unlikely(f->ifindex != skb->ifindex)) {
		/* Another pod's flow, or that of an earlier pod with this address. Only
		 * the pod that has the address now may replace it. */
		struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &p->src);

		if (!ep || ep->ifindex != skb->ifindex)
			return because(w, DROP, REASON_SPOOFED_SOURCE);
		return OPEN;
	}
	if (over(f, p, now))
		return OPEN;
	if (unlikely(!holds(s, &w->key, f))) {
		why = rejudge(s, p, &w->key, f);
		if (why == RENEW)
			return OPEN;
		gone = why == GONE;
		if (why && !gone)
			return decide_refused(w, f, why, now);
	}
	path = f->node ? path_to(s, f->node, f->cluster) : PATH_ALIVE;
	if (unlikely(gone || path != PATH_ALIVE))
		return decide_lost(s, w, f, path, gone);
	return GO;
}

/* ---- 2. Decide: packets of no flow ---- */

#define LOOP 102 /* from open_egress: the backend is the pod itself */

/* Judges a packet that belongs to no flow, and fills in a new one. Returns 0, LOOP or
 * a reason. */
once int open_egress(struct __sk_buff *skb, struct packet *p, const struct settings *s, struct flow *f)
{
	if (!p || !s || !f)
		return REASON_FAILED;
	struct target to = {.addr = p->src};
	__u32 revision = s->revision + address_revision(&to.addr); /* before the rows: see revision.h */
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &to.addr);
	struct place at = {};
	int why, verdict;

	if (!ep || ep->ifindex != skb->ifindex)
		return REASON_SPOOFED_SOURCE;
	p->src_identity = ep->identity;
	if (ep->held)
		return REASON_HELD;
	/* An answer without a request, or the end of no connection. */
	if (is_icmp(p->proto) && !p->asks)
		return REASON_INVALID;
	if (p->proto == PROTO_TCP && p->tcp_flags & TCP_RST)
		return REASON_INVALID;

	*f = (struct flow){
		.seen = bpf_ktime_get_coarse_ns(), .ifindex = skb->ifindex, .owner = skb->ifindex,
		.said[EGRESS] = {p->seq, p->ack},
	};
	if (p->proto == PROTO_TCP && p->tcp_flags & TCP_FIN)
		f->flags = FLOW_FIN_LOCAL;
	ask_socket(skb, s, p, f, &to);
	why = to.told < TOLD ? aim(s, p, &to) : 0;
	if (unlikely(to.told))
		why = heed_socket(p, f, &to, why);
	if (to.service || unlikely(why)) {
		if (likely(!p->direct)) {
			p->service = p->dst;
			p->service_port = p->dport;
		}
		if (why)
			return why;
		f->flags |= FLOW_SERVICE;
		f->service = to.service;
		f->backend = to.addr;
		f->bport = to.port;
		if (same(&to.addr, &p->src))
			return LOOP;
	}
	revision += address_revision(&to.addr);
	/* Removed since it was chosen: the next packet looks again. */
	if (f->flags & (FLOW_SERVICE | FLOW_MEMBER) && !is_member(&to.addr, to.port, f->service))
		revision--;
	why = locate(s, &to.addr, &at);
	if (why == REASON_NODE_ADDRESS && at.node && offered(&to.addr, to.port, p->proto))
		why = 0;
	p->dst_identity = at.identity;
	if (why == REASON_NO_BACKEND)
		return why;
	revision += identity_revision(at.identity);
	verdict = judge(s, p, ep->set, at.identity, DIR_PORT(EGRESS, to.port));
	if (!verdict)
		verdict = why;
	if (!verdict && at.node)
		verdict = way_to(s, at.node, at.cluster);
	if (!verdict && at.via != VIA_STACK && p->ttl <= 1)
		verdict = REASON_TTL_EXCEEDED;
	if (verdict) { /* the event names the backend */
		p->dst = to.addr;
		p->dport = to.port;
		return verdict;
	}
	f->revision = revision;
	f->identity = at.identity;
	f->rule = p->rule;
	f->node = at.node;
	f->cluster = at.cluster;
	f->via = at.via;
	return 0;
}

/* Opens a flow for the packet that is being worked on. claimed tells whether its key has a
 * row for answers. Returns what put does: after STORED, fresh_flow is a copy. */
once int open_flow(struct __sk_buff *skb, const struct settings *s, int claimed)
{
	struct flow *f = fresh_flow();
	struct work *w = working();
	int why;

	if (!s || !f || !w)
		return REASON_FAILED;
	why = open_egress(skb, &w->p, s, f);
	if (why == LOOP) {
		why = open_loop(&w->key);
		return why ? why : ELSEWHERE; /* the copy is of the other side */
	}
	if (why)
		return why;
	if (unlikely(claimed) && clashes(&w->key, f->seen))
		stand_beside(&w->key, f);
	why = f->flags & FLOW_TRANSLATED ? remember(&w->key, f, 0) : store(&w->key, f);
	if (unlikely(w->key.beside) && !why)
		why = share_key(&w->key);
	if (why && why != ELSEWHERE)
		name_service(&w->p, &w->key, f);
	return why;
}

/* Decides about a packet that belongs to no live flow: it opens one, in place of the old
 * one if flow is one, or is turned away. On return flow is what was stored, or a copy. */
inline_always enum course decide_to_open(struct __sk_buff *skb, struct work *w, const struct settings *s,
					 struct flow **flow)
{
	struct flow *old = *flow;
	int claimed = old && old->flags & FLOW_ANSWERS, why;

	if (old && !claimed)
		forget_worked_on(old);
	if (unlikely(w->key.beside)) { /* the key without the mark is still another's, or was */
		w->key.beside = 0;
		claimed = 1;
	}
	why = open_flow(skb, s, claimed);
	if (unlikely(why == ELSEWHERE)) {
		old = bpf_map_lookup_elem(&flows, &w->key);
		*flow = old && !(old->flags & FLOW_ANSWERS) ? old : 0; /* 0: deleted in between */
		return BEGIN;
	}
	*flow = fresh_flow();
	return why ? because(w, TURN_AWAY, why) : BEGIN;
}

/* ---- 3. Act ---- */

/* deliver_flow with a stack frame of its own. */
once int deliver_next_door(struct __sk_buff *skb, const struct settings *s, const struct endpoint *ep,
			   const struct origin *o)
{
	struct work *w = working();

	if (!w || !s || !ep || !o)
		return ACT_SHOT;
	return deliver_flow(skb, w, s, ep, o);
}

/* Sends an allowed packet the way that p->via and p->node say. */
inline_always int send_on(struct __sk_buff *skb, struct work *w, const struct settings *s)
{
	struct packet *p = &w->p;
	struct origin o = {.via = VIA_POD};
	struct endpoint *ep;

	switch (p->via) {
	case VIA_TUNNEL:
		return tunnel(skb, p, s, p->node);
	case VIA_POD:
		ep = receiver(w, s);
		if (!ep)
			return turn_away(skb, p, REASON_NO_ENDPOINT);
		if (p->error)
			return deliver_error(skb, p, s, ep, &o);
		return deliver_next_door(skb, s, ep, &o);
	}
	return leave(skb, REASON_TO_STACK, EGRESS, ACT_NEXT);
}

/* Sends a packet the way of its flow. */
inline_always int send(struct __sk_buff *skb, struct work *w, const struct settings *s, struct flow *f, enum course how,
		       __u64 now)
{
	struct packet *p = &w->p;
	int why;

	if (unlikely(p->ttl <= 1 && f->via != VIA_STACK))
		return turn_away(skb, p, REASON_TTL_EXCEEDED);
	if (likely(how != BEGIN)) /* a new flow has noted it */
		advance(f, p, 1, how == GO_UNHEARD ? f->seen : now);
	if (unlikely(f->flags & FLOW_LOOP)) {
		if (how == BEGIN)
			trace(skb, p, s, f->via, EGRESS);
		return loop(skb, p, &w->key, f);
	}
	p->via = f->via;
	p->node = f->node;
	if (f->flags & FLOW_TRANSLATED) {
		why = translate(skb, p, &w->key, f);
		if (why)
			return turn_away(skb, p, why);
	}
	if (how == BEGIN)
		trace(skb, p, s, f->via, EGRESS);
	return send_on(skb, w, s);
}

/* Sends a flow's first packet. */
once int send_first(struct __sk_buff *skb, const struct settings *s, struct flow *f)
{
	struct work *w = working();

	return w && s && f ? send(skb, w, s, f, BEGIN, 0) : ACT_SHOT;
}

/* ---- ICMP errors: all three steps, with the flow of the packet they quote ---- */

/* An ICMP error from the pod about a packet it received. Returns 0 with p->via and
 * p->node set, or a reason. */
once int error_from_pod(struct __sk_buff *skb, struct packet *p, const struct settings *s)
{
	if (!p || !s)
		return REASON_FAILED;
	struct about *about = error_about();
	struct flow_key *key;
	struct quote *q;
	struct flow *f;
	int why;

	if (!about)
		return REASON_FAILED;
	q = &about->quote;
	key = &about->flow;
	why = read_quote(skb, p, q);
	if (why)
		return why;
	if (!same(&q->dst, &p->src) || !same(&q->src, &p->dst))
		return REASON_INVALID;
	*key = (struct flow_key){
		.local = q->dst, .remote = q->src, .lport = q->dport, .rport = q->sport, .proto = q->proto,
	};
	if (is_icmp(q->proto)) {
		key->lport = q->sport;
		key->rport = icmp_port(q->dport, !q->asks);
	}
	f = bpf_map_lookup_elem(&flows, key);
	if (f && f->flags & FLOW_ANSWERS) {
		key->beside = 1;
		f = bpf_map_lookup_elem(&flows, key);
	}
	if (!f)
		return REASON_INVALID;
	if (f->ifindex != skb->ifindex)
		return REASON_SPOOFED_SOURCE;
	/* A client's error about a service's answer helps nobody. */
	if (f->flags & (FLOW_SERVICE | FLOW_LOOP))
		return REASON_NOT_SUPPORTED;
	why = judge_error(s, p, key, f);
	if (why)
		return why;
	if (f->node && path_to(s, f->node, f->cluster) == PATH_DEAD)
		return REASON_PATH_DOWN;
	if (f->via != VIA_STACK && p->ttl <= 1)
		return REASON_TTL_EXCEEDED;
	p->via = f->via;
	p->node = f->node;
	if (f->flags & FLOW_DIRECT)
		return restore_quote(skb, q, DESTINATION, &q->dst, other_port(f, q->dport));
	return 0;
}

inline_always int send_error(struct __sk_buff *skb, struct work *w, const struct settings *s)
{
	int why = error_from_pod(skb, &w->p, s);

	return why ? drop(skb, &w->p, why, EGRESS) : send_on(skb, w, s);
}
