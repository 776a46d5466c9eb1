package bpf

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// earlyMark is the mark of a fragment that has waited so often.
func earlyMark(waited uint32, device int) uint32 { return 0x57<<25 | waited<<20 | uint32(device) }

// A datagram arrives whole whose pieces come in the wrong order, out of a tunnel and from a pod.
func TestFragmentsInAnyOrder(t *testing.T) { families(t, testFragmentsInAnyOrder) }

func testFragmentsInAnyOrder(t *testing.T) {
	for name, o := range map[string]options{"tcx": {}, "clsact": {clsact: true}} {
		t.Run(name, func(t *testing.T) {
			n := newRealNode(t, o)
			set(t, n.d.Maps().Nodes, 4, Node{Cluster: 2}) // c answers for service far
			var pod *net.UDPConn
			n.in(podA, func() (err error) {
				to := netip.MustParseAddrPort(at(far, 80))
				pod, err = net.DialUDP(network("udp"), &net.UDPAddr{Port: 1000}, net.UDPAddrFromAddrPort(to))
				return err
			})
			defer pod.Close()
			if _, err := io.WriteString(pod, "question"); err != nil {
				t.Fatal(err)
			}
			n.lane.receive()

			said := strings.Repeat("the answer has three pieces, ", 100)
			pieces := cut(ip(podC, podA, udp(8080, 1000).says(said)), 1200)
			for _, order := range [][]int{{2, 1, 0}, {1, 0, 2}, {2, 0, 1}} {
				for _, i := range order {
					n.lane.send(pieces(uint16(10*order[0]+order[1]+1), i))
				}
				b := make([]byte, 1<<16)
				pod.SetReadDeadline(time.Now().Add(30 * time.Second))
				if got, err := pod.Read(b); err != nil || string(b[:got]) != said {
					t.Fatalf("order %v: the pod read %d bytes, %v", order, got, err)
				}
			}

			said = strings.Repeat("so has the question, ", 150)
			pieces = cut(ip(podA, far, udp(1000, 80).says(said)), 1200)
			n.in(podA, func() error { return sendRaw(pieces(7, 2), pieces(7, 1), pieces(7, 0)) })
			var got []byte
			for range 3 {
				got = append(got, n.lane.receive()...)
			}
			for _, part := range []string{said[:1000], said[1400:2000], said[2600:]} {
				if !bytes.Contains(got, []byte(part)) {
					t.Errorf("%q… did not come out of the lane", part[:20])
				}
			}
		})
	}
}

// cut returns what makes the pieces of a datagram, of so many bytes each.
func cut(l *ipLayer, size int) func(id uint16, i int) layer {
	whole := l.encode(nil)
	body := whole[headerLen(whole):]
	return func(id uint16, i int) layer {
		p := *l
		p.inner = raw(body[i*size : min((i+1)*size, len(body))])
		return p.piece(id, i*size, (i+1)*size < len(body))
	}
}

// sendRaw sends packets from this network namespace.
func sendRaw(packets ...layer) error {
	for _, p := range packets {
		b := p.encode(nil)
		family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(b[16:20])})
		if b[0]>>4 == 6 {
			family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(b[24:40])}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		err = unix.Sendto(fd, b, 0, to)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// A pod that sends nothing but late pieces has few of them wait, and none of another's place.
func TestAPodHasFewFragmentsWait(t *testing.T) {
	n := newNode(t)
	const sends = 3200 // each time, a piece waits again until it may no longer
	for hook, in := range map[string]layer{"from a": rest(podA, podC, 5), "out of tunnel": rest(podC, nodeInternal, 5)} {
		program, device, _ := n.hookOf(hook)
		before, start := n.counts(), time.Now()
		if _, err := n.progs[program].Run(&ebpf.RunOptions{Data: packet(in), DataOut: make([]byte, 256), Context: skb{Ifindex: uint32(device)}, Repeat: sends}); err != nil {
			t.Fatal(err)
		}
		most := 31 * (8 + 1 + uint64(time.Since(start)/(4*time.Millisecond)))
		waited, dir := uint64(0), map[bool]Direction{true: Egress, false: Ingress}[hook == "from a"]
		for c, packets := range n.counts() {
			if c.Reason == ReasonEarlyFragment && c.Dir == dir {
				waited = packets - before[c]
			}
		}
		if waited < 31*8 || waited > most {
			t.Errorf("%s: of %d, %d waited, want %d to %d", hook, sends, waited, 31*8, most)
		}
	}
	got := n.send("from_pod", n.b, 0, packet(rest(podB, podC, 5)))
	if got.reason != ReasonEarlyFragment {
		t.Errorf("another pod's: %s", got.reason)
	}
}

// Somebody removes the waiting room: it is made again, and removed with the datapath.
func TestWaitingRoomIsMended(t *testing.T) {
	n := newRealNode(t, options{})
	room := func() netlink.Link {
		l, err := netlink.LinkByName(waitingIn)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	n.must(netlink.LinkDel(room()))
	mended, failed := n.d.Mend()
	if len(failed) > 0 || len(mended) != 1 {
		t.Errorf("mended %q, failed %v", mended, failed)
	}
	var in uint32
	n.must(n.d.waiting.Lookup(uint32(0), &in))
	if int(in) != room().Attrs().Index {
		t.Errorf("fragments wait at device %d, not at %d", in, room().Attrs().Index)
	}
	if mended, failed = n.d.Mend(); len(failed) > 0 || len(mended) > 0 {
		t.Errorf("mended again: %q, failed %v", mended, failed)
	}
	n.must(n.d.Remove())
	if _, err := netlink.LinkByName(waitingIn); err == nil {
		t.Error("the waiting room outlives the datapath")
	}
}
