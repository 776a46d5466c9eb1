package probe_test

import (
	"context"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/tunnel/probe"
)

// inNewNamespace runs f in a network namespace of its own, in which only loopback is up.
func inNewNamespace(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // ends with the goroutine
		failed <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			return f()
		}()
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

// Echoes of either family, small and of a given size, are told apart by their numbers.
func TestICMPOverBothFamilies(t *testing.T) {
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	for name, c := range map[string]struct{ sources, asked, want []netip.Addr }{
		"IPv4":          {[]netip.Addr{v4}, []netip.Addr{v4, v6}, []netip.Addr{v4}},
		"IPv6":          {[]netip.Addr{v6}, []netip.Addr{v4, v6}, []netip.Addr{v6}},
		"both":          {[]netip.Addr{v4, v6}, []netip.Addr{v4, v6}, []netip.Addr{v4, v6}},
		"one of two":    {[]netip.Addr{v4, v6}, []netip.Addr{v6}, []netip.Addr{v6}},
		"none of IPv6":  {[]netip.Addr{v6}, []netip.Addr{v4}, nil},
		"other of both": {[]netip.Addr{v6, v4}, []netip.Addr{v4}, []netip.Addr{v4}},
	} {
		t.Run(name, func(t *testing.T) {
			var icmp *probe.ICMP
			inNewNamespace(t, func() (err error) {
				icmp, err = probe.NewICMP(c.sources...)
				return err
			})
			defer icmp.Close()
			var requests []probe.Request
			var want, got []netip.Addr
			for i, a := range c.asked {
				for j, size := range []int{0, 1400} {
					requests = append(requests, probe.Request{Addr: a, Number: uint32(10*i + j), Size: size})
					if slices.Contains(c.want, a) {
						want = append(want, a)
					}
				}
			}
			if err := icmp.Send(requests); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for len(got) < len(want) && ctx.Err() == nil {
				icmp.Arrival(ctx)
				answers, err := icmp.Receive()
				if err != nil {
					t.Fatal(err)
				}
				for _, a := range answers {
					if i := int(a.Number / 10); i >= len(c.asked) || c.asked[i] != a.From || a.At.IsZero() {
						t.Errorf("answer %+v", a)
					}
					got = append(got, a.From)
				}
			}
			slices.SortFunc(got, netip.Addr.Compare)
			if !slices.Equal(got, want) {
				t.Errorf("answers from %v, want %v", got, want)
			}
		})
	}
}

func TestICMPNeedsAnAddressOfThisMachine(t *testing.T) {
	inNewNamespace(t, func() error {
		for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
			if icmp, err := probe.NewICMP(netip.MustParseAddr(a)); err == nil {
				icmp.Close()
				t.Errorf("probes from %s, which this machine does not have", a)
			}
		}
		return nil
	})
}
