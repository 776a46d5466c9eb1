package endpoint

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// TestFirstPacketOfAPodArrives sends as soon as Up returns: a device that the
// kernel's link watcher has not seen yet drops what it is given, and nobody counts
// it. The watcher is late for one of many devices, so it makes many.
func TestFirstPacketOfAPodArrives(t *testing.T) {
	inFreshNamespace(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	host := net.IPv4(192, 0, 2, 1)
	if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: host, Mask: net.CIDRMask(32, 32)}}); err != nil {
		t.Fatal(err)
	}
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: host})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	k := Kernel{MTU: 1420, NetnsDir: filepath.Join(t.TempDir(), "netns")}
	for i := range 50 {
		r := Record{Namespace: "shop", Pod: fmt.Sprintf("web-%d", i), IP: netip.AddrFrom4([4]byte{10, 1, 1, byte(2 + i)}), ID: 1}
		link, err := k.Create(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Remove(r) })
		client, err := dialIn(filepath.Join(k.NetnsDir, r.Name()), server.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if err := k.Up(link, r); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("first")); err != nil {
			t.Fatal(err)
		}
		server.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, _, err := server.ReadFrom(make([]byte, 10)); err != nil {
			t.Fatalf("pod %d: %v", i, err)
		}
	}
}

func dialIn(namespace string, to *net.UDPAddr) (c *net.UDPConn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		ns, nsErr := netns.GetFromPath(namespace)
		if nsErr != nil {
			err = nsErr
			return
		}
		defer ns.Close()
		if err = netns.Set(ns); err == nil {
			c, err = net.DialUDP("udp4", nil, to)
		}
	}()
	<-done
	return c, err
}
