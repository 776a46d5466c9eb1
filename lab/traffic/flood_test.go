package traffic

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/weft-mesh/weft/internal/loopbacktest"
)

// Each datagram of a flood comes from a different port.
func TestFlood(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IP(loopbacktest.Addr(t).AsSlice()), Port: 10083})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Flood(ctx, Target{Scheme: "udp", Host: conn.LocalAddr().String()}, 1000)
		done <- err
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	seen := map[int]bool{}
	for range 100 {
		b := make([]byte, 64)
		n, from, err := conn.ReadFromUDP(b)
		if err != nil {
			t.Fatal(err)
		}
		if string(b[:n]) != "flooding" || seen[from.Port] {
			t.Errorf("%q from port %d, again: %v", b[:n], from.Port, seen[from.Port])
		}
		seen[from.Port] = true
	}
}

func TestFloodPackets(t *testing.T) {
	type ports struct{ from, to int }
	seen := map[ports]bool{}
	for n := range 900000 {
		p := floodPacket(n, 5000)
		at := ports{int(p[0])<<8 | int(p[1]), int(p[2])<<8 | int(p[3])}
		if seen[at] || at.from < firstFloodPort || at.to < 5000 || at.to > 5014 {
			t.Fatalf("datagram %d goes from %d to %d, again: %v", n, at.from, at.to, seen[at])
		}
		seen[at] = true
	}
}

func TestFloodRefuses(t *testing.T) {
	for _, c := range []struct {
		target Target
		rate   float64
	}{{Target{Scheme: "tcp", Host: "127.0.0.1:1"}, 1}, {Target{Scheme: "udp", Host: "127.0.0.1:1"}, 0}} {
		if _, err := Flood(t.Context(), c.target, c.rate); err == nil {
			t.Errorf("flooded %+v", c)
		}
	}
}
