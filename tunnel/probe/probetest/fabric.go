package probetest

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/tunnel/probe"
)

// Fabric carries the probes of many nodes to one another. Every address answers, and at
// once, unless it is cut off. The zero value is ready to use.
type Fabric struct {
	mu     sync.Mutex               // guards what follows
	cut    map[netip.Prefix]bool    // from everything outside of it
	oneWay map[[2]netip.Prefix]bool // from, to
}

// SetCut cuts what is inside a prefix off from everything outside of it, or ends that.
func (f *Fabric) SetCut(prefix netip.Prefix, cut bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut == nil {
		f.cut = map[netip.Prefix]bool{}
	}
	f.cut[prefix] = cut
}

// SetOneWay makes everything that one prefix sends to another be lost, or ends that. What
// the other sends arrives; but neither hears an answer.
func (f *Fabric) SetOneWay(from, to netip.Prefix, lost bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.oneWay == nil {
		f.oneWay = map[[2]netip.Prefix]bool{}
	}
	f.oneWay[[2]netip.Prefix{from, to}] = lost
}

// reaches reports whether a request from a arrives at b, and its answer at a.
func (f *Fabric) reaches(a, b netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for prefix, cut := range f.cut {
		if cut && prefix.Contains(a) != prefix.Contains(b) {
			return false
		}
	}
	for way, lost := range f.oneWay {
		there, back := way[0].Contains(a) && way[1].Contains(b), way[0].Contains(b) && way[1].Contains(a)
		if lost && (there || back) {
			return false
		}
	}
	return true
}

// From returns what the node with these internal addresses sends its probes through.
func (f *Fabric) From(src ...netip.Addr) probe.Transport { return &port{fabric: f, src: src} }

// port is one node's end of a Fabric.
type port struct {
	fabric  *Fabric
	src     []netip.Addr
	mu      sync.Mutex
	answers []probe.Answer // guarded by mu
}

// Send implements probe.Transport.
func (p *port) Send(requests []probe.Request) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range requests {
		from := slices.IndexFunc(p.src, func(a netip.Addr) bool { return a.BitLen() == r.Addr.BitLen() })
		if from >= 0 && p.fabric.reaches(p.src[from], r.Addr) {
			p.answers = append(p.answers, probe.Answer{From: r.Addr, Number: r.Number, At: time.Now()})
		}
	}
	return nil
}

// Receive implements probe.Transport.
func (p *port) Receive() ([]probe.Answer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.answers
	p.answers = nil
	return out, nil
}

// Arrival implements probe.Transport.
func (p *port) Arrival(ctx context.Context) { <-ctx.Done() }
