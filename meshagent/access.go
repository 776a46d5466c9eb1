package meshagent

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent/certificate"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// access knows how the API servers are reached: at first as the join bundle says, then as
// the cluster says, so that the node finds one that was added after it had joined, and
// forgets one that was deleted. Safe for concurrent use.
type access struct {
	cluster string
	tables  *tables.Tables
	reach   func(ctx context.Context, named wire.Access) error // nil: nobody has to know
	trouble *trouble
	names   map[string][]netip.Addr // those in the join bundle, as they resolved at the start

	mu    sync.Mutex // guards what follows
	used  wire.Access
	named wire.Access // what the cluster named last; the rest of used was added by hand
}

// lookupTime bounds how long the start waits for the names of API servers to resolve.
const lookupTime = 2 * time.Second

// newAccess returns the access of a join bundle.
func newAccess(b *api.JoinBundle, lookup func(ctx context.Context, network, host string) ([]netip.Addr, error), t *tables.Tables, reach func(context.Context, wire.Access) error, trouble *trouble) *access {
	x := &access{cluster: b.Cluster, tables: t, reach: reach, trouble: trouble, names: map[string][]netip.Addr{}}
	x.used, x.named = certificate.AccessOf(b)
	ctx, cancel := context.WithTimeout(context.Background(), lookupTime)
	defer cancel()
	for _, host := range hostsOf(x.used) {
		if _, err := netip.ParseAddr(host); err == nil {
			continue
		}
		if found, err := lookup(ctx, "ip", host); err == nil && len(found) > 0 {
			x.names[host] = found
		}
	}
	return x
}

// follow returns what to use when the cluster names these.
func (x *access) follow(now wire.Access) wire.Access {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !now.Equal(x.named) {
		x.used, x.named = x.used.Follow(x.named, now), now
	}
	return x.used
}

func (x *access) now() wire.Access {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.used
}

// servers are the addresses of the API servers; told is what the cluster names, nil if it
// has not yet.
func (x *access) servers(told *wire.Access) []netip.Addr {
	used := x.now()
	if told != nil {
		used = x.follow(*told)
	}
	addrs, _ := x.addresses(used)
	return addrs
}

// addresses are those of API servers, each once, and the names that did not resolve.
func (x *access) addresses(a wire.Access) (addrs []netip.Addr, unknown []string) {
	for _, host := range hostsOf(a) {
		found := x.names[host]
		if addr, err := netip.ParseAddr(host); err == nil {
			found = []netip.Addr{addr}
		}
		if len(found) == 0 {
			unknown = append(unknown, host)
		}
		for _, addr := range found {
			if addr = addr.Unmap(); !slices.Contains(addrs, addr) {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs, unknown
}

// hostsOf returns the hosts of the API servers and of the store, each once.
func hostsOf(a wire.Access) (hosts []string) {
	for _, text := range slices.Concat(a.Servers, a.Etcd) {
		if u, err := url.Parse(text); err == nil && u.Hostname() != "" && !slices.Contains(hosts, u.Hostname()) {
			hosts = append(hosts, u.Hostname())
		}
	}
	return hosts
}

// Run keeps what is used, for this process and the next one, until ctx ends.
func (x *access) Run(ctx context.Context) error {
	var kept wire.Access
	unknown := ""
	x.trouble.retry(ctx, func(ctx context.Context) error {
		for {
			row, changed := tables.Watch(x.tables.DB.ReadTxn(), x.tables.Clusters, x.cluster)
			used := x.now()
			if row != nil && row.Access != nil {
				used = x.follow(*row.Access)
			}
			_, names := x.addresses(used)
			if text := strings.Join(names, ", "); text != unknown {
				unknown = text
				setProblem(x.tables, wire.ProblemParts, "kube-apiserver", unresolved(text))
			}
			if row != nil && row.Access != nil && x.reach != nil && !row.Access.Equal(kept) {
				if err := x.reach(ctx, *row.Access); err != nil {
					return err
				}
				kept = *row.Access
			}
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
		}
	})
	return nil
}

// unresolved says what it means that names of API servers do not resolve.
func unresolved(names string) string {
	if names == "" {
		return ""
	}
	return fmt.Sprintf("policies for the entity kube-apiserver do not cover %s: no address found for this name; restart the agent once it resolves, or put an address into the join bundle", names)
}
