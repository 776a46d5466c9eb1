package tunnel

import (
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// watch remembers when a lane last received data. It only compares counters between
// two looks.
type watch struct {
	last     time.Time
	received uint64        // packets, userspace
	perPeer  map[Key]int64 // bytes, kernel
	started  bool
}

// packets takes the number of packets that have come out of the tunnel.
func (w *watch) packets(received uint64, now time.Time) {
	if !w.started || received != w.received {
		w.last = now
	}
	w.received, w.started = received, true
}

// bytes takes the number of bytes that each peer has sent. The kernel counts
// handshakes and keepalives too, so a difference is data only if they do not explain
// it.
func (w *watch) bytes(peers []wgtypes.Peer, now time.Time) {
	seen := make(map[Key]int64, len(peers))
	for i := range peers {
		p, key := &peers[i], Key(peers[i].PublicKey)
		seen[key] = p.ReceiveBytes
		before := w.perPeer[key]
		if before > p.ReceiveBytes {
			before = 0 // the peer was replaced
		}
		if !chatter(p.ReceiveBytes - before) {
			w.last = now
		}
	}
	if !w.started {
		w.last = now
	}
	w.perPeer, w.started = seen, true
}

// Sizes of WireGuard's messages in bytes. Those that carry a packet have 32 plus a
// multiple of 16, at least 64.
const (
	messageInitiation = 148
	messageResponse   = 92
	messageKeepalive  = 32
)

// chatter reports whether so many bytes are at most one handshake message and one
// keepalive, which a quiet peer sends between two looks. No sum of data messages has
// the same size.
func chatter(bytes int64) bool {
	switch bytes {
	case 0, messageKeepalive,
		messageInitiation, messageInitiation + messageKeepalive,
		messageResponse, messageResponse + messageKeepalive:
		return true
	}
	return false
}
