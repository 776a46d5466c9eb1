package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// datagram is a UDP datagram over IPv6 without a checksum, of 12 bytes of payload after the
// extension headers given.
func datagram(extensions ...[]byte) []byte {
	first := uint8(protoUDP)
	var middle []byte
	if len(extensions) > 0 {
		first = extensions[0][0]
		for i, ext := range extensions {
			next := uint8(protoUDP)
			if i+1 < len(extensions) {
				next = extensions[i+1][0]
			}
			middle = append(middle, slices.Concat([]byte{next}, ext[1:])...)
		}
	}
	udp := binary.BigEndian.AppendUint16(nil, 4321)
	udp = binary.BigEndian.AppendUint16(udp, 53)
	udp = binary.BigEndian.AppendUint16(udp, 20)
	udp = append(append(udp, 0, 0), "weft payload"...)
	b := []byte{0x60, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(middle)+len(udp)))
	b = append(b, first, 64)
	for _, addr := range []string{"fd00:10:1:1::3", "fd00:10:2:2::2"} {
		b = append(b, netip.MustParseAddr(addr).AsSlice()...)
	}
	return slices.Concat(b, middle, udp)
}

// balanced changes the last word of a datagram so that its checksum comes out as zero.
func balanced(b []byte) []byte {
	udp := b[len(b)-20:]
	word := udp[len(udp)-2:]
	word[0], word[1] = 0, 0
	sum := onesSum(onesSum(20+protoUDP, b[8:ipv6HeaderLen]), udp)
	binary.BigEndian.PutUint16(word, ^fold(sum))
	return b
}

func checksumOf(b []byte) uint16 { return binary.BigEndian.Uint16(b[len(b)-14:]) }

func TestAChecksumOfZeroIsMended(t *testing.T) {
	options := []byte{destinationOptions, 0, 1, 4, 0, 0, 0, 0}
	long := append([]byte{hopByHop, 1}, make([]byte, 14)...)
	for name, test := range map[string]struct {
		packet []byte
		want   uint16
	}{
		"sum of zero":          {balanced(datagram()), 0xffff},
		"behind two headers":   {balanced(datagram(long, options)), 0xffff},
		"sent without one":     {datagram(), 0},
		"sum that is not zero": {func() []byte { b := datagram(); b[47] = 1; return b }(), 1},
	} {
		if mendChecksum(test.packet); checksumOf(test.packet) != test.want {
			t.Errorf("%s: checksum %#x, want %#x", name, checksumOf(test.packet), test.want)
		}
	}
	for name, change := range map[string]func([]byte) []byte{
		"TCP":              func(b []byte) []byte { b[6] = 6; return b },
		"IPv4":             func(b []byte) []byte { b[0] = 0x45; return b },
		"later fragment":   func(b []byte) []byte { b[6] = 44; return b },
		"cut short":        func(b []byte) []byte { return b[:46] },
		"header cut short": func(b []byte) []byte { b[6], b[41] = hopByHop, 200; return b },
	} {
		b := change(balanced(datagram()))
		before := bytes.Clone(b)
		if mendChecksum(b); !bytes.Equal(b, before) {
			t.Errorf("%s: changed to %x", name, b)
		}
	}
}

// Whatever a pod sends, no more than a checksum of zero changes, and only to 0xffff.
func FuzzMendChecksum(f *testing.F) {
	f.Add(balanced(datagram()))
	f.Add(datagram([]byte{destinationOptions, 0, 1, 4, 0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		mendChecksum(b)
		for i := range b {
			if b[i] != before[i] && (b[i] != 0xff || before[i] != 0) {
				t.Fatalf("byte %d: %#x to %#x", i, before[i], b[i])
			}
		}
		again := bytes.Clone(b)
		if mendChecksum(again); !bytes.Equal(again, b) {
			t.Fatal("changed twice")
		}
	})
}
