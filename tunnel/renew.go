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
//
// This is the agent's, with the kernel's WireGuard as with `weft tunnel`, which
// greets the peers of its life before also while no agent is there.
var renewals = []time.Duration{250 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}

// strangers are the peers of one lane that never shook hands.
type strangers map[Key]asking

type asking struct {
	since time.Time
	times int // made anew
}

// due are those of the lane's peers to make anew now. Of two nodes that call
// each other the one with the greater key is the slower, so that they do not
// meet again.
func (s strangers) due(own Key, peers []wgtypes.Peer, now time.Time) map[Key]bool {
	due := map[Key]bool{}
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
			due[key] = true
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

// renewLocked names the peers to remove, because plan is to add them anew, and
// those that the lane has without them.
func (w *WireGuard) renewLocked(lane int, held []wgtypes.Peer, admitted []Peer) (rest []wgtypes.Peer, remove []wgtypes.PeerConfig) {
	due := w.asked[lane].due(w.own.Lanes[lane].PublicKey, held, time.Now())
	if len(due) == 0 {
		return held, nil
	}
	for _, p := range admitted {
		if key := p.Keys[lane]; due[key] {
			remove = append(remove, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
			held = slices.DeleteFunc(slices.Clone(held), func(h wgtypes.Peer) bool { return Key(h.PublicKey) == key })
		}
	}
	w.cfg.Log.Debug("makes peers anew that answered no handshake", "device", w.cfg.Devices[lane], "peers", len(remove))
	return held, remove
}
