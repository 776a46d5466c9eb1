/* What sockets remember of the services they talk to. */
#pragma once

#include "service.h"
#include "translate.h"

#define REMEMBERED 4 /* services per socket, a power of two */

/* A service that a socket talks to, and its backend: an address and its port; the pod itself, if the
 * address is zero; or one that packets choose, if the port is zero too. The socket was given the
 * first alone: in the other cases its packets go to the service. */
struct spoken {
	struct addr service;
	struct addr backend;
	__be16 sport;
	__be16 bport;
	__u32 id;
};

/* What a socket remembers: the last services it talked to. */
struct socket {
	__u32 next; /* slot of spoken to write next */
	struct spoken spoken[REMEMBERED];
};

struct {
	__uint(type, MAP_SK_STORAGE);
	__uint(map_flags, MAP_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket);
} sockets SEC(".maps");

inline_always int is_zero(const struct addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

/* Can something new still go to this backend of the service? */
once int reachable(const struct settings *s, const struct addr *backend, __be16 port, __u32 service)
{
	if (!s || !backend)
		return 0;
	struct addr a = *backend;
	struct place at = {};
	__u32 node;

	if (!is_member(&a, port, service) || locate_backend(s, &a, &at))
		return 0;
	node = at.node;
	return !node || (path_to(s, node, at.cluster) == PATH_ALIVE && lane_of(s, bpf_map_lookup_elem(&nodes, &node)));
}

/* What the socket that sends a packet was told of its destination. */
enum told {
	NOT_TOLD,
	TOLD_IN_VAIN, /* it was a backend of a service, which the socket asked for, but will not do any more */
	TOLD,         /* it is a backend of a service, which the socket asked for */
	TOLD_ITSELF,  /* it is a service, and the pod itself the backend that was chosen */
};

/* Asks the socket that sends p, which opens f. Fills in to, with what is to be looked up: p's own
 * destination; the service, if its backend will not do; or the pod itself. f gets the service's
 * number and its address, in backend and bport. Sockets of pods alone remember anything here, and
 * a pod cannot write it. */
once int ask_socket(struct __sk_buff *skb, const struct settings *s, const struct packet *p, struct flow *f,
		    struct target *to)
{
	if (!s || !p || !f || !to)
		return 0;
	void *sk = (void *)skb->sk;
	struct socket *mine;
	struct spoken *with;

	*to = (struct target){.addr = p->dst, .port = p->dport};
	if (!sk)
		return 0;
	mine = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!mine)
		return 0;
	for (__u32 i = 1; i <= REMEMBERED; i++) { /* the newest first */
		with = &mine->spoken[(mine->next - i) % REMEMBERED];
		if (!with->id)
			continue;
		if (with->bport == to->port && same(&with->backend, &to->addr)) {
			f->service = with->id;
			f->backend = with->service;
			f->bport = with->sport;
			/* An open connection stays where it is. */
			if ((p->proto == PROTO_TCP && !opens(p)) || reachable(s, &to->addr, to->port, with->id))
				to->told = TOLD;
			else
				*to = (struct target){.addr = with->service, .port = with->sport, .told = TOLD_IN_VAIN};
			return 0;
		}
		if (with->sport == to->port && same(&with->service, &to->addr)) {
			if (with->bport && is_zero(&with->backend) && reachable(s, &p->src, with->bport, with->id))
				*to = (struct target){.addr = p->src, .port = with->bport, .told = TOLD_ITSELF, .service = with->id};
			return 0;
		}
	}
	return 0;
}

/* Makes of what the socket was told a flow with a backend, where the packet goes; or leaves it to
 * a flow that is translated, from this backend to the one that is in to by now. why is what
 * looking up to has returned. Returns that, or why there is no flow. */
once int heed_socket(struct packet *p, struct flow *f, struct target *to, int why)
{
	if (!p || !f || !to)
		return REASON_FAILED;
	if (to->told == TOLD_ITSELF)
		return why;
	name_given(p, f);
	f->flags |= FLOW_MEMBER;
	if (to->told == TOLD)
		return 0;
	/* The service is gone: who had a backend of it has no right to that one. */
	if (!to->service)
		return REASON_NO_BACKEND;
	if (why || !same(&to->addr, &p->dst) || to->port != p->dport)
		return why;
	/* There is no other. The service may be another one by now, at the same address. */
	f->service = to->service;
	*to = (struct target){.addr = p->dst, .port = p->dport, .told = TOLD};
	return 0;
}
