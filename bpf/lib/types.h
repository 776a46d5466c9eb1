/* What the agent and the datapath share: every row of every map.
 *
 * The Go rows in package bpf are generated from these types. Addresses are 16
 * bytes, IPv4 mapped into ::ffff:0:0/96, so that IPv6 adds parsing and no row
 * changes. Padding is explicit and always zero: map keys compare as bytes.
 */
#pragma once

struct addr {
	__be32 w[4];
};

enum direction {
	EGRESS = 0,  /* leaves the pod */
	INGRESS = 1, /* enters the pod */
};

/* One row, read by every program. Written by the agent, always last: a row it
 * points to exists before the number here says so. */
struct settings {
	__u32 revision;         /* bumped when a verdict may have changed or a backend went;
				 * 0: not written yet, nothing passes */
	__u32 policy_gen;       /* which generation of classes, ports, policy counts */
	__u32 tunnel_ifindex[2]; /* lanes; 0: not there */
	struct addr internal;   /* this node's internal address */
	__u16 cluster;          /* own cluster's ID */
	__u8 trace;             /* 1: an event for every new allowed flow */
	__u8 pad;
};

/* flows: one connection as one local pod sees it. The same key serves both
 * directions of the packet. remote is the address the pod talks to: the
 * service's, not the backend's. For ICMP echo lport is the identifier. What the
 * node itself sends into a tunnel is a row too, with ifindex 0: only answers to
 * it come back to the node. */
struct flow_key {
	struct addr local;
	struct addr remote;
	__be16 lport;
	__be16 rport;
	__u8 proto;
	__u8 pad[3];
};

enum flow_flags {
	FLOW_REMOTE_INITIATED = 1 << 0, /* judged as ingress; otherwise as egress */
	FLOW_REPLIED = 1 << 1,          /* both sides have spoken */
	FLOW_FIN_LOCAL = 1 << 2,
	FLOW_FIN_REMOTE = 1 << 3,
	FLOW_RESET = 1 << 4,
	FLOW_SERVICE = 1 << 5,          /* backend, bport, service are set */
	FLOW_LOOP = 1 << 6,             /* a pod that reached itself through a service */
};

/* Where the other side of a flow is, which is also where its packets may come
 * from. */
enum via {
	VIA_STACK = 1,  /* the world, or this node itself */
	VIA_POD = 2,    /* a pod of this node */
	VIA_TUNNEL = 3,
};

/* What one side of a TCP connection said last: its number, and the one it expects of
 * the other. All zero: nothing yet. */
struct said {
	__u32 seq;
	__u32 ack;
} __attribute__((aligned(8)));

struct flow {
	__u64 seen;      /* last packet, ns of CLOCK_MONOTONIC_COARSE */
	__u32 revision;  /* settings.revision of the cached verdict */
	__u32 identity;  /* of the other side, when judged */
	__u32 rule;      /* that allowed it, 0: no policy */
	__u32 service;
	struct addr backend;
	__be16 bport;
	__u16 node;      /* of the other side, 0: not behind a tunnel */
	__u16 cluster;   /* of the other side, 0: none */
	__u8 via;
	__u8 pad;
	__u32 flags;     /* a word, so that two CPUs can add to it */
	__u32 ifindex;   /* of the local pod: a packet from elsewhere is spoofed */
	__u32 owner;     /* in shares: who opened it */
	__u32 again;     /* number of a SYN amid the connection, 0: none */
	struct said said[2]; /* by direction; of TCP, now and then: see sequence.h */
};

/* replies: from a backend's answer back to the address the pod used. */
struct reply_key {
	struct addr local;
	struct addr backend;
	__be16 lport;
	__be16 bport;
	__u8 proto;
	__u8 pad[3];
};

struct reply {
	struct addr remote;
	__be16 rport;
	__u16 pad;
};

/* shares: what an owner holds of the tables that all use. The key is the device of
 * a pod, or one of the owners in share.h. */
#define NEWEST 8 /* a power of two */

struct share {
	__s64 used;       /* rows of flows */
	__u64 opened;     /* rows ever taken, so that a walk over flows can be compared */
	__u64 refused;    /* new flows that found no room */
	__u64 evicted;    /* flows that nobody had answered, given up for newer ones */
	__u64 suppressed; /* events */
	__u32 unsaid;     /* events suppressed since the last that was told */
	__u32 second;     /* that told counts */
	__u32 told;       /* events */
	__u32 next;       /* slot of newest to write */
	struct flow_key newest[NEWEST]; /* flows opened beyond the share */
};

/* budgets: one row, written by the agent. In rows of flows. */
struct budget {
	__u32 each;   /* what a pod is sure of */
	__u32 node;   /* what the node is sure of */
	__u32 common; /* what nobody is */
	__u32 pad;
};

/* endpoints: the pods of this node, by address. */
struct endpoint {
	__u32 ifindex;  /* host side of its veth */
	__u32 identity;
	__u32 set;      /* policy set, 0: none selects it */
	__u16 id;
	__u8 mac[6];    /* of the pod's device */
	__u8 host_mac[6]; /* of the host side */
	__u8 held;      /* 1: not programmed yet, receives and sends nothing */
	__u8 pad;
};

/* ips: single addresses; prefixes: what ips misses, longest first. */
struct ip_info {
	__u32 identity;
	__u16 node;     /* behind which tunnel, 0: none or unknown */
	__u16 cluster;  /* 0: of no member cluster */
	__u8 flags;
	__u8 pad[3];
};

enum ip_flags {
	IP_MEMBER = 1 << 0, /* in a member cluster's CIDR: encrypted or not at all */
	IP_LOCAL = 1 << 1,  /* in this node's own pod CIDR */
	IP_SERVICE = 1 << 2, /* in a cluster's service CIDR: nobody is there but by a service */
	IP_FORMER = 1 << 3, /* with IP_MEMBER: in the CIDR of a peer that was removed; blocked */
	IP_NODE = 1 << 4, /* another node's own address: pods do not speak to it in the clear */
};

struct prefix_key {
	__u32 bits; /* of 128: an IPv4 /24 is 96 + 24 */
	struct addr addr;
};

/* What is known of a path. Over a silent one nothing new begins that has a
 * choice, but what was answered waits: it may only be late. */
enum path {
	PATH_DEAD,
	PATH_ALIVE,
	PATH_SILENT, /* went down a moment ago */
};

/* nodes: one per node of every cluster, by the agent's own index, from 1. */
struct node {
	__u8 path;    /* through the tunnel, by probes: enum path */
	__u8 lane;    /* which tunnel device carries it */
	__u8 keyed;   /* 0: its key is not known, nothing is sent */
	__u8 pad;
	__u16 cluster;
	__u16 pad2;
};

/* clusters: by cluster ID. One write takes a lost cluster out of everything. */
struct cluster {
	__u8 path;   /* enum path, the best of its nodes' */
	__u8 member; /* 1: a dead cluster's row is not all zero, as if there were none */
	__u8 pad[2];
};

/* services: a frontend and its groups, one per cluster. */
#define MAX_GROUPS 32

struct service_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct group {
	__u32 count;    /* slots 0 … count-1 exist */
	__u16 cluster;
	__u8 tier;      /* lower is preferred; the next only when all before are dead or empty */
	__u8 weight;    /* multiplies count in the choice; 0: takes no new connections */
};

struct service {
	__u32 id;
	__u8 groups;
	__u8 pad[3];
	struct group group[MAX_GROUPS];
};

/* backends: slot of a group. Removal moves the last slot into the hole, then
 * lowers count, so that every state in between is usable. */
struct slot_key {
	__u32 service;
	__u32 slot;
	__u16 cluster;
	__u16 pad;
};

struct backend {
	struct addr addr;
	__be16 port;
	__u16 node; /* 0: on this node or not behind a tunnel */
	__u32 pad;
};

/* members: is this still a backend? Asked when settings.revision moved on, so
 * it is to be bumped when a backend is taken out. A backend that only ends
 * (terminating) leaves backends at once and members when it is gone. */
struct member_key {
	struct addr addr;
	__u32 service;
	__be16 port;
	__u16 pad;
};

struct member {
	__u8 terminating;
	__u8 pad[3];
};

/* classes: identity to class; identities not here are class 0. */
struct class_key {
	__u32 gen;
	__u32 identity;
};

/* ports: to port class, 0: no policy names it. Index (gen & 1, proto, port). */
enum port_proto {
	PORTS_TCP = 0,
	PORTS_UDP = 1,
	PORTS_SCTP = 2,
	PORTS_ICMP = 3, /* the type */
	PORTS_PROTOS = 4,
};

#define ANY_CLASS 0xffffffffu

struct policy_key {
	__u32 gen;
	__u32 set;
	__u32 class;    /* ANY_CLASS: whoever */
	__u16 port;     /* port class, 0: any */
	__u8 proto;     /* IP protocol, 0: any */
	__u8 dir;
};

struct policy_entry {
	__u32 rule;     /* cookie */
	__u8 deny;
	__u8 pad[3];
};

/* sets: what happens when no entry of a policy set matches. */
struct set_key {
	__u32 gen;
	__u32 set;
};

struct set_info {
	__u8 enforced[2]; /* by direction, 1: default deny */
	__u8 pad[2];
};

/* fragments: from what all pieces carry to what only the first one has. Each sender
 * has a few slots, by a hash of what the pieces carry: it overwrites its own rows
 * and cannot push out or change another's. */
#define FRAGMENT_SLOTS 32

struct fragment_key {
	struct addr src; /* of a sender elsewhere; zero: a pod of this node */
	__u32 pod;       /* its device: it may write any source */
	__u32 slot;
};

struct fragment {
	struct addr src;
	struct addr dst;
	__be16 id;
	__u8 proto;
	__u8 asks; /* ICMP: an echo request */
	__be16 sport;
	__be16 dport;
};

/* counters: per CPU, index (reason, direction). */
struct counter {
	__u64 packets;
	__u64 bytes;
};

/* events: what the ring buffer carries. */
enum event_type {
	EVENT_DROP = 1,
	EVENT_NEW_FLOW = 2, /* allowed */
	EVENT_RESET = 3,    /* the pod was answered with a reset: path down */
	EVENT_REFUSED = 4,  /* dropped, and the pod was told: by a reset or an ICMP error */
};

struct event {
	__u64 time; /* ns of CLOCK_BOOTTIME */
	struct addr src;
	struct addr dst;      /* after translation */
	struct addr service;  /* what the pod addressed, zero: no service */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule;           /* cookie; 0 with policy-denied: default deny */
	__u32 set;            /* policy set that decided */
	__u32 policy_gen;
	__u32 ifindex;
	__be16 sport;         /* ICMP: type << 8 | code in host order, as __be16 */
	__be16 dport;
	__be16 service_port;
	__u16 bytes;
	__u8 type;
	__u8 reason;
	__u8 dir;
	__u8 proto;
	__u8 tcp_flags;
	__u8 pad[3];
	__u32 suppressed; /* events of the same pod before this one that were not told */
	__u32 pad2;
};
