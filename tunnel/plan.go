package tunnel

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Keepalive is the persistent keepalive of every peer, once it was called. It keeps NAT
// mappings open and both lanes' sessions fresh, and makes a restarted tunnel shake hands by
// itself. A lane sends peers / Keepalive packets a second.
const Keepalive = 25 * time.Second

// plan is the smallest change that gives a lane the admitted peers. Peers that need
// no change are left out, because touching them may lose traffic. keep are keys that
// stay although no admitted peer has them; before are the peers as last configured. calls
// says which peers get a keepalive, which has a new one called at once.
//
// The order within the plan matters: giving an address to its new owner takes it from
// the old one in the same instant, so peers that get addresses come before peers that
// are removed.
func plan(lane int, device []wgtypes.Peer, admitted []*Peer, before roster, keep map[Key]bool, calls func(key Key, there bool) bool, complete bool) []wgtypes.PeerConfig {
	present := peersByKey(device)
	wanted := make(map[Key]bool, len(admitted))
	replaced := map[Key]bool{}
	for _, p := range admitted {
		if key := p.Keys[lane]; !key.IsZero() {
			wanted[key] = true
		}
		// A node that announces a new key has given up the old one.
		if old := before[p.Name()]; old != nil && old.Keys[lane] != p.Keys[lane] {
			replaced[old.Keys[lane]] = true
		}
	}

	var changes, gone []wgtypes.PeerConfig
	lost := map[netip.Prefix]bool{}
	for _, p := range admitted {
		key := p.Keys[lane]
		if key.IsZero() {
			continue
		}
		old := before[p.Name()]
		moved := old == nil || old.Endpoint[lane] != p.Endpoint[lane] || old.Keys[lane] != key
		now, there := present[key]
		if !there {
			now = &wgtypes.Peer{}
		}
		if change := update(key, p.Endpoint[lane], p.Allowed, now, there, moved, calls(key, there), lost); change != nil {
			changes = append(changes, *change)
		}
	}
	if len(lost) > 0 {
		for _, p := range admitted {
			if !p.Keys[lane].IsZero() {
				for _, prefix := range p.Allowed {
					delete(lost, prefix) // its new owner takes it
				}
			}
		}
	}
	for i := range device {
		key := Key(device[i].PublicKey)
		if wanted[key] || keep[key] || !(complete || replaced[key]) {
			continue
		}
		gone = append(gone, wgtypes.PeerConfig{PublicKey: device[i].PublicKey, Remove: true})
	}
	return slices.Concat(changes, drop(lost), gone)
}

// update is the change for one wanted peer, nil if there is none. It adds the prefixes to lost
// that it has but should not have.
func update(key Key, endpoint netip.AddrPort, allowed []netip.Prefix, now *wgtypes.Peer, there, moved, calls bool, lost map[netip.Prefix]bool) *wgtypes.PeerConfig {
	change := wgtypes.PeerConfig{PublicKey: wgtypes.Key(key)}
	changed := !there
	// A roaming peer has a better endpoint than the announced one, so only a newly
	// announced one is set.
	if endpoint.IsValid() && (!there || now.Endpoint == nil || moved && !sameEndpoint(now.Endpoint, endpoint)) {
		change.Endpoint = net.UDPAddrFromAddrPort(endpoint)
		changed = true
	}
	if calls && now.PersistentKeepaliveInterval != Keepalive {
		interval := Keepalive
		change.PersistentKeepaliveInterval = &interval
		changed = true
	}
	has := make([]netip.Prefix, 0, 4)
	for _, n := range now.AllowedIPs {
		prefix := fromIPNet(n)
		if has = append(has, prefix); !slices.Contains(allowed, prefix) {
			lost[prefix] = true
		}
	}
	for _, prefix := range allowed {
		if !slices.Contains(has, prefix) {
			change.AllowedIPs = append(change.AllowedIPs, ipNet(prefix))
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return &change
}

// drop takes single prefixes from whichever peer has them. Replacing that peer's list
// would empty it first and lose packets, so the prefixes are given to a peer that
// does not exist, and that peer is removed.
func drop(prefixes map[netip.Prefix]bool) []wgtypes.PeerConfig {
	if len(prefixes) == 0 {
		return nil
	}
	// A key that no node has, and without an endpoint, so that nothing is sent.
	nobody := wgtypes.PeerConfig{PublicKey: wgtypes.Key{31: 0x42}}
	taken := nobody
	for _, prefix := range slices.SortedFunc(maps.Keys(prefixes), netip.Prefix.Compare) {
		taken.AllowedIPs = append(taken.AllowedIPs, ipNet(prefix))
	}
	nobody.Remove = true
	return []wgtypes.PeerConfig{taken, nobody}
}

func sameEndpoint(have *net.UDPAddr, want netip.AddrPort) bool {
	addr := have.AddrPort()
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()) == netip.AddrPortFrom(want.Addr().Unmap(), want.Port())
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func fromIPNet(n net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if size == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, bits)
}
