//go:build ignore

/* from_pod: what a pod sends, seen on the host side of its veth.
 *
 * 1. A pod may use only its own address.
 * 2. A packet of a known flow goes on as decided before, unless the revision changed
 *    or the path died.
 * 3. A new flow chooses its backend, is judged as egress, and is stored.
 * 4. The packet goes to a pod of this node, into a tunnel, or to the stack.
 */
#include "lib/deliver.h"
#include "lib/loop.h"
#include "lib/refuse.h"

#define LOOP 102 /* from open_egress: the backend is the pod itself */

/* Judges a packet that belongs to no flow, and fills in a new one. Returns 0, LOOP or
 * a reason. */
once int open_egress(struct __sk_buff *skb, struct packet *p, const struct settings *s, struct flow *f)
{
	if (!p || !s || !f)
		return REASON_FAILED;
	struct addr to = p->src;
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &to);
	struct service_key front = {.addr = p->dst, .port = p->dport, .proto = p->proto};
	struct service *svc;
	struct place at = {};
	__be16 port = p->dport;
	int why, verdict;

	if (!ep || ep->ifindex != skb->ifindex)
		return REASON_SPOOFED_SOURCE;
	p->src_identity = ep->identity;
	if (ep->held)
		return REASON_HELD;
	/* An answer without a request, or the end of no connection. */
	if (p->proto == PROTO_ICMP && !p->asks)
		return REASON_INVALID;
	if (p->proto == PROTO_TCP && p->tcp_flags & TCP_RST)
		return REASON_INVALID;

	*f = (struct flow){
		.seen = bpf_ktime_get_coarse_ns(), .revision = s->revision, .ifindex = skb->ifindex,
		.owner = skb->ifindex,
	};
	to = p->dst;
	svc = bpf_map_lookup_elem(&services, &front);
	if (svc) {
		p->service = p->dst.w[3];
		p->service_port = p->dport;
		why = choose_backend(s, svc, f, 0);
		if (why)
			return why;
		to = f->backend;
		port = f->bport;
		if (same(&to, &p->src))
			return LOOP;
	}
	why = locate(s, &to, &at);
	p->dst_identity = at.identity;
	if (why == REASON_NO_BACKEND)
		return why;
	verdict = judge(s, p, ep->set, at.identity, DIR_PORT(EGRESS, port));
	if (!verdict)
		verdict = why;
	if (!verdict && at.node)
		verdict = way_to(s, at.node, at.cluster);
	if (!verdict && at.via != VIA_STACK && p->ttl <= 1)
		verdict = REASON_TTL_EXCEEDED;
	if (verdict) { /* the event names the backend */
		p->dst = to;
		p->dport = port;
		return verdict;
	}
	f->identity = at.identity;
	f->rule = p->rule;
	f->node = at.node;
	f->cluster = at.cluster;
	f->via = at.via;
	return 0;
}

/* Does the flow's service have a backend whose path is alive? */
once int alive_elsewhere(const struct settings *s, const struct flow_key *key)
{
	if (!s || !key)
		return 0;
	struct service_key front = {.addr = key->remote, .port = key->rport, .proto = key->proto};
	struct service *svc = bpf_map_lookup_elem(&services, &front);
	struct flow *chosen = fresh_flow();

	return !svc || (chosen && !choose_backend(s, svc, chosen, 1));
}

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
	if (q->proto == PROTO_ICMP) {
		key->lport = q->sport;
		key->rport = icmp_port(q->dport, !q->asks);
	}
	f = bpf_map_lookup_elem(&flows, key);
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
	return 0;
}

/* deliver_flow with a stack frame of its own: from_pod's has no room for both. */
once int deliver_next_door(struct __sk_buff *skb, struct packet *p, const struct settings *s,
			   const struct endpoint *ep, const struct origin *o)
{
	if (!p || !s || !ep || !o)
		return ACT_SHOT;
	return deliver_flow(skb, p, s, ep, o);
}

/* Sends an allowed packet on its way. */
inline_always int send_on(struct __sk_buff *skb, struct packet *p, const struct settings *s)
{
	struct origin o = {.via = VIA_POD};
	struct endpoint *ep;

	switch (p->via) {
	case VIA_TUNNEL:
		return tunnel(skb, p, s, p->node);
	case VIA_POD:
		ep = bpf_map_lookup_elem(&endpoints, &p->dst);
		if (!ep)
			return turn_away(skb, p, REASON_NO_ENDPOINT);
		if (p->error)
			return deliver_error(skb, p, s, ep, &o);
		return deliver_next_door(skb, p, s, ep, &o);
	}
	return leave(skb, REASON_TO_STACK, EGRESS, ACT_OK);
}

/* Does f end here because its path is silent or dead, rather than wait for it? */
part int ends(const struct settings *s, const struct flow_key *key, const struct flow *f, __u8 path, __u64 now)
{
	if (path == PATH_DEAD)
		return !established(f, key->proto) || !lately(f, now);
	if (f->flags & FLOW_REPLIED || !(f->flags & FLOW_SERVICE))
		return 0;
	return alive_elsewhere(s, key);
}

/* Is this reason the end of an open connection? */
inline_always int ends_by(__u32 why, const struct packet *p, const struct flow *f)
{
	if (p->proto != PROTO_TCP || p->tcp_flags & TCP_RST)
		return 0;
	return why == REASON_FORMER_MEMBER || (why == REASON_NO_TUNNEL && f->flags & FLOW_REPLIED && !opens(p));
}

/* Like refuse, for a packet from a pod, which may be told. */
part int turn_down(struct __sk_buff *skb, struct packet *p, const struct flow_key *key, struct flow *f, __u32 why)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (why == REASON_NO_TUNNEL && waits(f, p, now)) {
		name_service(p, key, f);
		return drop(skb, p, why, EGRESS);
	}
	if (ends_by(why, p, f)) {
		/* The row stays for as long as that of a closed connection, for
		 * packets still on their way. */
		name_service(p, key, f);
		__sync_fetch_and_or(&f->flags, FLOW_RESET);
		f->seen = now;
		return reset(skb, p, why);
	}
	if (f->flags & FLOW_REMOTE_INITIATED)
		return refuse(skb, p, key, f, why, now);
	name_service(p, key, f);
	tried(f, why, now);
	return turn_away(skb, p, why);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	const struct settings *s = read_settings();
	struct packet p = {.pod = skb->ifindex};
	struct flow_key key;
	struct flow *f;
	__u64 now;
	int why, dead, opened = 0;
	__u8 path;

	why = parse_eth(skb, &p);
	if (why)
		return why < FIRST_DROP ? leave(skb, why, EGRESS, ACT_OK) : turn_away(skb, &p, why);
	if (!s || !s->revision)
		return drop(skb, &p, REASON_NOT_READY, EGRESS);
	if (unlikely(p.error)) {
		why = error_from_pod(skb, &p, s);
		return why ? drop(skb, &p, why, EGRESS) : send_on(skb, &p, s);
	}

	key = sent_key(&p);
	now = bpf_ktime_get_coarse_ns();
	f = bpf_map_lookup_elem(&flows, &key);
	if (f) {
		if (unlikely(f->ifindex != skb->ifindex)) {
			/* Another pod's flow, or that of an earlier pod with this address.
			 * Only the pod that has the address now may replace it. */
			struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &p.src);
			if (!ep || ep->ifindex != skb->ifindex)
				return drop(skb, &p, REASON_SPOOFED_SOURCE, EGRESS);
			goto renew;
		}
		if (over(f, &p, now))
			goto renew;
		dead = 0;
		if (unlikely(f->revision != s->revision)) {
			why = rejudge(s, &p, &key, f);
			if (why == RENEW)
				goto renew;
			if (why == GONE)
				dead = 1;
			else if (why)
				return turn_down(skb, &p, &key, f, why);
		}
		path = f->node ? path_to(s, f->node, f->cluster) : PATH_ALIVE;
		if (unlikely(path != PATH_ALIVE)) {
			dead |= ends(s, &key, f, path, now);
			if (established(f, p.proto))
				now = 0; /* leaves seen alone: see lately */
		}
		if (likely(!dead))
			goto known;

		/* An open connection is reset; other flows may start again elsewhere. */
		if (established(f, p.proto)) {
			p.dst_identity = f->identity;
			name_service(&p, &key, f);
			forget(&key, f);
			return reset(skb, &p, REASON_PATH_DOWN);
		}
		/* An answer is sent all the same: the other side was heard a moment ago
		 * and cannot get it any other way. If the path is down, it is lost there. */
		if (f->flags & FLOW_REMOTE_INITIATED)
			goto known;
		if (!(f->flags & FLOW_SERVICE))
			return turn_away(skb, &p, REASON_PATH_DOWN);
renew:
		forget(&key, f);
	}
	f = fresh_flow();
	if (!f)
		return drop(skb, &p, REASON_FAILED, EGRESS);
	why = open_egress(skb, &p, s, f);
	if (why == LOOP)
		why = open_loop(&key);
	else if (!why) {
		why = f->flags & FLOW_SERVICE ? remember_service(&key, f) : remember(&key, f);
		if (why)
			name_service(&p, &key, f);
	}
	if (why)
		return turn_away(skb, &p, why);
	opened = 1;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f) /* deleted in between: the sender retransmits */
		return drop(skb, &p, REASON_FAILED, EGRESS);
known:
	if (unlikely(p.ttl <= 1 && f->via != VIA_STACK))
		return turn_away(skb, &p, REASON_TTL_EXCEEDED);
	advance(f, &p, 1, now);
	if (unlikely(f->flags & FLOW_LOOP)) {
		if (opened)
			trace(skb, &p, s, f->via, EGRESS);
		return loop(skb, &p, &key, f);
	}
	p.via = f->via;
	p.node = f->node;
	if (f->flags & FLOW_SERVICE) {
		p.service = p.dst.w[3];
		p.service_port = p.dport;
		why = rewrite(skb, &p, DESTINATION, &f->backend, f->bport);
		if (why) {
			name_service(&p, &key, f);
			return turn_away(skb, &p, why);
		}
	}
	if (opened)
		trace(skb, &p, s, f->via, EGRESS);
	return send_on(skb, &p, s);
}
