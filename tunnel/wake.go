package tunnel

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// A device that comes up shakes hands with every peer that has a keepalive before it does
// anything else: 7 s for 25,000 of them, in which no packet passes. So only the first
// wakeAtOnce of a restarted tunnel's peers keep theirs. The others shake hands when there is
// a packet for them, or when it is their turn.
const (
	wakeAtOnce = 500
	// wakeShare peers have their turn every wakePause: 2,000 a second, which takes about half
	// a processor.
	wakeShare = 100
	wakePause = 50 * time.Millisecond
)

// calm takes the keepalives of all but the first peers, before the device comes up. It
// returns the requests that give them back, wakeShare peers in each.
func (s *savedConfig) calm(dev *device.Device) (turns []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	report, err := dev.IpcGet()
	if err != nil {
		return nil, err
	}
	calm, turns := calmed(report)
	if calm == "" {
		return nil, nil
	}
	s.waking = true
	if err := dev.IpcSet(calm); err != nil {
		return nil, fmt.Errorf("take keepalives: %w", err)
	}
	return turns, nil
}

// calmed is the change that takes keepalives, and the changes that give them back.
func calmed(report string) (calm string, turns []string) {
	_, report, _ = strings.Cut("\n"+report, "\npublic_key=")
	var take, give strings.Builder
	awake, given := 0, 0
	for _, peer := range strings.Split(report, "\npublic_key=") {
		key, lines, _ := strings.Cut(peer, "\n")
		_, interval, _ := strings.Cut(lines, "persistent_keepalive_interval=")
		if interval, _, _ = strings.Cut(interval, "\n"); interval == "" || interval == "0" {
			continue
		}
		if awake++; awake <= wakeAtOnce {
			continue
		}
		set := "public_key=" + key + "\nupdate_only=true\npersistent_keepalive_interval="
		take.WriteString(set + "0\n")
		give.WriteString(set + interval + "\n")
		if given++; given%wakeShare == 0 {
			turns = append(turns, give.String())
			give.Reset()
		}
	}
	if give.Len() > 0 {
		turns = append(turns, give.String())
	}
	return take.String(), turns
}

// wake gives the peers their keepalives back, which has them shake hands.
func (s *savedConfig) wake(ctx context.Context, dev *device.Device, turns []string) error {
	tick := time.NewTicker(wakePause)
	defer tick.Stop()
	for _, turn := range turns {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s.mu.Lock()
		err := dev.IpcSet(turn)
		s.mu.Unlock()
		if err != nil {
			return fmt.Errorf("give keepalives back: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waking = false; s.partial {
		s.saveLocked(dev)
	}
	return nil
}
