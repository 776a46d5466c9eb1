package flow

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/identity"
)

// Filter selects flows. Fields are joined by AND, the values of one field by OR; an empty
// field matches everything. The zero Filter matches every flow.
type Filter struct {
	Verdicts   []Verdict
	Reasons    []string
	Directions []Direction
	Protocols  []string
	Nodes      []string // cluster/node, or node alone; * and ? match
	Policies   []string // namespace/name, or name alone
	Services   []string // namespace/name, or name alone
	Since      time.Time
	Until      time.Time

	From   End // the source
	To     End // the destination
	Either End // either side, for each field separately
}

// End chooses one side of a flow.
type End struct {
	// Pods are "cluster/namespace/pod", "namespace/pod" or "pod". The pod part is a
	// prefix of the pod's name; an empty part matches anything.
	Pods       []string
	Clusters   []string // * and ? match
	Namespaces []string
	Identities []identity.Number
	Addresses  []netip.Prefix
	Ports      []uint16
	Labels     []string // "key", "key=value" or with a source, "k8s:key=value"
}

// field is one filter. Its name is both the query parameter of the API and the flag of
// `weft observe`.
type field struct {
	name, usage string
	parse       func(*Filter, string) error
	texts       func(*Filter) []string
}

// Names returns the names of all fields in the order of the manual, and the usage text of
// each.
func Names() (names []string, usage map[string]string) {
	usage = make(map[string]string, len(fields))
	for _, f := range fields {
		names = append(names, f.name)
		usage[f.name] = f.usage
	}
	return names, usage
}

// ParseFilter reads a filter from query parameters. A parameter may be repeated and may
// hold several values separated by commas. Unknown parameters are refused: a misspelt
// filter would otherwise show everything. The parameters of the stream itself, follow and
// last, do not belong here.
func ParseFilter(query url.Values) (Filter, error) {
	var f Filter
	known := make(map[string]bool, len(fields))
	for _, fd := range fields {
		known[fd.name] = true
		for _, text := range query[fd.name] {
			for _, part := range strings.Split(text, ",") {
				if err := fd.parse(&f, part); err != nil {
					return Filter{}, fmt.Errorf("filter %s: %w", fd.name, err)
				}
			}
		}
	}
	for name := range query {
		if !known[name] {
			return Filter{}, fmt.Errorf("there is no filter %q; choose from %s", name, strings.Join(sortedNames(), ", "))
		}
	}
	return f, nil
}

// Values returns the filter as query parameters; ParseFilter reads them back.
func (f *Filter) Values() url.Values {
	q := make(url.Values)
	for _, fd := range fields {
		if texts := fd.texts(f); len(texts) > 0 {
			q[fd.name] = texts
		}
	}
	return q
}

func sortedNames() []string {
	names, _ := Names()
	slices.Sort(names)
	return names
}

// Match reports whether a flow matches. It neither keeps nor changes the flow.
func (f *Filter) Match(fl *Flow) bool {
	return among(f.Verdicts, fl.Verdict) &&
		among(f.Reasons, fl.Reason) &&
		among(f.Directions, fl.Direction) &&
		among(f.Protocols, fl.Protocol) &&
		anyOf(f.Nodes, func(p string) bool { return matchNode(p, fl.Node) }) &&
		anyOf(f.Policies, func(p string) bool { return hasPolicy(fl.Policies, p) }) &&
		anyOf(f.Services, func(s string) bool { return isService(fl.Service, s) }) &&
		(f.Since.IsZero() || !fl.Time.Before(f.Since)) &&
		(f.Until.IsZero() || fl.Time.Before(f.Until)) &&
		f.From.match(&fl.Source) && f.To.match(&fl.Destination) &&
		f.Either.matchEither(&fl.Source, &fl.Destination)
}

func among[T comparable](wanted []T, v T) bool {
	return len(wanted) == 0 || slices.Contains(wanted, v)
}

func anyOf[T any](wanted []T, match func(T) bool) bool {
	return len(wanted) == 0 || slices.ContainsFunc(wanted, match)
}

func (e *End) match(ep *Endpoint) bool { return e.matchEither(ep, ep) }

// matchEither checks each field against either side, so that pod A and port 80 match a
// flow from A to port 80.
func (e *End) matchEither(a, b *Endpoint) bool {
	has := func(one func(*Endpoint) bool) bool { return one(a) || one(b) }
	return anyOf(e.Pods, func(p string) bool { return has(func(ep *Endpoint) bool { return matchPod(p, ep) }) }) &&
		anyOf(e.Clusters, func(p string) bool { return has(func(ep *Endpoint) bool { return glob(p, ep.Cluster) }) }) &&
		anyOf(e.Namespaces, func(n string) bool { return a.Namespace == n || b.Namespace == n }) &&
		anyOf(e.Identities, func(n identity.Number) bool { return a.Identity == n || b.Identity == n }) &&
		anyOf(e.Addresses, func(p netip.Prefix) bool { return p.Contains(a.Address) || p.Contains(b.Address) }) &&
		anyOf(e.Ports, func(p uint16) bool { return a.Port == p || b.Port == p }) &&
		anyOf(e.Labels, func(l string) bool { return has(func(ep *Endpoint) bool { return hasLabel(ep.Labels, l) }) })
}

func matchPod(pattern string, ep *Endpoint) bool {
	if ep.Pod == "" {
		return false
	}
	parts := strings.Split(pattern, "/")
	pod := parts[len(parts)-1]
	var namespace, cluster string
	if len(parts) > 1 {
		namespace = parts[len(parts)-2]
	}
	if len(parts) > 2 {
		cluster = parts[len(parts)-3]
	}
	return strings.HasPrefix(ep.Pod, pod) &&
		(namespace == "" || namespace == ep.Namespace) &&
		(cluster == "" || cluster == ep.Cluster)
}

func matchNode(pattern, node string) bool {
	if !strings.Contains(pattern, "/") {
		node = node[strings.LastIndex(node, "/")+1:]
	}
	return glob(pattern, node)
}

// glob is path.Match; patterns are checked when they are parsed.
func glob(pattern, name string) bool {
	ok, _ := path.Match(pattern, name)
	return ok
}

func hasPolicy(policies []Policy, want string) bool {
	return slices.ContainsFunc(policies, func(p Policy) bool {
		return want == p.Name || want == p.Namespace+"/"+p.Name
	})
}

func isService(s *Service, want string) bool {
	return s != nil && s.Name != "" && (want == s.Name || want == s.Namespace+"/"+s.Name)
}

func hasLabel(labels []string, want string) bool {
	for _, l := range labels {
		if l == want || strings.HasPrefix(l, want+"=") {
			return true
		}
		if _, bare, ok := strings.Cut(l, ":"); ok && (bare == want || strings.HasPrefix(bare, want+"=")) {
			return true
		}
	}
	return false
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535", s)
	}
	return uint16(n), nil
}
