/* May they talk? Identity to class, port to port class, then the first of six entries
 * that exists, or else the set's default. The compiler in package policy has already
 * resolved precedence. Only shapes of entries that the set has are looked up. */
#pragma once

#include "packet.h"
#include "place.h"

inline_always __u32 class_of(__u32 gen, __u32 identity)
{
	struct class_key key = {.gen = gen, .identity = identity};
	__u32 *class = bpf_map_lookup_elem(&classes, &key);

	return class ? *class : 0;
}

inline_always __u16 port_class(__u32 gen, __u8 proto, __u16 port)
{
	__u32 row = (gen & 1) * PORTS_PROTOS;
	__u16 *class;

	switch (proto) {
	case PROTO_TCP: row += PORTS_TCP; break;
	case PROTO_UDP: row += PORTS_UDP; break;
	case PROTO_SCTP: row += PORTS_SCTP; break;
	case PROTO_ICMPV6:
		port |= 256; /* fallthrough */
	default: row += PORTS_ICMP;
	}
	row = row << 16 | port;
	class = bpf_map_lookup_elem(&ports, &row);
	return class ? *class : 0;
}

/* The entries of a class of these shapes, most specific first. */
inline_always struct policy_entry *find_rule(struct policy_key *key, __u8 shapes, __u8 proto, __u16 port)
{
	struct policy_entry *e;

	key->proto = proto;
	key->port = port;
	if ((shapes & SHAPE_PORT) && port && (e = bpf_map_lookup_elem(&policy, key)))
		return e;
	key->port = 0;
	if ((shapes & SHAPE_PROTO) && (e = bpf_map_lookup_elem(&policy, key)))
		return e;
	key->proto = 0;
	return shapes & SHAPE_ALL ? bpf_map_lookup_elem(&policy, key) : 0;
}

/* Judges a pod's new flow under policy set `set`. identity is the other side's.
 * Returns 0 or a reason; p->rule and p->set say what decided. */
once int judge(const struct settings *s, struct packet *p, __u32 set, __u32 identity,
		      __u32 dir_and_port)
{
	if (!s || !p)
		return REASON_FAILED;
	__u8 dir = dir_and_port >> 16;
	__u16 port = ntohs(is_icmp(p->proto) ? p->dport : (__u16)dir_and_port); /* ICMP: the type */
	__u32 gen = s->policy_gen; /* read once: the agent may switch meanwhile */
	struct policy_key key = {.gen = gen, .set = set, .dir = dir};
	struct set_key in = {.gen = gen, .set = set};
	struct policy_entry *e = 0;
	struct set_info *info;
	__u8 shapes;

	p->set = set;
	p->rule = 0;
	if (!set)
		return 0;
	info = bpf_map_lookup_elem(&sets, &in);
	if (!info)
		return REASON_NO_POLICY;
	shapes = info->shapes[dir & 1];
	if (!(shapes & SHAPES_KNOWN))
		shapes = SHAPES_EVERY;
	port = shapes & (SHAPE_PORT | SHAPE_PORT << SHAPES_TO_ANYBODY) ? port_class(gen, p->proto, port) : 0;
	if (shapes & SHAPES_OF_CLASS) {
		key.class = class_of(gen, identity);
		e = find_rule(&key, shapes, p->proto, port);
	}
	if (!e && (shapes >>= SHAPES_TO_ANYBODY)) {
		key.class = ANY_CLASS;
		e = find_rule(&key, shapes, p->proto, port);
	}
	if (e) {
		p->rule = e->rule;
		return e->deny ? REASON_POLICY_DENIED : 0;
	}
	if (!info->enforced[dir & 1])
		return 0;
	return identity == IDENTITY_UNKNOWN_MEMBER ? REASON_UNKNOWN_MEMBER : REASON_POLICY_DENIED;
}

#define DIR_PORT(dir, port) ((__u32)(dir) << 16 | (port))
