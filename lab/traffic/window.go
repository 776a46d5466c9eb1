package traffic

import (
	"sync"
	"time"
)

// lostError is the failure of a packet that was never answered.
type lostError struct{}

func (lostError) Error() string { return "no answer to the packet" }
func (lostError) Timeout() bool { return true }

var errLost = lostError{}

// packet is waiting for its answer.
type packet struct {
	key   int64 // of load.begin
	begin time.Time
}

// window holds the packets that are waiting for an answer, by the word they carry.
type window struct {
	mu   sync.Mutex
	sent map[string]packet // guarded by mu
}

func (w *window) add(word string, p packet) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[word] = p
}

// take removes an answered packet.
func (w *window) take(word string) (packet, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, ok := w.sent[word]
	delete(w.sent, word)
	return p, ok
}

// expired removes the packets that have waited too long, or all packets.
func (w *window) expired(limit time.Duration, all bool) (gone []packet) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for word, p := range w.sent {
		if all || time.Since(p.begin) > limit {
			gone = append(gone, p)
			delete(w.sent, word)
		}
	}
	return gone
}

func (w *window) open() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sent)
}
