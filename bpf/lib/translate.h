/* Translation between the service that a pod talks to and the backend that answers.
 *
 *	pod → service   ── aim ──►           a backend, once for each flow
 *	pod → service   ── translate ──►     pod → backend
 *	pod ← service   ◄── untranslate ──   pod ← backend
 *
 * If need be, the source port changes too: see claim.h.
 *
 * ICMP errors quote what they are about and are translated in icmp.h.
 */
#pragma once

#include "flow.h"
#include "service.h"

/* Finds where the new flow of a pod that sends p goes: to is the address on entry, and a
 * backend on return if the address is a service's. Returns 0 or a reason; to->service says
 * if a service has the address. */
inline_always int aim(const struct settings *s, const struct packet *p, struct target *to)
{
	struct service_key front = {.addr = to->addr, .port = to->port, .proto = p->proto};
	struct service *svc = service_at(s, &front);

	if (!svc)
		return 0;
	to->service = svc->id;
	return choose_for(s, svc, &p->src, &p->sport, &p->proto, to, 0);
}

enum side {
	SOURCE,
	DESTINATION,
};

/* What changes a checksum from one address to another, in the form that
 * bpf_l4_csum_replace takes. */
struct change {
	__u64 from, to;
	__u64 size; /* 0: to is a difference */
};

inline_always struct change change_of(const struct addr *from, const struct addr *to, int ipv6)
{
	if (ipv6)
		return (struct change){.to = bpf_csum_diff(from, sizeof(*from), to, sizeof(*to), 0)};
	return (struct change){from->w[3], to->w[3], sizeof(__be32)};
}

/* Changes the address and port of one side of the packet, with their checksums; of ICMP,
 * the identifier, which is that of both sides. Returns 0 or a reason. */
once int rewrite(struct __sk_buff *skb, struct packet *p, enum side side, const struct addr *to,
			__be16 port)
{
	if (!p || !to)
		return REASON_FAILED;
	struct addr *addr = side == SOURCE ? &p->src : &p->dst;
	__be16 *was = side == SOURCE || is_icmp(p->proto) ? &p->sport : &p->dport;
	struct change by = change_of(addr, to, p->ipv6);
	__be16 old = *was;
	__u32 l4 = p->l4, l3 = p->l3, check = 0, flags = 0, at = l4 + (side == SOURCE ? 0 : 2);
	int pseudo = 1; /* the checksum covers the addresses */
	struct addr ip = *to;
	long err = 0;

	if (p->proto == PROTO_TCP) {
		check = l4 + 16;
	} else if (p->proto == PROTO_UDP) {
		check = l4 + 6;
		flags = CSUM_ZERO_IS_NONE;
	} else if (is_icmp(p->proto)) {
		check = l4 + 2;
		at = l4 + 4;
		pseudo = p->ipv6;
	} else if (old != port) {
		return REASON_NOT_SUPPORTED; /* SCTP's checksum covers its ports */
	}
	/* Later fragments have neither ports nor a checksum. */
	if (!p->headless && check) {
		if (pseudo)
			err |= bpf_l4_csum_replace(skb, check, by.from, by.to, CSUM_PSEUDO | flags | by.size);
		if (old != port) {
			__be16 new = port;
			err |= bpf_l4_csum_replace(skb, check, old, port, flags | sizeof(port));
			err |= bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0);
		}
	}
	if (p->ipv6) {
		err |= bpf_skb_store_bytes(skb, l3 + (side == SOURCE ? 8 : 24), &ip, sizeof(ip), 0);
	} else {
		err |= bpf_l3_csum_replace(skb, l3 + 10, by.from, by.to, by.size);
		err |= bpf_skb_store_bytes(skb, l3 + (side == SOURCE ? 12 : 16), &ip.w[3], sizeof(ip.w[3]), 0);
	}
	if (err)
		return REASON_FAILED;
	*addr = *to;
	*was = port;
	return 0;
}

/* Fills in, for the event, the service in place of which the pod's socket was given its backend. */
inline_always void name_given(struct packet *p, const struct flow *f)
{
	p->service = f->backend;
	p->service_port = f->bport;
	p->direct = 1;
}

/* Fills in, for the event, the service that p's flow goes through and its backend. */
inline_always void name_service(struct packet *p, const struct flow_key *key, const struct flow *f)
{
	/* One that is translated as well has no room for the service's address: only the event of
	 * its first packet names it. */
	if (f->flags & FLOW_MEMBER && !(f->flags & FLOW_TRANSLATED)) {
		name_given(p, f);
		return;
	}
	if (!(f->flags & FLOW_SERVICE))
		return;
	if (likely(!(f->flags & FLOW_MEMBER))) {
		p->service = key->remote;
		p->service_port = key->rport;
	}
	if (same(&p->src, &key->local)) {
		p->dst = f->backend;
		p->dport = f->bport;
	}
}

/* Gives what the pod sent the source port by which the other side knows the flow. Returns 0 or
 * a reason. */
part int change_source(struct __sk_buff *skb, struct packet *p, __be16 port)
{
	struct addr same_as_before = p->src;

	p->own_port = p->sport;
	return rewrite(skb, p, SOURCE, &same_as_before, port);
}

/* Sends what the pod sent to the flow's service to its backend. Returns 0 or a reason. */
inline_always int translate(struct __sk_buff *skb, struct packet *p, const struct flow_key *key, const struct flow *f)
{
	__be16 other = f->flags >> FLOW_PORT;
	int why = 0;

	if (likely(f->flags & FLOW_SERVICE)) {
		if (likely(!(f->flags & FLOW_MEMBER))) {
			p->service = p->dst;
			p->service_port = p->dport;
		}
		why = rewrite(skb, p, DESTINATION, &f->backend, f->bport);
	}
	if (unlikely(other) && !why)
		why = change_source(skb, p, other);
	if (why)
		name_service(p, key, f);
	return why;
}

/* Lets what a backend answered come from the service, to the pod's own port. Returns 0 or a
 * reason. */
inline_always int untranslate(struct __sk_buff *skb, struct packet *p, const struct flow_key *key)
{
	int why;

	if (unlikely(p->dport != key->lport)) {
		why = rewrite(skb, p, DESTINATION, &key->local, key->lport);
		if (why)
			return why;
	}
	return rewrite(skb, p, SOURCE, &key->remote, key->rport);
}

/* Undoes translate for an answer to the pod, which knows only the service; p goes on naming
 * the backend, for the event. dst is where the packet goes. Returns 0 or a reason. */
inline_always int undo_translate(struct __sk_buff *skb, struct packet *p, const struct addr *dst)
{
	struct addr service = p->service, backend = p->dst, src = p->src;
	__be16 port = p->dport;
	int why = 0;

	if (p->service_port && !p->direct && !same(dst, &service)) {
		why = rewrite(skb, p, DESTINATION, &service, p->service_port);
		p->dst = backend;
		p->dport = port;
	}
	if (unlikely(p->own_port) && !why)
		why = rewrite(skb, p, SOURCE, &src, p->own_port);
	return why;
}
