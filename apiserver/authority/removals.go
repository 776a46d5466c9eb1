package authority

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/statefile"
)

// KeepRemovals raises the count of removed peers to atLeast and returns what it
// is then; it never falls. It lies beside the keys, because a store that is lost
// and rebuilt would count from the start, and certificates of before would be
// those of the peers that come next. A file that is damaged is put aside, and the
// count goes on from a number that it cannot have reached, one a second since 1970.
func (a *Authority) KeepRemovals(atLeast uint64) (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	path := a.path("removals")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("count of removed peers: %w", err)
	}
	var kept uint64
	if err == nil {
		kept, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		if err != nil || !strings.HasSuffix(string(text), "\n") { // cut off
			if _, err := statefile.PutAside(path); err != nil {
				return 0, fmt.Errorf("count of removed peers: %w", err)
			}
			kept, atLeast = 0, max(atLeast, uint64(time.Now().Unix()))
		}
	}
	if kept >= atLeast {
		return kept, nil
	}
	if err := api.WriteSecretFile(path, fmt.Appendln(nil, atLeast)); err != nil {
		return 0, fmt.Errorf("count of removed peers: %w", err)
	}
	return atLeast, nil
}
