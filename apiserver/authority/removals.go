package authority

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/statefile"
)

// KeepRemovals raises the count of removed peers to atLeast and returns the count. It
// never falls. It is kept beside the keys because a store that is lost and rebuilt would
// count from zero, and certificates of removed peers would be valid for later ones. A
// damaged file is put aside, and the count continues from a number that it cannot have
// reached: one a second since 1970.
func (a *Authority) KeepRemovals(atLeast uint64) (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	path := a.path("removals")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("count of removed peers: %w", err)
	}
	missing := err != nil
	kept, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	damaged := !missing && (err != nil || !strings.HasSuffix(string(text), "\n")) // cut short
	if damaged {
		if _, err := statefile.PutAside(path); err != nil {
			return 0, fmt.Errorf("count of removed peers: %w", err)
		}
	}
	// A file that was put aside and is missing: what should have replaced it could
	// not be written.
	if damaged || missing && slices.ContainsFunc(statefile.Damages(a.dir), func(d statefile.Damaged) bool { return d.Path == path }) {
		kept, atLeast = 0, max(atLeast, uint64(time.Now().Unix()))
	}
	if kept >= atLeast {
		return kept, nil
	}
	if err := statefile.Write(path, fmt.Appendln(nil, atLeast)); err != nil {
		return 0, fmt.Errorf("count of removed peers: %w", err)
	}
	return atLeast, nil
}
