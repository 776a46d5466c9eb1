/* The rows of every map: what the agent and the datapath share.
 *
 * The Go rows in package bpf are generated from these types. Addresses are 16
 * bytes with IPv4 mapped into ::ffff:0:0/96, so that both families share all rows and
 * whatever decides about them. Padding is explicit and always zero: map keys compare as
 * bytes.
 */
#pragma once

struct addr {
	__be32 w[4];
};

enum direction {
	EGRESS = 0,  /* leaves the pod */
	INGRESS = 1, /* enters the pod */
};

/* A single row, read by every program. The agent writes it last, after the rows
 * that its numbers refer to. */
struct settings {
	__u32 revision;         /* raised when any verdict may have changed, see revision.h;
				 * 0: not written yet, nothing passes */
	__u32 policy_gen;       /* generation of classes, ports and policy that is in force */
	__u32 tunnel_ifindex[2]; /* lanes; 0: does not exist */
	struct addr internal[2]; /* this node's internal address: IPv4, IPv6; zero: none */
	__u16 cluster;          /* own cluster's ID */
	__u8 trace;             /* 1: an event for every new allowed flow */
	__u8 pad;
	struct addr exposed[2]; /* an address at which this node has node ports: IPv4, IPv6; zero: none */
};

/* revisions: of addresses and identities, by hash: see revision.h. */
#define REVISION_BITS 12
#define REVISIONS (1 << REVISION_BITS)

/* flows: one connection as one local pod sees it. Packets in both directions
 * use the same key. remote is the address the pod talks to: the service's, not
 * the backend's. For ICMP, lport is the identifier and rport the type of the
 * request, with ASKED_BY_REMOTE if the other side sent it. What the node itself
 * sends into a tunnel has a row too, with ifindex 0: the node accepts only
 * answers to it.
 *
 * The answers of a service's backend come from another address than the pod talks to, so
 * a flow through a service has a second row: FLOW_ANSWERS, under the key that a flow with
 * the backend itself would have. Its backend and bport are the service's address and port,
 * with which the flow's own key is made.
 *
 * What a pod sends from one port to two services may go to one backend, which could not tell
 * the two apart. The one opened later gets another source port, at which its answers arrive
 * then (claim.h). So does a flow with the backend itself, and if another's answers have its
 * key, it is beside them, under the same key with a mark. */
#define ASKED_BY_REMOTE 0x100

struct flow_key {
	struct addr local;
	struct addr remote;
	__be16 lport;
	__be16 rport;
	__u8 proto;
	__u8 beside; /* 1: the mark of a flow beside another's answers */
	__u8 pad[2];
} __attribute__((aligned(8)));

enum flow_flags {
	FLOW_REMOTE_INITIATED = 1 << 0, /* judged as ingress; otherwise as egress */
	FLOW_REPLIED = 1 << 1,          /* both sides have sent something */
	FLOW_FIN_LOCAL = 1 << 2,
	FLOW_FIN_REMOTE = 1 << 3,
	FLOW_RESET = 1 << 4,
	FLOW_SERVICE = 1 << 5,          /* backend, bport and service are set */
	FLOW_LOOP = 1 << 6,             /* a pod reaching itself through a service */
	FLOW_WAITS = 1 << 7,            /* its node has been unknown since seen */
	FLOW_ANSWERS = 1 << 8,          /* not a flow: the second row of one */
	FLOW_DIRECT = 1 << 9,           /* with another source port to an address itself, which is
					 * what backend and bport are */
	FLOW_BESIDE = 1 << 10,          /* of a row for answers: the flow's key has the mark */
	FLOW_SHARED = 1 << 11,          /* likewise: there is a flow beside it */
	FLOW_MEMBER = 1 << 12,          /* the pod's socket was given the backend, which remote is:
					 * service is set, backend and bport are its address. With
					 * FLOW_SERVICE: remote was, and backend takes its place.
					 * With FLOW_DIRECT: see there */
};

/* A flow with one of these flags has a second row, for its answers. */
#define FLOW_TRANSLATED (FLOW_SERVICE | FLOW_DIRECT)

/* The upper half of a flow's flags is a port, in network order: the source port by which the
 * other side knows the flow, if that is not the pod's; in a row for answers, and in that of a
 * loop's server, the client's own port then. 0: the port is the pod's. */
#define FLOW_PORT 16

/* Where the other side of a flow is. Its packets may come from nowhere else. */
enum via {
	VIA_STACK = 1,  /* the world, or this node itself */
	VIA_POD = 2,    /* a pod of this node */
	VIA_TUNNEL = 3,
};

/* The last numbers noted from one side of a TCP connection: its own, and the one it
 * expects from the other side. All zero: nothing yet. */
struct said {
	__u32 seq;
	__u32 ack;
} __attribute__((aligned(8)));

struct flow {
	__u64 seen;      /* last packet (but see FLOW_WAITS), ns of CLOCK_MONOTONIC_COARSE */
	__u32 revision;  /* sum of the revisions that the verdict rests on: see revision.h */
	__u32 identity;  /* of the other side, when judged */
	__u32 rule;      /* that allowed it; 0: no policy */
	__u32 service;
	struct addr backend;
	__be16 bport;
	__u16 node;      /* of the other side; 0: not behind a tunnel */
	__u16 cluster;   /* of the other side; 0: none */
	__u8 via;
	__u8 pad;
	__u32 flags;     /* with a port: see FLOW_PORT. CPUs set flags atomically */
	__u32 ifindex;   /* of the local pod: a packet from another device is spoofed */
	__u32 owner;     /* key in shares: who opened it */
	__u32 again;     /* sequence number of a SYN within the connection; 0: none */
	struct said said[2]; /* TCP, by direction, updated now and then: see sequence.h */
};

/* masquerades: connections of pods with the world, which sees the node's address instead of
 * theirs. Each has two rows, and in the keys of both local is the address on this node's
 * side: by what the pod sends, with what the world sees; and by what the world answers
 * to, with the pod that gets it. Ports of ICMP are as in flows.
 *
 * A connection of the world with a node port has such a pair too, for its backend; and
 * another one if that is elsewhere, in which the client takes the place of a pod, and what
 * the backend sees that of the node: see nodeport.h. Of a client that reaches one backend from
 * one port at several node ports, the keys with the backend have another port of the client's
 * than those with the node port. */
enum masquerade_kind {
	OF_POD = 0,
	EXPOSED = 1,   /* a node port and its backend */
	OF_CLIENT = 2, /* a client and the ingress address */
};

struct masquerade {
	struct addr addr;
	__be16 port;
	__u8 answer; /* 1: of what the world answers; OF_CLIENT: the backend */
	__u8 kind;   /* enum masquerade_kind */
	__be16 other; /* EXPOSED: the client's port in the other key, if it is another; 0: none */
	__u16 pad;
};

/* masquerading: a single row, written by the agent. */
struct masquerading {
	struct addr addr[2]; /* of the node, for IPv4 and IPv6; zero: pods keep their own */
	__u16 first, last;   /* ports, in host order */
};

/* shares: how much of the shared tables an owner holds. The key is a pod's device,
 * or one of the owners in share.h. */
#define NEWEST 8 /* a power of two */

struct share {
	__s64 used;       /* flows */
	__u64 opened;     /* flows ever opened: tells a walk over flows what changed meanwhile */
	__u64 refused;    /* new flows that found no room */
	__u64 evicted;    /* unanswered flows given up for newer ones */
	__u64 suppressed; /* events not sent */
	__u32 unsaid;     /* events suppressed since the last one sent */
	__u32 second;     /* the second that told counts */
	__u32 told;       /* events sent in it */
	__u32 next;       /* slot of newest to write next */
	struct flow_key newest[NEWEST]; /* flows opened beyond the share */
};

/* budgets: a single row, written by the agent. All in flows. */
struct budget {
	__u32 each;   /* guaranteed to each pod */
	__u32 node;   /* guaranteed to the node */
	__u32 common; /* guaranteed to nobody */
	__u32 pad;
};

/* endpoints: the pods of this node, by address. */
struct endpoint {
	__u32 ifindex;  /* host side of its veth */
	__u32 identity;
	__u32 set;      /* policy set; 0: no policy selects the pod */
	__u16 id;
	__u8 mac[6];    /* of the pod's device */
	__u8 host_mac[6]; /* of the host side */
	__u8 held;      /* 1: not programmed yet; receives and sends nothing */
	__u8 pad;
};

/* namespaces: the network namespaces of this node's pods, by cookie. Sockets there are given
 * the backends of services; without a row, packets are translated at the pod's device. */
struct namespace {
	struct addr addr[2]; /* of the pod: IPv4, IPv6; zero: none */
};

/* ips: single addresses. prefixes: asked when ips has no row; the longest wins. */
struct ip_info {
	__u32 identity;
	__u16 node;     /* whose tunnel leads there; 0: none or unknown */
	__u16 cluster;  /* 0: not in a member cluster */
	__u8 flags;
	__u8 bits;      /* of prefixes: the length of a node's pod CIDR, of 128; 0: not one */
	__u8 pad[2];
};

enum ip_flags {
	IP_MEMBER = 1 << 0, /* in a member cluster's CIDR: encrypted or not at all */
	IP_LOCAL = 1 << 1,  /* in this node's own pod CIDR */
	IP_SERVICE = 1 << 2, /* in a cluster's service CIDR: only services have addresses there */
	IP_FORMER = 1 << 3, /* with IP_MEMBER: in the CIDR of a removed peer; blocked */
	IP_NODE = 1 << 4, /* another node's own address: pods do not send to it in the clear. If it has
			   * a node, that is one of the cluster's own, and its tunnel leads there */
};

struct prefix_key {
	__u32 bits; /* of 128: an IPv4 /24 is 96 + 24 */
	struct addr addr;
};

/* The state of a path. New flows avoid a silent path if they have a choice; flows
 * that were answered wait, because the answers may only be late. */
enum path {
	PATH_DEAD,
	PATH_ALIVE,
	PATH_SILENT, /* stopped answering a moment ago */
};

/* nodes: one row per node of every cluster, by the agent's own index from 1. */
struct node {
	__u8 path;    /* enum path, by probes through the tunnel */
	__u8 lane;    /* tunnel device that carries it */
	__u8 keyed;   /* 0: its key is not known and nothing is sent */
	__u8 pad;
	__u16 cluster;
	__u16 pad2;
};

/* clusters: by cluster ID. One write takes a lost cluster out of every service. */
struct cluster {
	__u8 path;   /* enum path, the best among its nodes */
	__u8 member; /* 1, so that the row of a dead cluster differs from an unused one */
	__u8 pad[2];
};

/* services: a frontend and its groups, one per cluster, or several of which some are
 * nearer. Those have the cluster's ID in the lower CLUSTER_BITS of their field cluster; the
 * agent numbers them in the upper ones. */
#define MAX_GROUPS 32
#define CLUSTER_BITS 9

struct service_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 scope; /* enum scope */
};

/* Who uses a frontend. Clients outside of the mesh have a row of their own, SCOPE_OUTSIDE, if
 * the flags of the other one say so: they may get other backends. SCOPE_NODE is no frontend: a
 * process that listens at this address of one of the cluster's own nodes is behind a service, so
 * the cluster's pods may speak to it, from any node. SCOPE_PROCESS is for processes of this node
 * alone: a pod's host port at loopback, which means themselves to everybody else. */
enum scope {
	SCOPE_ANY,
	SCOPE_OUTSIDE,
	SCOPE_NODE,
	SCOPE_PROCESS,
};

struct group {
	__u32 count;    /* slots 0 … count-1 exist */
	__u16 cluster;  /* and the part, see cluster_in */
	__u8 tier;      /* lowest first; the next is used only if all before are dead or empty */
	__u8 weight;    /* of each backend in the choice; 0: takes no new connections */
};

struct service {
	__u32 id;
	__u8 groups;
	__u8 timeout[3]; /* of a client's affinity to its backend, in seconds, the lowest byte
			  * first; 0: it has none. The upper bits are enum service_flags */
	struct group group[MAX_GROUPS];
};

enum service_flags { /* of the last byte of timeout */
	SERVICE_SPLIT = 0x80,  /* clients outside have a row of their own */
	SERVICE_RANGED = 0x40, /* only for clients in its sources */
	SERVICE_BALANCED = 0x20, /* it has a row in balancing */
	SERVICE_FLAGS = 0xf0,
};

/* balancing: how the backends of a service share its connections, by its number, unless they
 * do so evenly and at random. */
struct balancing {
	__u32 weights[MAX_GROUPS]; /* take the place of each group's weight, unless that is 0 */
	__u32 slots;               /* of its Maglev tables, one for each tier; 0: it has none */
	__u8 generation;           /* of the tables */
	__u8 pad[3];
};

/* maglev: the Maglev tables of services, in pieces. A slot has the number of a backend, whose
 * row in backends is that of the slot with this number in the group with cluster 0; 0: nobody.
 * The agent writes piece by piece: every slot has the backend from before or the one from now,
 * and neither's row is removed before. Tables of another size are another generation. */
#define PIECE 64

struct maglev_key {
	__u32 service;
	__u16 piece;
	__u8 tier;
	__u8 generation;
};

struct maglev {
	__u16 backend[PIECE];
};

/* sources: the clients that may use a service with SERVICE_RANGED. */
struct range_key {
	__u32 bits; /* 32 of the service, and those of the prefix as in prefix_key */
	__u32 service;
	struct addr addr;
};

/* affinities: the backend that a client was last given. A client is a pod's address, or the
 * node's internal one for its own processes, so none has more rows than there are services.
 * visitors: the same of clients outside, who have as many addresses as they like, and write
 * here before any policy is asked. They have a table of their own, or a flood of them would
 * end the sessions of pods. */
struct affinity_key {
	struct addr client;
	__u32 service;
};

struct affinity {
	__u64 seen; /* the last new connection, ns of CLOCK_MONOTONIC_COARSE */
	struct addr backend;
	__be16 port;
	__u8 pad[6];
};

/* backends: one slot of a group. Removal moves the last slot into the hole and then
 * lowers count, so that every state in between is usable. */
struct slot_key {
	__u32 service;
	__u32 slot;
	__u16 cluster; /* as in the group */
	__u16 pad;
};

struct backend {
	struct addr addr;
	__be16 port;
	__u16 node; /* 0: on this node, or not behind a tunnel */
	__u16 reject; /* so many times out of 65536 when it is drawn: others of its group weigh more */
	__u16 weight; /* for people, and Maglev tables; 0: the default */
};

/* members: is this still a backend? Looked up when a flow is judged again, so the agent
 * raises the address's revision when it removes a member. A terminating backend leaves
 * backends at once, and members when it is gone. */
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

/* classes: identity to class. An identity without a row has class 0. */
struct class_key {
	__u32 gen;
	__u32 identity;
};

/* ports: port to port class; 0: no policy names it. Index (gen & 1, proto, port). */
enum port_proto {
	PORTS_TCP = 0,
	PORTS_UDP = 1,
	PORTS_SCTP = 2,
	PORTS_ICMP = 3, /* the port is the ICMP type, or 256 + that of ICMPv6 */
	PORTS_PROTOS = 4,
};

#define ANY_CLASS 0xffffffffu

struct policy_key {
	__u32 gen;
	__u32 set;
	__u32 class;    /* ANY_CLASS: everybody */
	__u16 port;     /* port class; 0: any */
	__u8 proto;     /* IP protocol; 0: any */
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
	__u8 enforced[2]; /* by direction; 1: default deny */
	__u8 shapes[2];   /* by direction: which shapes of entries the set may have, SHAPE_… */
};

/* Shapes of entries, most specific first: those of a class with a port, with a protocol
 * only and with neither, then the same of ANY_CLASS. */
#define SHAPE_PORT 1
#define SHAPE_PROTO 2
#define SHAPE_ALL 4
#define SHAPES_OF_CLASS (SHAPE_PORT | SHAPE_PROTO | SHAPE_ALL)
#define SHAPES_TO_ANYBODY 3  /* shift */
#define SHAPES_EVERY 0x3f
#define SHAPES_KNOWN 0x80    /* else any shape may occur: the row is an older agent's */

/* fragments: the ports of a datagram, which only its first fragment carries. Each
 * sender has a few slots, chosen by a hash of what all fragments carry, so it can
 * overwrite only its own rows. */
#define FRAGMENT_SLOTS 32

struct fragment_key {
	struct addr src; /* of a sender elsewhere; zero for a pod of this node */
	__u32 pod;       /* the pod's device, because it can forge the source */
	__u32 slot;
};

struct fragment {
	struct addr src;
	struct addr dst;
	__be32 id; /* of IPv4, 16 bits */
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 asks; /* as in struct packet */
	__u8 pad[2];
};

/* counters: per CPU. Index (reason, direction). */
struct counter {
	__u64 packets;
	__u64 bytes;
};

/* events: the records in the ring buffer. */
enum event_type {
	EVENT_DROP = 1,
	EVENT_NEW_FLOW = 2, /* allowed */
	EVENT_RESET = 3,    /* an open connection of the pod was reset */
	EVENT_REFUSED = 4,  /* dropped, and the pod got a reset or an ICMP error */
};

struct event {
	__u64 time; /* ns of CLOCK_BOOTTIME */
	struct addr src;
	struct addr dst;      /* after translation */
	struct addr service;  /* the address the pod used; zero: no service */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule;           /* cookie; 0 with policy-denied: default deny */
	__u32 set;            /* policy set that was asked */
	__u32 policy_gen;
	__u32 ifindex;
	__be16 sport;         /* ICMP: the type, then the code */
	__be16 dport;
	__be16 service_port;
	__u16 bytes;
	__u8 type;
	__u8 reason;
	__u8 dir;
	__u8 proto;
	__u8 tcp_flags;
	__u8 pad[3];
	__u32 suppressed; /* events of the same pod that were not sent before this one */
	__u32 pad2;
};
