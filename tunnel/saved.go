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

// savedConfig is a device's configuration on disk: keys, port and peers, in WireGuard's
// own configuration protocol, without counters.
type savedConfig struct {
	path string
	log  *slog.Logger

	// mu also serializes changes of the device.
	mu      sync.Mutex
	written string // guarded by mu: the content of the file; "" if unknown
	failed  bool   // guarded by mu: the file is behind the device
}

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
	if err := dev.IpcSet(string(text)); err != nil {
		if err := dev.IpcSet("replace_peers=true\n"); err != nil {
			return false, fmt.Errorf("forget a damaged configuration: %w", err)
		}
		d, asideErr := statefile.PutAside(s.path)
		s.log.Error("a damaged file was put aside; the agent will set everything in it again", "file", s.path, "as", d.Aside, "damage", err, "error", asideErr)
		return false, nil
	}
	s.written = string(text)
	return true, nil
}

// change changes the device and saves the result. It returns the device's error only:
// see saveLocked for the disk's.
func (s *savedConfig) change(dev *device.Device, change string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := dev.IpcSet(change)
	s.saveLocked(dev)
	return err
}

// saveLocked writes the device's configuration if it differs from the file. A failure
// is logged, and retry tries again: the tunnel works, and only its next start would
// miss the change.
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
	text = durable(text)
	if text == s.written {
		return nil
	}
	if err := statefile.Write(s.path, []byte(text)); err != nil {
		return err
	}
	s.written = text
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
