package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// salvage saves what can explain a failure before the lab is taken down: the logs, and
// what an operator would look at. The error says where it is, and what could not be
// saved.
func (v *Live) salvage(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "weft-lab-"+v.Lab.ID+"-")
	if err != nil {
		return fmt.Errorf("save logs: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return errors.Join(
		fmt.Errorf("logs, the final status and recent flows are kept in %s", dir),
		keepFiles(dir, filepath.Join(v.Lab.Dir, "logs")),
		v.keepAnswer(ctx, filepath.Join(dir, "dropped.txt"), "observe", "--all", "--verdict", "DROPPED", "--verdict", "RESET"),
		v.keepAnswer(ctx, filepath.Join(dir, "flows.txt"), "observe", "--all"),
		v.keepAnswer(ctx, filepath.Join(dir, "status.txt"), "status"),
	)
}

// keepFiles copies the files of a flat directory. One that cannot be copied does not
// stop the others.
func keepFiles(to, from string) error {
	files, err := os.ReadDir(from)
	failed := []error{err}
	for _, f := range files {
		failed = append(failed, keep(filepath.Join(to, f.Name()), func(w io.Writer) error {
			file, err := os.Open(filepath.Join(from, f.Name()))
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = io.Copy(w, file)
			return err
		}))
	}
	return errors.Join(failed...)
}

// keepAnswer writes the answer of all clusters to a file. If one no longer answers, the
// file says so.
func (v *Live) keepAnswer(ctx context.Context, path string, question ...string) error {
	return keep(path, func(w io.Writer) error {
		err := v.Lab.Run(ctx, filepath.Dir(path), w, w, append([]string{"weft", "-c", "all", "--timeout", "5s"}, question...)...)
		if err != nil {
			_, err = fmt.Fprintln(w, err)
		}
		return err
	})
}

// keep writes a file.
func keep(path string, write func(io.Writer) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(file), file.Close())
}
