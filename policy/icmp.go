package policy

import (
	"encoding/json"
	"slices"
	"strconv"
)

// Names of ICMP types, as Cilium accepts them.
var icmpTypes = map[uint8]map[string]uint16{
	ProtoICMP: {
		"EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8, "RouterAdvertisement": 9,
		"RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13, "TimestampReply": 14,
		"Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
	},
	ProtoICMPv6: {
		"DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4, "EchoRequest": 128, "EchoReply": 129,
		"MulticastListenerQuery": 130, "MulticastListenerReport": 131, "MulticastListenerDone": 132, "RouterSolicitation": 133,
		"RouterAdvertisement": 134, "NeighborSolicitation": 135, "NeighborAdvertisement": 136, "RedirectMessage": 137,
		"RouterRenumbering": 138, "ICMPNodeInformationQuery": 139, "ICMPNodeInformationResponse": 140,
		"InverseNeighborDiscoverySolicitation": 141, "InverseNeighborDiscoveryAdvertisement": 142,
		"HomeAgentAddressDiscoveryRequest": 144, "HomeAgentAddressDiscoveryReply": 145, "MobilePrefixSolicitation": 146,
		"MobilePrefixAdvertisement": 147, "DuplicateAddressRequestCodeSuffix": 157, "DuplicateAddressConfirmationCodeSuffix": 158,
		"ExtendedEchoRequest": 160, "ExtendedEchoReply": 161,
	},
}

const maxICMPType = 255

// icmpFollowing are the types that pass with the flow they belong to, never on their
// own: the answers to requests, and errors about earlier packets.
var icmpFollowing = []uint16{0, 3, 11, 12, 14, 16, 18, 43}

// icmpRedirect is dropped whatever policy says: it would change a pod's routes, and
// whoever reaches the pod can forge its sender.
const icmpRedirect = 5

func parseICMP(at path, f *icmpField, deny bool, p *Policy, ps *problems) (portSpec, bool) {
	var proto uint8
	switch f.Family {
	case "", "IPv4":
		proto = ProtoICMP
	case "IPv6":
		proto = ProtoICMPv6
	default:
		ps.add(at.field("family"), "%q is not a family; write IPv4 or IPv6", f.Family)
		return portSpec{}, false
	}
	where := at.field("type")
	if f.Type == nil {
		ps.add(where, "is missing; write a number from 0 to %d or a name such as EchoRequest", maxICMPType)
		return portSpec{}, false
	}
	var (
		number int64
		name   string
	)
	switch {
	case json.Unmarshal(f.Type, &number) == nil:
	case json.Unmarshal(f.Type, &name) == nil:
		if n, ok := icmpTypes[proto][name]; ok {
			number = int64(n)
			break
		}
		n, err := strconv.ParseInt(name, 10, 64)
		if err != nil {
			ps.add(where, "%q is not an ICMP type of this family; write a number or a name such as EchoRequest", name)
			return portSpec{}, false
		}
		number = n
	default:
		ps.add(where, "%s is neither a number nor a name; write a number from 0 to %d", f.Type, maxICMPType)
		return portSpec{}, false
	}
	if number < 0 || number > maxICMPType {
		ps.add(where, "%d is out of range; write a number from 0 to %d", number, maxICMPType)
		return portSpec{}, false
	}
	if proto == ProtoICMP {
		warnICMP(where, string(f.Type), uint16(number), deny, p)
	}
	return portSpec{proto: proto, first: uint16(number), last: uint16(number)}, true
}

// warnICMP warns where the effect on a type differs from what its author may expect.
func warnICMP(at path, written string, number uint16, deny bool, p *Policy) {
	switch {
	case !deny && number == icmpRedirect:
		p.warn(at, "%s allows nothing: redirects are always dropped, because their sender can be forged", written)
	case deny && slices.Contains(icmpFollowing, number):
		p.warn(at, "%s denies only unsolicited packets: replies and errors pass with the flow they belong to; deny that flow instead, such as EchoRequest", written)
	}
}
