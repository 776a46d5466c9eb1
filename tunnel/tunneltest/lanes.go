// Package tunneltest is the in-memory twin of package tunnel: lanes without a
// kernel, and a wire that completes handshakes between them.
//
// It moves no packets; the lab does that.
package tunneltest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/tunnel"
)

// Wire connects Lanes of several nodes. Two nodes shake hands on a lane as soon as each
// has the other's current key there. The zero value is ready to use.
type Wire struct {
	mu    sync.Mutex
	lanes []*Lanes // guarded by mu
}

// Lanes implements tunnel.Lanes in memory.
type Lanes struct {
	wire *Wire

	// Everything below is guarded by wire.mu.
	own     tunnel.Own
	made    bool
	want    map[string]tunnel.Peer   // configured
	asked   map[string]tunnel.Peer   // wanted; nil until Set
	shaken  map[tunnel.Key]time.Time // by the peer's key
	lastRx  [tunnel.LaneCount]time.Time
	failure error
	reads   int
}

var _ tunnel.Lanes = (*Lanes)(nil)

// New adds a node to the wire.
func (w *Wire) New() *Lanes {
	l := &Lanes{wire: w, want: map[string]tunnel.Peer{}, shaken: map[tunnel.Key]time.Time{}}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lanes = append(w.lanes, l)
	return l
}

// Reboot takes the devices with their peers away, as the end of a kernel does. The keys are
// on the disk, unless that was lost too.
func (l *Lanes) Reboot(diskLost bool) {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	clear(l.want)
	clear(l.shaken)
	if l.made = l.made && !diskLost; !l.made {
		l.own = tunnel.Own{}
	}
}

// Fail makes every call return err; nil ends that.
func (l *Lanes) Fail(err error) {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	l.failure = err
}

// Receive simulates data arriving on a lane just now.
func (l *Lanes) Receive(lane int) {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	l.lastRx[lane] = time.Now()
}

// Reads is how many times Status was called.
func (l *Lanes) Reads() int {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	return l.reads
}

// Peers returns the configured peers, by name.
func (l *Lanes) Peers() map[string]tunnel.Peer {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	return maps.Clone(l.want)
}

// Ensure implements tunnel.Lanes.
func (l *Lanes) Ensure(context.Context) (tunnel.Own, error) {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	if l.failure != nil {
		return tunnel.Own{}, l.failure
	}
	if l.made {
		return l.own, nil
	}
	now := time.Now()
	l.own.Since = now
	for i := range l.own.Lanes {
		key, err := tunnel.NewPrivateKey()
		if err != nil {
			return tunnel.Own{}, err
		}
		l.own.Lanes[i] = tunnel.OwnLane{
			Device: tunnel.DefaultDevices[i], Ifindex: 100 + i, PublicKey: key.Public(),
			Port: tunnel.DefaultPorts[i], Kind: tunnel.Kernel,
		}
		l.lastRx[i] = now
	}
	l.made = true
	return l.own, nil
}

// Set implements tunnel.Lanes.
func (l *Lanes) Set(_ context.Context, want []tunnel.Peer, complete bool) (tunnel.Status, error) {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	if l.failure != nil {
		return tunnel.Status{}, l.failure
	}
	if !l.made {
		return tunnel.Status{}, fmt.Errorf("set peers: the tunnels do not exist yet, call Ensure")
	}
	l.asked = map[string]tunnel.Peer{}
	refused := l.setLocked(want, complete)
	st := l.statusLocked()
	st.Refused = refused
	return st, nil
}

func (l *Lanes) setLocked(want []tunnel.Peer, complete bool) []tunnel.Refusal {
	held := slices.Collect(maps.Values(l.want))
	admitted, refused := tunnel.Admit(want, held)
	for _, p := range want {
		l.asked[p.Name()] = p
	}
	if complete {
		for name := range l.want {
			if _, wanted := l.asked[name]; !wanted {
				delete(l.want, name)
			}
		}
	}
	for _, p := range admitted {
		l.want[p.Name()] = p
	}
	l.wire.shakeLocked()
	return refused
}

// Change implements tunnel.Lanes.
func (l *Lanes) Change(_ context.Context, changed []tunnel.Peer, gone []string, complete bool) (tunnel.Verdicts, error) {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	if l.failure != nil {
		return nil, l.failure
	}
	if l.asked == nil {
		return nil, fmt.Errorf("change peers: they have not been set yet")
	}
	for _, p := range changed {
		l.asked[p.Name()] = p
	}
	for _, name := range gone {
		delete(l.asked, name)
	}
	verdicts := tunnel.Verdicts{}
	for name := range l.asked {
		verdicts[name] = ""
	}
	for _, r := range l.setLocked(slices.Collect(maps.Values(l.asked)), complete) {
		verdicts[r.Cluster+"/"+r.Node] = r.Reason
	}
	return verdicts, nil
}

// Status implements tunnel.Lanes.
func (l *Lanes) Status(context.Context) (tunnel.Status, error) {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	if l.failure != nil {
		return tunnel.Status{}, l.failure
	}
	return l.statusLocked(), nil
}

func (l *Lanes) statusLocked() tunnel.Status {
	l.reads++
	st := tunnel.Status{Own: l.own}
	for i := range st.Quiet {
		st.Quiet[i] = time.Since(l.lastRx[i])
	}
	for _, name := range slices.Sorted(maps.Keys(l.want)) {
		p := l.want[name]
		ps := tunnel.PeerStatus{Cluster: p.Cluster, Node: p.Node}
		for i := range ps.Lanes {
			if p.Keys[i].IsZero() {
				continue
			}
			ps.Lanes[i] = tunnel.PeerLane{Key: p.Keys[i], Endpoint: p.Endpoint[i], Handshake: l.shaken[p.Keys[i]]}
		}
		st.Peers = append(st.Peers, ps)
	}
	return st
}

// Rotate implements tunnel.Lanes.
func (l *Lanes) Rotate(_ context.Context, to uint64) (tunnel.Own, error) {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	if l.failure != nil {
		return tunnel.Own{}, l.failure
	}
	if to <= l.own.Epoch || (to-l.own.Epoch)%2 != 1 {
		return tunnel.Own{}, fmt.Errorf("rotate from epoch %d to %d: the step must be odd and upwards", l.own.Epoch, to)
	}
	key, err := tunnel.NewPrivateKey()
	if err != nil {
		return tunnel.Own{}, err
	}
	lane := int(to % tunnel.LaneCount)
	l.own.Lanes[lane].PublicKey = key.Public()
	l.own.Epoch, l.own.Since = to, time.Now()
	for _, p := range l.want {
		delete(l.shaken, p.Keys[lane])
	}
	l.wire.shakeLocked()
	return l.own, nil
}

// shakeLocked completes every handshake that both sides are ready for.
func (w *Wire) shakeLocked() {
	holders := map[tunnel.Key]*Lanes{}
	for _, l := range w.lanes {
		for _, lane := range l.own.Lanes {
			if !lane.PublicKey.IsZero() {
				holders[lane.PublicKey] = l
			}
		}
	}
	for _, l := range w.lanes {
		for _, p := range l.want {
			for i, key := range p.Keys {
				other := holders[key]
				if key.IsZero() || other == nil || !l.shaken[key].IsZero() || !other.knowsLocked(l.own.Lanes[i].PublicKey, i) {
					continue
				}
				l.shaken[key] = time.Now()
				other.shaken[l.own.Lanes[i].PublicKey] = time.Now()
			}
		}
	}
}

func (l *Lanes) knowsLocked(key tunnel.Key, lane int) bool {
	for _, p := range l.want {
		if p.Keys[lane] == key {
			return true
		}
	}
	return false
}

// Host implements tunnel.Host in memory. The zero value is ready to use.
type Host struct {
	mu       sync.Mutex
	network  tunnel.Network        // guarded by mu
	routes   map[netip.Prefix]bool // guarded by mu
	failures error                 // guarded by mu
}

var _ tunnel.Host = (*Host)(nil)

// Set implements tunnel.Host.
func (h *Host) Set(_ context.Context, want tunnel.Network, complete bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failures != nil {
		return h.failures
	}
	if complete || h.routes == nil {
		h.routes = map[netip.Prefix]bool{}
	}
	for _, p := range want.Members {
		h.routes[p] = true
	}
	h.network = want
	return nil
}

// Fail makes every call return err; nil ends that.
func (h *Host) Fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures = err
}

// Network returns the last one set.
func (h *Host) Network() tunnel.Network {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.network
}

// Routes returns the members' CIDRs that lead into a lane.
func (h *Host) Routes() []netip.Prefix {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.SortedFunc(maps.Keys(h.routes), func(a, b netip.Prefix) int { return a.Compare(b) })
}
