package lab

import (
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy"
)

// onDisk is a machine without power: its /etc/weft is a folder.
func onDisk(t *testing.T) *Node {
	c := &Cluster{Name: "onprem", ID: 2, IPFamilies: []IPFamily{IPv4}, PodCIDR: netip.MustParsePrefix("10.2.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.102.0.0/16")}
	return &Node{Cluster: c, Name: "rack1", Addr: netip.MustParseAddr("172.16.2.1"), dir: t.TempDir()}
}

func TestAgentRunsFromTheExampleAsItIs(t *testing.T) {
	n := onDisk(t)
	if err := installExample(n, "agent", nil); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(n.path("/etc/weft/agent.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := deploy.Files.ReadFile("example/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
}

// Only the site's own values differ from the example.
func TestAPIServerRunsFromTheExample(t *testing.T) {
	n := onDisk(t)
	if err := installExample(n, "apiserver", apiServerSite(n)); err != nil {
		t.Fatal(err)
	}
	got, want := map[string]any{}, map[string]any{}
	installed, err := os.ReadFile(n.path("/etc/weft/apiserver.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	example, err := deploy.Files.ReadFile("example/apiserver.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(installed, &got); err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(example, &want); err != nil {
		t.Fatal(err)
	}
	want["cluster"], want["id"], want["podCIDRs"] = "onprem", float64(2), []any{"10.2.0.0/16"}
	want["serviceCIDR"], want["advertise"] = "10.102.0.0/16", "172.16.2.1"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAtSite(t *testing.T) {
	site := map[string]string{"id": "7"}
	for name, tt := range map[string]struct {
		example, want string
		fails         bool
	}{
		"replaced, the rest stays": {"# id: of a cluster\nid: 1\nidle: 1\n  id: 1\n", "# id: of a cluster\nid: 7\nidle: 1\n  id: 1\n", false},
		"no such line":             {"ID: 1\n", "", true},
		"twice":                    {"id: 1\nid: 2\n", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := atSite(tt.example, site)
			if got != tt.want || (err != nil) != tt.fails {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}
