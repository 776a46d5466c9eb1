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
			pod := n.talker(podA)
			said := strings.Repeat("the answer has three pieces, ", 100)
			pieces := cut(ip(podC, podA, udp(8080, 1000).says(said)), 1200)
			var id uint16
			for _, order := range [][]int{{2, 1, 0}, {1, 0, 2}, {2, 0, 1}} {
				again(t, func() bool { // the first may come when the others have waited for too long
					id++
					var frames [][]byte
					for _, i := range order {
						frames = append(frames, pieces(id, i).encode(nil))
					}
					for _, f := range frames {
						if _, err := n.lane.file.Write(f); err != nil {
							t.Fatal(err)
						}
					}
					return hears(pod, said)
				})
			}

			said = strings.Repeat("so has the question, ", 150)
			pieces = cut(ip(podA, far, udp(1000, 80).says(said)), 1200)
			again(t, func() bool {
				id++
				n.in(podA, func() error { return sendRaw(pieces(id, 2), pieces(id, 1), pieces(id, 0)) })
				var got []byte
				for range 3 {
					piece, ok := n.lane.next(200 * time.Millisecond)
					if !ok {
						return false
					}
					got = append(got, piece...)
				}
				for _, part := range []string{said[:1000], said[1400:2000], said[2600:]} {
					if !bytes.Contains(got, []byte(part)) {
						return false // pieces of an earlier attempt
					}
				}
				return true
			})
		})
	}
}

// While one pod has as many late pieces wait as it can, another's still find their first.
func TestAPodLeavesRoomToWait(t *testing.T) {
	n := newRealNode(t, options{})
	pod := n.talker(podA)
	stop, stopped := make(chan struct{}), make(chan struct{})
	n.in(podB, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		go func() {
			defer close(stopped)
			defer unix.Close(fd)
			late, to := rest(podB, podC, 9).encode(nil), &unix.SockaddrInet4{Addr: addr(podC).Netip().As4()}
			for {
				select {
				case <-stop:
					return
				default:
					unix.Sendto(fd, late, 0, to) // its queue may be full
				}
			}
		}()
		return nil
	})
	defer func() { close(stop); <-stopped }()
	said := strings.Repeat("in spite of the other, ", 100)
	pieces := cut(ip(podC, podA, udp(8080, 1000).says(said)), 1200)
	var id uint16
	for range 5 {
		again(t, func() bool {
			id++
			late, first := pieces(id, 1).encode(nil), pieces(id, 0).encode(nil)
			n.lane.file.Write(late)
			n.lane.file.Write(first)
			return hears(pod, said)
		})
	}
}

// talker has a pod ask c through the service far, so that answers may come.
func (n *realNode) talker(ip string) (c *net.UDPConn) {
	n.Helper()
	set(n, n.d.Maps().Nodes, 4, Node{Cluster: 2}) // c answers for the service
	n.in(ip, func() (err error) {
		to := netip.MustParseAddrPort(at(far, 80))
		c, err = net.DialUDP(network("udp"), &net.UDPAddr{Port: 1000}, net.UDPAddrFromAddrPort(to))
		return err
	})
	n.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, "question"); err != nil {
		n.Fatal(err)
	}
	n.lane.receive()
	return c
}

// hears says whether this comes within a moment.
func hears(c *net.UDPConn, said string) bool {
	b := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	n, err := c.Read(b)
	return err == nil && string(b[:n]) == said
}

// again tries something for half a minute.
func again(t *testing.T, try func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !try(); {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
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
		most := 31 * (8 + 1 + uint64(time.Since(start)/(62*time.Millisecond)))
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
