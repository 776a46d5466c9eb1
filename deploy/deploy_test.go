package deploy

import (
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/apiserver"
	"github.com/weft-mesh/weft/meshagent"
)

func example(t *testing.T, name string) []byte {
	t.Helper()
	data, err := Files.ReadFile("example/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestExamplesAreAccepted(t *testing.T) {
	server := apiserver.Defaults()
	if err := yaml.UnmarshalStrict(example(t, "apiserver.yaml"), &server); err != nil {
		t.Error(err)
	} else if err := server.Validate(); err != nil {
		t.Error(err)
	}
	agent := meshagent.Defaults()
	if err := yaml.UnmarshalStrict(example(t, "agent.yaml"), &agent); err != nil {
		t.Error(err)
	} else if err := agent.Validate(); err != nil {
		t.Error(err)
	}
}

// TestUnits checks that the units keep two promises: stopping removes nothing, and what
// dies is started again.
func TestUnits(t *testing.T) {
	units, err := fs.Glob(Files, "systemd/*.service")
	if err != nil || len(units) != 4 {
		t.Fatalf("units = %v, %v; want four", units, err)
	}
	for _, name := range units {
		data, err := Files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		command := strings.TrimSuffix(strings.TrimPrefix(path.Base(name), "weft-"), ".service")
		wants := []string{"ExecStart=/usr/local/bin/weft " + command, "Restart=always"}
		if command != "dns" { // which keeps nothing
			wants = append(wants, "StateDirectory=weft/"+command)
		}
		for _, want := range wants {
			if !strings.Contains(string(data), want) {
				t.Errorf("%s lacks %s", name, want)
			}
		}
	}
}

// TestTunnelUnitAsksTheKernel checks that the unit waits until the module was loaded: only
// then can it see whether the kernel has WireGuard.
func TestTunnelUnitAsksTheKernel(t *testing.T) {
	data, err := Files.ReadFile("systemd/weft-tunnel.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Wants=modprobe@wireguard.service", "After=modprobe@wireguard.service",
		"ConditionPathExists=!/sys/module/wireguard", "Before=weft-agent.service",
	} {
		if !slices.Contains(strings.Split(string(data), "\n"), want) {
			t.Errorf("weft-tunnel.service lacks %s", want)
		}
	}
}
