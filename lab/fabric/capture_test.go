package fabric

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab/space"
)

// deafCapture is a capture of a new namespace whose reader never runs, and a function
// that sends packets on that namespace's loopback device.
func deafCapture(t *testing.T) (c *Capture, send func(count int)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	ns, err := space.NewNet()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	var conn net.Conn
	err = space.Once(space.EnterNet(ns), func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		conn, err = net.Dial("udp4", "127.0.0.1:7")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c = &Capture{config: CaptureConfig{Marker: []byte("secret")}}
	if err := c.open("here", ns); err != nil {
		t.Fatal(err)
	}
	return c, func(count int) {
		for i := range count {
			// Nobody listens: every other write fails with the ICMP error of the last one.
			_, _ = fmt.Fprintf(conn, "a secret, number %d", i)
		}
	}
}

// Packets that the kernel still holds when a capture stops were on the wire too.
func TestStoppedCaptureHasSeenAll(t *testing.T) {
	c, send := deafCapture(t)
	send(100)
	if f, err := c.Findings(); err != nil || f.Packets > 0 {
		t.Fatalf("before: %+v, %v", f, err)
	}
	f, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if f.Marked < 50 || f.Missed > 0 {
		t.Errorf("findings = %+v, want all packets, none missed", f)
	}
	if again, err := c.Findings(); err != nil || again.Marked != f.Marked {
		t.Errorf("after the end: %+v, %v", again, err)
	}
}

// Packets that the kernel had no room for were not examined, and every call of
// Findings says so.
func TestFindingsCountWhatWasMissed(t *testing.T) {
	c, send := deafCapture(t)
	if err := onSocket(c.sockets[0], func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0) }); err != nil {
		t.Fatal(err)
	}
	send(100)
	first, err := c.Findings()
	if err != nil || first.Missed == 0 {
		t.Fatalf("findings = %+v, %v, want some missed", first, err)
	}
	if again, err := c.Findings(); err != nil || again.Missed != first.Missed {
		t.Errorf("findings = %+v, %v, want %d missed as before", again, err, first.Missed)
	}
	if last, err := c.Stop(); err != nil || last.Missed != first.Missed {
		t.Errorf("findings = %+v, %v, want %d missed as before", last, err, first.Missed)
	}
}

func TestCaptureEndsByItself(t *testing.T) {
	c, send := deafCapture(t)
	socket := c.sockets[0]
	c.group.Go(func() error { return c.look(socket) })
	send(100)
	if f, err := c.Stop(); err != nil || f.Marked < 50 {
		t.Errorf("findings = %+v, %v, want all packets", f, err)
	}
}
