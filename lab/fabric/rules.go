package fabric

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Pair is a direction between two clusters.
type Pair struct{ From, To string }

// Quality is what the wide area network does to packets in one direction. The zero
// value delivers everything at once.
type Quality struct {
	Delay time.Duration // one way
	Loss  float64       // share of packets dropped, 0 to 1
	Cut   bool          // drops everything
	Flows []Flow        // dropped
	Limit int           // silently drops packets larger than this, in bytes; 0: none
}

// Flow selects the packets of one service by protocol and port, at either end.
type Flow struct {
	Protocol uint8 // 6 or 17; 0 is both
	Port     uint16
}

// ParseFlow reads "tcp/2379", "udp/7947" or, for both protocols, "7947".
func ParseFlow(s string) (Flow, error) {
	protocols := map[string]uint8{"tcp": 6, "udp": 17}
	var f Flow
	port := s
	if proto, rest, ok := strings.Cut(s, "/"); ok {
		if f.Protocol = protocols[proto]; f.Protocol == 0 {
			return Flow{}, fmt.Errorf("flow %q: protocol must be tcp or udp, as in tcp/2379", s)
		}
		port = rest
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Flow{}, fmt.Errorf("flow %q: port must be a number from 1 to 65535, as in tcp/2379", s)
	}
	f.Port = uint16(n)
	return f, nil
}

// Weather is the state of the whole wide area network. A Weather in use is never
// changed: clone it, change the clone and call SetWeather.
type Weather struct {
	Off     map[string]bool  // clusters whose uplink is cut
	Default Quality          // of directions not in Pairs
	Pairs   map[Pair]Quality // by direction
}

// Clone returns a copy that can be changed.
func (w *Weather) Clone() *Weather {
	c := &Weather{Off: maps.Clone(w.Off), Default: w.Default, Pairs: maps.Clone(w.Pairs)}
	if c.Off == nil {
		c.Off = map[string]bool{}
	}
	if c.Pairs == nil {
		c.Pairs = map[Pair]Quality{}
	}
	return c
}

// Between returns the quality of one direction.
func (w *Weather) Between(from, to string) Quality {
	q, ok := w.Pairs[Pair{from, to}]
	if !ok {
		q = w.Default
	}
	if w.Off[from] || w.Off[to] {
		q.Cut = true
	}
	return q
}

// passes decides whether a packet passes, loss aside.
func (q Quality) passes(pkt []byte) bool {
	if q.Cut || q.Limit > 0 && len(pkt) > q.Limit {
		return false
	}
	if len(q.Flows) == 0 {
		return true
	}
	proto, sport, dport, ok := ports(pkt)
	return !ok || !slices.ContainsFunc(q.Flows, func(f Flow) bool {
		return (f.Protocol == 0 || f.Protocol == proto) && (f.Port == sport || f.Port == dport)
	})
}

// ports reads the protocol and ports of an IP packet. ok is false for other packets, for
// later fragments, which have no ports, and for IPv6 with extension headers.
func ports(pkt []byte) (proto uint8, src, dst uint16, ok bool) {
	header := 40
	switch {
	case len(pkt) >= 20 && pkt[0]>>4 == 4 && binary.BigEndian.Uint16(pkt[6:])&0x1fff == 0:
		proto, header = pkt[9], int(pkt[0]&0xf)*4
	case len(pkt) >= 40 && pkt[0]>>4 == 6:
		proto = pkt[6]
	}
	if proto != 6 && proto != 17 || len(pkt) < header+4 {
		return 0, 0, 0, false
	}
	return proto, binary.BigEndian.Uint16(pkt[header:]), binary.BigEndian.Uint16(pkt[header+2:]), true
}

// destination reads the destination of an IP packet; the zero Addr for others.
func destination(pkt []byte) netip.Addr {
	_, dst, _ := ends(pkt)
	return dst
}
