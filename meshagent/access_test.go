package meshagent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

func TestAddressesOfAPIServersFollow(t *testing.T) {
	lookup := func(_ context.Context, _, host string) ([]netip.Addr, error) {
		if host == "server.example" {
			return []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.1")}, nil
		}
		return nil, errors.New("no such host")
	}
	url := func(hosts ...string) (out []string) {
		for _, host := range hosts {
			out = append(out, "https://"+host+":2379")
		}
		return out
	}
	for name, test := range map[string]struct {
		bundle  api.JoinBundle
		told    []*wire.Access // one after the other
		want    []string
		unknown []string
	}{
		"as in the bundle": {
			api.JoinBundle{Server: "https://192.0.2.1:7443", EtcdEndpoints: url("server.example", "gone.example", "server.example")},
			nil, []string{"192.0.2.1", "192.0.2.7"}, []string{"gone.example"},
		},
		"one more": {
			api.JoinBundle{Server: "https://192.0.2.1:7443", EtcdEndpoints: url("192.0.2.1")},
			[]*wire.Access{{Servers: []string{"https://192.0.2.1:7443", "https://192.0.2.2:7443"}, Etcd: url("192.0.2.1", "192.0.2.2")}},
			[]string{"192.0.2.1", "192.0.2.2"}, nil,
		},
		"one more, then one less": {
			api.JoinBundle{Server: "https://192.0.2.1:7443", EtcdEndpoints: url("192.0.2.1")},
			[]*wire.Access{{Servers: []string{"https://192.0.2.1:7443"}, Etcd: url("192.0.2.1", "192.0.2.2")}, {Servers: []string{"https://192.0.2.2:7443"}, Etcd: url("192.0.2.2")}},
			[]string{"192.0.2.2"}, nil,
		},
		"one less since the last run": {
			api.JoinBundle{Server: "https://192.0.2.1:7443", EtcdEndpoints: url("192.0.2.1", "192.0.2.2"), Named: api.NamedServers{Servers: []string{"https://192.0.2.1:7443"}, EtcdEndpoints: url("192.0.2.1", "192.0.2.2")}},
			[]*wire.Access{{Servers: url("192.0.2.2"), Etcd: url("192.0.2.2")}},
			[]string{"192.0.2.2"}, nil,
		},
		"a name stays": {
			api.JoinBundle{Server: "https://server.example:7443", EtcdEndpoints: url("192.0.2.1")},
			[]*wire.Access{nil, {Etcd: url("192.0.2.1", "192.0.2.2")}},
			[]string{"192.0.2.7", "192.0.2.1", "192.0.2.2"}, nil,
		},
		"a load balancer stays alone": {
			api.JoinBundle{Server: "https://198.51.100.1:7443", EtcdEndpoints: url("198.51.100.1")},
			[]*wire.Access{{Servers: url("192.0.2.1"), Etcd: url("192.0.2.1")}},
			[]string{"198.51.100.1"}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newAccess(&test.bundle, lookup, nil, nil, nil)
			got := x.servers(nil)
			for _, told := range test.told {
				got = x.servers(told)
			}
			var want []netip.Addr
			for _, text := range test.want {
				want = append(want, netip.MustParseAddr(text))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
			if _, unknown := x.addresses(x.now()); !slices.Equal(unknown, test.unknown) {
				t.Errorf("unknown: %v, want %v", unknown, test.unknown)
			}
		})
	}
}
