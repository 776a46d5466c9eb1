package meshagent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/wire"
)

// files reports which of the agent's files cannot be written, and which were damaged
// and put aside, until an operator removes those.
type files struct {
	tables *tables.Tables
	// dirs are where damaged files are put aside.
	dirs []string
	log  *slog.Logger

	mu      sync.Mutex // guards failing
	failing map[string]string
	changed chan struct{} // has one element when it changed
}

// filesTurn is how often the folders are checked. Each check lists them once.
const filesTurn = 3 * time.Second

func newFiles(t *tables.Tables, stateDir, spool string, log *slog.Logger) *files {
	return &files{
		tables: t, dirs: []string{stateDir, filepath.Join(stateDir, "endpoints"), filepath.Join(stateDir, "lanes"), spool, tunnel.DefaultServeStateDir},
		log: log, failing: map[string]string{}, changed: make(chan struct{}, 1),
	}
}

// tell takes the result of the latest attempt to write a file.
func (f *files) tell(path string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	was, text := f.failing[path], ""
	delete(f.failing, path)
	if err != nil {
		text = err.Error()
		if !strings.Contains(text, path) {
			text = path + ": " + text
		}
		f.failing[path] = text
	}
	switch {
	case text == was:
		return
	case was == "":
		f.log.Warn("a file cannot be written; retrying", "file", path, "error", err)
	case text == "":
		f.log.Info("a file can be written again", "file", path)
	}
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// Run works until ctx ends.
func (f *files) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		tables.SetProblems(f.tables, wire.ProblemFiles, f.unwritten())
		tables.SetProblems(f.tables, wire.ProblemDamages, f.damages())
		select {
		case <-ctx.Done():
		case <-f.changed:
		case <-time.After(filesTurn):
		}
	}
	return nil
}

// unwritten is why files cannot be written, by path.
func (f *files) unwritten() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.failing)
}

// damages are the damaged files, by the path they were moved to.
func (f *files) damages() map[string]string {
	out := map[string]string{}
	for _, d := range statefile.Damages(f.dirs...) {
		out[d.Aside] = fmt.Sprintf("%v and all else goes on; look at it, then delete it there", d)
	}
	return out
}

// badBundle is the error of a join bundle that exists but cannot be used.
type badBundle struct{ error }

func (e badBundle) Unwrap() error { return e.error }

// spareBundle is the copy of the join bundle from the last start.
func spareBundle(stateDir string) string { return filepath.Join(stateDir, "join.yaml") }

// join reads the join bundle with read. A damaged one is kept aside and replaced by the
// copy that the last start left in the state folder. Without a copy, join fails.
func join[T any](path, stateDir string, log *slog.Logger, read func(path string) (T, error)) (T, error) {
	spare := spareBundle(stateDir)
	v, err := read(path)
	if err == nil {
		text, err := os.ReadFile(path)
		if err == nil {
			if old, oldErr := os.ReadFile(spare); oldErr != nil || string(old) != string(text) {
				err = statefile.Write(spare, text)
			}
		}
		if err != nil {
			log.Warn("cannot keep a copy of the join bundle", "error", err)
		}
		return v, nil
	}
	var bad badBundle
	if !errors.As(err, &bad) {
		return v, err
	}
	last, spareErr := read(spare)
	if spareErr != nil {
		if !errors.Is(spareErr, fs.ErrNotExist) {
			err = errors.Join(err, spareErr)
		}
		return v, err
	}
	text, spareErr := os.ReadFile(spare)
	d, keepErr := statefile.KeepCopy(path, stateDir)
	if spareErr == nil && keepErr == nil {
		keepErr = statefile.Write(path, text)
	}
	log.Error("the join bundle is damaged; using the copy from the last start", "file", path, "damage", err, "kept", d.Aside, "error", errors.Join(spareErr, keepErr))
	return last, nil
}
