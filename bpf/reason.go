package bpf

import (
	"fmt"
	"maps"
	"slices"
)

// Reason says why a packet left the datapath where it did. The list is
// lib/reasons.h; a test keeps both equal.
type Reason uint8

// The ways out. From ReasonPolicyDenied on the packet was dropped.
const (
	ReasonDelivered   Reason = 1 // handed to a pod of this node
	ReasonTunnelled   Reason = 2 // a pod's, handed to a lane
	ReasonToStack     Reason = 3 // left to the node's network stack
	ReasonNotOurs     Reason = 4 // nothing the hook decides about, let through
	ReasonResetSent   Reason = 5 // the pod was answered with a TCP reset
	ReasonEnteredLane Reason = 6 // seen by the lane: what pods and the node itself send
	ReasonChangedLane Reason = 7 // the node's own, moved to the lane in use

	ReasonPolicyDenied  Reason = 16 // a rule denies it, or no rule allows it
	ReasonUnknownMember Reason = 17 // denied, and the other side is a member address without identity
	ReasonNoTunnel      Reason = 18 // member address, but no node, key or tunnel device for it
	ReasonPathDown      Reason = 19 // the node or cluster behind the tunnel does not answer
	ReasonPlaintext     Reason = 20 // member address outside a tunnel
	ReasonNoBackend     Reason = 21 // service without usable backend, or an address of services that none has
	ReasonFlowTableFull Reason = 22 // no room for a new flow
	ReasonSpoofedSource Reason = 23 // source is not the pod's address
	ReasonHeld          Reason = 24 // the pod is not programmed yet
	ReasonNoEndpoint    Reason = 25 // address of this node without pod
	ReasonFragment      Reason = 26 // fragment whose first part was not seen
	ReasonInvalid       Reason = 27 // malformed, or an answer nobody asked for
	ReasonNotSupported  Reason = 28 // IPv6, protocols without ports
	ReasonNoPolicy      Reason = 29 // the pod's policy set is not in the kernel
	ReasonFlowClash     Reason = 30 // answers could not be told from another flow's
	ReasonNotReady      Reason = 31 // no settings written yet
	ReasonFailed        Reason = 32 // the kernel refused to change or redirect it
	ReasonTTLExceeded   Reason = 33 // its time to live was used up
	ReasonFormerMember  Reason = 40 // address of a peer that was removed: blocked until `weft peer forget`
	ReasonNodeAddress   Reason = 41 // a pod's packet to another node's own address
	ReasonNodeClosed    Reason = 42 // the node takes nothing from tunnels but echoes and answers
)

var reasonNames = map[Reason]string{
	ReasonDelivered:     "delivered",
	ReasonTunnelled:     "tunnelled",
	ReasonToStack:       "to-stack",
	ReasonNotOurs:       "not-ours",
	ReasonResetSent:     "reset-sent",
	ReasonEnteredLane:   "entered-lane",
	ReasonChangedLane:   "changed-lane",
	ReasonPolicyDenied:  "policy-denied",
	ReasonUnknownMember: "unknown-member",
	ReasonNoTunnel:      "no-tunnel",
	ReasonPathDown:      "path-down",
	ReasonPlaintext:     "plaintext",
	ReasonNoBackend:     "no-backend",
	ReasonFlowTableFull: "flow-table-full",
	ReasonSpoofedSource: "spoofed-source",
	ReasonHeld:          "held",
	ReasonNoEndpoint:    "no-endpoint",
	ReasonFragment:      "fragment",
	ReasonInvalid:       "invalid",
	ReasonNotSupported:  "not-supported",
	ReasonNoPolicy:      "no-policy",
	ReasonFlowClash:     "flow-clash",
	ReasonNotReady:      "not-ready",
	ReasonFailed:        "failed",
	ReasonTTLExceeded:   "ttl-exceeded",
	ReasonFormerMember:  "former-member",
	ReasonNodeAddress:   "node-address",
	ReasonNodeClosed:    "node-closed",
}

// Drop tells whether the packet was dropped.
func (r Reason) Drop() bool { return r >= ReasonPolicyDenied }

// DropReasons are all reasons to drop a packet, in the order of their numbers.
func DropReasons() []Reason {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(reasonNames)), func(r Reason) bool { return !r.Drop() })
}

// String is the name that counters, events and the CLI show.
func (r Reason) String() string {
	if name, ok := reasonNames[r]; ok {
		return name
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}
