package tunnel

import (
	"context"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// greetings are the pauses before a restarted tunnel repeats handshakes that got no
// answer. WireGuard itself repeats one after 5 s, but after a power cut a node sends
// its first ones into a network that is still coming back too.
var greetings = []time.Duration{250 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

// greet repeats unanswered handshakes of restored peers a few times, then leaves them
// to WireGuard.
func (s *savedConfig) greet(ctx context.Context, dev *device.Device) error {
	for _, pause := range greetings {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		if err := s.greetOnce(dev); err != nil {
			return err
		}
	}
	return nil
}

func (s *savedConfig) greetOnce(dev *device.Device) error {
	// Nobody may change peers between reading and writing them back.
	s.mu.Lock()
	defer s.mu.Unlock()
	report, err := dev.IpcGet()
	if err != nil {
		return err
	}
	anew := unanswered(report)
	if anew == "" {
		return nil
	}
	return dev.IpcSet(anew)
}

// unanswered is the change that replaces peers without a handshake by equal new ones,
// which may send a handshake at once. Such peers have no session to lose.
func unanswered(report string) string {
	_, report, _ = strings.Cut("\n"+report, "\npublic_key=")
	var change strings.Builder
	for _, peer := range strings.Split(report, "\npublic_key=") {
		key, lines, _ := strings.Cut(peer, "\n")
		if !strings.Contains(lines, "last_handshake_time_sec=0\n") ||
			!strings.Contains(lines, "endpoint=") || strings.Contains(lines, "persistent_keepalive_interval=0\n") {
			continue
		}
		change.WriteString("public_key=" + key + "\nremove=true\n")
		change.WriteString(durable("public_key=" + key + "\n" + strings.TrimSuffix(lines, "\n") + "\n"))
	}
	return change.String()
}
