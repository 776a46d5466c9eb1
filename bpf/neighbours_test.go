package bpf

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// counting is somebody else's program, which counts packets of IPv4 and leaves them to the next.
type counting struct {
	t     *testing.T
	prog  *ebpf.Program
	count *ebpf.Map
}

func newCounting(t *testing.T) *counting {
	t.Helper()
	count, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { count.Close() })
	const protocol = 16 // its offset in struct __sk_buff
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{
		asm.LoadMem(asm.R3, asm.R1, protocol, asm.Word),
		asm.JNE.Imm(asm.R3, 0x0008, "next"), // 0x0800 in network order
		asm.LoadMapValue(asm.R1, count.FD(), 0),
		asm.Mov.Imm(asm.R2, 1),
		asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("next"), // TC_ACT_UNSPEC, TCX_NEXT
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return &counting{t, prog, count}
}

func (c *counting) seen() (n uint64) {
	c.t.Helper()
	if err := c.count.Lookup(uint32(0), &n); err != nil {
		c.t.Fatal(err)
	}
	return n
}

func (c *counting) filter(device int, parent, handle uint32) {
	c.t.Helper()
	if err := netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: device, Parent: parent, Handle: handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:          c.prog.FD(), Name: "others", DirectAction: true,
	}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *counting) link(device int, way ebpf.AttachType, anchor link.Anchor) {
	c.t.Helper()
	l, err := link.AttachTCX(link.TCXOptions{Interface: device, Program: c.prog, Attach: way, Anchor: anchor})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { l.Close() })
}

// Programs of others at a hook of ours stay when ours are attached, upgraded and removed. Those
// before ours see every packet, those behind it what ours lets through. Open connections go on.
func TestProgramsOfOthersStay(t *testing.T) {
	for name, o := range map[string]options{"tcx": {}, "clsact": {clsact: true}} {
		t.Run(name, func(t *testing.T) {
			if !o.clsact && !haveTCX() {
				t.Logf("no tcx before Linux 6.6: links are not tested")
				return
			}
			n := newRealNode(t, o)
			device := n.host[podA]
			// The node's own connection to the pod passes to_pod, and its answers from_pod.
			n.listen(podA, 8080)
			c, err := net.DialTimeout("tcp4", at(podA, 8080), 30*time.Second)
			n.must(err)
			defer c.Close()
			n.talk(c)

			before, behind, direct := newCounting(t), newCounting(t), newCounting(t)
			if o.clsact {
				// Filters of one priority are asked newest first. These have the handles that
				// ours would have.
				n.must(n.d.Detach(device))
				behind.filter(device, netlink.HANDLE_MIN_INGRESS, 1)
				direct.filter(device, netlink.HANDLE_MIN_EGRESS, 1)
				n.must(n.d.AttachPod(device))
				before.filter(device, netlink.HANDLE_MIN_INGRESS, 7)
			} else {
				before.link(device, ebpf.AttachTCXIngress, link.Head())
				behind.link(device, ebpf.AttachTCXIngress, link.Tail())
				direct.link(device, ebpf.AttachTCXEgress, link.Tail())
			}
			see := func(when string) {
				t.Helper()
				was := [3]uint64{before.seen(), behind.seen(), direct.seen()}
				n.talk(c)
				for i, now := range [3]uint64{before.seen(), behind.seen(), direct.seen()} {
					if now == was[i] {
						t.Errorf("%s: program %d of others saw nothing", when, i+1)
					}
				}
			}
			see("beside ours")
			for range 3 {
				next, err := load(n.config, o)
				n.must(err)
				t.Cleanup(func() { next.Close() })
				n.must(n.d.Close())
				n.d = next
				see("after an upgrade")
			}
			// What ours drops, nobody behind it sees.
			ep, _, _ := n.d.Maps().Endpoints.Lookup(addr(podA))
			ep.Held = 1
			set(t, n.d.Maps().Endpoints, addr(podA), ep)
			was := [2]uint64{before.seen(), behind.seen()}
			n.in(podA, func() error {
				pod, err := net.Dial("udp4", at(podB, 8080))
				if err != nil {
					return err
				}
				defer pod.Close()
				_, err = io.WriteString(pod, "held")
				return err
			})
			again(t, func() bool { return before.seen() != was[0] }) // it gets there some time
			if n := behind.seen() - was[1]; n != 0 {
				t.Errorf("who is behind ours sees %d packets that ours has dropped", n)
			}
			ep.Held = 0
			set(t, n.d.Maps().Endpoints, addr(podA), ep)

			n.must(n.d.Detach(device))
			was = [2]uint64{before.seen(), behind.seen()}
			n.talk(c)
			if before.seen() == was[0] || behind.seen() == was[1] {
				t.Error("programs of others are gone with ours")
			}
		})
	}
}
