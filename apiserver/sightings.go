package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/wire"
)

// sightings remember since when each concern has been seen, for concerns whose maker
// cannot say when they began. They are kept in a file, so that an old concern does not
// look young after a restart of the API server.
type sightings struct {
	path string
	log  *slog.Logger

	mu   sync.Mutex // guards what follows
	seen map[sighting]*span

	failing failing // to write the file
}

// sighting identifies a concern. The message is not part of it, because it changes with
// every count in it.
type sighting struct{ Object, Node, Reason, Part string }

// span is when a concern was first and last seen.
type span struct{ first, last time.Time }

// sightingFile is the file's form.
type sightingFile struct {
	Seen []sightingEntry `json:"seen"`
}

type sightingEntry struct {
	sighting
	Since time.Time `json:"since"`
}

const (
	// sightingTurn is how exact ages are when nobody asks for the status.
	sightingTurn = 5 * time.Second
	// A concern that comes back within sightingGap counts as never gone: a controller
	// that lists its store again has none for a moment.
	sightingGap = 3 * sightingTurn
	// restartGap is how long the parts may take after a start to find out again what
	// they knew before.
	restartGap = time.Minute
)

// openSightings reads what the last run left. If the file is missing or damaged, only
// the ages are lost.
func openSightings(dir string, now time.Time, log *slog.Logger) (*sightings, error) {
	s := &sightings{path: filepath.Join(dir, "concerns.json"), log: log, seen: map[sighting]*span{}}
	text, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remember concerns: %w", err)
	}
	var file sightingFile
	if damage := json.Unmarshal(text, &file); damage != nil {
		d, err := statefile.PutAside(s.path)
		if err != nil {
			return nil, fmt.Errorf("remember concerns: %w", err)
		}
		log.Error("a damaged file was put aside; concerns appear younger than they are", "file", s.path, "as", d.Aside, "err", damage)
		return s, nil
	}
	for _, e := range file.Seen {
		s.seen[e.sighting] = &span{e.Since, now.Add(restartGap - sightingGap)}
	}
	return s, nil
}

// date sets the Since of each concern that has none to when it was first seen, and
// forgets concerns that are over.
func (s *sightings) date(now time.Time, all []api.Concern) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for i := range all {
		c := &all[i]
		if !c.Since.IsZero() {
			continue
		}
		id := sighting{c.Object, c.Node, c.Reason, c.Part}
		at := s.seen[id]
		if at == nil {
			at, changed = &span{first: now}, true
			s.seen[id] = at
		}
		if at.last.Before(now) {
			at.last = now
		}
		c.Since = at.first
	}
	before := len(s.seen)
	maps.DeleteFunc(s.seen, func(_ sighting, at *span) bool { return now.Sub(at.last) >= sightingGap })
	if changed || len(s.seen) < before || s.failing.now() {
		s.saveLocked()
	}
}

// concerns says that the file is behind.
func (s *sightings) concerns() []api.Concern {
	return s.failing.concern(api.Concern{
		Object: "API server", Reason: "FileNotWritten", Message: "since when concerns exist is not kept in " + s.path,
		Next: "make the file writable: after a restart, concerns appear younger than they are",
	})
}

func (s *sightings) saveLocked() {
	var file sightingFile
	for id, at := range s.seen {
		file.Seen = append(file.Seen, sightingEntry{id, at.first})
	}
	err := statefile.Write(s.path, wire.Marshal(file))
	s.failing.note(s.log, "cannot keep since when concerns exist; after a restart they appear younger than they are", err)
}

// watchConcerns looks at the status periodically, so that a concern's age does not start
// when somebody asks.
func (s *server) watchConcerns(ctx context.Context) error {
	tick := time.NewTicker(sightingTurn)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, err := s.look(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("looking for concerns", "err", err)
		}
	}
}
