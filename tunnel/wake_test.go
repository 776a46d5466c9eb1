package tunnel

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// A tunnel that is restarted in a large mesh serves packets before it has called everybody,
// and calls everybody in the end.
func TestARestartedTunnelCallsItsPeersInTurn(t *testing.T) {
	const all = wakeAtOnce + 2*wakeShare + 10
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	before, s := bareDevice(t), newSaved(t.TempDir())
	config := "private_key=" + strings.Repeat("11", 32) + "\n"
	for n := range all {
		config += strings.Replace(peerRequest(n, 25), fmt.Sprintf("192.0.2.1:%d", n%60_000+1), sink.LocalAddr().String(), 1)
	}
	if err := s.change(before, config); err != nil {
		t.Fatal(err)
	}
	want := report(t, before)

	dev, s := bareDevice(t), newSaved(filepath.Dir(s.path))
	if _, err := s.restore(dev); err != nil {
		t.Fatal(err)
	}
	turns, err := s.calm(dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.Up(); err != nil {
		t.Fatal(err)
	}
	awaitUncalled(t, dev, all-wakeAtOnce)
	// What changes meanwhile, and even a file that has to be written as a whole, loses nothing.
	if err := s.change(dev, fmt.Sprintf("public_key=09%062x\nallowed_ip=10.200.0.0/24\nnonsense=1\n", 0)); err == nil {
		t.Fatal("accepted")
	}
	if err := s.wake(t.Context(), dev, turns); err != nil {
		t.Fatal(err)
	}
	awaitUncalled(t, dev, 0)
	if got := restored(t, s.path); strings.Count(got, "keepalive_interval=25") < all || strings.Count(got, "public_key=") < strings.Count(want, "public_key=") {
		t.Errorf("saved\n%s", got)
	}
}

// awaitUncalled waits until nothing has been sent to exactly so many peers.
func awaitUncalled(t *testing.T, dev *device.Device, want int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		text, err := dev.IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		switch n := strings.Count(text, "\ntx_bytes=0\n"); {
		case n == want:
			return
		case n < want || time.Now().After(deadline):
			t.Fatalf("%d peers have not been called, want %d", n, want)
		}
	}
}
