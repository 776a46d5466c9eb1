package arch

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// mayImport is the direction of the tree. A name stands for its folder and everything
// below, except where a longer name is listed too. An import that is not listed is a
// mistake, or a decision that belongs in this table.
var mayImport = map[string][]string{
	"identity":  {},
	"manifest":  {},
	"service":   {},
	"bpf":       {},
	"statefile": {},
	"tunnel":    {"statefile", "internal/pace"},
	"deploy":    {},
	// Renders the chart that is beside it.
	"deploy/install": {"deploy"},
	"wire":           {"identity", "service"}, // what a peer exports of services, as backends
	"policy":         {"identity", "manifest"},
	"flow":           {"identity", "bpf"},
	"api":            {"statefile"},
	"store":          {"wire"},
	// What it asks in pods, it asks of nobody else's packages.
	"connectivity":       {"connectivity/probe", "api", "flow"},
	"connectivity/probe": {},
	"sysdump":            {},
	// What a container runtime starts for each pod: it must start fast.
	"cni": {"api"},
	// Installs it, for operators and for agents.
	"cni/conflist": {"statefile"},
	// The lab signs with the authorities of its clusters, to show what is done
	// about forgeries.
	"apiserver/authority": {"api", "statefile"},
	"apiserver":           {"api", "apiserver/authority", "store", "identity", "manifest", "wire", "policy", "service", "flow", "tunnel", "statefile", "internal/pace"},
	"meshagent":           {"meshagent/tables", "meshagent/reconcile", "meshagent/paths", "manifest", "api", "store", "identity", "wire", "policy", "service", "flow", "bpf", "tunnel", "statefile", "internal/firstthread", "cni/conflist", "internal/pace", "internal/addrmap"},
	// A process beside the agent, which tells it what to answer.
	"names": {"api"},
	// Knows a map by what it can do, not what it is for.
	"meshagent/reconcile": {},
	// Looks at a node from outside of the agent.
	"meshagent/doctor": {"bpf", "tunnel", "cni/conflist"},
	"meshagent/tables": {"identity", "wire", "policy", "service", "tunnel"},
	// Alone owns the way to other nodes; who they are is decided above it.
	"meshagent/paths": {"meshagent/tables", "meshagent/reconcile", "identity", "wire", "bpf", "tunnel", "internal/pace"},
	// Scripts compare what the maps of its machines say.
	"lab":       {"api", "apiserver/authority", "flow", "deploy", "bpf", "internal/firstthread"},
	"cmd/weft":  {"manifest", "api", "cni", "cni/conflist", "apiserver", "meshagent", "meshagent/tables", "meshagent/doctor", "tunnel", "lab", "policy", "service", "flow", "identity", "bpf", "statefile", "deploy/install", "connectivity", "connectivity/probe", "sysdump", "names"},
	"scenarios": {"lab"},
	"internal":  {"lab"},
	// Speaks the wire format, and is read by the real API server of a lab's cluster.
	"internal/benchmesh": {"lab", "api", "apiserver/authority", "wire", "identity", "bpf", "internal/figures"},
	// Reads which services are in Weft's maps.
	"internal/benchservices": {"lab", "api", "bpf", "internal/figures"},
	// What benchmarks measured, for whatever they measure.
	"internal/figures": {},
	// Looks for keys that are left over.
	"internal/chaos/labchaos": {"lab", "wire"},
	// Addresses for tests of every part.
	"internal/loopbacktest": {},
	// For whoever does a thing again and again.
	"internal/pace":    {},
	"internal/addrmap": {},
	// For whoever moves threads between namespaces.
	"internal/firstthread": {},
	// Whole clusters in one process.
	"internal/meshtest": {"api", "apiserver", "apiserver/authority", "meshagent", "store", "identity", "bpf", "tunnel", "wire"},
	// What may happen to such a mesh; its tests make it happen.
	"internal/chaos": {},
	// What Kubernetes expects of services; its tests show it on such clusters.
	"internal/expectations": {},
}

// testsMayImport is what a part's tests may import in addition.
var testsMayImport = map[string][]string{
	"deploy":                {"apiserver", "meshagent"}, // the examples are read as the processes read them
	"apiserver":             {"internal/loopbacktest"},
	"cni":                   {"cni/conflist", "meshagent", "meshagent/tables", "bpf", "internal/firstthread"}, // it asks a real agent
	"store":                 {"internal/loopbacktest"},
	"cmd/weft":              {"deploy"}, // the example is refused until it is edited
	"meshagent":             {"internal/loopbacktest"},
	"tunnel":                {"internal/loopbacktest", "internal/firstthread"},
	"bpf":                   {"internal/firstthread"},
	"statefile":             {"internal/firstthread"},
	"lab":                   {"internal/loopbacktest"},
	"internal/chaos":        {"internal/meshtest", "api", "meshagent", "meshagent/tables", "store", "identity", "policy", "bpf", "wire"},
	"internal/expectations": {"internal/meshtest", "wire", "bpf"},
	// Its etcd is compared with a real one.
	"internal/benchmesh": {"apiserver", "service", "store"},
}

// worksFor says which part must use each of these modules.
var worksFor = map[string]string{
	"go.etcd.io/etcd/client/v3":           "store",
	"go.etcd.io/etcd/server/v3/embed":     "apiserver",
	"github.com/cilium/ebpf":              "bpf",
	"golang.zx2c4.com/wireguard/wgctrl":   "tunnel",
	"k8s.io/client-go":                    "apiserver",
	"github.com/hashicorp/memberlist":     "tunnel",
	"github.com/prometheus/client_golang": "meshagent",
}

// part is the name in mayImport that a folder belongs to.
func part(dir string) string {
	for name := dir; ; {
		if _, ok := mayImport[name]; ok {
			return name
		}
		i := strings.LastIndex(name, "/")
		if i < 0 {
			return ""
		}
		name = name[:i]
	}
}

func TestImportsPointOneWay(t *testing.T) {
	for _, f := range goFiles(t) {
		from := part(f.dir())
		if from == "" {
			t.Errorf("%s: folder %s is not in mayImport", f.path, f.dir())
			continue
		}
		ours, _ := f.imports()
		for _, name := range ours {
			to := part(name)
			allowed := mayImport[from]
			if f.test() {
				allowed = slices.Concat(allowed, testsMayImport[from])
			}
			if to != from && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s: %s may import %v", f.path, name, from, allowed)
			}
		}
	}
}

// The table itself has no cycles.
func TestTheTableHasNoCycle(t *testing.T) {
	var visit func(name string, above []string)
	visit = func(name string, above []string) {
		if slices.Contains(above, name) {
			t.Fatalf("%s imports itself: %v", name, append(above, name))
		}
		for _, below := range mayImport[name] {
			visit(below, append(slices.Clone(above), name))
		}
	}
	for name := range mayImport {
		visit(name, nil)
	}
}

// In-memory twins have names that end in "test"; only tests may use them.
func TestTwinsAreForTestsOnly(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test() || f.twin() {
			continue
		}
		ours, others := f.imports()
		for _, name := range ours {
			if strings.HasSuffix(name, "test") {
				t.Errorf("%s imports the twin %s", f.path, name)
			}
		}
		if slices.Contains(others, "testing") {
			t.Errorf("%s imports testing", f.path)
		}
	}
}

func TestModulesDoTheWorkTheyAreMadeFor(t *testing.T) {
	left := maps.Clone(worksFor)
	for _, f := range goFiles(t) {
		if f.test() {
			continue
		}
		_, others := f.imports()
		for _, name := range others {
			for mod, folder := range left {
				if (name == mod || strings.HasPrefix(name, mod+"/")) && strings.HasPrefix(f.path, folder+"/") {
					delete(left, mod)
				}
			}
		}
	}
	for mod, folder := range left {
		t.Errorf("%s is not used in %s", mod, folder)
	}
}
