/* The maps that several programs use. The loader sets their sizes from the agent's
 * limits, and names, pins and versions too (tables in maps.go). */
#pragma once

#include "kernel.h"
#include "reasons.h"
#include "types.h"

#define HASH_OF(map_name, key_type, value_type, flags) \
	struct { \
		__uint(type, MAP_HASH); \
		__type(key, key_type); \
		__type(value, value_type); \
		__uint(max_entries, 1024); \
		__uint(map_flags, flags); \
	} map_name SEC(".maps")

/* A row takes its memory when it is used. */
#define HASH(map_name, key_type, value_type) HASH_OF(map_name, key_type, value_type, MAP_NO_PREALLOC)

/* All rows have their memory from the start: packets insert them, and taking memory then
 * costs three times as much as all the rest of an insertion. */
#define READY_HASH(map_name, key_type, value_type) HASH_OF(map_name, key_type, value_type, 0)

#define ARRAY(map_name, array_type, value_type, rows) \
	struct { \
		__uint(type, array_type); \
		__type(key, __u32); \
		__type(value, value_type); \
		__uint(max_entries, rows); \
	} map_name SEC(".maps")

ARRAY(settings, MAP_ARRAY, struct settings, 1);
ARRAY(revisions, MAP_ARRAY, __u32, REVISIONS);
READY_HASH(flows, struct flow_key, struct flow);
HASH(masquerades, struct flow_key, struct masquerade);
ARRAY(masquerading, MAP_ARRAY, struct masquerading, 1);
HASH(shares, __u32, struct share);
ARRAY(budgets, MAP_ARRAY, struct budget, 1);
ARRAY(given_up, MAP_PERCPU_ARRAY, struct flow_key, 1); /* scratch: the stack is short */
ARRAY(answers, MAP_PERCPU_ARRAY, struct flow, 1); /* likewise */
ARRAY(no_share, MAP_ARRAY, struct share, 1); /* all zero, never written: how an account begins */
HASH(endpoints, struct addr, struct endpoint);
HASH(namespaces, __u64, struct namespace);
HASH(ips, struct addr, struct ip_info);

struct {
	__uint(type, MAP_LPM_TRIE);
	__type(key, struct prefix_key);
	__type(value, struct ip_info);
	__uint(max_entries, 1024);
	__uint(map_flags, MAP_NO_PREALLOC);
} prefixes SEC(".maps");

/* native: prefixes outside of the mesh that know the way to pods, which keep their own
 * addresses there. */
struct {
	__uint(type, MAP_LPM_TRIE);
	__type(key, struct prefix_key);
	__type(value, __u32);
	__uint(max_entries, 1024);
	__uint(map_flags, MAP_NO_PREALLOC);
} native SEC(".maps");

ARRAY(nodes, MAP_ARRAY, struct node, 1 << 16);
ARRAY(clusters, MAP_ARRAY, struct cluster, 512);
HASH(services, struct service_key, struct service);
HASH(balancing, __u32, struct balancing);
HASH(backends, struct slot_key, struct backend);
HASH(maglev, struct maglev_key, struct maglev);
HASH(members, struct member_key, struct member);

struct {
	__uint(type, MAP_LPM_TRIE);
	__type(key, struct range_key);
	__type(value, __u32);
	__uint(max_entries, 1024);
	__uint(map_flags, MAP_NO_PREALLOC);
} sources SEC(".maps");

HASH(classes, struct class_key, __u32);
ARRAY(ports, MAP_ARRAY, __u16, 2 * PORTS_PROTOS << 16);
HASH(policy, struct policy_key, struct policy_entry);
HASH(sets, struct set_key, struct set_info);

/* Evicting the client that has been away for longest is what its timeout would do. */
#define SESSIONS(map_name) \
	struct { \
		__uint(type, MAP_LRU_HASH); \
		__type(key, struct affinity_key); \
		__type(value, struct affinity); \
		__uint(max_entries, 1024); \
	} map_name SEC(".maps")

SESSIONS(affinities);
SESSIONS(visitors);

/* The ports of fragmented datagrams. Evicting the oldest row is fine here: a datagram
 * that has waited longest has lost a fragment anyway. No sender has more rows than
 * its slots. */
struct {
	__uint(type, MAP_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
	__uint(max_entries, 1024);
} fragments SEC(".maps");

ARRAY(counters, MAP_PERCPU_ARRAY, struct counter, 2 * MAX_REASONS);
ARRAY(fresh, MAP_PERCPU_ARRAY, struct flow, 1); /* the flow being built: too big for the stack */
ARRAY(lost, MAP_PERCPU_ARRAY, __u64, 1); /* events that found no room in the ring */
ARRAY(judged_again, MAP_PERCPU_ARRAY, __u64, 1); /* how often a known flow was */

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* Load-time constants. */
volatile const __u64 tcp_established_ns;
volatile const __u64 tcp_opening_ns;
volatile const __u64 tcp_closing_ns;
volatile const __u64 not_tcp_ns;
volatile const __u32 events_bytes; /* size of events */
volatile const __u32 events_each;  /* events a second that a pod may always send */
volatile const __u32 tunnel_l3; /* offset of the IP header on a lane: 0, or ETH_HLEN */

/* Why a row was not written. Only a table without room is full; all else lasts for a moment: the
 * kernel has no memory at hand, or was interrupted on this CPU while it had the same part of
 * the table locked. */
inline_always int unwritten(int err)
{
	return err == -TOO_BIG ? REASON_FLOW_TABLE_FULL : REASON_FAILED;
}

inline_always struct flow *fresh_flow(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&fresh, &zero);
}

inline_always const struct settings *read_settings(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&settings, &zero);
}
