package scenario

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// salvage keeps what can explain a failure, before the lab is taken down: the
// logs, and what the clusters' operator would ask for. The error says where.
func (v *Live) salvage(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "weft-lab-"+v.Lab.ID+"-")
	if err != nil {
		return fmt.Errorf("keep logs: %w", err)
	}
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(v.Lab.Dir, "logs"))); err != nil {
		return fmt.Errorf("keep logs: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	asked := map[string][]string{
		"status":  {"status"},
		"dropped": {"observe", "--all", "--verdict", "DROPPED", "--verdict", "RESET"},
		"flows":   {"observe", "--all"},
	}
	for name, question := range asked {
		file, err := os.Create(filepath.Join(dir, name+".txt"))
		if err != nil {
			return fmt.Errorf("keep %s: %w", name, err)
		}
		// Who does not answer any more says so in the file.
		_ = v.Lab.Run(ctx, dir, file, file, append([]string{"weft", "-c", "all", "--timeout", "5s"}, question...)...)
		if err := file.Close(); err != nil {
			return fmt.Errorf("keep %s: %w", name, err)
		}
	}
	return fmt.Errorf("logs, status and flows of the end are kept in %s", dir)
}
