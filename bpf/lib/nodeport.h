/* Node ports and external addresses: whoever is outside of the mesh reaches services at addresses
 * of this node, or at others that its network brings here. "Node port" below means all of them.
 *
 *	client → node port   ── enter ──►     client → backend       a pod of this node
 *	client ← node port   ◄── leaves ──    client ← backend
 *
 *	client → node port   ── enter ──►     ingress → backend      elsewhere, through its tunnel
 *	                    ◄── to_client ──  ingress ← backend
 *	client ← node port   ◄── leaves ──    client ← backend
 *
 * A backend on this node sees the client, and its policy judges the client's address. One
 * elsewhere sees this node's ingress address (see place.h), and for its policy that is the
 * world. Backends elsewhere have a flow of the node's here, charged to OUTSIDERS.
 *
 * A client that reaches one backend from one port at several node ports or addresses has
 * connections that the backend could not tell apart: the later one gets another port of the
 * client's there.
 *
 * Rows in masquerades remember a connection (EXPOSED and OF_CLIENT): by what the client
 * sends, where that goes; by what the backend sends, as whom that leaves. They live as long
 * as the flow, which is the pod's own if that is on this node.
 */
#pragma once

#include "masquerade.h"
#include "deliver.h"
#include "refuse.h"

/* A packet for a node port. In a row of each CPU, because the stack is short. */
struct entry {
	struct flow_key front;  /* client and node port; local is the node */
	struct flow_key inside; /* client and backend; local is the backend */
	struct flow_key client; /* client and backend; local is the client */
	struct flow_key answer; /* ingress address and backend; local is the ingress address */
	struct flow_key other;  /* scratch */
	struct masquerade row;  /* scratch */
	struct target to;
	struct place at;   /* of the backend */
	struct place from; /* of the client */
	__u64 now;
	__u32 service;
	__u32 why; /* the backend is nowhere */
	__be16 cport; /* the client's port, as the backend knows it */
	__u16 pad;
};

ARRAY(entering, MAP_PERCPU_ARRAY, struct entry, 1);

inline_always struct entry *entry(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&entering, &zero);
}

/* What enter returns besides actions. */
enum {
	TO_NODE = 100, /* it is the node's own */
	TO_POD = 101,  /* it goes to a pod of this node now */
	BEGINS = 102,  /* likewise, and it is the first: see withdraw */
	OPENS = 103,   /* it belongs to no live connection: see begin_inside */
};

/* The service that clients outside reach at the address and port that p is sent to; null if
 * there is none. */
part struct service *exposed(const struct __sk_buff *skb, const struct packet *p)
{
	struct service_key front = {.addr = p->dst, .port = p->dport, .proto = p->proto};
	struct prefix_key key = {.bits = 128, .addr = p->dst};
	struct service *svc;
	struct ip_info *ip;

	if (p->proto != PROTO_TCP && p->proto != PROTO_UDP)
		return 0;
	/* Another machine's, on a device that hears everything. */
	if (skb->pkt_type == PACKET_OTHERHOST)
		return 0;
	svc = bpf_map_lookup_elem(&services, &front);
	if (svc && svc->timeout[2] & SERVICE_SPLIT) {
		front.scope = SCOPE_OUTSIDE;
		svc = bpf_map_lookup_elem(&services, &front);
	}
	if (!svc)
		return 0;
	/* Cluster IPs are for the mesh. */
	ip = bpf_map_lookup_elem(&prefixes, &key);
	return ip && ip->flags & (IP_SERVICE | IP_MEMBER) ? 0 : svc;
}

/* Fills in what follows from the backend. */
inline_always void aim_at(const struct settings *s, struct entry *t)
{
	const struct flow_key *k = &t->front;

	set_key(&t->inside, &t->to.addr, &k->remote, t->to.port, t->cport, k->proto);
	set_key(&t->client, &k->remote, &t->to.addr, t->cport, t->to.port, k->proto);
	t->why = locate(s, &t->to.addr, &t->at);
}

/* The flow of a connection whose backend is known; null if it has none. */
part struct flow *find_exposed(struct entry *t)
{
	struct masquerade *row;
	struct flow *f;

	if (!t->why && t->at.via == VIA_POD) {
		f = bpf_map_lookup_elem(&flows, &t->inside);
		return f && f->flags & FLOW_ANSWERS ? 0 : f;
	}
	row = bpf_map_lookup_elem(&masquerades, &t->client);
	if (!row || row->answer || row->kind != OF_CLIENT)
		return 0;
	set_key(&t->answer, &row->addr, &t->to.addr, row->port, t->to.port, t->front.proto);
	f = bpf_map_lookup_elem(&flows, &t->answer);
	return f && f->flags & FLOW_ANSWERS ? 0 : f;
}

/* Decides about a packet of a known connection: GO, GO_UNHEARD, OPEN if it may go to another
 * backend, RESET, or DROP. */
part enum course decide_exposed(const struct settings *s, const struct packet *p, struct entry *t, struct flow *f)
{
	struct member_key member = {.addr = t->to.addr, .service = t->service, .port = t->to.port};
	__u8 path;
	int open;

	if (!f || over(f, p, t->now))
		return OPEN;
	open = established(f, p->proto);
	if (open && t->why == REASON_NO_TUNNEL) /* its node may be missing only for a moment */
		return DROP;
	if (t->why || (!bpf_map_lookup_elem(&members, &member) && (!open || t->at.identity == IDENTITY_UNKNOWN_MEMBER))) {
		t->why = REASON_PATH_DOWN;
		return open ? RESET : OPEN;
	}
	if (!t->at.node)
		return GO;
	path = path_to(s, t->at.node, t->at.cluster);
	if (path == PATH_ALIVE)
		return GO;
	if (open && (path == PATH_SILENT || lately(f, t->now)))
		return GO_UNHEARD;
	t->why = REASON_PATH_DOWN;
	if (open)
		return RESET;
	return path == PATH_SILENT && f->flags & FLOW_REPLIED ? GO : OPEN;
}

/* Deletes the pair of rows of which one has this key, unless its connection is alive. The
 * order is that of masquerade.h. Returns 0 if the key is free, or a reason. */
part int vacate(struct entry *t, const struct flow_key *key)
{
	struct masquerade *row = bpf_map_lookup_elem(&masquerades, key);
	struct flow_key *other = &t->other;

	if (!row)
		return 0;
	t->row = *row;
	*other = *key;
	if (row->answer)
		other_of_pair(other, &t->row);
	if (in_use(other, t->row.kind, t->now))
		return REASON_FLOW_CLASH;
	*other = *key; /* in_use changed it */
	other_of_pair(other, &t->row);
	if (bpf_map_delete_elem(&masquerades, t->row.answer ? other : key))
		return REASON_FLOW_CLASH; /* half of a pair: the sweep deletes it */
	bpf_map_delete_elem(&masquerades, t->row.answer ? key : other);
	return 0;
}

/* Deletes all rows of the connection that is being worked on. */
once int withdraw(void)
{
	struct entry *t = entry();
	struct masquerade *row;
	struct flow *f;

	if (!t)
		return 0;
	row = bpf_map_lookup_elem(&masquerades, &t->client);
	if (row && !row->answer && row->kind == OF_CLIENT) {
		set_key(&t->answer, &row->addr, &t->to.addr, row->port, t->to.port, t->front.proto);
		f = bpf_map_lookup_elem(&flows, &t->answer);
		if (f && !(f->flags & FLOW_ANSWERS))
			forget(&t->answer, f);
		delete_pair(&t->client, &t->answer);
	}
	delete_pair(&t->inside, &t->front);
	return 0;
}

/* Tries a port of the client's towards the backend. One from which the client speaks to the
 * backend itself will not do. */
static long try_client(__u32 i, const __u32 *unused)
{
	struct search *found = searching();
	struct entry *t = entry();
	struct flow *f;

	if (!t || !found)
		return 1;
	t->inside.rport = htons(port_to_try(found, i));
	if (t->inside.rport == t->front.rport || vacate(t, &t->inside))
		return 0;
	f = bpf_map_lookup_elem(&flows, &t->inside);
	if (f && (t->now <= f->seen || t->now - f->seen <= lifetime(f, t->inside.proto)))
		return 0;
	found->found = 1;
	return 1;
}

/* Finds another port of the client's, at which the backend has no connection with it.
 * Returns 0 or a reason. */
once int another_client_port(void)
{
	struct search *found = searching();
	struct entry *t = entry();
	__u32 unused = 0;

	if (!t || !found)
		return REASON_FAILED;
	begin_search(found, &t->inside);
	search_all(found);
	bpf_loop(TRIES + WALK, try_client, &unused, 0);
	if (!found->found)
		return REASON_NO_PORT;
	t->cport = t->inside.rport;
	t->client.lport = t->cport;
	return 0;
}

/* Writes the pair of rows between node port and backend. Returns 0 or a reason. */
inline_always int expose(struct entry *t)
{
	int why = vacate(t, &t->front);
	__be16 other;
	int err;

	if (why)
		return why;
	if (unlikely(vacate(t, &t->inside))) {
		why = another_client_port();
		if (why)
			return why;
	}
	other = t->cport == t->front.rport ? 0 : t->cport;
	t->row = (struct masquerade){.addr = t->to.addr, .port = t->to.port, .answer = 1, .kind = EXPOSED, .other = other};
	err = bpf_map_update_elem(&masquerades, &t->front, &t->row, ROW_NEW);
	if (!err) {
		other = other ? t->front.rport : 0;
		t->row = (struct masquerade){.addr = t->front.local, .port = t->front.lport, .kind = EXPOSED, .other = other};
		err = bpf_map_update_elem(&masquerades, &t->inside, &t->row, ROW_NEW);
		if (err)
			bpf_map_delete_elem(&masquerades, &t->front);
	}
	/* Another CPU may be at the same connection: the sender tries again. */
	return err ? unwritten(err) : 0;
}

/* Gives the client a port of the ingress address towards its backend, and stores the flow.
 * Returns 0 or a reason. */
part int open_elsewhere(struct __sk_buff *skb, const struct settings *s, const struct packet *p, struct entry *t)
{
	struct search *found = searching();
	struct flow *f = fresh_flow();
	struct addr ingress;
	int why;

	if (!found || !f)
		return REASON_FAILED;
	why = vacate(t, &t->client);
	if (why)
		return why;
	if (!ingress_address(s, p->ipv6, &ingress))
		return REASON_NO_TUNNEL;
	begin_mask(found, &t->client, &ingress);
	search_all(found);
	found->kind = OF_CLIENT;
	why = search_port(skb, found, TRIES);
	if (why)
		return why;
	t->answer = found->answer;
	*f = (struct flow){
		.seen = t->now, .identity = t->at.identity, .node = t->at.node, .cluster = t->at.cluster,
		.via = VIA_TUNNEL, .owner = OUTSIDERS, .said[EGRESS] = {p->seq, p->ack},
	};
	why = store(&t->answer, f);
	/* The flow of an earlier connection may not have been swept yet. */
	if (unlikely(why == ELSEWHERE) && !clashes(&t->answer, t->now))
		why = store(&t->answer, f);
	if (!why || why == ELSEWHERE)
		return 0;
	delete_pair(&t->client, &t->answer);
	return why;
}

/* Does a connected socket of the node wait for this? What the node itself asked from the
 * number of a node port is answered to the node. */
part int has_asked(struct __sk_buff *skb, const struct packet *p, const struct entry *t)
{
	struct sock_tuple6 tuple = {};
	__u32 size = tuple_of(&tuple, &t->front, p->ipv6);
	struct bpf_sock *sock;
	int connected;

	if (p->proto != PROTO_UDP)
		return 0;
	sock = bpf_sk_lookup_udp(skb, &tuple, size, THIS_NETNS, 0);
	if (!sock)
		return 0;
	connected = sock->dst_port != 0;
	bpf_sk_release(sock);
	return connected;
}

/* Chooses a backend for a connection that a client opens. Returns 0 or a reason; p names the
 * service, for the event. */
inline_always int open_exposed(struct __sk_buff *skb, const struct settings *s, const struct service *svc, struct packet *p, struct entry *t)
{
	int why;

	resolve(s, &t->front.remote, &t->from);
	p->src_identity = t->from.identity;
	why = in_the_clear(&t->from);
	if (why)
		return why;
	if (p->ttl <= 1)
		return REASON_TTL_EXCEEDED;
	p->service = p->dst;
	p->service_port = p->dport;
	t->to.port = t->front.lport;
	why = choose_for(s, svc, &t->front.remote, &t->front.rport, &t->front.proto, &t->to, 1);
	if (why)
		return why;
	aim_at(s, t);
	p->dst_identity = t->at.identity;
	if (t->why)
		return t->why;
	if (t->at.via == VIA_STACK) /* a backend outside of the mesh would not answer to us */
		return REASON_NOT_SUPPORTED;
	return expose(t);
}

/* Tells a client that it cannot work. */
inline_always int answer_client(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	struct addr dst = p->dst;

	if (answer_to(reason) != REFUSAL || swallow_unreachable || p->l3 != ETH_HLEN || p->headless ||
	    skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST)
		return reason;
	if (p->proto == PROTO_TCP)
		return p->tcp_flags & TCP_RST || p->l4 != ETH_HLEN + ip_size(p) ? reason : turn_into_reset(skb, p);
	return may_send_error(skb->ifindex) ? turn_into_error(skb, p, unreachable(p, reason), &dst) : reason;
}

/* The way out for a client's packet that is dropped. */
once int refuse_client(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	if (!p)
		return ACT_SHOT;
	count(skb, reason, INGRESS);
	if (answer_client(skb, p, reason)) {
		report(skb, p, EVENT_DROP, reason, INGRESS);
		return ACT_SHOT;
	}
	report(skb, p, EVENT_REFUSED, reason, INGRESS);
	return bpf_redirect(skb->ifindex, 0);
}

/* The way out for a client's packet whose connection ends. */
once int reset_client(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	int why;

	if (!p)
		return ACT_SHOT;
	withdraw();
	why = turn_into_reset(skb, p);
	if (why)
		return drop(skb, p, why, INGRESS);
	report(skb, p, EVENT_RESET, reason, INGRESS);
	return leave(skb, REASON_RESET_SENT, INGRESS, bpf_redirect(skb->ifindex, 0));
}

/* Sends a packet on to its backend. begins tells whether it opened the connection. */
once int send_inside(struct __sk_buff *skb, const struct settings *s, int begins)
{
	struct work *w = working();
	struct entry *t = entry();
	struct addr ingress;
	int why;

	if (!w || !s || !t)
		return ACT_SHOT;
	why = rewrite(skb, &w->p, DESTINATION, &t->to.addr, t->to.port);
	if (unlikely(t->cport != w->p.sport) && !why)
		why = change_source(skb, &w->p, t->cport);
	if (!why && t->at.via == VIA_POD)
		return begins ? BEGINS : TO_POD;
	ingress = t->answer.local;
	if (!why)
		why = rewrite(skb, &w->p, SOURCE, &ingress, t->answer.lport);
	if (why)
		return drop(skb, &w->p, why, INGRESS);
	if (begins)
		trace(skb, &w->p, s, VIA_TUNNEL, EGRESS);
	return tunnel(skb, &w->p, s, t->at.node);
}

/* Opens a connection for a packet that enter has looked at, and sends it on. Returns an action,
 * TO_NODE or BEGINS. */
once int begin_inside(struct __sk_buff *skb, const struct settings *s, const struct service *svc)
{
	struct work *w = working();
	struct entry *t = entry();
	struct packet *p;
	int why;

	if (!w || !s || !svc || !t)
		return ACT_SHOT;
	p = &w->p;
	if (p->proto == PROTO_TCP ? !opens(p) : has_asked(skb, p, t))
		return TO_NODE;
	if (p->headless)
		return drop(skb, p, REASON_FRAGMENT, INGRESS);
	why = open_exposed(skb, s, svc, p, t);
	if (why)
		return refuse_client(skb, p, why);
	if (t->at.via != VIA_POD) {
		why = open_elsewhere(skb, s, p, t);
		if (why) {
			delete_pair(&t->inside, &t->front);
			return refuse_client(skb, p, why);
		}
	}
	return send_inside(skb, s, 1);
}

/* Deals with a packet for a node port of this service. Returns an action, TO_POD or OPENS. */
once int enter(struct __sk_buff *skb, const struct settings *s, const struct service *svc)
{
	struct work *w = working();
	struct entry *t = entry();
	struct masquerade *row;
	struct flow *f;
	enum course course = OPEN;

	if (!w || !s || !svc || !t)
		return ACT_SHOT;
	w->p.pod = OUTSIDERS;
	t->now = bpf_ktime_get_coarse_ns();
	t->service = svc->id;
	received_key(&t->front, &w->p);
	t->cport = t->front.rport;
	row = bpf_map_lookup_elem(&masquerades, &t->front);
	if (!row || !row->answer || row->kind != EXPOSED)
		return OPENS;
	t->to.addr = row->addr;
	t->to.port = row->port;
	if (row->other)
		t->cport = row->other;
	aim_at(s, t);
	f = find_exposed(t);
	course = decide_exposed(s, &w->p, t, f);
	switch (course) {
	case GO:
	case GO_UNHEARD:
		if (t->at.via != VIA_POD && f) {
			if (w->p.ttl <= 1)
				return drop(skb, &w->p, REASON_TTL_EXCEEDED, INGRESS);
			advance(f, &w->p, 1, course == GO ? t->now : f->seen);
		}
		return send_inside(skb, s, 0);
	case RESET:
		return reset_client(skb, &w->p, t->why);
	case DROP:
		return drop(skb, &w->p, t->why, INGRESS);
	default:
		withdraw();
		t->cport = t->front.rport;
		return OPENS;
	}
}

/* Sends on an error about what a backend elsewhere answered, translated by unmasquerade. */
once int send_error_inside(struct __sk_buff *skb, const struct settings *s)
{
	struct work *w = working();
	struct place at = {};
	struct packet *p;
	int why;

	if (!w || !s)
		return ACT_SHOT;
	p = &w->p;
	why = p->ttl <= 1 ? REASON_TTL_EXCEEDED : locate(s, &p->dst, &at);
	return why ? drop(skb, p, why, INGRESS) : tunnel(skb, p, s, at.node);
}
