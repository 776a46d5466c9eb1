/* Why a packet left the datapath where it did: one list for programs, counters,
 * events and the Go names in reason.go (a test compares them).
 *
 * REASON(number, NAME, "name"). Never renumber: pinned counters and events of other
 * versions use the numbers. Reasons from FIRST_DROP on are drops.
 */
#pragma once

#define REASONS(REASON) \
	REASON(1, DELIVERED, "delivered") \
	REASON(2, TUNNELLED, "tunnelled") \
	REASON(3, TO_STACK, "to-stack") \
	REASON(4, NOT_OURS, "not-ours") \
	REASON(5, RESET_SENT, "reset-sent") \
	REASON(6, ENTERED_TUNNEL, "entered-tunnel") \
	REASON(7, CHANGED_TUNNEL, "changed-tunnel") \
	REASON(8, EARLY_FRAGMENT, "early-fragment") \
	REASON(16, POLICY_DENIED, "policy-denied") \
	REASON(17, UNKNOWN_MEMBER, "unknown-member") \
	REASON(18, NO_TUNNEL, "no-tunnel") \
	REASON(19, PATH_DOWN, "path-down") \
	REASON(20, PLAINTEXT, "plaintext") \
	REASON(21, NO_BACKEND, "no-backend") \
	REASON(22, FLOW_TABLE_FULL, "flow-table-full") \
	REASON(23, SPOOFED_SOURCE, "spoofed-source") \
	REASON(24, HELD, "held") \
	REASON(25, NO_ENDPOINT, "no-endpoint") \
	REASON(26, FRAGMENT, "fragment") \
	REASON(27, INVALID, "invalid") \
	REASON(28, NOT_SUPPORTED, "not-supported") \
	REASON(29, NO_POLICY, "no-policy") \
	REASON(30, FLOW_CLASH, "flow-clash") \
	REASON(31, NOT_READY, "not-ready") \
	REASON(32, FAILED, "failed") \
	REASON(33, TTL_EXCEEDED, "ttl-exceeded") \
	REASON(40, FORMER_MEMBER, "former-member") \
	REASON(41, NODE_ADDRESS, "node-address") \
	REASON(42, NODE_CLOSED, "node-closed") \
	REASON(43, NO_PORT, "no-port") \
	REASON(44, SOURCE_RANGE, "source-range")

#define FIRST_DROP 16
#define MAX_REASONS 64

enum reason {
#define REASON(number, name, text) REASON_##name = number,
	REASONS(REASON)
#undef REASON
};
