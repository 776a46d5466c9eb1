package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"

	"github.com/weft-mesh/weft/tunnel"
)

// kernelHasWireGuard tries to create such a link, which loads the module if there is
// one. Any other error than "no such kind of link" fails the test.
func kernelHasWireGuard(t *testing.T) bool {
	t.Helper()
	err := newSpace(t).in(func() error {
		return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wg0"}})
	})
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	return err == nil
}

// mixtures runs a test with every mixture of kernel and userspace WireGuard that this
// machine supports; without kernel WireGuard, with userspace alone.
func mixtures(t *testing.T, f func(t *testing.T, a, b *node)) {
	needRoot(t)
	mixtures := map[string][2]bool{"userspace to userspace": {true, true}}
	if kernelHasWireGuard(t) {
		mixtures["kernel to kernel"], mixtures["kernel to userspace"] = [2]bool{false, false}, [2]bool{false, true}
	}
	for name, userspace := range mixtures {
		t.Run(name, func(t *testing.T) {
			a, b := newNode(t, 1), newNode(t, 2)
			wire(t, a.space, b.space, "wire", "wire", "192.0.2.1/24", "192.0.2.2/24")
			for i, n := range []*node{a, b} {
				if userspace[i] {
					n.start()
				}
				want := map[bool]tunnel.Kind{false: tunnel.Kernel, true: tunnel.Userspace}[userspace[i]]
				if own := n.ready(); own.Lanes[0].Kind != want || own.Lanes[1].Kind != want {
					t.Fatalf("%s is %+v, want %s", n.name, own.Lanes, want)
				}
			}
			f(t, a, b)
		})
	}
}

// A node gets a handshake from a peer whose key it does not know yet, and which it
// could not call itself.
func TestQuestionThatNobodyUnderstoodIsAskedAgain(t *testing.T) {
	mixtures(t, func(t *testing.T, a, b *node) {
		a.set(b.peer(b.ready()))
		eventually(t, 30*time.Second, func() error {
			a.look()
			if st := a.status(); st.Peers[0].Lanes[0].TxBytes == 0 {
				return errors.New("nothing was asked")
			}
			return nil
		})
		unknown := a.peer(a.ready())
		unknown.Endpoint = [tunnel.LaneCount]netip.AddrPort{}
		b.set(unknown)
		eventually(t, 30*time.Second, func() error {
			a.set(b.peer(b.ready()))
			if got := a.status().Peers[0].Handshaken(); got != [tunnel.LaneCount]bool{true, true} {
				return fmt.Errorf("handshakes: %v", got)
			}
			return nil
		})
		// WireGuard itself repeats a handshake after 5 s, and counts both.
		const question = 148 // bytes of a handshake initiation
		for _, lane := range a.status().Peers[0].Lanes {
			if lane.TxBytes >= 2*question {
				t.Errorf("%d bytes were sent: the peer was not made anew", lane.TxBytes)
			}
		}
	})
}

// A stream, rotations and restarts.
func TestMixturesOfWireGuard(t *testing.T) {
	mixtures(t, func(t *testing.T, a, b *node) {
		a.set(b.peer(b.ready()))
		b.set(a.peer(a.ready()))
		shaken(t, a, b)

		seen := a.capture("wire")
		m := newMesh(t, a, b, 500)
		for round := range 4 {
			for i := range m.nodes {
				m.steer(i)
			}
			m.round(t, round)
			a.reopen()
			b.reopen()
			a.ready()
			b.ready()
			m.tell(0)
			m.tell(1)
		}
		for _, s := range m.streams {
			s.flowing(t)
			sent, lost := s.finish(t)
			t.Logf("%d sent, %d lost", sent, lost)
			if lost > 0 {
				t.Errorf("lost %d of %d packets", lost, sent)
			}
		}
		for _, frame := range seen.drain() {
			if bytes.Contains(frame, []byte(marker)) {
				t.Fatalf("payload in the clear on the wire: %x", frame)
			}
		}

		// Only the lane that carried the data is not quiet; the other had only
		// handshakes and keepalives.
		quietLane := int((m.own[0].Epoch + 1) % tunnel.LaneCount)
		a.status()
		eventually(t, 10*time.Second, func() error {
			if st := a.status(); st.Quiet[quietLane] < 300*time.Millisecond {
				return fmt.Errorf("lane %d is quiet for %v", quietLane, st.Quiet[quietLane])
			}
			return nil
		})

		// One prefix goes without touching the other.
		few := b.peer(m.own[1])
		few.Allowed = append(few.Allowed, hostPrefix(b))
		a.set(few)
		few.Allowed = few.Allowed[:1]
		a.set(few)
		a.do(func() error {
			_, err := a.lanes.Set(context.Background(), nil, true)
			return err
		})
		if st := a.status(); len(st.Peers) > 0 {
			t.Errorf("peers are left: %+v", st.Peers)
		}
	})
}
