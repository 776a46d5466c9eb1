package meshagent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/statefile"
)

// membersFile keeps the CIDRs of the mesh on disk, one per line: those of members, and
// those of former members, which are blocked. A machine that boots guards them before
// it has read its store.
type membersFile string

// write replaces the file.
func (f membersFile) write(cidrs []netip.Prefix) error {
	var text strings.Builder
	for _, p := range cidrs {
		fmt.Fprintln(&text, p)
	}
	if err := statefile.Write(string(f), []byte(text.String())); err != nil {
		return fmt.Errorf("keep the CIDRs of the mesh in %s: %w", string(f), err)
	}
	return nil
}

// read returns the CIDRs. A line that cannot be read is skipped: its CIDR is not
// guarded until the store has been read.
func (f membersFile) read(log *slog.Logger) ([]netip.Prefix, error) {
	text, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the CIDRs of the mesh: %w", err)
	}
	cidrs, bad := parseMembers(string(text))
	if bad > 0 {
		// Status shows the copy. What can be read stays: until the store has been read,
		// it is all there is to guard by.
		d, err := statefile.KeepCopy(string(f), filepath.Dir(string(f)))
		if err == nil {
			err = f.write(cidrs)
		}
		log.Error("damaged CIDRs of the mesh are not guarded until the store has been read", "file", string(f), "lines", bad, "kept", d.Aside, "error", err)
	}
	return cidrs, nil
}

// parseMembers reads the lines, and counts those it cannot.
func parseMembers(text string) (cidrs []netip.Prefix, bad int) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		p, err := netip.ParsePrefix(line)
		if err != nil || p != p.Masked() || p.Bits() == 0 || p.Addr().Is4In6() {
			bad++
			continue
		}
		cidrs = append(cidrs, p)
	}
	return cidrs, bad
}

// guard marks the mesh's CIDRs as members' before any program is attached, so that
// nothing for them leaves unencrypted before the rest is known.
func (a *Agent) guard() error {
	kept, err := membersFile(a.membersPath()).read(a.log)
	if err != nil {
		return err
	}
	prefixes := a.edges.Datapath.Maps().Prefixes
	for _, p := range append(slices.Clone(a.node.members), kept...) {
		key := bpf.PrefixOf(p)
		if _, ok, err := prefixes.Lookup(key); err != nil || ok {
			if err != nil {
				return err
			}
			continue
		}
		info := bpf.IPInfo{Flags: bpf.IPMember}
		if slices.Contains(a.node.members, p) {
			info.Cluster = uint16(a.node.bundle.ClusterID)
		}
		if err := prefixes.Update(key, info); err != nil {
			return fmt.Errorf("guard %v: %w", p, err)
		}
	}
	return nil
}
