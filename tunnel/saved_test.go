package tunnel

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// idleTUN is a device of the kernel that nothing comes from, and that is never set up.
type idleTUN struct {
	tun.Device
	events chan tun.Event
	closed chan struct{}
}

func (l *idleTUN) Read([][]byte, []int, int) (int, error) { <-l.closed; return 0, os.ErrClosed }
func (l *idleTUN) MTU() (int, error)                      { return 1420, nil }
func (l *idleTUN) Events() <-chan tun.Event               { return l.events }
func (l *idleTUN) BatchSize() int                         { return 1 }
func (l *idleTUN) Close() error                           { close(l.closed); close(l.events); return nil }

// bareDevice is a device without a network.
func bareDevice(t testing.TB) *device.Device {
	t.Helper()
	link := &idleTUN{events: make(chan tun.Event), closed: make(chan struct{})}
	dev := device.NewDevice(link, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(dev.Close)
	return dev
}

// peerRequest is the request that sets up peer n. Not every number is a key.
func peerRequest(n, keepalive int) string {
	return fmt.Sprintf("public_key=09%062x\nendpoint=192.0.2.1:%d\npersistent_keepalive_interval=%d\nreplace_allowed_ips=true\nallowed_ip=10.%d.%d.0/24\n",
		n, n%60_000+1, keepalive, n>>8, n&255)
}

func report(t testing.TB, dev *device.Device) string {
	t.Helper()
	text, err := dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	return durable(text)
}

func newSaved(dir string) *savedConfig {
	return &savedConfig{path: filepath.Join(dir, "weft0.conf"), log: slog.New(slog.DiscardHandler)}
}

func size(t testing.TB, path string) int {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Size())
}

// restored is what a new device has after reading the file.
func restored(t testing.TB, path string) string {
	t.Helper()
	dev := bareDevice(t)
	again := newSaved(filepath.Dir(path))
	if ok, err := again.restore(dev); err != nil || !ok {
		t.Fatalf("restored: %v, %v", ok, err)
	}
	return report(t, dev)
}

func TestSavingAChangeCostsWhatItIs(t *testing.T) {
	dev, s := bareDevice(t), newSaved(t.TempDir())
	all := "private_key=" + strings.Repeat("11", 32) + "\nlisten_port=51871\n"
	for n := range 500 {
		all += peerRequest(n, 25)
	}
	if err := s.change(dev, all); err != nil {
		t.Fatal(err)
	}
	before := size(t, s.path)
	for n := range 10 {
		change := peerRequest(500+n, 25)
		if err := s.change(dev, change); err != nil {
			t.Fatal(err)
		}
		after := size(t, s.path)
		if after-before != len(change)+1 {
			t.Fatalf("a change of %d bytes wrote %d", len(change), after-before)
		}
		before = after
	}
	if err := s.change(dev, fmt.Sprintf("public_key=09%062x\nremove=true\n", 3)); err != nil {
		t.Fatal(err)
	}
	if got, want := restored(t, s.path), report(t, dev); got != want {
		t.Errorf("restored\n%s\nwant\n%s", got, want)
	}
}

func TestSavedChangesDoNotPileUp(t *testing.T) {
	dev, s := bareDevice(t), newSaved(t.TempDir())
	if err := s.change(dev, "private_key="+strings.Repeat("11", 32)+"\n"+peerRequest(1, 25)); err != nil {
		t.Fatal(err)
	}
	most := 0
	for n := range 100 {
		if err := s.change(dev, strings.Repeat(peerRequest(1, n%2), 20)); err != nil {
			t.Fatal(err)
		}
		most = max(most, size(t, s.path))
	}
	if most > 2*fewChanges || most < fewChanges/2 {
		t.Errorf("the file had up to %d bytes, want about %d", most, fewChanges)
	}
	if got, want := restored(t, s.path), report(t, dev); got != want {
		t.Errorf("restored\n%s\nwant\n%s", got, want)
	}
	if n := size(t, s.path); n > 1000 {
		t.Errorf("%d bytes are left after a start", n)
	}
}

// A machine may fail at any byte of a change that is being saved. Then the next start has
// the device either before or after the change.
func TestATornChangeIsNone(t *testing.T) {
	dev, s := bareDevice(t), newSaved(t.TempDir())
	if err := s.change(dev, "private_key="+strings.Repeat("11", 32)+"\n"+peerRequest(1, 25)); err != nil {
		t.Fatal(err)
	}
	from, before := size(t, s.path), report(t, dev)
	if err := s.change(dev, peerRequest(2, 25)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	after := report(t, dev)
	cuts := []int{len(text) - 2, len(text) - 1, len(text)}
	for n := from; n < len(text); n += 13 {
		cuts = append(cuts, n)
	}
	for _, n := range cuts {
		torn := filepath.Join(t.TempDir(), "weft0.conf")
		if err := os.WriteFile(torn, text[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		want := before
		if n == len(text) {
			want = after
		}
		if got := restored(t, torn); got != want {
			t.Fatalf("cut at %d of %d: restored\n%s\nwant\n%s", n, len(text), got, want)
		}
		// What is added later does not follow the torn end.
		dev, s := bareDevice(t), newSaved(filepath.Dir(torn))
		if _, err := s.restore(dev); err != nil {
			t.Fatal(err)
		}
		if err := s.change(dev, peerRequest(3, 25)); err != nil {
			t.Fatal(err)
		}
		if got, want := restored(t, torn), report(t, dev); got != want {
			t.Fatalf("cut at %d, then changed: restored\n%s\nwant\n%s", n, got, want)
		}
	}
}

func TestAFileOfAnOlderVersionIsRestored(t *testing.T) {
	dev, s := bareDevice(t), newSaved(t.TempDir())
	if err := dev.IpcSet("private_key=" + strings.Repeat("11", 32) + "\n" + peerRequest(1, 25) + peerRequest(2, 25)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path, []byte(report(t, dev)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := restored(t, s.path), report(t, dev); got != want {
		t.Errorf("restored\n%s\nwant\n%s", got, want)
	}
}

// What the disk refuses, and what a refused change has done to the device, is written as a
// whole by the next that succeeds.
func TestWhatWasNotSavedIsSavedByTheNext(t *testing.T) {
	dev, s := bareDevice(t), newSaved(t.TempDir())
	if err := s.change(dev, "private_key="+strings.Repeat("11", 32)+"\n"+peerRequest(1, 25)); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Dir(s.path)
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.change(dev, peerRequest(2, 25)); err != nil || !s.failed {
		t.Fatalf("changed: %v, behind: %v", err, s.failed)
	}
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]string{"accepted": peerRequest(3, 25), "refused": peerRequest(4, 25) + "nonsense=1\n"} {
		if err := s.change(dev, change); (err != nil) != (name == "refused") {
			t.Fatalf("%s: %v", name, err)
		}
		if got, want := restored(t, s.path), report(t, dev); got != want {
			t.Errorf("%s: restored\n%s\nwant\n%s", name, got, want)
		}
	}
}

func FuzzSavedConfigurationIsRestoredOrPutAside(f *testing.F) {
	whole := "private_key=" + strings.Repeat("11", 32) + "\n" + peerRequest(1, 25)
	for _, text := range []string{"", "\n", "\n\n", whole, whole + "\n", whole + "\n" + peerRequest(2, 25) + "\n", whole + "\nnonsense\n\n", whole + "\n" + peerRequest(2, 25)[:90]} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		dev, s := bareDevice(t), newSaved(t.TempDir())
		if err := os.WriteFile(s.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		ok, err := s.restore(dev)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(s.path); !ok && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("a damaged file is still there: %v", err)
		}
		if err := s.change(dev, peerRequest(7, 25)); err != nil {
			t.Fatal(err)
		}
		if got, want := restored(t, s.path), report(t, dev); got != want {
			t.Errorf("restored\n%s\nwant\n%s", got, want)
		}
	})
}
