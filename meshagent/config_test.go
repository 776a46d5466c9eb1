package meshagent

import (
	"strings"
	"testing"
)

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

// The CNI plugin is for nodes whose pods a container runtime starts, and needs both folders.
func TestWhereTheCNIPluginIsInstalled(t *testing.T) {
	for _, test := range []struct {
		conf, bin string
		from      PodsFrom
		wrong     string
	}{
		{from: Objects},
		{from: Requests},
		{conf: "/etc/cni/net.d", bin: "/opt/cni/bin", from: Requests},
		{conf: "/etc/cni/net.d", bin: "/opt/cni/bin", from: Objects, wrong: "pods-from is objects"},
		{conf: "/etc/cni/net.d", from: Requests, wrong: "belong together"},
		{bin: "/opt/cni/bin", from: Requests, wrong: "belong together"},
		{conf: "net.d", bin: "/opt/cni/bin", from: Requests, wrong: "absolute path"},
	} {
		c := Defaults()
		c.CNIConfDir, c.CNIBinDir, c.PodsFrom = test.conf, test.bin, test.from
		if err := c.Validate(); (err == nil) != (test.wrong == "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("%+v: %v", test, err)
		}
	}
	c := Defaults()
	c.CNISpoolDir = ""
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "cni-spool-dir") {
		t.Errorf("without a spool: %v", err)
	}
}
