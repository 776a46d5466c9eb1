package meshagent

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/meshagent/tables"
)

// hosts keeps a file in the format of /etc/hosts with the services of the own cluster,
// under the same names whichever cluster's backends answer. Or, if there is a name server, a
// resolv.conf beside a file without services.
//
// The file is bind-mounted into pods, and a bind mount follows the inode, so the file is
// rewritten in place, in one write. A file of more than a page may be seen half written
// for a moment.
type hosts struct {
	path   string
	dns    []netip.Addr // where pods ask for names instead; none: nowhere
	domain string
	own    string
	tables *tables.Tables
	listed <-chan struct{}
	tell   func(path string, err error)
}

// A name is written at once. As that writes the whole file, a large one is then left alone
// for as long as its size takes at hostsRate, 0.1 s for 5,000 services. One of less than
// leastHosts bytes costs less than that is worth.
const (
	hostsRate  = 5_000_000 // bytes per second
	leastHosts = 16 << 10
	hostsRetry = time.Second // after a failure
)

// Run works until ctx ends. The file stays.
func (h *hosts) Run(ctx context.Context) error {
	if h.path == "" {
		return nil
	}
	if len(h.dns) > 0 {
		h.resolve(ctx)
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-h.listed:
	}
	txn := h.tables.DB.WriteTxn(h.tables.Services)
	changes, err := h.tables.Services.Changes(txn)
	txn.Commit()
	if err != nil {
		return fmt.Errorf("follow services: %w", err)
	}
	defer changes.Close()

	lines := map[string][]string{} // by service
	stale := true
	var rest <-chan time.Time // nil: the file may be written
	for {
		seq, more := changes.Next(h.tables.DB.ReadTxn())
		for c := range seq {
			stale = h.note(lines, c.Object, c.Deleted) || stale
		}
		if stale && rest == nil {
			content := hostsFile(lines)
			err := writeInPlace(h.path, content)
			h.tell(h.path, err)
			switch stale = err != nil; {
			case stale:
				rest = time.After(hostsRetry)
			case len(content) >= leastHosts:
				rest = time.After(time.Duration(len(content)) * time.Second / hostsRate)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-more:
		case <-rest:
			rest = nil
		}
	}
}

// resolve has pods ask for names. It returns when ctx ends.
func (h *hosts) resolve(ctx context.Context) {
	files := []struct {
		path    string
		content []byte
	}{{h.path, hostsFile(nil)}, {filepath.Join(filepath.Dir(h.path), "resolv.conf"), resolvFile(h.dns, h.domain)}}
	for {
		failed := false
		for _, f := range files {
			err := writeInPlace(f.path, f.content)
			failed = failed || err != nil
			h.tell(f.path, err)
		}
		var again <-chan time.Time
		if failed {
			again = time.After(hostsRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		}
	}
}

// resolvFile is a resolv.conf for pods, with which the services of the default namespace are
// known by name alone, as they are by the hosts file.
func resolvFile(servers []netip.Addr, domain string) []byte {
	var b strings.Builder
	for _, a := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	domain = strings.TrimSuffix(domain, ".")
	fmt.Fprintf(&b, "search %s.svc.%s svc.%s %s\noptions ndots:5\n", defaultNamespace, domain, domain, domain)
	return []byte(b.String())
}

// note takes in a service, and reports whether that changes the file.
func (h *hosts) note(lines map[string][]string, row *tables.Service, deleted bool) bool {
	if row.Cluster != h.own {
		return false
	}
	var now []string
	if !deleted {
		now = hostsLines(row)
	}
	if slices.Equal(now, lines[row.Key()]) {
		return false
	}
	if lines[row.Key()] = now; len(now) == 0 {
		delete(lines, row.Key())
	}
	return true
}

// defaultNamespace is the one whose services are also known by name alone.
const defaultNamespace = "default"

// hostsLines are the lines of a service, one for each address.
func hostsLines(row *tables.Service) []string {
	name := row.Name + "." + row.Namespace
	all := []string{name + ".svc.cluster.local", name + ".svc", name}
	if row.Namespace == defaultNamespace {
		all = append(all, row.Name)
	}
	var lines []string
	for _, a := range row.Addresses {
		lines = append(lines, a.String()+" "+strings.Join(all, " "))
	}
	return lines
}

// hostsFile is the content: localhost, then the services' lines, sorted.
func hostsFile(services map[string][]string) []byte {
	var names []string
	for _, lines := range services {
		names = append(names, lines...)
	}
	slices.Sort(names)
	return []byte("127.0.0.1 localhost\n::1 localhost ip6-localhost\n" + strings.Join(append(names, ""), "\n"))
}

func writeInPlace(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write names: %w", err)
	}
	defer f.Close()
	// Overwritten and then cut to length: a reader sees old or new lines, never an empty
	// file.
	if _, err := f.WriteAt(content, 0); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
