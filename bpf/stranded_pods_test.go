package bpf

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// A pod's connection is ended although nobody says anything, whether its socket was given the
// backend or its packets are translated, and its flow with it.
func TestConnectionsOfPodsAreEnded(t *testing.T) { families(t, testConnectionsOfPodsAreEnded) }

func testConnectionsOfPodsAreEnded(t *testing.T) {
	for name, remote := range map[string]string{"given a backend": at(podB, 8080), "translated": at(near, 80)} {
		t.Run(name, func(t *testing.T) {
			n := newSocketNode(t)
			if remote == at(near, 80) {
				unset(t, n.d.Maps().Namespaces, n.cookie(podA))
			}
			n.listen(podB, 8080)
			c, err := n.dial(podA, at(near, 80), 30*time.Second)
			n.must(err)
			n.talk(c)
			direct, err := n.dial(podA, at(podB, 8080), 30*time.Second)
			n.must(err)
			n.talk(direct)
			local, to := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(remote)
			key := FlowKey{Local: addr(podA), Remote: AddrOf(to.Addr()), Lport: PortOf(local.Port()), Rport: PortOf(to.Port()), Proto: 6}
			lost := true
			end := func(when string, want int) {
				t.Helper()
				got, err := EndConnections(n.pods[podA], []FlowKey{key}, func(k FlowKey) (bool, error) { return lost && k == key, nil })
				if got != want || err != nil {
					t.Fatalf("%s: ended %d, %v; want %d", when, got, err, want)
				}
			}
			lost = false
			end("it has its backend again", 0)
			n.talk(c)
			lost = true
			unset(t, n.d.Maps().Members, MemberKey{Service: 80, Addr: addr(podB), Port: PortOf(8080)})
			unset(t, n.d.Maps().Endpoints, addr(podB))
			n.changed()
			events := n.watch()
			end("its backend is gone", 1)
			n.must(c.SetReadDeadline(time.Now().Add(30 * time.Second)))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("read ended with %v", err)
			}
			n.await(events, "the end", func(e Event) bool { return e.Type == EventReset && e.Sport.Number() == local.Port() })
			if f, ok := n.flow(podA, c.LocalAddr(), remote, 6); ok {
				t.Errorf("its flow is still there: %+v", f)
			}
			end("it was ended", 0)
			// That with the backend itself was not ended; its next packet, a late acknowledgement, may
			// have been answered with a reset.
			n.must(direct.SetReadDeadline(time.Now().Add(50 * time.Millisecond)))
			if _, err := direct.Read(make([]byte, 1)); errors.Is(err, syscall.ECONNABORTED) {
				t.Error("ended the connection with the backend itself")
			}
			// Whoever listens at the port has nothing to do with it.
			n.listen(podA, local.Port())
			end("somebody listens at its port", 0)
			again, err := n.dial(podA, at(podA, local.Port()), 30*time.Second)
			n.must(err)
			n.talk(again)
		})
	}
}
