package apiserver

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/internal/loopbacktest"
)

func TestAnAddressThatLeadsNobodyHereIsRefused(t *testing.T) {
	here := loopbacktest.Addr(t)
	for name, c := range map[string]struct {
		advertise netip.Addr
		elsewhere bool
		want      string
	}{
		"own":                        {here, false, ""},
		"of another machine":         {netip.MustParseAddr("10.255.255.254"), false, "advertise is 10.255.255.254, which is not an address of this machine: give "},
		"the example's":              {netip.MustParseAddr("192.0.2.11"), false, "advertise is 192.0.2.11, which is from an example and is not an address of this machine: give "},
		"of a load balancer":         {netip.MustParseAddr("10.255.255.254"), true, ""},
		"own, and a load balancer's": {here, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkAdvertise(Config{Advertise: c.advertise, AdvertiseElsewhere: c.elsewhere})
			if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			var setting *Misconfigured
			if err != nil && (!errors.As(err, &setting) || setting.Setting != "advertise") {
				t.Errorf("of setting %+v", setting)
			}
		})
	}
	if err := notHere(netip.MustParseAddr("10.0.0.1"), []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.1.2")}); !strings.Contains(err.Error(), "give one of its own (10.0.0.2, 10.0.1.2), or set advertiseElsewhere") {
		t.Error(err)
	}
}

// An API server does not even make its folder.
func TestARefusedStartLeavesNothing(t *testing.T) {
	conf := config(t)
	conf.DataDir += "/new"
	conf.Advertise = netip.MustParseAddr("192.0.2.11")
	var setting *Misconfigured
	if err := Run(t.Context(), conf); !errors.As(err, &setting) {
		t.Fatalf("it started: %v", err)
	}
	if _, err := os.Stat(conf.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left its folder: %v", err)
	}
}
