// Package model says in plain Go what the programs in package bpf do with a packet: it is
// their specification, and the oracle of their tests.
//
// It is written from what the datapath promises, not from how the programs keep it: a flow is
// one value with the two sides that it has, not two rows; a prefix is found by looking at all
// of them; a choice is the set of what is permitted; checksums are computed from scratch.
// Where the kernel draws lots, the model asks which lot was drawn (see Witness), says whether
// it was in the hat, and goes on from there.
//
// It covers, for IPv4 and IPv6:
//
//   - hooks: from_pod, to_pod, from_tunnel, to_tunnel, from_device, to_device;
//   - policy by set, class, protocol and port; verdicts that are made again after a change;
//   - services: tiers, groups, paths, affinity, source ranges, members that go or are
//     replaced; a pod that reaches itself; one source port towards several services;
//   - flows: lifetimes, TCP's flags and sequence numbers, dead and silent paths;
//   - translation both ways, also of what ICMP errors quote; later fragments, in order;
//   - what a sender is told: resets and ICMP errors, byte by byte;
//   - node ports and external addresses with a backend here or elsewhere; masquerading.
//
// It does not cover: programs on sockets, and what their sockets tell a packet; shares and budgets (the table is never full);
// sweeping; the limit on ICMP errors; weights other than 0 and 1, and how even a choice is;
// the trace of new flows; who is who in events; fragments that overtake the first, or more
// datagrams of a sender than are remembered; sockets of the node that have a port; generations
// of policy; a packet on two CPUs at once. TCP's numbers are noted with each packet, as if the
// kernel's clock had always moved on.
package model
