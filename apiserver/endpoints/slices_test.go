package endpoints

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/service"
)

func TestDivide(t *testing.T) {
	var ends []service.Endpoint
	add := func(n int) {
		for range n {
			i := len(ends)
			ends = append(ends, service.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i / 250), byte(i%250 + 2)})})
		}
	}
	parts := func(had map[string][]netip.Addr) map[string][]netip.Addr {
		out := map[string][]netip.Addr{}
		for part, in := range divide("web-v4", ends, had) {
			for _, e := range in {
				out[part] = append(out[part], e.Addr)
			}
		}
		return out
	}
	add(250)
	first := parts(nil)
	if len(first) != 3 || len(first["web-v4"]) != 100 || len(first["web-v4-part3"]) != 50 {
		t.Fatalf("parts: %v", first)
	}
	ends = ends[1:]
	add(60)
	second := parts(first)
	if len(second) != 4 || len(second["web-v4"]) != 100 || len(second["web-v4-part3"]) != 100 || len(second["web-v4-part4"]) != 9 {
		t.Errorf("parts: %v", second)
	}
	if !slices.Equal(first["web-v4-part2"], second["web-v4-part2"]) {
		t.Error("a part that nothing happened to has changed")
	}
	if len(divide("web-v4", nil, second)) != 0 {
		t.Error("empty parts are kept")
	}
}
