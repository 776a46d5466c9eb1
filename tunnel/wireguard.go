package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-mesh/weft/internal/pace"
	"github.com/weft-mesh/weft/statefile"
)

// ErrNoWireGuard is wrapped if nothing on the node can encrypt.
var ErrNoWireGuard = errors.New("kernel has no WireGuard and `weft tunnel` is not running: start weft-tunnel.service")

// LanesConfig configures WireGuard.
type LanesConfig struct {
	// StateDir holds this node's private keys, 0600, and its last peers.
	StateDir string
	// Devices are the lanes' names. Zero: DefaultDevices.
	Devices [LaneCount]string
	// Ports they listen on. Zero: DefaultPorts.
	Ports [LaneCount]uint16
	// Tell is called when a file cannot be written, and with nil when it can again.
	// Traffic does not depend on the files: the devices have everything. May be nil.
	Tell func(path string, err error)
	Log  *slog.Logger
}

// WireGuard implements Lanes on this machine, with the kernel's WireGuard if there is
// one, otherwise with `weft tunnel`; both are configured through wgctrl.
type WireGuard struct {
	cfg     LanesConfig
	links   links
	control control

	mu    sync.Mutex
	keys  *keyring             // guarded by mu; nil until Ensure
	own   Own                  // guarded by mu
	kinds [LaneCount]Kind      // guarded by mu: what the devices were when they were ensured
	held  holders              // guarded by mu: the peers that were configured
	book  *book                // guarded by mu: the wanted peers; nil until Set
	quiet [LaneCount]watch     // guarded by mu
	asked [LaneCount]strangers // guarded by mu
	// unsaved are the files that are out of date, guarded by mu; the peers' is written
	// again from savePeers on.
	unsaved   map[string]bool
	savePeers time.Time
	saving    pace.Pace
}

var _ Lanes = (*WireGuard)(nil)

// control is what we need of wgctrl.
type control interface {
	// Device reads a device of a kind; fs.ErrNotExist if nothing serves it. Head leaves the
	// peers out where that costs less: not with the kernel's.
	Device(name string, kind Kind) (*wgtypes.Device, error)
	Head(name string, kind Kind) (*wgtypes.Device, error)
	// ConfigureDevice applies a change; what it does not name stays.
	ConfigureDevice(name string, change wgtypes.Config) error
}

// links creates and reads network devices.
type links interface {
	// ensure creates the device if necessary and sets it up; ErrNoWireGuard if the
	// kernel cannot.
	ensure(name string) (index int, kind Kind, err error)
	// received is the number of packets that came out of the tunnel. Userspace only:
	// the kernel's WireGuard counts keepalives too.
	received(name string) (uint64, error)
}

// NewLanes returns the Lanes of this machine. Nothing is touched before Ensure.
func NewLanes(cfg LanesConfig) *WireGuard {
	if cfg.Devices == ([LaneCount]string{}) {
		cfg.Devices = DefaultDevices
	}
	if cfg.Ports == ([LaneCount]uint16{}) {
		cfg.Ports = DefaultPorts
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Tell == nil {
		cfg.Tell = func(string, error) {}
	}
	w := &WireGuard{cfg: cfg, held: newHolders(), unsaved: map[string]bool{}, links: kernelLinks{}, control: newDialled(DefaultSocketDir)}
	for i := range w.asked {
		w.asked[i] = strangers{}
	}
	return w
}

// Ensure implements Lanes.
func (w *WireGuard) Ensure(context.Context) (Own, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.ensureLocked(w.control.Head); err != nil {
		return Own{}, fmt.Errorf("set up tunnels: %w", err)
	}
	return w.own, nil
}

// reader is one of control's two ways to read a device.
type reader func(name string, kind Kind) (*wgtypes.Device, error)

// ensureLocked brings up the devices with our keys and returns what it has read of them.
func (w *WireGuard) ensureLocked(read reader) (held [LaneCount]*wgtypes.Device, err error) {
	var own Own
	for i, name := range w.cfg.Devices {
		own.Lanes[i].Device, own.Lanes[i].Port = name, w.cfg.Ports[i]
		if own.Lanes[i].Ifindex, own.Lanes[i].Kind, err = w.links.ensure(name); err != nil {
			return held, err
		}
		w.kinds[i] = own.Lanes[i].Kind
		if held[i], err = w.read(read, i); err != nil {
			return held, err
		}
	}
	if err := w.loadLocked(held); err != nil {
		return held, err
	}
	for i, name := range w.cfg.Devices {
		key := w.keys.Lanes[i].PrivateKey
		var change wgtypes.Config
		// Setting even the same key again would end every session.
		if held[i].PrivateKey != key.raw {
			change.PrivateKey = &key.raw
		}
		if port := int(w.cfg.Ports[i]); held[i].ListenPort != port {
			change.ListenPort = &port
		}
		if change.PrivateKey != nil || change.ListenPort != nil {
			if err := w.control.ConfigureDevice(name, change); err != nil {
				return held, fmt.Errorf("configure %s: %w", name, err)
			}
		}
		if change.PrivateKey != nil {
			w.keys.Lanes[i].Since = time.Now()
			w.unsaved[keyringFile(w.cfg.StateDir)] = true
			// The device drops peers whose key equals its own new one.
			if held[i], err = w.read(read, i); err != nil {
				return held, err
			}
		}
		own.Lanes[i].PublicKey = key.Public()
	}
	own.Epoch, own.Since = w.keys.Epoch, w.keys.Since
	w.own = own
	w.saveLocked(keyringFile(w.cfg.StateDir), w.keys.store)
	w.savePeersLocked()
	return held, nil
}

// savePeersLocked writes the list of peers, but spends at most a hundredth of the time on
// that, however long it is. A process that ends before knows a little less well which of
// two peers that contradict each other came first.
func (w *WireGuard) savePeersLocked() {
	begun := time.Now()
	if begun.Before(w.savePeers) || !w.unsaved[rosterFile(w.cfg.StateDir)] {
		return
	}
	w.saveLocked(rosterFile(w.cfg.StateDir), w.held.peers.store)
	took := time.Since(begun)
	w.saving.Ran(took)
	if took > saveAtOnce {
		w.savePeers = begun.Add(w.saving.Rest(0, saveRest))
	}
}

// saveAtOnce is how long writing the list of peers may take for it to be written with
// every change.
const saveAtOnce = 10 * time.Millisecond

// saveRest is how much longer than writing a longer one the pause after it is.
const saveRest = 100

// saveLocked writes a file that is out of date. A full disk must not keep tunnels
// down: the devices have everything, and the next call tries again.
func (w *WireGuard) saveLocked(path string, store func(dir string) error) {
	if !w.unsaved[path] {
		return
	}
	err := store(w.cfg.StateDir)
	w.unsaved[path] = err != nil
	w.cfg.Tell(path, err)
}

// putAside puts a damaged file aside, so that it can be written again.
func (w *WireGuard) putAside(path string, why error) {
	d, err := statefile.PutAside(path)
	if err != nil {
		w.cfg.Tell(path, err)
		w.cfg.Log.Error("a damaged file cannot be put aside", "file", path, "damage", why, "error", err)
		return
	}
	w.cfg.Log.Error("a damaged file was put aside", "file", path, "as", d.Aside, "damage", why)
}

// loadLocked reads keys and peers from disk, or creates keys. If there are no readable
// keys on disk, a device that has a key keeps it, so that traffic continues.
func (w *WireGuard) loadLocked(held [LaneCount]*wgtypes.Device) error {
	if w.keys != nil {
		return nil
	}
	keys, ok, err := loadKeyring(w.cfg.StateDir)
	if err != nil {
		w.putAside(keyringFile(w.cfg.StateDir), err)
	}
	if !ok {
		keys = keyring{Since: time.Now()}
		for i := range keys.Lanes {
			keys.Lanes[i] = laneKeys{diskKey{PrivateKey{held[i].PrivateKey}}, keys.Since}
			if !keys.Lanes[i].PrivateKey.IsZero() {
				keys.Lanes[i].Since = time.Time{}
				continue
			}
			fresh, err := NewPrivateKey()
			if err != nil {
				return err
			}
			keys.Lanes[i].PrivateKey = diskKey{fresh}
		}
		w.unsaved[keyringFile(w.cfg.StateDir)] = true
	}
	peers, err := loadRoster(w.cfg.StateDir)
	if err != nil {
		w.putAside(rosterFile(w.cfg.StateDir), err)
	}
	w.keys = &keys
	for _, p := range peers {
		known := normal(*p)
		w.held.put(known.Name(), &known)
	}
	now := time.Now()
	for i := range w.quiet {
		w.quiet[i] = watch{last: now}
	}
	return nil
}

// read reads the device of a lane.
func (w *WireGuard) read(read reader, lane int) (*wgtypes.Device, error) {
	name := w.cfg.Devices[lane]
	dev, err := read(name, w.kinds[lane])
	switch {
	case err == nil:
		return dev, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("device %s exists, but nothing serves it: %w", name, ErrNoWireGuard)
	}
	return nil, fmt.Errorf("read device %s: %w", name, err)
}

// Set implements Lanes.
func (w *WireGuard) Set(_ context.Context, want []Peer, complete bool) (Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	held, err := w.ensureLocked(w.control.Device)
	if err != nil {
		return Status{}, fmt.Errorf("set peers: %w", err)
	}
	if w.book == nil {
		w.book = newBook()
	}
	names, silent := make(map[string]bool, len(want)), map[string]bool{}
	for _, p := range want {
		name := w.book.put(p)
		if names[name] = true; p.Silent {
			silent[name] = true
		}
	}
	for name := range w.book.wanted {
		if !names[name] {
			w.book.drop(name)
		}
	}
	for name := range w.held.peers {
		names[name] = true
	}
	var devices [LaneCount][]wgtypes.Peer
	for i := range devices {
		devices[i] = held[i].Peers
	}
	refused, changed, err := w.settleLocked(names, devices, silent, complete, true)
	if err != nil {
		return Status{}, fmt.Errorf("set peers: %w", err)
	}
	w.savePeersLocked()
	for i := range w.cfg.Devices {
		if changed[i] {
			if held[i], err = w.read(w.control.Device, i); err != nil {
				return Status{}, fmt.Errorf("set peers: %w", err)
			}
		}
	}
	st, err := w.statusLocked(held)
	st.Refused = refused
	return st, err
}

// Change implements Lanes.
func (w *WireGuard) Change(_ context.Context, changed []Peer, gone []string, complete bool) (Verdicts, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.book == nil {
		return nil, errors.New("change peers: they have not been set yet")
	}
	concerned := map[string]bool{}
	meets := func(name, _ string) { concerned[name] = true }
	rivals := func(name string) { w.book.rivals(name, w.book.wanted.peer(name), meets) }
	for _, p := range changed {
		name := p.Name()
		concerned[name] = true
		rivals(name)
		w.book.put(p)
	}
	for _, name := range gone {
		concerned[name] = true
		rivals(name)
		w.book.drop(name)
	}
	for _, p := range changed {
		rivals(p.Name())
	}
	// Who gets something else gives up what it had until now.
	for _, name := range slices.Collect(maps.Keys(concerned)) {
		w.book.rivals(name, w.held.peers.peer(name), meets)
		w.held.inTheWay(name, w.book.wanted.peer(name), meets)
	}
	// What the devices should have of these, because nothing but we configures them.
	var devices [LaneCount][]wgtypes.Peer
	for name := range concerned {
		p := w.held.peers.peer(name)
		for i, key := range p.Keys {
			if !key.IsZero() {
				devices[i] = append(devices[i], asConfigured(p, i))
			}
		}
	}
	refused, _, err := w.settleLocked(concerned, devices, nil, complete, false)
	if err != nil {
		return nil, fmt.Errorf("change peers: %w", err)
	}
	verdicts := Verdicts{}
	for name := range concerned {
		if _, wanted := w.book.wanted[name]; wanted {
			verdicts[name] = ""
		}
	}
	for _, r := range refused {
		verdicts[r.Cluster+"/"+r.Node] = r.Reason
	}
	return verdicts, nil
}

// asConfigured is a peer as a device that nobody else changes has it.
func asConfigured(p Peer, lane int) wgtypes.Peer {
	is := wgtypes.Peer{PublicKey: wgtypes.Key(p.Keys[lane]), PersistentKeepaliveInterval: Keepalive}
	if p.Endpoint[lane].IsValid() {
		is.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint[lane])
	}
	for _, prefix := range p.Allowed {
		is.AllowedIPs = append(is.AllowedIPs, ipNet(prefix))
	}
	return is
}

// settleLocked configures those of the named peers that may have what they want, and
// removes those that are not wanted. All of devices' peers are among the named ones,
// unless everything is named. It says which devices it changed.
func (w *WireGuard) settleLocked(names map[string]bool, devices [LaneCount][]wgtypes.Peer, silent map[string]bool, complete, everything bool) (refused []Refusal, changed [LaneCount]bool, err error) {
	admitted := make([]*Peer, 0, len(names))
	settled := make([]string, 0, len(names)) // their names
	keep := map[Key]bool{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		p := w.book.wanted[name]
		if p == nil {
			continue
		}
		why := w.book.against(name, *p, w.held)
		if why == "" && w.oursLocked(*p) {
			why = "announces this node's own public key"
		}
		if why == "" {
			admitted, settled = append(admitted, p), append(settled, name)
			continue
		}
		refused = append(refused, Refusal{p.Cluster, p.Node, why})
		for _, key := range w.held.peers.peer(name).Keys {
			keep[key] = true
		}
	}
	for i, name := range w.cfg.Devices {
		var renewed []wgtypes.PeerConfig
		var awaited map[Key]bool
		if everything {
			renewed, awaited = w.renewLocked(i, devices[i], admitted, silent)
		}
		own := w.own.Lanes[i].PublicKey
		calls := func(key Key, there bool) bool { return own.calls(key) || there && !awaited[key] }
		change := slices.Concat(renewed, plan(i, devices[i], admitted, w.held.peers, keep, calls, complete))
		if len(change) == 0 {
			continue
		}
		changed[i] = true
		if err := w.control.ConfigureDevice(name, wgtypes.Config{Peers: change}); err != nil {
			return refused, changed, fmt.Errorf("configure %s: %w", name, err)
		}
		w.cfg.Log.Debug("changed peers", "device", name, "changes", len(change))
	}
	for i, name := range settled {
		if !w.held.peers.has(name, *admitted[i]) {
			w.held.put(name, admitted[i])
			w.unsaved[rosterFile(w.cfg.StateDir)] = true
		}
	}
	for name := range names {
		if _, wanted := w.book.wanted[name]; complete && !wanted && w.held.knows(name) {
			w.held.drop(name)
			w.unsaved[rosterFile(w.cfg.StateDir)] = true
		}
	}
	return refused, changed, nil
}

// oursLocked reports whether a peer announces one of our own keys.
func (w *WireGuard) oursLocked(p Peer) bool {
	return slices.ContainsFunc(w.own.Lanes[:], func(lane OwnLane) bool { return slices.Contains(p.Keys[:], lane.PublicKey) })
}

// Rotate implements Lanes. The new key is written to disk before the device gets it,
// so that a process that dies in between sets it when it starts again.
func (w *WireGuard) Rotate(_ context.Context, to uint64) (Own, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.ensureLocked(w.control.Head); err != nil {
		return Own{}, fmt.Errorf("rotate to epoch %d: %w", to, err)
	}
	if to <= w.keys.Epoch || (to-w.keys.Epoch)%2 != 1 {
		return Own{}, fmt.Errorf("rotate from epoch %d to %d: the step must be odd and upwards, or it changes the key of the tunnel in use", w.keys.Epoch, to)
	}
	fresh, err := NewPrivateKey()
	if err != nil {
		return Own{}, fmt.Errorf("rotate to epoch %d: %w", to, err)
	}
	keys := *w.keys
	keys.Epoch, keys.Since = to, time.Now()
	// With its time: who dies before noting when the device got it takes no handshake of
	// the key before for one with it.
	keys.Lanes[to%LaneCount] = laneKeys{diskKey{fresh}, keys.Since}
	if err := keys.store(w.cfg.StateDir); err != nil {
		return Own{}, fmt.Errorf("rotate to epoch %d: %w", to, err)
	}
	w.keys = &keys
	if _, err := w.ensureLocked(w.control.Head); err != nil {
		return Own{}, fmt.Errorf("rotate to epoch %d: %w", to, err)
	}
	w.cfg.Log.Info("rotated key", "epoch", to, "tunnel", to%LaneCount)
	return w.own, nil
}

// Status implements Lanes. It changes nothing.
func (w *WireGuard) Status(context.Context) (Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.keys == nil {
		return Status{}, errors.New("read tunnel status: the tunnels have not been set up yet")
	}
	var held [LaneCount]*wgtypes.Device
	for i := range w.cfg.Devices {
		var err error
		if held[i], err = w.read(w.control.Device, i); err != nil {
			return Status{}, fmt.Errorf("read tunnel status: %w", err)
		}
	}
	return w.statusLocked(held)
}

// statusLocked is what devices that have just been read say.
func (w *WireGuard) statusLocked(held [LaneCount]*wgtypes.Device) (Status, error) {
	st := Status{Own: w.own, Peers: make([]PeerStatus, 0, len(w.held.peers))}
	var byKey [LaneCount]map[Key]*wgtypes.Peer
	now := time.Now()
	for i, dev := range held {
		byKey[i] = peersByKey(dev.Peers)
		if err := w.watchLocked(i, dev.Peers, now); err != nil {
			return Status{}, fmt.Errorf("read tunnel status: %w", err)
		}
		st.Quiet[i] = now.Sub(w.quiet[i].last)
	}
	for _, name := range slices.Sorted(maps.Keys(w.held.peers)) {
		p := w.held.peers[name]
		row := PeerStatus{Cluster: p.Cluster, Node: p.Node}
		for i := range row.Lanes {
			if have, there := byKey[i][p.Keys[i]]; there && !p.Keys[i].IsZero() {
				row.Lanes[i] = peerLane(have, w.keys.Lanes[i].Since)
			}
		}
		st.Peers = append(st.Peers, row)
	}
	return st, nil
}

func peersByKey(peers []wgtypes.Peer) map[Key]*wgtypes.Peer {
	byKey := make(map[Key]*wgtypes.Peer, len(peers))
	for i := range peers {
		byKey[Key(peers[i].PublicKey)] = &peers[i]
	}
	return byKey
}

func peerLane(p *wgtypes.Peer, since time.Time) PeerLane {
	lane := PeerLane{Key: Key(p.PublicKey), RxBytes: p.ReceiveBytes, TxBytes: p.TransmitBytes}
	// A handshake from before our own key changed belongs to a dead session.
	if p.LastHandshakeTime.After(since) && p.LastHandshakeTime.UnixNano() > 0 {
		lane.Handshake = p.LastHandshakeTime
	}
	if p.Endpoint != nil {
		lane.Endpoint = p.Endpoint.AddrPort()
	}
	return lane
}

func (w *WireGuard) watchLocked(lane int, peers []wgtypes.Peer, now time.Time) error {
	if w.own.Lanes[lane].Kind == Kernel {
		w.quiet[lane].bytes(peers, now)
		return nil
	}
	packets, err := w.links.received(w.cfg.Devices[lane])
	if err != nil {
		return err
	}
	w.quiet[lane].packets(packets, now)
	return nil
}
