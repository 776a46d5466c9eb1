package main

import (
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
)

func TestAServiceWithoutBackendsSaysSo(t *testing.T) {
	if got := backendLines(api.Service{Name: "web", PortNames: []string{"http"}}); !strings.HasPrefix(got, "none: the selector matches no pod") {
		t.Errorf("%q", got)
	}
	some := api.Service{Name: "web", Backends: []api.ServiceBackend{{Cluster: "east", Address: addr("10.1.1.%d", 9), Ready: true, Weight: 100}}}
	if got := backendLines(some); got != "east:1/1\neast/10.1.1.9" {
		t.Errorf("%q", got)
	}
}
