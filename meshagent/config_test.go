package meshagent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/apiserver/api"
)

func TestAPIServersOfAJoinBundle(t *testing.T) {
	lookup := func(_ context.Context, _, host string) ([]netip.Addr, error) {
		if host == "server.example" {
			return []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.1")}, nil
		}
		return nil, errors.New("no such host")
	}
	n := node{bundle: &api.JoinBundle{Server: "https://192.0.2.1:7443", EtcdEndpoints: []string{"https://server.example:2379", "https://gone.example:2379", "https://server.example:2380"}}}
	addrs, unknown := n.apiServers(t.Context(), lookup)
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.7")}; !slices.Equal(addrs, want) {
		t.Errorf("addresses %v, want %v", addrs, want)
	}
	if !slices.Equal(unknown, []string{"gone.example"}) {
		t.Errorf("unknown %v", unknown)
	}
}
