/* Revisions: how a flow knows that its verdict still holds.
 *
 * A verdict rests on rows that the agent changes: who has the two addresses and where
 * they are, which policy set the pod is under, whether the backend still belongs to its
 * service, which class the other side's identity has, and the generation of policies.
 * After every such change the agent raises a revision: of the address, of the identity,
 * or, for generations and wide prefixes, settings.revision. A flow keeps the sum of those
 * its verdict rests on. They only grow, so the sum is the same only if none was raised.
 *
 * Addresses and identities share REVISIONS rows by hash. Those that share a row are
 * judged once more than they need be, which is harmless.
 *
 * Order: the agent changes the row first and raises the revision after it; whoever
 * judges reads the revision first and the row after it. A verdict from an old row thus
 * never has the new revision. Between the agent's two writes there is a system call,
 * far longer than a CPU reorders loads.
 */
#pragma once

#include "maps.h"

inline_always __u32 revision_in(__u32 hash)
{
	__u32 row = hash >> (32 - REVISION_BITS);
	__u32 *revision = bpf_map_lookup_elem(&revisions, &row);

	return revision ? *revision : 0;
}

/* As in revision.go. */
inline_always __u32 address_revision(const struct addr *a)
{
	return revision_in((a->w[0] ^ a->w[1] ^ a->w[2] ^ a->w[3]) * 0x9e3779b1u);
}

inline_always __u32 identity_revision(__u32 identity)
{
	return revision_in(identity * 0x85ebca77u);
}

/* The address that the other side of a flow has. */
inline_always const struct addr *other_side(const struct flow_key *key, const struct flow *f)
{
	return f->flags & FLOW_SERVICE ? &f->backend : &key->remote;
}

/* Does the flow's verdict still hold? local is the revision of the settings and of the
 * local address. */
inline_always int holds_with(__u32 local, const struct flow_key *key, const struct flow *f)
{
	return f->revision == local + address_revision(other_side(key, f)) + identity_revision(f->identity);
}

inline_always int holds(const struct settings *s, const struct flow_key *key, const struct flow *f)
{
	return holds_with(s->revision + address_revision(&key->local), key, f);
}
