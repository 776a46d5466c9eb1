package bpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Datapath is one generation of programs over maps that outlive it. Several
// goroutines may use it, but only one at a time may attach, detach or remove.
type Datapath struct {
	dir     string
	log     *slog.Logger
	maps    map[string]*ebpf.Map
	progs   map[string]*ebpf.Program // on packets
	sockets map[string]*ebpf.Program // by socketHooks
	rows    *Maps
	hooks   hooks

	waiting *ebpf.Map // device of the waiting room

	masqueraded atomic.Uint32 // rows that the last sweep left

	// mending is held for writing while one device is mended, for reading while one
	// is detached: what was just detached is not attached again.
	mending  sync.RWMutex
	mu       sync.Mutex // guards attached
	attached map[Attachment]bool

	sweeping         sync.Mutex // guards what follows
	sweep            *ebpf.Program
	doomed           *ebpf.Map // the flows that program sweep looks at
	settle           *ebpf.Program
	sweepMasquerades *ebpf.Program
	unmasked         uint64           // when it last ran, see Now
	doubts           map[uint32]int64 // drift of accounts that the last sweep found, in rows

	stranding sync.Mutex         // guards what follows
	stranded  []*link.Iter       // strandedPrograms; none without BTF of the kernel
	doubted   map[uint64]doubted // by the socket's cookie
}

// options are changed only by tests.
type options struct {
	ethernetTunnel bool // lanes carry Ethernet headers, as in test runs
	clsact         bool // behave as on a kernel without tcx
	edit           func(*ebpf.CollectionSpec)
}

// Load brings a new generation into the kernel: it opens the pinned maps with their
// contents, or creates them, loads the programs, and replaces those of the previous
// generation on every device that has them. Every packet meets one generation or
// the other.
//
// It needs Linux 6.1, root, and a BPF file system; errors say what is missing.
func Load(c Config) (*Datapath, error) { return load(c, options{}) }

func load(c Config, o options) (_ *Datapath, err error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("load datapath: %w", err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("load datapath: %w", explain(err))
		}
	}()
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	if err := preparePinDir(c.PinDir); err != nil {
		return nil, err
	}
	spec, err := loadDatapath()
	if err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	if err := configure(spec, c, o); err != nil {
		return nil, err
	}
	if o.edit != nil {
		o.edit(spec)
	}
	maps, moved, err := openMaps(spec, c.PinDir, c.Log)
	if err != nil {
		return nil, err
	}
	d := &Datapath{dir: c.PinDir, log: c.Log, maps: maps, rows: tables(maps), sockets: map[string]*ebpf.Program{}, attached: map[Attachment]bool{}}
	defer func() {
		for _, r := range moved {
			r.old.Close()
		}
		if err != nil {
			d.Close()
		}
	}()
	if _, err := btf.LoadKernelSpec(); err != nil { // these programs alone read the kernel's own structs
		c.Log.Warn("sockets of the node keep backends that are lost: this kernel has no BTF", "error", err)
		for _, name := range strandedPrograms {
			delete(spec.Programs, name)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	d.sweep, d.settle, d.doomed = coll.DetachProgram("sweep"), coll.DetachProgram("settle"), coll.DetachMap("doomed")
	d.sweepMasquerades = coll.DetachProgram("sweep_masquerades")
	d.waiting = coll.DetachMap("waiting_room")
	for _, hook := range socketHooks {
		d.sockets[hook.name] = coll.DetachProgram(hook.name)
	}
	if d.stranded, err = attachIters(coll, strandedPrograms); err != nil {
		return nil, err
	}
	d.progs = coll.Programs
	coll.Programs = nil // ours to close
	coll.Close()

	// Switch to the new maps: first the pins, then the programs, then the rows that
	// the old programs wrote meanwhile.
	for _, d := range described {
		r, ok := moved[d.name]
		if !ok || r.former {
			continue
		}
		if err := repin(c.PinDir, d, r); err != nil {
			return nil, err
		}
		c.Log.Info("replaced a map, keeping its rows", "map", d.name, "from", r.old.MaxEntries(), "to", r.new.MaxEntries())
	}
	pods, err := d.devices()
	if err != nil {
		return nil, err
	}
	if r := moved["flows"]; !r.former && r.new != nil && r.smaller() {
		if err := d.recount(); err != nil {
			return nil, err
		}
	}
	if err := d.divide(len(pods)); err != nil {
		return nil, err
	}
	// Before the programs change, or they would not know open connections.
	if err := d.takeOver(moved); err != nil {
		return nil, err
	}
	d.hooks = newHooks(d, o.clsact)
	// Before fragments meet the new programs.
	if err := d.openWaitingRoom(); err != nil { // Mend tries again, and status tells
		c.Log.Warn("fragments that overtake the first of their datagram are lost", "error", err)
	}
	n, err := d.hooks.adopt()
	if err != nil {
		return nil, fmt.Errorf("replace the programs of the previous generation: %w", err)
	}
	if n > 0 {
		c.Log.Info("replaced attached programs", "hooks", n)
	}
	if err := d.adoptSockets(); err != nil {
		return nil, err
	}
	return d, d.catchUp(moved)
}

// configure sets sizes and load-time constants.
func configure(spec *ebpf.CollectionSpec, c Config, o options) error {
	for _, d := range described {
		if d.size != nil {
			spec.Maps[d.name].MaxEntries = d.size(c)
		}
	}
	var tunnelL3 uint32
	if o.ethernetTunnel {
		tunnelL3 = 14
	}
	var swallow uint32
	if c.Unreachable == UnreachableDrop {
		swallow = 1
	}
	netns, err := netnsCookie()
	if err != nil {
		return fmt.Errorf("identify the network namespace: %w", err)
	}
	for name, value := range map[string]any{
		"host_netns":         netns,
		"tcp_established_ns": uint64(TCPEstablished),
		"tcp_opening_ns":     uint64(TCPOpening),
		"tcp_closing_ns":     uint64(TCPClosing),
		"not_tcp_ns":         uint64(NotTCP),
		"tunnel_l3":          tunnelL3,
		"events_bytes":       c.EventBytes,
		"events_each":        max(c.EventBytes/2/eventRecord/sureTellers, 1),

		"swallow_unreachable": swallow,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set constant %s: %w", name, err)
		}
	}
	return nil
}

func preparePinDir(dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: run it as root")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create pin directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at pin directory %s: %w", dir, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("pin directory %s is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf", dir)
	}
	return nil
}

// explain says what the kernel lacks if its error does not.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("this kernel has no BPF (CONFIG_BPF_SYSCALL): %w", err)
	case errors.Is(err, unix.EPERM) && os.Geteuid() != 0:
		return fmt.Errorf("needs root: %w", err)
	}
	var refused *ebpf.VerifierError
	if !errors.As(err, &refused) {
		return err
	}
	for _, need := range []struct {
		helper asm.BuiltinFunc
		since  string
	}{
		{asm.FnRedirectPeer, "5.10"}, {asm.FnKtimeGetCoarseNs, "5.11"}, {asm.FnLoop, "5.17"},
	} {
		if errors.Is(features.HaveProgramHelper(ebpf.SchedCLS, need.helper), ebpf.ErrNotSupported) {
			return fmt.Errorf("this kernel lacks %v (Linux %s); Weft needs 6.1: %w", need.helper, need.since, err)
		}
	}
	return err
}

// Maps returns the tables. They can be used until the Datapath is closed.
func (d *Datapath) Maps() *Maps { return d.rows }

// Close releases this process's references and removes nothing: programs, links and
// maps stay in the kernel. Closing twice is harmless.
func (d *Datapath) Close() error {
	closeMaps(d.maps)
	for _, p := range d.progs {
		p.Close()
	}
	for _, p := range d.sockets {
		p.Close()
	}
	d.sweep.Close()
	d.settle.Close()
	d.sweepMasquerades.Close()
	d.doomed.Close()
	d.waiting.Close()
	d.stranding.Lock()
	defer d.stranding.Unlock()
	for _, it := range d.stranded {
		it.Close()
	}
	d.stranded = nil
	return nil
}

// Remove removes programs, links and maps from the kernel and closes the Datapath.
// From then on nothing guards the devices, and pods have no network.
func (d *Datapath) Remove() error {
	if err := d.hooks.remove(); err != nil {
		return fmt.Errorf("remove datapath: %w", err)
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove datapath: %w", err)
	}
	errs := []error{removeWaitingRoom()}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "weft_") {
			errs = append(errs, os.Remove(filepath.Join(d.dir, e.Name())))
		}
	}
	if err := os.Remove(d.dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, d.Close())...)
}

// eventsEvery is how long events wait for their reader, unless there are many: wakeup in
// lib/events.h.
const eventsEvery = 20 * time.Millisecond

// Events passes every event to f until ctx ends, then returns nil; each up to 20 ms late. Only
// one caller at a time; until then, events wait in the buffer.
func (d *Datapath) Events(ctx context.Context, f func(Event)) error {
	r, err := ringbuf.NewReader(d.maps["events"])
	if err != nil {
		return fmt.Errorf("open event buffer: %w", err)
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	r.SetDeadline(time.Now().Add(eventsEvery))
	var record ringbuf.Record
	for {
		switch err := r.ReadInto(&record); {
		case errors.Is(err, os.ErrDeadlineExceeded): // after all that there was
			r.SetDeadline(time.Now().Add(eventsEvery))
			continue
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("read event: %w", err)
		}
		if e, ok := decode(record.RawSample); ok {
			f(e)
		}
	}
}

// decode reads a struct event, as the programs wrote it.
func decode(raw []byte) (e Event, ok bool) {
	if len(raw) < int(unsafe.Sizeof(e)) {
		return e, false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)), raw)
	return e, true
}

// Sweep deletes the flows that have expired at now, usually Now(), corrects the
// owners' accounts, and divides the flow table again if the number of pods changed.
func (d *Datapath) Sweep(now uint64) (Swept, error) {
	d.sweeping.Lock()
	defer d.sweeping.Unlock()
	before, err := d.accounts()
	if err != nil {
		return Swept{}, err
	}
	after := before
	s, held, err := sweepMaps(d.rows, now, func(dead []FlowKey, now uint64) (int, error) {
		if after, err = d.accounts(); err != nil {
			return 0, err
		}
		return d.forgetLocked(dead, now)
	})
	if err != nil {
		return s, err
	}
	if err := d.settleLocked(before, after, held); err != nil {
		return s, err
	}
	if now-d.unmasked < uint64(masqueradeSweep) {
		return s, nil
	}
	d.unmasked = now
	s.Masquerades, err = d.forgetMasqueradesLocked(now)
	return s, err
}
