package bpf

import (
	"fmt"
	"maps"
	"slices"
)

// Reason is why a packet left the datapath where it did. The list is that of
// lib/reasons.h, as a test checks.
type Reason uint8

// From ReasonPolicyDenied on the packet was dropped.
const (
	ReasonDelivered     Reason = 1 // handed to a pod of this node
	ReasonTunnelled     Reason = 2 // a pod's packet, sent into a tunnel
	ReasonToStack       Reason = 3 // passed to the node's network stack
	ReasonNotOurs       Reason = 4 // not for the hook to decide; let through
	ReasonResetSent     Reason = 5 // an open connection of the pod was reset
	ReasonEnteredTunnel Reason = 6 // entered a tunnel, from a pod or from the node itself
	ReasonChangedTunnel Reason = 7 // the node's own packet, moved to the tunnel in use
	ReasonEarlyFragment Reason = 8 // waits for the first fragment of its datagram, which it overtook; counted each time it does

	ReasonPolicyDenied  Reason = 16 // a rule denies it or no rule allows it
	ReasonUnknownMember Reason = 17 // denied; the other side is a member's address without an identity
	ReasonNoTunnel      Reason = 18 // member's address without a known node, key or tunnel device
	ReasonPathDown      Reason = 19 // the node or cluster behind the tunnel does not answer
	ReasonPlaintext     Reason = 20 // member's address outside of the tunnels
	ReasonNoBackend     Reason = 21 // no usable backend, or no such service or port
	ReasonFlowTableFull Reason = 22 // no room for a new flow
	ReasonSpoofedSource Reason = 23 // the source is not the sender's address
	ReasonHeld          Reason = 24 // the pod is not programmed yet
	ReasonNoEndpoint    Reason = 25 // address of this node that no pod has
	ReasonFragment      Reason = 26 // fragment of a datagram whose first one was not seen
	ReasonInvalid       Reason = 27 // malformed, or an answer without a request
	ReasonNotSupported  Reason = 28 // IPv6, or a protocol that is not carried
	ReasonNoPolicy      Reason = 29 // the pod's policy set is not in the kernel
	ReasonFlowClash     Reason = 30 // its answers could not be told from another flow's
	ReasonNotReady      Reason = 31 // the agent has not written the settings yet
	ReasonFailed        Reason = 32 // the kernel refused to change or redirect it
	ReasonTTLExceeded   Reason = 33 // its time to live is used up
	ReasonFormerMember  Reason = 40 // address of a removed peer: blocked until `weft peer forget`
	ReasonNodeAddress   Reason = 41 // a pod's packet to another node's own address
	ReasonNodeClosed    Reason = 42 // the node accepts only echoes and answers from tunnels
	ReasonNoPort        Reason = 43 // no source port is free towards this address and port: of the node, or of the client itself
	ReasonSourceRange   Reason = 44 // the client is in none of the service's loadBalancerSourceRanges
)

var reasonNames = map[Reason]string{
	ReasonDelivered:     "delivered",
	ReasonTunnelled:     "tunnelled",
	ReasonToStack:       "to-stack",
	ReasonNotOurs:       "not-ours",
	ReasonResetSent:     "reset-sent",
	ReasonEnteredTunnel: "entered-tunnel",
	ReasonChangedTunnel: "changed-tunnel",
	ReasonEarlyFragment: "early-fragment",
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
	ReasonNoPort:        "no-port",
	ReasonSourceRange:   "source-range",
}

// Drop reports whether the packet was dropped.
func (r Reason) Drop() bool { return r >= ReasonPolicyDenied }

// DropReasons returns all reasons to drop a packet, in order of number.
func DropReasons() []Reason {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(reasonNames)), func(r Reason) bool { return !r.Drop() })
}

// String is the name shown by metrics, events and the CLI.
func (r Reason) String() string {
	if name, ok := reasonNames[r]; ok {
		return name
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}
