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

// window is the packets that wait for an answer, by the word they carry.
type window struct {
	mu   sync.Mutex
	sent map[string]time.Time // guarded by mu
}

func (w *window) add(word string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[word] = time.Now()
}

// take removes a packet that was answered.
func (w *window) take(word string) (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	begin, ok := w.sent[word]
	delete(w.sent, word)
	return begin, ok
}

// expired removes the packets that have waited too long, or all of them.
func (w *window) expired(limit time.Duration, all bool) (begins []time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for word, begin := range w.sent {
		if all || time.Since(begin) > limit {
			begins = append(begins, begin)
			delete(w.sent, word)
		}
	}
	return begins
}

func (w *window) open() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sent)
}
