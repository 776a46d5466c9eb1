//go:build ignore

/* connect4 … getpeername6: what processes of the node itself and of its pods send to services.
 * They are attached to the root of the node's cgroups and act in the node's network namespace
 * and in those of its pods alone.
 *
 * The backend is chosen once, when a socket connects, and costs its packets nothing. A
 * datagram that a socket sends without connecting goes to the backend that the last one to
 * its service went to; from the node itself, as long as that can be reached. What the process
 * sees is the service.
 *
 * A pod's packets still pass its device, where policy decides, and which is told by the socket
 * what service they are for: see spoken.h. So whatever is not as usual is left to it, and happens
 * as if there were no socket: a pod that is held, a service without backends or for others, a
 * pod that reaches itself; a port that one socket or several may use towards two services with
 * one backend, which the backend could not tell apart (claim.h); and a fifth service of a socket
 * that is not connected. What such a socket remembers stays for as long as it is open, so that every
 * answer comes from the service: packets find another backend if that one is lost.
 */
#include "lib/spoken.h"

volatile const __u64 host_netns; /* cookie of the node's network namespace; 0: not known */

#define ALLOW 1
#define REFUSED 0

enum whose {
	NOBODYS,
	NODES_OWN,
	PODS,
};

/* Whose socket sends to an address, and as which client. */
inline_always enum whose whose_is(struct bpf_sock_addr *ctx, const struct settings *s, const struct addr *to,
				  struct addr *client)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct namespace *pod;
	struct endpoint *ep;

	if (host_netns && netns == host_netns) {
		*client = s->internal[0];
		return NODES_OWN;
	}
	pod = bpf_map_lookup_elem(&namespaces, &netns);
	if (!pod)
		return NOBODYS;
	*client = nobodys(to) ? pod->addr[0] : pod->addr[1];
	ep = bpf_map_lookup_elem(&endpoints, client);
	return ep && !ep->held ? PODS : NOBODYS;
}

inline_always struct addr address_of(const struct bpf_sock_addr *ctx, int ipv6)
{
	if (!ipv6)
		return mapped(ctx->user_ip4);
	return (struct addr){.w = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
}

inline_always void set_address(struct bpf_sock_addr *ctx, const struct addr *a, __be16 port, int ipv6)
{
	if (ipv6) {
		ctx->user_ip6[0] = a->w[0];
		ctx->user_ip6[1] = a->w[1];
		ctx->user_ip6[2] = a->w[2];
		ctx->user_ip6[3] = a->w[3];
	} else {
		ctx->user_ip4 = a->w[3];
	}
	ctx->user_port = port;
}

/* The socket speaks to this address itself: what comes from there is of no service. What a pod's
 * says to a service that has this backend is told apart from that by packets, from now on. */
inline_always void speaks_to(struct socket *mine, enum whose whose, const struct addr *a, __be16 port)
{
	if (!mine)
		return;
	for (int i = 0; i < REMEMBERED; i++) {
		if (mine->spoken[i].bport != port || !same(&mine->spoken[i].backend, a))
			continue;
		if (whose == NODES_OWN)
			mine->spoken[i].id = 0;
		mine->spoken[i].backend = (struct addr){};
		mine->spoken[i].bport = 0;
	}
}

/* The port of a socket; 0: it is not bound yet. */
inline_always __be16 port_of(struct bpf_sock_addr *ctx)
{
	const struct bpf_sock *sk = (void *)ctx->sk;

	return sk ? htons(sk->src_port) : 0;
}

/* Does the socket talk to this backend as that of another service? */
inline_always int overlaps(const struct socket *mine, const struct target *to)
{
	for (int i = 0; i < REMEMBERED; i++)
		if (mine->spoken[i].id && mine->spoken[i].bport == to->port && same(&mine->spoken[i].backend, &to->addr))
			return 1;
	return 0;
}

/* The row of a pod's packets from this port, while they come: what they did before the socket was
 * given backends, or what another socket at this port does. */
part const struct flow *spoken_by_packets(const struct addr *client, __be16 port, const struct addr *to, __be16 to_port,
					   __u8 proto)
{
	struct flow_key key;
	struct flow *f;

	set_key(&key, client, to, port, to_port, proto);
	f = bpf_map_lookup_elem(&flows, &key);
	return f && !expired(f, proto, bpf_ktime_get_coarse_ns()) ? f : 0;
}

/* Is a backend that a pod's socket would be given for a datagram one that packets of its port are
 * translated to? Then packets tell the two apart. */
inline_always int given_to_packets(const struct addr *client, __be16 port, const struct target *to)
{
	const struct flow *f = spoken_by_packets(client, port, &to->addr, to->port, PROTO_UDP);

	return f && f->flags & FLOW_ANSWERS;
}

/* Sends what a pod's socket sends to a service again where it went before, whatever has become of
 * that: a flow that was answered waits for a path that is silent, and packets find another
 * backend if this one is lost. */
inline_always int as_before(struct bpf_sock_addr *ctx, const struct spoken *with, int ipv6)
{
	if (with->bport && !is_zero(&with->backend))
		set_address(ctx, &with->backend, with->bport, ipv6);
	return ALLOW;
}

/* Is it an address of services that no service has at this port? */
once int nobody_serves(const struct settings *s, const struct addr *a)
{
	if (!s || !a)
		return 0;
	struct addr to = *a;
	struct place at = {};

	return locate(s, &to, &at) == REASON_NO_BACKEND;
}

/* Counts a socket of the node that is refused. Nobody has sent a packet yet. */
inline_always int refuse_socket(__u32 reason, int error)
{
	__u32 row = reason << 1 | EGRESS;
	struct counter *c = bpf_map_lookup_elem(&counters, &row);

	if (c)
		c->packets++;
	bpf_set_retval(-error);
	return REFUSED;
}

/* Turns a service that a socket connects or sends to into a backend. */
inline_always int towards(struct bpf_sock_addr *ctx, int ipv6, int connects)
{
	const struct settings *s = read_settings();
	struct service_key front = {};
	struct target to = {};
	struct service *svc;
	struct socket *mine;
	struct spoken *old;
	struct addr client = {};
	enum whose whose;
	int kept = 0, left = 0, why;
	__be16 port = port_of(ctx), asks;

	if (!s || !s->revision)
		return ALLOW;
	to.addr = front.addr = address_of(ctx, ipv6);
	whose = whose_is(ctx, s, &front.addr, &client);
	mine = bpf_sk_storage_get(&sockets, (void *)ctx->sk, 0, 0);
	if (whose == NOBODYS && !mine)
		return ALLOW;
	to.port = front.port = ctx->user_port;
	front.proto = ctx->protocol;
	svc = service_at(s, &front);
	if (!svc && whose == NODES_OWN) {
		front.scope = SCOPE_PROCESS;
		svc = bpf_map_lookup_elem(&services, &front);
	}
	if (!svc) {
		speaks_to(mine, whose, &front.addr, front.port);
		/* Pods are told when they send. */
		return whose == NODES_OWN && nobody_serves(s, &front.addr) ? refuse_socket(REASON_NO_BACKEND, CONNECTION_REFUSED) : ALLOW;
	}
	for (int i = 0; mine && i < REMEMBERED; i++) {
		old = &mine->spoken[i];
		if (!old->id || old->sport != front.port || !same(&old->service, &front.addr))
			continue;
		if (whose == NODES_OWN && old->id != svc->id)
			continue;
		if (whose != NODES_OWN && !connects) {
			old->id = svc->id; /* at this address there may be another one by now */
			return as_before(ctx, old, ipv6);
		}
		if (!connects && reachable(s, &old->backend, old->bport, svc->id)) {
			to.addr = old->backend;
			to.port = old->bport;
			kept = 1;
		}
		old->id = 0; /* the newest is the one that counts */
	}
	if (whose == NOBODYS)
		return ALLOW;
	if (whose == PODS && connects && port) /* the kernel finds an unbound socket a port that is free towards the backend */
		return ALLOW;
	if (whose == PODS && !connects && mine && mine->spoken[mine->next % REMEMBERED].id) /* it cannot forget */
		return ALLOW;
	if (!mine)
		mine = bpf_sk_storage_get(&sockets, (void *)ctx->sk, 0, STORAGE_CREATE);
	if (!mine)
		return whose == PODS ? ALLOW : refuse_socket(REASON_FAILED, NO_MEMORY);
	if (whose == PODS && !connects && port)
		left = !!spoken_by_packets(&client, port, &front.addr, front.port, front.proto);
	if (!kept && !left) {
		/* For Maglev: a socket without a port keeps its backend, so nobody asks again. */
		asks = port ? port : bpf_get_prandom_u32();
		why = choose_for(s, svc, &client, &asks, &front.proto, &to, 0);
		if (why && whose == PODS)
			return ALLOW;
		if (why)
			return refuse_socket(why, why == REASON_SOURCE_RANGE ? NOT_PERMITTED : CONNECTION_REFUSED);
	}
	if (whose == PODS && !left) {
		if (same(&to.addr, &client))
			to.addr = (struct addr){};
		else if (!connects)
			left = overlaps(mine, &to) || given_to_packets(&client, port, &to);
	}
	if (left) {
		to.addr = (struct addr){};
		to.port = 0;
	}
	mine->spoken[mine->next++ % REMEMBERED] = (struct spoken){
		.service = front.addr, .backend = to.addr, .sport = front.port, .bport = to.port, .id = svc->id,
	};
	if (!is_zero(&to.addr))
		set_address(ctx, &to.addr, to.port, ipv6);
	return ALLOW;
}

/* Turns a backend that a socket hears from, or is connected to, into its service. */
inline_always int backwards(struct bpf_sock_addr *ctx, int ipv6)
{
	struct socket *mine;
	struct spoken *with;
	struct addr from;

	mine = bpf_sk_storage_get(&sockets, (void *)ctx->sk, 0, 0);
	if (!mine)
		return ALLOW;
	from = address_of(ctx, ipv6);
	for (int i = 1; i <= REMEMBERED; i++) { /* the newest first */
		with = &mine->spoken[(mine->next - i) % REMEMBERED];
		if (with->id && with->bport == ctx->user_port && same(&with->backend, &from)) {
			set_address(ctx, &with->service, with->sport, ipv6);
			return ALLOW;
		}
	}
	return ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return towards(ctx, 0, 1);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return towards(ctx, 1, 1);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return towards(ctx, 0, 0);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return towards(ctx, 1, 0);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return backwards(ctx, 0);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return backwards(ctx, 1);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return backwards(ctx, 0);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return backwards(ctx, 1);
}

/* ---- Sockets that are stranded ---- */

enum stranding {
	NOT_STRANDED,
	BACKEND_GONE, /* it is no longer there */
	CUT_OFF,      /* there is no way to it */
};

/* A socket for the agent to end, as in stranded.go. */
struct stranded {
	__u64 cookie;
	__u64 progress; /* of TCP: changes with whatever the other side says */
	struct addr local;
	struct addr remote;
	__be16 lport;
	__be16 rport;
	__u32 ifindex; /* of the device that it is bound to */
	__u8 family;
	__u8 proto;
	__u8 why; /* enum stranding */
	__u8 pad[5];
};

/* Is a socket that is connected to this backend stranded? As pods' do, datagrams go elsewhere,
 * and a connection over TCP goes on without its service while its pod is there. */
part enum stranding stranding_of(const struct settings *s, const struct spoken *to, __u8 proto)
{
	struct member_key key = {.addr = to->backend, .service = to->id, .port = to->bport};
	struct addr a = to->backend;
	struct place at = {};
	int why = locate_backend(s, &a, &at);

	if (!bpf_map_lookup_elem(&members, &key) &&
	    (proto != PROTO_TCP || why == REASON_NO_ENDPOINT || why == REASON_FORMER_MEMBER || at.identity == IDENTITY_UNKNOWN_MEMBER))
		return BACKEND_GONE;
	/* Without a tunnel, its node may be missing only for a moment. */
	return !why && at.node && path_to(s, at.node, at.cluster) == PATH_DEAD ? CUT_OFF : NOT_STRANDED;
}

/* Fills in both ends of a socket. */
part void ends_of(const struct sock *sk, struct stranded *l)
{
	const struct sock_common *c = &sk->__sk_common;

	l->family = c->skc_family;
	if (l->family == FAMILY_INET6) {
		for (int i = 0; i < 4; i++) {
			l->local.w[i] = c->skc_v6_rcv_saddr.in6_u.u6_addr32[i];
			l->remote.w[i] = c->skc_v6_daddr.in6_u.u6_addr32[i];
		}
	} else {
		l->local = mapped(c->skc_rcv_saddr);
		l->remote = mapped(c->skc_daddr);
	}
	l->lport = htons(c->skc_num);
	l->rport = c->skc_dport;
	l->ifindex = c->skc_bound_dev_if;
}

/* Writes down a connected socket that is stranded. tcp is null if it is of UDP. */
part int look_at(struct seq_file *seq, struct sock *sk, const struct tcp_sock *tcp)
{
	const struct settings *s = read_settings();
	struct stranded l = {};
	struct spoken to = {};
	struct socket *mine;
	__u8 state;

	if (!s || !s->revision)
		return 0;
	mine = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!mine)
		return 0;
	state = sk->__sk_common.skc_state;
	if (state == SOCK_CLOSE || state == SOCK_LISTEN)
		return 0;
	ends_of(sk, &l);
	l.proto = tcp ? PROTO_TCP : PROTO_UDP;
	for (__u32 i = 1; i <= REMEMBERED; i++) { /* the newest counts, as in backwards */
		to = mine->spoken[(mine->next - i) % REMEMBERED];
		if (!to.id || to.bport != l.rport || !same(&to.backend, &l.remote))
			continue;
		l.why = stranding_of(s, &to, l.proto);
		if (l.why == NOT_STRANDED)
			return 0;
		if (tcp)
			l.progress = tcp->bytes_received + tcp->bytes_acked;
		l.cookie = bpf_get_socket_cookie(sk);
		bpf_seq_write(seq, &l, sizeof(l));
		return 0;
	}
	return 0;
}

/* stranded_tcp, stranded_udp: tell the agent which sockets of the node to end. */
SEC("iter/tcp")
int stranded_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	struct tcp_sock *tcp = sk ? bpf_skc_to_tcp_sock(sk) : 0;

	return tcp ? look_at(ctx->meta->seq, (struct sock *)tcp, tcp) : 0;
}

SEC("iter/udp")
int stranded_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *udp = ctx->udp_sk;

	return udp ? look_at(ctx->meta->seq, (struct sock *)udp, 0) : 0;
}
