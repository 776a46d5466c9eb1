package tables

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-mesh/weft/identity"
)

// Phase is how far an endpoint's setup or removal has come.
//
//	creating ──network, programs──► held ──identity, policy──► live
//	    └──────────────── pod deleted ──► removing ◄────────────┘
type Phase string

const (
	Creating Phase = "creating"
	Held     Phase = "held" // sends and receives nothing
	Live     Phase = "live"
	Removing Phase = "removing"
)

// Endpoint is a pod on this node.
type Endpoint struct {
	Namespace, Pod string
	UID            string
	ID             uint16
	IP             netip.Addr
	Second         netip.Addr // of the other family; invalid: it has none
	Device         string     // host side of the veth pair
	Ifindex        int
	MAC, HostMAC   [6]byte
	Phase          Phase
	Identity       identity.Number
	Labels         identity.Labels
	Set            uint32
	Ready          bool
	// Why is the last readiness failure, or what the pod is waiting for.
	Why string
}

// Key is "namespace/pod".
func (e *Endpoint) Key() string { return e.Namespace + "/" + e.Pod }

// IPs are the pod's addresses: one, or one of each family; none if it has none yet.
func (e *Endpoint) IPs() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{e.IP, e.Second}, func(a netip.Addr) bool { return !a.IsValid() })
}

var endpoints = table[*Endpoint]{
	name: "endpoints", written: true,
	columns: []string{"Namespace", "Pod", "Address", "Device", "Phase", "Identity", "Set", "Ready", "Why"},
	cells: func(e *Endpoint) []string {
		return []string{e.Namespace, e.Pod, addrs(e.IPs()), or(e.Device), string(e.Phase), e.Identity.String(), fmt.Sprint(e.Set), yes(e.Ready), or(e.Why)}
	},
}
