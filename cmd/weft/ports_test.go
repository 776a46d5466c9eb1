package main

import (
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver"
	"github.com/weft-mesh/weft/meshagent"
	"github.com/weft-mesh/weft/tunnel"
)

// The ports that docs/operations.md tells to open are those that processes listen on
// unless told otherwise, and metrics are for the machine itself alone.
func TestThePortsInOperationsAreTheDefaults(t *testing.T) {
	server, agent := apiserver.Defaults(), meshagent.Defaults()
	port := func(address string) int {
		_, p, err := net.SplitHostPort(address)
		n, perr := strconv.Atoi(p)
		if err != nil || perr != nil {
			t.Fatalf("%s: %v, %v", address, err, perr)
		}
		return n
	}
	want := map[int]string{
		int(tunnel.DefaultPorts[0]): "UDP", int(tunnel.DefaultPorts[1]): "UDP",
		port(server.EtcdListen): "TCP", port(server.EtcdPeerListen): "TCP", port(server.Listen): "TCP", port(agent.Listen): "TCP",
		int(agent.GossipPort): "TCP and UDP", int(server.GossipPort): "TCP and UDP", int(server.WANGossipPort): "TCP and UDP",
		port(server.MetricsAddress): "TCP", port(agent.MetricsAddress): "TCP",
	}
	if port(agent.Listen) != api.AgentPort || port(server.Listen) != api.ServerPort {
		t.Errorf("the agent listens on %s, the server on %s", agent.Listen, server.Listen)
	}
	got := map[int]string{}
	_, table, _ := strings.Cut(documents(t)["../../docs/operations.md"], "\n## Ports to open\n")
	table, _, _ = strings.Cut(table, "\n## ")
	for _, m := range regexp.MustCompile(`(?m)^\| ([\d, ]+) \| ([^|]+) \|`).FindAllStringSubmatch(table, -1) {
		for _, p := range strings.Split(m[1], ", ") {
			n, err := strconv.Atoi(p)
			if err != nil {
				t.Fatal(err)
			}
			got[n] = m[2]
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("the page names %v, listened on are %v", got, want)
	}
	for _, address := range []string{server.MetricsAddress, agent.MetricsAddress} {
		if host, _, _ := net.SplitHostPort(address); !slices.Contains([]string{"127.0.0.1", "::1"}, host) {
			t.Errorf("metrics are served on %s", address)
		}
	}
}
