package authority

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/apiserver/api"
)

// KeepRemovals raises the count of removed peers to atLeast and returns what it
// is then; it never falls. It lies beside the keys, because a store that is lost
// and rebuilt would count from the start, and certificates of before would be
// those of the peers that come next.
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
		if kept, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return 0, fmt.Errorf("count of removed peers: %s: %w (restore it from a backup, or write a number into it that it cannot have reached)", path, err)
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
