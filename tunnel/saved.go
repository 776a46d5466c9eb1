package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/weft-mesh/weft/statefile"
)

// saveRetry is the pause between attempts to write the configuration when that fails,
// mostly because the disk is full.
const saveRetry = 2 * time.Second

// savedConfig is a device's configuration on disk, keys included, in WireGuard's own
// configuration protocol: requests that end with an empty line. The first one sets up the
// whole device; the others are the changes since, so that saving a change costs what the
// change is, however many peers there are. Once they outgrow the whole, it is written again.
type savedConfig struct {
	path string
	log  *slog.Logger

	// mu also serializes changes of the device.
	mu sync.Mutex
	// whole and changes are the bytes of the first request in the file and of the others,
	// guarded by mu. whole is 0 while there is no file to add to.
	whole, changes int
	failed         bool // guarded by mu: the file is behind the device
	// waking is set while some peers wait for their keepalives, and partial if the whole was
	// written without them; guarded by mu.
	waking, partial bool
}

// fewChanges is how many bytes of changes a file may always have: writing a small device
// again and again would cost more than reading them.
const fewChanges = 64 << 10

// restore gives the device its saved configuration and reports whether there was one.
// A damaged file is put aside, because the agent knows everything in it and the tunnel
// has to start.
func (s *savedConfig) restore(dev *device.Device) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("restore configuration: %w", err)
	}
	all := requests(string(text))
	for _, request := range all {
		if err := dev.IpcSet(request); err != nil {
			if err := dev.IpcSet("replace_peers=true\n"); err != nil {
				return false, fmt.Errorf("forget a damaged configuration: %w", err)
			}
			d, asideErr := statefile.PutAside(s.path)
			s.log.Error("a damaged file was put aside; the agent will set everything in it again", "file", s.path, "as", d.Aside, "damage", err, "error", asideErr)
			return false, nil
		}
	}
	if len(all) == 1 && strings.HasSuffix(string(text), "\n\n") {
		s.whole = len(text)
	} else {
		s.saveLocked(dev) // so that nothing is added after a torn end
	}
	return true, nil
}

// requests takes a saved configuration apart. An end without an empty line is a change
// that was being saved when the machine failed, and that nobody was told was made; a file
// without any empty line is the whole as older versions wrote it.
func requests(text string) []string {
	all := strings.Split(text, "\n\n")
	if last := len(all) - 1; last > 0 {
		all = all[:last]
	}
	for i, request := range all {
		all[i] = strings.Trim(request, "\n") + "\n"
	}
	return all
}

// change changes the device and saves that. It returns the device's error only: see
// saveLocked for the disk's.
func (s *savedConfig) change(dev *device.Device, change string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := dev.IpcSet(change)
	if err == nil && s.addLocked(change) {
		return nil
	}
	s.saveLocked(dev) // also what a refused change has done until then
	return err
}

// addLocked adds a change to the file; false if the whole has to be written instead.
func (s *savedConfig) addLocked(change string) bool {
	if change == "" {
		return true
	}
	change += "\n"
	full := s.changes+len(change) > max(s.whole, fewChanges)
	if s.whole == 0 || s.failed || full && !s.waking {
		return false
	}
	s.changes += len(change)
	return statefile.Append(s.path, []byte(change)) == nil
}

// saveLocked writes the device's whole configuration. A failure is logged, and retry tries
// again: the tunnel works, and only its next start would miss the change.
func (s *savedConfig) saveLocked(dev *device.Device) {
	err := s.writeLocked(dev)
	if err != nil && !s.failed {
		s.log.Error("tunnel configuration cannot be saved, trying again; a restarted tunnel would miss the last change", "error", err)
	}
	if err == nil && s.failed {
		s.log.Info("tunnel configuration is saved again")
	}
	s.failed = err != nil
}

func (s *savedConfig) writeLocked(dev *device.Device) error {
	text, err := dev.IpcGet()
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	text = durable(text) + "\n"
	if err := statefile.Write(s.path, []byte(text)); err != nil {
		return err
	}
	s.whole, s.changes, s.partial = len(text), 0, s.waking
	return nil
}

// retry repeats failed saves until ctx ends.
func (s *savedConfig) retry(ctx context.Context, dev *device.Device) error {
	tick := time.NewTicker(saveRetry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s.mu.Lock()
		if s.failed {
			s.saveLocked(dev)
		}
		s.mu.Unlock()
	}
}

// durable removes counters and times from a device's report and sorts the peers, so
// that equal configurations give equal texts.
func durable(report string) string {
	var head []string
	var peers []string
	for line := range strings.Lines(report) {
		key, _, _ := strings.Cut(line, "=")
		switch key {
		case "last_handshake_time_sec", "last_handshake_time_nsec", "tx_bytes", "rx_bytes":
			continue
		case "public_key":
			peers = append(peers, line)
			continue
		}
		if len(peers) == 0 {
			head = append(head, line)
			continue
		}
		peers[len(peers)-1] += line
	}
	slices.Sort(peers)
	return strings.Join(head, "") + strings.Join(peers, "")
}
