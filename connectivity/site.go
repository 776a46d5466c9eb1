package connectivity

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/connectivity/probe"
	"github.com/weft-mesh/weft/flow"
)

// The namespaces of a test, and the label that says whose they are.
const (
	Namespace = "weft-test"
	// Other has the pods of another namespace.
	Other = "weft-test-other"
	label = "weft.io/connectivity-test"
)

// Site is one cluster.
type Site interface {
	// Name is its name in the mesh, and Context that of the kubeconfig's context.
	Name() string
	Context() string
	// Leftovers are what another test has left, or still uses.
	Leftovers(ctx context.Context) ([]string, error)
	// Look finds out what there is without changing anything; Prepare starts the pods.
	Look(ctx context.Context) (*Facts, error)
	Prepare(ctx context.Context, f *Facts) error
	// Ask lets a pod ask questions.
	Ask(ctx context.Context, pod string, q []probe.Question) ([]probe.Answer, error)
	Apply(ctx context.Context, manifest string) error
	Withdraw(ctx context.Context, manifest string) error
	// Scale sets how many pods the global service has.
	Scale(ctx context.Context, replicas int) error
	Flows(ctx context.Context, r flow.Request) ([]flow.Flow, error)
	Status(ctx context.Context) (*api.Status, error)
	// Weft runs a command of weft in the agent's container of a node.
	Weft(ctx context.Context, node string, args ...string) ([]byte, error)
	// Clean removes everything that tests make.
	Clean(ctx context.Context) error
}

// Facts are what is known of a cluster.
type Facts struct {
	Name string
	// Nodes are the two that are used, "near" and "far"; without a second one there is no far.
	Nodes map[string]string
	// All are all of its nodes.
	All []string
	// Addresses are those of pods, and of "node/near" and "node/far", IPv4 first.
	Addresses map[string][]netip.Addr
	Services  map[string]Service
	// Slices are the endpoints of headless services.
	Slices map[string][]netip.Addr
	// Peers are those with which it is joined.
	Peers []string
	// Here is this machine, as the cluster's nodes see it, and HerePort the port at which it
	// answers. Outside and Inbound say why there is no way to it, or from it.
	Here             []netip.Addr
	HerePort         uint16
	Outside, Inbound string
	// NoExternal says why there is no service with an external address.
	NoExternal string
}

// Service is the addresses of one.
type Service struct {
	IPs       []netip.Addr
	External  []netip.Addr
	NodePorts map[string]uint16 // by port and protocol, as "80/tcp"
}

// has says whether pods have addresses of a family.
func (f *Facts) has(six bool) bool {
	return slices.ContainsFunc(f.Addresses["client"], func(a netip.Addr) bool { return a.Is6() == six })
}

// place is what a step's To names, in its parts: "svc/server:80/udp".
type place struct {
	peer  bool
	kind  string // pod if empty
	name  string
	node  string // of a node port: near or far
	port  string
	proto string
}

func parsePlace(text string) (p place, err error) {
	rest, peer := strings.CutPrefix(text, "peer/")
	p.peer, p.proto = peer, probe.TCP
	for _, proto := range []string{probe.UDP, probe.Ping, probe.Connect} {
		if cut, ok := strings.CutSuffix(rest, "/"+proto); ok {
			rest, p.proto = cut, proto
		}
	}
	if kind, name, ok := strings.Cut(rest, "/"); ok {
		p.kind, rest = kind, name
	}
	rest, p.port, _ = strings.Cut(rest, ":")
	p.name, p.node, _ = strings.Cut(rest, "@")
	if name, port, ok := strings.Cut(p.node, ":"); ok {
		p.node, p.port = name, port
	}
	switch p.kind {
	case "", "svc", "node", "external", "slice", "node-port":
		return p, nil
	}
	return p, fmt.Errorf("there is no kind of place %q", p.kind)
}

// resolve finds the addresses of a place, of one IP family.
func (f *Facts) resolve(p place, six bool) ([]string, error) {
	var addrs []netip.Addr
	port := p.port
	switch p.kind {
	case "":
		if p.name == "outside" {
			addrs, port = f.Here, strconv.Itoa(int(f.HerePort))
			break
		}
		addrs = f.Addresses[p.name]
	case "node":
		addrs = f.Addresses["node/"+p.name]
	case "svc":
		addrs = f.Services[p.name].IPs
	case "external":
		addrs = f.Services[p.name].External
	case "slice":
		addrs = f.Slices[p.name]
	case "node-port":
		addrs = f.Addresses["node/"+p.node]
		proto := p.proto
		if proto == probe.Connect {
			proto = probe.TCP
		}
		port = strconv.Itoa(int(f.Services[p.name].NodePorts[p.port+"/"+proto]))
		if port == "0" {
			return nil, fmt.Errorf("service %s has no node port for %s/%s", p.name, p.port, p.proto)
		}
	}
	var out []string
	for _, a := range addrs {
		switch {
		case a.Is6() != six:
		case p.proto == probe.Ping:
			out = append(out, a.String())
		default:
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("port of %s: %w", p.name, err)
			}
			out = append(out, netip.AddrPortFrom(a, uint16(n)).String())
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s of cluster %s has no address of %s", strings.Trim(p.kind+" "+p.name, " "), f.Name, family(six))
	}
	return out, nil
}

func family(six bool) string {
	if six {
		return "IPv6"
	}
	return "IPv4"
}

// podName is how a pod names itself.
func podName(cluster, pod string) string {
	if pod == "here" {
		return "here"
	}
	return cluster + "/" + namespaceOf(pod) + "/" + pod
}

// namespaceOf is the namespace of a pod of the test.
func namespaceOf(pod string) string {
	if pod == "guest" {
		return Other
	}
	return Namespace
}

func hostOf(addrPort string) string {
	at, err := netip.ParseAddrPort(addrPort)
	if err != nil {
		return addrPort
	}
	return at.Addr().Unmap().String()
}

// missing says why a need is not met, or "".
func (n Need) missing(f, peer *Facts, why string) string {
	switch n {
	case TwoNodes:
		if f.Nodes["far"] == "" {
			return "cluster " + f.Name + " has one node that pods can be on"
		}
	case IPv6, IPv4:
		for _, c := range []*Facts{f, peer} {
			if c != nil && !c.has(n == IPv6) {
				return "pods of cluster " + c.Name + " have no " + string(n)
			}
		}
	case Outside:
		return f.Outside
	case Inbound:
		return f.Inbound
	case External:
		return f.NoExternal
	case Peer:
		return why
	}
	return ""
}
