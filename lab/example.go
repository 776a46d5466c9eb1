package lab

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/deploy"
)

// The machines of a lab are configured from the examples in the deploy folder, as
// an operator would do it: the agent's unchanged, the API server's with its site's
// values. A wrong example fails the lab.

// installExample writes the example configuration of a process to the machine's
// disk, with the site's values instead of the example's.
func installExample(n *Node, process string, site map[string]string) error {
	example, err := deploy.Files.ReadFile("example/" + process + ".yaml")
	if err != nil {
		return err
	}
	text, err := atSite(string(example), site)
	if err != nil {
		return fmt.Errorf("deploy/example/%s.yaml: %w", process, err)
	}
	path := n.path("/etc/weft/" + process + ".yaml")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o600)
}

// atSite puts a site's values into an example. Each key must begin exactly one
// line; all other lines stay unchanged.
func atSite(example string, site map[string]string) (string, error) {
	var text strings.Builder
	times := map[string]int{}
	for line := range strings.Lines(example) {
		key, _, _ := strings.Cut(line, ":")
		if value, ok := site[key]; ok {
			line = key + ": " + value + "\n"
			times[key]++
		}
		text.WriteString(line)
	}
	for _, key := range slices.Sorted(maps.Keys(site)) {
		if times[key] != 1 {
			return "", fmt.Errorf("%d lines begin with %s:, want one", times[key], key)
		}
	}
	return text.String(), nil
}

// apiServerSite is what an operator edits in the API server's example.
func apiServerSite(n *Node) map[string]string {
	c := n.Cluster
	cidrs := c.ServiceCIDRs()
	services := cidrs[0].String()
	if len(cidrs) > 1 { // a line of its own, which the example lacks
		services += "\nipv6ServiceCIDR: " + cidrs[1].String()
	}
	return map[string]string{
		"cluster":     c.Name,
		"id":          fmt.Sprint(c.ID),
		"podCIDRs":    "[" + list(c.PodCIDRs()) + "]",
		"serviceCIDR": services,
		"advertise":   n.Addr.String(),
	}
}
