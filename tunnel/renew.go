package tunnel

import (
	"bytes"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// renewals are the pauses after which a peer that never answered a handshake is
// replaced by an equal new one, which may send a handshake at once. WireGuard itself
// waits 5 s, and two nodes that start at the same moment always have to: each sends
// its handshake before the other knows its key, or their handshakes cross and cancel
// each other. The pauses grow, so that a slow path gets its chance. The agent looks at
// its lanes twice a second: the first pause ends just before a look.
//
// The agent does this both with the kernel's WireGuard and with `weft tunnel`, which
// also greets the peers of its previous run when there is no agent.
var renewals = []time.Duration{400 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}

// strangers are the peers of one lane without any handshake so far.
type strangers map[Key]asking

type asking struct {
	since time.Time
	times int // replaced
}

// due are the lane's peers to replace now. Of two nodes that call each other, the one
// with the greater key waits half as long again, so that their handshakes do not cross
// every time.
func (s strangers) due(own Key, peers []wgtypes.Peer, now time.Time) (due []wgtypes.Peer) {
	waiting := map[Key]bool{}
	for _, p := range peers {
		key := Key(p.PublicKey)
		if p.Endpoint == nil || p.LastHandshakeTime.After(time.Unix(0, 0)) {
			continue
		}
		waiting[key] = true
		a, known := s[key]
		if !known {
			s[key] = asking{since: now}
			continue
		}
		if a.times == len(renewals) {
			continue
		}
		pause := renewals[a.times]
		if bytes.Compare(own[:], key[:]) > 0 {
			pause += pause / 2
		}
		if now.Sub(a.since) >= pause {
			due = append(due, p)
			s[key] = asking{since: now, times: a.times + 1}
		}
	}
	for key := range s {
		if !waiting[key] {
			delete(s, key)
		}
	}
	return due
}

// renewLocked is the change that replaces admitted peers of the lane by equal new ones.
// They keep the endpoint where they were last heard, which is better than the
// announced one.
func (w *WireGuard) renewLocked(lane int, held []wgtypes.Peer, admitted []Peer) (change []wgtypes.PeerConfig) {
	wanted := map[Key]bool{}
	for _, p := range admitted {
		wanted[p.Keys[lane]] = true
	}
	held = slices.DeleteFunc(slices.Clone(held), func(p wgtypes.Peer) bool { return !wanted[Key(p.PublicKey)] })
	due := w.asked[lane].due(w.own.Lanes[lane].PublicKey, held, time.Now())
	for _, p := range due {
		change = append(change,
			wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true},
			wgtypes.PeerConfig{
				PublicKey:                   p.PublicKey,
				Endpoint:                    p.Endpoint,
				PersistentKeepaliveInterval: &p.PersistentKeepaliveInterval,
				AllowedIPs:                  p.AllowedIPs,
			})
	}
	if len(due) > 0 {
		w.cfg.Log.Debug("recreated peers that answered no handshake", "device", w.cfg.Devices[lane], "peers", len(due))
	}
	return change
}
