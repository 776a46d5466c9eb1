package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// salvage keeps what can explain a failure, before the lab is taken down: the
// logs, and what the clusters' operator would ask for. The error says where,
// and what could not be kept.
func (v *Live) salvage(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "weft-lab-"+v.Lab.ID+"-")
	if err != nil {
		return fmt.Errorf("keep logs: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return errors.Join(
		fmt.Errorf("logs, status and flows of the end are kept in %s", dir),
		os.CopyFS(dir, os.DirFS(filepath.Join(v.Lab.Dir, "logs"))),
		v.keepAnswer(ctx, filepath.Join(dir, "dropped.txt"), "observe", "--all", "--verdict", "DROPPED", "--verdict", "RESET"),
		v.keepAnswer(ctx, filepath.Join(dir, "flows.txt"), "observe", "--all"),
		v.keepAnswer(ctx, filepath.Join(dir, "status.txt"), "status"),
	)
}

// keepAnswer writes what all clusters answer to a file. Who does not answer any
// more says so there.
func (v *Live) keepAnswer(ctx context.Context, path string, question ...string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := v.Lab.Run(ctx, filepath.Dir(path), file, file, append([]string{"weft", "-c", "all", "--timeout", "5s"}, question...)...); err != nil {
		_, err = fmt.Fprintln(file, err)
		return err
	}
	return nil
}
