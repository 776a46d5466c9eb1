package tunnel

import (
	"bytes"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// renewals are the pauses after which a peer that never answered a handshake is
// made anew, one after the other; a new peer may send one at once. WireGuard
// itself waits 5 s, which two nodes that begin at the same moment pay in full:
// each asks before the other knows its key, or their questions cross and both
// answers come to nobody. They grow, so that no slow path is cut short for ever.
// The agent looks at its lanes twice a second: the first ends just before a look.
//
// This is the agent's, with the kernel's WireGuard as with `weft tunnel`, which
// greets the peers of its life before also while no agent is there.
var renewals = []time.Duration{400 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}

// strangers are the peers of one lane that never shook hands.
type strangers map[Key]asking

type asking struct {
	since time.Time
	times int // made anew
}

// due are those of the lane's peers to make anew now. Of two nodes that call
// each other the one with the greater key waits half as long again, so that they
// do not meet each time.
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

// renewLocked is the change that makes admitted peers of the lane anew, as they
// are: where one was last heard is better known than where it says it is.
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
		w.cfg.Log.Debug("recreates peers that answered no handshake", "device", w.cfg.Devices[lane], "peers", len(due))
	}
	return change
}
