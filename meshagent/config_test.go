package meshagent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
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

// An address that nobody can listen on is refused at the start: the agent would
// otherwise try it again forever.
func TestAddressesToListenOn(t *testing.T) {
	for address, good := range map[string]bool{
		"": true, ":7444": true, "127.0.0.1:9962": true, "[::1]:9962": true, "localhost:9962": true,
		"9962": false, "127.0.0.1": false, "127.0.0.1:http": false, "127.0.0.1:70000": false, "::1:9962": false, ":": false,
	} {
		for name, c := range map[string]Config{"listen": Defaults(), "metrics-address": Defaults()} {
			if name == "listen" {
				c.Listen = address
			} else {
				c.MetricsAddress = address
			}
			if err := c.Validate(); (err == nil) != good || err != nil && !strings.Contains(err.Error(), name+` is "`+address+`"`) {
				t.Errorf("%s %q: %v", name, address, err)
			}
		}
	}
}
