package fabric

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// packet builds an IPv4 packet with ports and a payload.
func packet(proto uint8, src, dst netip.AddrPort, payload string) []byte {
	pkt := make([]byte, 28, 28+len(payload))
	pkt[0], pkt[9] = 0x45, proto
	copy(pkt[12:], src.Addr().AsSlice())
	copy(pkt[16:], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(pkt[20:], src.Port())
	binary.BigEndian.PutUint16(pkt[22:], dst.Port())
	return append(pkt, payload...)
}

var (
	nodeA = netip.MustParseAddrPort("172.16.1.1:40000")
	nodeB = netip.MustParseAddrPort("172.16.2.1:2379")
	podA  = netip.MustParseAddrPort("10.1.1.5:40000")
)

func TestQuality(t *testing.T) {
	later := packet(6, nodeA, nodeB, "")
	later[7] = 1 // a fragment that is not the first
	for name, tt := range map[string]struct {
		quality Quality
		pkt     []byte
		want    bool
	}{
		"fine weather":             {Quality{}, packet(6, nodeA, nodeB, ""), true},
		"cut":                      {Quality{Cut: true}, packet(6, nodeA, nodeB, ""), false},
		"flow is cut":              {Quality{Flows: []Flow{{6, 2379}}}, packet(6, nodeA, nodeB, ""), false},
		"its answers too":          {Quality{Flows: []Flow{{6, 2379}}}, packet(6, nodeB, nodeA, ""), false},
		"other protocol":           {Quality{Flows: []Flow{{17, 2379}}}, packet(6, nodeA, nodeB, ""), true},
		"either protocol":          {Quality{Flows: []Flow{{0, 2379}}}, packet(17, nodeA, nodeB, ""), false},
		"other port":               {Quality{Flows: []Flow{{6, 7443}}}, packet(6, nodeA, nodeB, ""), true},
		"a fragment has no port":   {Quality{Flows: []Flow{{6, 2379}}}, later, true},
		"not even a header":        {Quality{Flows: []Flow{{6, 2379}}}, []byte{0x45}, true},
		"as large as may be":       {Quality{Limit: 30}, packet(6, nodeA, nodeB, "ab"), true},
		"too large":                {Quality{Limit: 30}, packet(6, nodeA, nodeB, "abc"), false},
		"flow is cut over IPv6":    {Quality{Flows: []Flow{{6, 2379}}}, ported6(6, "fd00::1", "fd00::2", 2379), false},
		"other port over IPv6":     {Quality{Flows: []Flow{{6, 7443}}}, ported6(6, "fd00::1", "fd00::2", 2379), true},
		"headers without the rest": {Quality{Flows: []Flow{{6, 2379}}}, packet(6, nodeA, nodeB, "")[:20], true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tt.quality.passes(tt.pkt); got != tt.want {
				t.Errorf("passes = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestWeatherBetween(t *testing.T) {
	w := Weather{Off: map[string]bool{"c": true}, Default: Quality{Loss: 0.5}, Pairs: map[Pair]Quality{{"a", "b"}: {Cut: true}}}
	for pair, want := range map[Pair]bool{{"a", "b"}: true, {"b", "a"}: false, {"a", "c"}: true, {"c", "a"}: true} {
		if got := w.Between(pair.From, pair.To).Cut; got != want {
			t.Errorf("%v cut = %v, want %v", pair, got, want)
		}
	}
	if w.Between("b", "a").Loss != 0.5 {
		t.Error("default quality does not apply")
	}
}

func TestParseFlow(t *testing.T) {
	for text, want := range map[string]Flow{"tcp/2379": {6, 2379}, "udp/7947": {17, 7947}, "7947": {0, 7947}} {
		if got, err := ParseFlow(text); err != nil || got != want {
			t.Errorf("ParseFlow(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "tcp", "icmp/1", "tcp/0", "tcp/99999"} {
		if _, err := ParseFlow(text); err == nil {
			t.Errorf("ParseFlow(%q) is accepted", text)
		}
	}
}

// packet6 is an IPv6 packet without content.
func packet6(src, dst string) []byte {
	b := append(make([]byte, 8), netip.MustParseAddr(src).AsSlice()...)
	b[0], b[6] = 6<<4, 59
	return append(b, netip.MustParseAddr(dst).AsSlice()...)
}

// ported6 is an IPv6 packet with ports.
func ported6(proto uint8, src, dst string, port uint16) []byte {
	b := packet6(src, dst)
	b[6] = proto
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, 40000), port)
}

func TestCaptureJudges(t *testing.T) {
	config := CaptureConfig{Marker: []byte("secret"), Inside: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:10:1::/48")}, Encrypted: []uint16{51871}}
	tunnel := netip.AddrPortFrom(nodeB.Addr(), 51871)
	for name, tt := range map[string]struct {
		pkt  []byte
		want sighting
	}{
		"tunnel":              {packet(17, nodeA, tunnel, "x"), sighting{encrypted: true}},
		"control":             {packet(6, nodeA, nodeB, "x"), sighting{}},
		"marker in a tunnel":  {packet(17, nodeA, tunnel, "a secret"), sighting{encrypted: true, marked: true}},
		"pod on the outside":  {packet(6, podA, nodeB, "x"), sighting{exposed: true}},
		"answer to a pod":     {packet(6, nodeB, podA, "secret"), sighting{exposed: true, marked: true}},
		"pod of IPv6":         {packet6("fd00:10:1:1::2", "2001:db8::1"), sighting{exposed: true}},
		"answer to one":       {packet6("2001:db8::1", "fd00:10:1:1::2"), sighting{exposed: true}},
		"tunnel over IPv6":    {ported6(17, "fd00:172:16:1::1", "fd00:172:16:2::1", 51871), sighting{encrypted: true}},
		"control over IPv6":   {ported6(6, "fd00:172:16:1::1", "fd00:172:16:2::1", 2379), sighting{}},
		"neighbours":          {packet6("fe80::1", "ff02::1"), sighting{}},
		"not a packet at all": {[]byte("secret"), sighting{marked: true}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := config.judge(tt.pkt); got != tt.want {
				t.Errorf("judge = %+v, want %+v", got, tt.want)
			}
		})
	}
}
