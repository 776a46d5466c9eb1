package meshagent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/meshagent/tables"
)

// hosts keeps a file in the format of /etc/hosts with the services of the own cluster,
// under the same names whichever cluster's backends answer.
//
// The file is bind-mounted into pods, and a bind mount follows the inode, so the file is
// rewritten in place, in one write. A file of more than a page may be seen half written
// for a moment.
type hosts struct {
	path   string
	own    string
	tables *tables.Tables
	listed <-chan struct{}
	tell   func(path string, err error)
}

// Run works until ctx ends. The file stays.
func (h *hosts) Run(ctx context.Context) error {
	if h.path == "" {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-h.listed:
	}
	for ctx.Err() == nil {
		txn := h.tables.DB.ReadTxn()
		_, changed := h.tables.Services.AllWatch(txn)
		var again <-chan time.Time
		err := writeInPlace(h.path, hostsFile(h.own, tables.All(txn, h.tables.Services)))
		h.tell(h.path, err)
		if err != nil {
			again = time.After(5 * time.Second)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again:
		}
	}
	return nil
}

// defaultNamespace is the one whose services are also known by name alone.
const defaultNamespace = "default"

// hostsFile is the content: localhost, then a line per address, sorted.
func hostsFile(own string, services []*tables.Service) []byte {
	lines := []string{"127.0.0.1 localhost", "::1 localhost ip6-localhost"}
	var names []string
	for _, row := range services {
		if row.Cluster != own {
			continue
		}
		name := row.Name + "." + row.Namespace
		all := []string{name + ".svc.cluster.local", name + ".svc", name}
		if row.Namespace == defaultNamespace {
			all = append(all, row.Name)
		}
		for _, a := range row.Addresses {
			names = append(names, a.String()+" "+strings.Join(all, " "))
		}
	}
	slices.Sort(names)
	return []byte(strings.Join(append(lines, names...), "\n") + "\n")
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
