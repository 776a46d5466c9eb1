package tunnel

import (
	"bytes"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Two nodes whose handshakes cross cancel them both, and userspace WireGuard may even end
// up with keys that differ (it consumes an initiation and a response for the same peer at
// the same time), which each side takes for a completed handshake. So of two nodes only the
// one with the smaller key calls: the other gives its peer no keepalive, which is what
// starts a handshake, until it was called, or was not for patience.

// patience is how long a node waits for the call of a peer that should make it. One behind
// NAT that announces no endpoint can be called by nobody and calls whatever its key.
const patience = 1200 * time.Millisecond

// calls reports whether the node whose key this is calls the other.
func (k Key) calls(other Key) bool { return bytes.Compare(k[:], other[:]) < 0 }

// renewals are the pauses after which a peer that never answered a handshake is
// replaced by an equal new one, which may send a handshake at once. WireGuard itself
// waits 5 s, and a node often calls before the other knows its key. The pauses grow, so
// that a slow path gets its chance. The agent looks at its lanes twice a second: the first
// pause ends just before a look.
//
// The agent does this both with the kernel's WireGuard and with `weft tunnel`, which
// also greets the peers of its previous run when there is no agent.
var renewals = []time.Duration{400 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}

// strangers are the peers of one lane that have not been heard so far, by the lane's
// present key.
type strangers map[Key]asking

type asking struct {
	since time.Time
	times int   // replaced
	heard int64 // bytes received from it
}

// due are the peers to replace now, and those whose call is awaited, of a lane that has had
// its key since then. Of two nodes that call each other, the one with the greater key waits
// half as long again, so that their handshakes do not cross every time.
func (s strangers) due(own Key, peers []wgtypes.Peer, silent map[Key]bool, since, now time.Time) (due []wgtypes.Peer, awaited map[Key]bool) {
	waiting := map[Key]bool{}
	awaited = map[Key]bool{}
	for i := range peers {
		p, key := &peers[i], Key(peers[i].PublicKey)
		shaken := p.LastHandshakeTime.After(time.Unix(0, 0)) && p.LastHandshakeTime.After(since)
		if p.Endpoint == nil || shaken && !(silent[key] && unheard(p, now)) {
			if shaken && silent[key] && p.ReceiveBytes <= withoutData {
				waiting[key] = true // what was tried counts until it is heard: the pauses grow
			}
			continue
		}
		waiting[key] = true
		a, known := s[key]
		if known && a.heard != p.ReceiveBytes {
			// It calls just now: the next look tells whether that was a handshake.
			a.heard = p.ReceiveBytes
			s[key] = a
			awaited[key] = !shaken && !own.calls(key) && a.times == 0
			continue
		}
		if !known {
			a = asking{since: now, heard: p.ReceiveBytes}
			s[key] = a
		}
		if !shaken && !own.calls(key) && a.times == 0 {
			if now.Sub(a.since) < patience {
				awaited[key] = true
				continue
			}
			// It is called now, for the first time.
			if p.PersistentKeepaliveInterval == 0 {
				s[key] = asking{since: now, times: 1, heard: p.ReceiveBytes}
				continue
			}
		}
		if !known || a.times == len(renewals) {
			continue
		}
		pause := renewals[a.times]
		if !own.calls(key) {
			pause += pause / 2
		}
		if now.Sub(a.since) >= pause {
			due = append(due, *p)
			s[key] = asking{since: now, times: a.times + 1} // its counters begin anew
		}
	}
	for key := range s {
		if !waiting[key] {
			delete(s, key)
		}
	}
	return due, awaited
}

// withoutData is how many bytes a peer may have sent without any data.
const withoutData = 2 * (messageInitiation + messageResponse + messageKeepalive)

// unheard reports whether a peer, for all that was sent to it since its handshake, has sent
// nothing but handshakes and keepalives. If it is silent as well, the two may have keys that
// differ. A peer that was heard and then fell silent keeps its session for when it is back.
func unheard(p *wgtypes.Peer, now time.Time) bool {
	return now.Sub(p.LastHandshakeTime) >= time.Second && p.ReceiveBytes <= withoutData && p.TransmitBytes > withoutData
}

// renewLocked is the change that replaces admitted peers of the lane by equal new ones.
// They keep the endpoint where they were last heard, which is better than the
// announced one. It also returns the peers whose call is awaited.
func (w *WireGuard) renewLocked(lane int, held []wgtypes.Peer, admitted []*Peer, silentNames map[string]bool) (change []wgtypes.PeerConfig, awaited map[Key]bool) {
	wanted, silent := make(map[Key]bool, len(admitted)), map[Key]bool{}
	for _, p := range admitted {
		wanted[p.Keys[lane]] = true
		if len(silentNames) > 0 && silentNames[p.Name()] {
			silent[p.Keys[lane]] = true
		}
	}
	if slices.ContainsFunc(held, func(p wgtypes.Peer) bool { return !wanted[Key(p.PublicKey)] }) {
		held = slices.DeleteFunc(slices.Clone(held), func(p wgtypes.Peer) bool { return !wanted[Key(p.PublicKey)] })
	}
	due, awaited := w.asked[lane].due(w.own.Lanes[lane].PublicKey, held, silent, w.keys.Lanes[lane].Since, time.Now())
	if len(w.asked[lane]) == 0 {
		w.asked[lane] = strangers{} // a map that has been large stays so
	}
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
	return change, awaited
}
