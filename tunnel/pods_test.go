package tunnel_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/tunnel/probe"
)

// pod is a namespace behind a node, at .10 of its CIDR.
func newPod(t *testing.T, n *node) (s *space, addr netip.Addr) {
	t.Helper()
	four := n.internal.As4()
	four[3] = 10
	addr = netip.AddrFrom4(four)
	s = newSpace(t)
	wire(t, n.space, s, "pod", "eth0", "", addr.String()+"/32")
	s.do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMTU(eth0, 1420); err != nil {
			return err
		}
		gateway := n.internal.AsSlice()
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)}}); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gateway})
	})
	n.do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/pod/proxy_arp", []byte("1"), 0); err != nil {
			return err
		}
		host, err := netlink.LinkByName("pod")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: host.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	})
	return s, addr
}

// redirect sends what the node's pod sends to other pods into a lane, as the datapath
// does: from the veth, past the host's stack.
func redirect(t *testing.T, n *node, device string) {
	t.Helper()
	n.do(func() error {
		lane, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		host, err := netlink.LinkByName("pod")
		if err != nil {
			return err
		}
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.SchedCLS, License: "GPL",
			Instructions: asm.Instructions{
				// Anything but IPv4, mostly ARP, goes to the stack.
				asm.LoadMem(asm.R2, asm.R1, 16, asm.Word), // __sk_buff.protocol
				asm.Mov.Imm(asm.R0, -1),                   // TC_ACT_UNSPEC
				asm.JNE.Imm(asm.R2, 0x0008, "out"),
				asm.Mov.Imm(asm.R1, int32(lane.Attrs().Index)),
				asm.Mov.Imm(asm.R2, 0),
				asm.FnRedirect.Call(),
				asm.Return().WithSymbol("out"),
			},
		})
		if err != nil {
			return err
		}
		t.Cleanup(func() { prog.Close() })
		l, err := link.AttachTCX(link.TCXOptions{Interface: host.Attrs().Index, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		if !errors.Is(err, ebpf.ErrNotSupported) { // before Linux 6.6
			return err
		}
		attrs := netlink.QdiscAttrs{LinkIndex: host.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "clsact"}); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return netlink.FilterReplace(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: host.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			Fd: prog.FD(), Name: "redirect", DirectAction: true,
		})
	})
}

// transfer sends size bytes over one TCP connection and compares.
func transfer(t *testing.T, from, to *space, addr netip.Addr, size int64) time.Duration {
	t.Helper()
	var l net.Listener
	to.do(func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(addr, 8080).String())
		return err
	})
	defer l.Close()
	type result struct {
		sum [32]byte
		n   int64
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- result{err: err}
			return
		}
		defer c.Close()
		h := sha256.New()
		n, err := io.Copy(h, c)
		got <- result{[32]byte(h.Sum(nil)), n, err}
	}()
	var c net.Conn
	from.do(func() (err error) {
		c, err = net.DialTimeout("tcp4", netip.AddrPortFrom(addr, 8080).String(), 30*time.Second)
		return err
	})
	start := time.Now()
	h := sha256.New()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7)
	}
	for sent := int64(0); sent < size; sent += int64(len(block)) {
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		h.Write(block)
		if _, err := c.Write(block); err != nil {
			t.Fatalf("after %d bytes: %v", sent, err)
		}
	}
	c.Close()
	r := <-got
	if r.err != nil || r.n != size || r.sum != [32]byte(h.Sum(nil)) {
		t.Fatalf("sent %d bytes, arrived %d, same content %v, %v", size, r.n, r.sum == [32]byte(h.Sum(nil)), r.err)
	}
	return time.Since(start)
}

// Pods send segments of up to 64 KiB whose checksums are not filled in.
func TestPodsSegmentsCrossTheTunnel(t *testing.T) {
	needRoot(t)
	a, b := pair(t)
	podA, _ := newPod(t, a)
	podB, addrB := newPod(t, b)
	const size = 8 << 20
	t.Run("forwarded by the stack", func(t *testing.T) {
		took := transfer(t, podA, podB, addrB, size)
		t.Logf("%.2f Gbit/s", 8*size/took.Seconds()/1e9)
	})
	for lane := range a.config.Devices {
		t.Run(fmt.Sprintf("redirected into lane %d", lane), func(t *testing.T) {
			redirect(t, a, a.config.Devices[lane])
			redirect(t, b, b.config.Devices[lane])
			took := transfer(t, podA, podB, addrB, size)
			t.Logf("%.2f Gbit/s", 8*size/took.Seconds()/1e9)
		})
	}
}

func TestProbesNoticeACutAndItsHealing(t *testing.T) {
	needRoot(t)
	a, b := pair(t)
	own := a.ready()
	changes := make(chan probe.Observation, 100)
	for lane := range own.Lanes {
		var transport *probe.ICMP
		a.do(func() (err error) {
			transport, err = probe.NewICMP(a.internal)
			return err
		})
		cfg := probe.Defaults()
		cfg.OnChange = func(o probe.Observation) { changes <- o }
		p, err := probe.New(cfg, transport)
		if err != nil {
			t.Fatal(err)
		}
		p.Set([]probe.Target{{Cluster: "east", Node: fmt.Sprintf("lane%d", lane), Addr: b.internal, Device: own.Lanes[lane].Ifindex}})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := errors.Join(<-done, transport.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	// On a busy machine a path may look down for a moment; the last state of every
	// lane counts.
	states := map[string]probe.State{}
	await := func(want probe.State) time.Duration {
		t.Helper()
		start, limit := time.Now(), time.After(30*time.Second)
		for {
			if len(states) == len(own.Lanes) && !slices.ContainsFunc(slices.Collect(maps.Values(states)), func(s probe.State) bool { return s != want }) {
				return time.Since(start)
			}
			select {
			case o := <-changes:
				states[o.Target.Name()] = o.State
			case <-limit:
				t.Fatalf("not %s within 30 s: %v", want, states)
			}
		}
	}
	// Package probe tests how long it takes, without other programs running.
	await(probe.Up)
	b.wire(false)
	t.Logf("down %v after the cut", await(probe.Down))
	b.wire(true)
	t.Logf("up %v after healing", await(probe.Up))
}
