/* The part of the kernel's interface that the programs use: types, numbers, helpers.
 *
 * Written out here rather than included from the system's headers, so that the
 * object depends on the compiler alone and builds to the same bytes anywhere.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u16 __sum16;
typedef __u32 __wsum;

#define SEC(name) __attribute__((section(name), used))
#define inline_always static inline __attribute__((always_inline))
/* A global function: the verifier checks it once, for any arguments, rather than on
 * every path that calls it. It must therefore check its pointers for null, though no
 * caller passes null. Linux 6.1 does not accept a map key or value behind such a
 * pointer, so keys are copied first. */
#define once __attribute__((noinline))

/* A static function with a stack frame of its own, verified again on every path. */
#define part static __attribute__((noinline))
/* Makes the compiler forget what it knows of a variable, so that it checks what it
 * was told to, in the register that is used afterwards. */
#define FORGET(x) asm volatile("" : "+r"(x))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define htons(x) ((__be16)__builtin_bswap16((__u16)(x)))
#define ntohs(x) __builtin_bswap16((__u16)(x))
#define htonl(x) ((__be32)__builtin_bswap32((__u32)(x)))
#define ntohl(x) __builtin_bswap32((__u32)(x))

#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

enum map_type {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PERCPU_ARRAY = 6,
	MAP_LRU_HASH = 9,
	MAP_LPM_TRIE = 11,
	MAP_SK_STORAGE = 24,
	MAP_RINGBUF = 27,
};

#define MAP_NO_PREALLOC 1u

enum update_flags {
	ROW_ANY = 0, /* creates or replaces */
	ROW_NEW = 1, /* creates, or fails with EXISTS */
};

#define NOT_PERMITTED 1
#define TOO_BIG 7
#define NO_MEMORY 12
#define EXISTS 17
#define CONNECTION_REFUSED 111

#define STORAGE_CREATE 1

enum ring_wakeup {
	RING_LET_SLEEP = 1,
	RING_WAKE = 2,
};

enum ring_query {
	RING_UNREAD = 0, /* bytes */
};

enum action {
	ACT_NEXT = -1, /* let through, as far as we are concerned: others at the hook decide too */
	ACT_SHOT = 2,
	ACT_REDIRECT = 7,
};

enum redirect_flags {
	REDIRECT_INGRESS = 1, /* as if the device had received it */
};

/* The fields up to the last one used; the kernel's struct is longer. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__be32 remote_ip4;
	__be32 local_ip4;
	__be32 remote_ip6[4];
	__be32 local_ip6[4];
	__be32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys; /* a pointer */
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk; /* a pointer: the socket that sent it, if it is still known */
};

/* What a socket connects or sends to, or hears from. */
struct bpf_sock_addr {
	__u32 user_family;
	__be32 user_ip4;
	__be32 user_ip6[4];
	__u32 user_port; /* in network order */
	__u32 family;
	__u32 type;
	__u32 protocol;
	__be32 msg_src_ip4;
	__be32 msg_src_ip6[4];
	__u64 sk; /* a pointer */
};

/* The kernel's own structs: only the fields that are used, of which the loader finds the places. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num; /* the local port, in host order */
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};

struct tcp_sock {
	__u64 bytes_received;
	__u64 bytes_acked;
};

struct udp_sock;
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

/* A socket; the last call is without one. */
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
};

#pragma clang attribute pop

enum family {
	FAMILY_INET6 = 10,
};

enum sock_state {
	SOCK_CLOSE = 7, /* of UDP: not connected */
	SOCK_LISTEN = 10,
};

#define ETH_HLEN 14
#define ETH_IP 0x0800
#define ETH_ARP 0x0806
#define ETH_IPV6 0x86dd

enum packet_type {
	PACKET_BROADCAST = 1,
	PACKET_MULTICAST = 2,
	PACKET_OTHERHOST = 3,
};

struct ethhdr {
	__u8 dest[6];
	__u8 source[6];
	__be16 proto;
} __attribute__((packed));

struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

#define IP_MORE 0x2000
#define IP_OFFSET 0x1fff

struct ipv6hdr {
	__u8 version_class;
	__u8 class_label[3];
	__be16 payload_len;
	__u8 next;
	__u8 hop_limit;
	__u64 saddr[2]; /* in network order */
	__u64 daddr[2];
};

/* Any extension header but that of fragments. */
struct ipv6ext {
	__u8 next;
	__u8 len; /* in units of 8 bytes beyond the first 8; AH: of 4 */
	__u8 type;
	__u8 left; /* of a routing header: segments */
};

struct ipv6frag {
	__u8 next;
	__u8 reserved;
	__be16 off; /* in bytes, with flags in the low bits */
	__be32 id;
};

#define IPV6_MORE 0x0001
#define IPV6_OFFSET 0xfff8

enum proto {
	PROTO_HOP_BY_HOP = 0,
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_ICMPV6 = 58,
	PROTO_OPTIONS = 60,
	PROTO_SCTP = 132,
};

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff; /* high nibble */
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urgent;
};

enum tcp_flags {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be16 id;
	__be16 seq;
};

enum icmp_type {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_REDIRECT = 5,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER = 12,
	ICMP_TIMESTAMP = 13,
	ICMP_TIMESTAMP_REPLY = 14,
	ICMP_INFO = 15,
	ICMP_INFO_REPLY = 16,
	ICMP_MASK = 17,
	ICMP_MASK_REPLY = 18,
	ICMP_EXT_ECHO = 42,
	ICMP_EXT_ECHO_REPLY = 43,
};

/* Codes of ICMP_UNREACHABLE. */
enum icmp_code {
	ICMP_HOST_UNREACHABLE = 1,
	ICMP_PROTOCOL_UNREACHABLE = 2,
	ICMP_PORT_UNREACHABLE = 3,
};

enum icmpv6_type {
	ICMPV6_UNREACHABLE = 1,
	ICMPV6_TIME_EXCEEDED = 3,
	ICMPV6_PARAMETER = 4,
	ICMPV6_ECHO = 128,
	ICMPV6_ECHO_REPLY = 129,
	ICMPV6_LISTENER_QUERY = 130,
	ICMPV6_LISTENER_REPORT = 131,
	ICMPV6_LISTENER_DONE = 132,
	ICMPV6_ROUTER_SOLICITATION = 133,
	ICMPV6_ROUTER_ADVERTISEMENT = 134,
	ICMPV6_NEIGHBOUR_SOLICITATION = 135,
	ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136,
	ICMPV6_REDIRECT = 137,
	ICMPV6_LISTENER_REPORT_V2 = 143,
};

/* Codes of ICMPV6_UNREACHABLE and of ICMPV6_PARAMETER. */
enum icmpv6_code {
	ICMPV6_ADDRESS_UNREACHABLE = 3,
	ICMPV6_PORT_UNREACHABLE = 4,
	ICMPV6_UNKNOWN_NEXT_HEADER = 1,
};

/* What bpf_skc_lookup_tcp and bpf_sk_lookup_udp look for; the source is the other side. */
struct sock_tuple4 {
	__be32 saddr, daddr;
	__be16 sport, dport;
};

struct sock_tuple6 {
	__be32 saddr[4], daddr[4];
	__be16 sport, dport;
};

#define THIS_NETNS (~0ULL)

/* What the kernel says of a socket, up to the last field used. */
struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__be32 src_ip4;
	__be32 src_ip6[4];
	__u32 src_port; /* in host order */
	__be16 dst_port; /* 0: not connected */
};

enum csum_flags {
	CSUM_PSEUDO = 1 << 4,
	CSUM_ZERO_IS_NONE = 1 << 5,
};

enum store_flags {
	STORE_FIX_CSUM = 1 << 0,
};

/* Helpers, by their numbers in the kernel. */
static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
/* int: before Linux 6.4, the upper half of what these two return is zero, errors included, because
 * a call of them becomes one of the map's own function. */
static int (*const bpf_map_update_elem)(void *map, const void *key, const void *val, __u64 flags) = (void *)2;
static int (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *, __u32 off, const void *from, __u32 len, __u64 flags) = (void *)9;
static long (*const bpf_l3_csum_replace)(struct __sk_buff *, __u32 off, __u64 from, __u64 to, __u64 size) = (void *)10;
static long (*const bpf_l4_csum_replace)(struct __sk_buff *, __u32 off, __u64 from, __u64 to, __u64 flags) = (void *)11;
static long (*const bpf_clone_redirect)(struct __sk_buff *, __u32 ifindex, __u64 flags) = (void *)13;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*const bpf_skb_load_bytes)(const void *, __u32 off, void *to, __u32 len) = (void *)26;
static long (*const bpf_csum_diff)(const void *from, __u32 from_size, const void *to, __u32 to_size, __wsum seed) = (void *)28;
static long (*const bpf_skb_change_tail)(struct __sk_buff *, __u32 len, __u64 flags) = (void *)38;
static long (*const bpf_skb_pull_data)(struct __sk_buff *, __u32 len) = (void *)39;
static long (*const bpf_skb_change_head)(struct __sk_buff *, __u32 len, __u64 flags) = (void *)43;
static __u64 (*const bpf_get_socket_cookie)(void *sk) = (void *)46;
static void *(*const bpf_sk_lookup_udp)(void *ctx, const void *tuple, __u32 size, __u64 netns, __u64 flags) = (void *)85;
static long (*const bpf_sk_release)(void *sock) = (void *)86;
static void *(*const bpf_skc_lookup_tcp)(void *ctx, const void *tuple, __u32 size, __u64 netns, __u64 flags) = (void *)99;
static void *(*const bpf_sk_storage_get)(void *map, void *sk, void *value, __u64 flags) = (void *)107;
static __u64 (*const bpf_get_netns_cookie)(void *ctx) = (void *)122;
static __u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*const bpf_seq_write)(struct seq_file *, const void *data, __u32 len) = (void *)127;
static void *(*const bpf_ringbuf_reserve)(void *ringbuf, __u64 size, __u64 flags) = (void *)131;
static void (*const bpf_ringbuf_submit)(void *data, __u64 flags) = (void *)132;
static __u64 (*const bpf_ringbuf_query)(void *ringbuf, __u64 flags) = (void *)134;
static struct tcp_sock *(*const bpf_skc_to_tcp_sock)(void *sk) = (void *)137;
static long (*const bpf_redirect_peer)(__u32 ifindex, __u64 flags) = (void *)155;
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)160;
static long (*const bpf_for_each_map_elem)(void *map, void *callback, void *ctx, __u64 flags) = (void *)164;
static long (*const bpf_set_retval)(int value) = (void *)187;
static long (*const bpf_loop)(__u32 times, void *callback, void *ctx, __u64 flags) = (void *)181;
