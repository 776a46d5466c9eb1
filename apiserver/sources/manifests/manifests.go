// Package manifests makes the objects of a cluster what the files of a folder say, for as
// long as they say it.
//
// What an object must be like, and whose it is, is decided in package registry.
package manifests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/journal"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/internal/pace"
	"github.com/weft-mesh/weft/wire"
)

const (
	// turn is the pause between two looks at the folder. Files that are the same at two
	// looks are not being written: they are read then. Halving it halves the time from a
	// change to its effect, 0.5 to 1 s, and doubles the looks, one system call per file.
	turn = 500 * time.Millisecond
	// Pauses after a failure of the store double from the first to the last.
	firstRetry = time.Second
	lastRetry  = 15 * time.Second
	// All manifests are compared with the registry whenever anything in it has changed.
	// Where others change it all the time, that takes one part in share of the time.
	share       = 20
	longestRest = 30 * time.Second
	// mostLines is how many mistakes have a line each in the status.
	mostLines = 10
)

// Registry takes what the folder says.
type Registry interface {
	// Sync makes the source's objects equal to a set.
	Sync(ctx context.Context, set registry.Set) (*registry.Outcome, error)
	// Turn differs once the registry's objects have changed, by whomever.
	Turn(ctx context.Context) (journal.Turn, error)
}

// Config of a Source.
type Config struct {
	// Dir is the folder; "" if there is none. What came from one then stays, and the status
	// says so.
	Dir      string
	Registry Registry
	Log      *slog.Logger
}

// Source follows a folder. It removes what is no longer in it, but only if it is sure:
//
//	two equal looks at the folder ─► all files read ─► each parsed ─► remove the rest
//
// A folder without any manifest is not sure either: its disk may not be mounted.
type Source struct {
	conf    Config
	changed chan struct{}

	mu       sync.Mutex // guards what follows
	looked   bool
	concerns []api.Concern
}

// New makes a Source.
func New(c Config) *Source { return &Source{conf: c, changed: make(chan struct{}, 1)} }

// state is what one look leaves for the next.
type state struct {
	seen look
	// moving is since when the folder has been changing; zero if it is still.
	moving time.Time
	// done is what the registry was last made equal to, and at which of its turns.
	done look
	turn journal.Turn
	// Before rest, what others change in the registry is not looked at; before retry,
	// nothing is tried. pause is how long the last failure made retry wait.
	rest, retry time.Time
	pause       time.Duration
	pace        pace.Pace
	// warned are the warnings that have been logged.
	warned []string
}

// Run follows the folder until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	st := state{seen: look{err: "nothing was seen"}, done: look{err: "nothing was done"}}
	for {
		s.step(ctx, &st)
		timer := time.NewTimer(turn)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if s.conf.Dir == "" && s.quiet() {
			<-ctx.Done()
			return nil
		}
	}
}

// quiet reports whether nothing in the store came from a folder.
func (s *Source) quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.looked && len(s.concerns) == 0
}

// step looks at the folder once.
func (s *Source) step(ctx context.Context, st *state) {
	now, began := lookAt(s.conf.Dir), time.Now()
	if !same(now, st.seen) {
		if st.seen = now; st.moving.IsZero() {
			st.moving = began
			return
		}
		c := s.folder("ManifestsMoving", fmt.Sprintf("folder %s keeps changing: its manifests are applied once it has been still for %v", s.conf.Dir, turn), "write them elsewhere, then rename them")
		c.Since = st.moving
		s.say(c)
		return
	}
	moving := st.moving
	st.moving = time.Time{}
	if began.Before(st.retry) || same(now, st.done) && began.Before(st.rest) {
		return
	}
	current, err := s.conf.Registry.Turn(ctx)
	if err == nil && same(now, st.done) && slices.Equal(current, st.turn) {
		return
	}
	var concerns []api.Concern
	if err == nil {
		concerns, err = s.sync(ctx, now, st)
	}
	switch {
	case errors.Is(err, errMoved):
		st.seen, st.moving = look{err: err.Error()}, cmp.Or(moving, began)
	case err != nil:
		st.pause = min(max(2*st.pause, firstRetry), lastRetry)
		st.retry = began.Add(st.pause)
		if s.conf.Dir != "" && ctx.Err() == nil {
			s.say(s.folder("ManifestsNotApplied", fmt.Sprintf("the manifests in %s are not applied: %v", s.conf.Dir, err), "they are tried again; look at the API server's log"))
		}
	default:
		st.done, st.turn, st.pause = now, current, 0
		st.pace.Ran(time.Since(began))
		st.rest = began.Add(min(st.pace.Rest(0, share), longestRest))
		s.say(concerns...)
	}
}

func same(a, b look) bool { return a.err == b.err && maps.Equal(a.files, b.files) }

// errMoved means that the folder changed while it was read.
var errMoved = errors.New("the folder changed while it was read")

// sync makes the registry what the folder says, and returns what an operator has to know.
func (s *Source) sync(ctx context.Context, now look, st *state) (concerns []api.Concern, err error) {
	dir := s.conf.Dir
	if now.err != "" {
		return []api.Concern{s.folder("ManifestsUnread", fmt.Sprintf("folder %s cannot be read: %s; what came from it is kept", dir, now.err), "create or mount it")}, nil
	}
	files, err := now.read(dir, registry.MaxManifestBytes)
	if err != nil {
		return []api.Concern{s.folder("ManifestsUnread", fmt.Sprintf("folder %s is not applied: %v", dir, err), "take some out and use `weft apply` for them")}, nil
	}
	if !same(now, lookAt(dir)) {
		return nil, errMoved
	}
	set := registry.Set{Complete: len(files) > 0}
	texts := map[string][]byte{}
	for _, f := range files {
		if f.err != "" {
			set.Complete = false
			concerns = append(concerns, s.file(f.name, filepath.Join(dir, f.name)+" cannot be read: "+f.err, "correct it, or remove it to delete its objects"))
			continue
		}
		texts[f.name] = f.text
		set.Units = append(set.Units, registry.Unit{Name: f.name, Manifest: f.text})
	}
	out, err := s.conf.Registry.Sync(ctx, set)
	if err != nil {
		return nil, err
	}
	var warned []string
	for _, p := range out.Warnings {
		warning := sentence(filepath.Join(dir, p.File), texts[p.File], p)
		if warned = append(warned, warning); !slices.Contains(st.warned, warning) {
			s.conf.Log.Warn("a manifest is applied with a warning", "warning", warning)
		}
	}
	st.warned = warned
	for _, p := range out.Refused {
		switch {
		case p.File != "":
			concerns = append(concerns, s.file(p.File, sentence(filepath.Join(dir, p.File), texts[p.File], p), "correct it; until then, nothing in this file is applied"))
		case p.Name != "":
			// It is in no file: that is why it should go, and cannot.
			concerns = append(concerns, s.folder("ManifestRefused", fmt.Sprintf("%s is no longer in %s but is kept: it %s", object(p), dir, p.Message), ""))
		default: // there are more
			concerns = append(concerns, s.folder("ManifestRefused", fmt.Sprintf("manifests in %s: %s", dir, p.Message), "correct those that are listed"))
		}
	}
	if len(concerns) > mostLines {
		more := s.folder("ManifestRefused", fmt.Sprintf("%s in the manifests of %s", api.Count(len(concerns)-mostLines, "more mistake"), dir), "correct those that are listed")
		concerns = append(concerns[:mostLines:mostLines], more)
	}
	return append(concerns, s.kept(out.Kept, len(files))...), nil
}

// kept says why objects are kept that are no longer in the folder.
func (s *Source) kept(n, files int) []api.Concern {
	objects, dir := api.Count(n, "object"), s.conf.Dir
	switch {
	case n == 0:
		return nil
	case dir == "":
		return []api.Concern{{
			Object: "manifests", Reason: "ManifestsKept", Message: objects + " came from a folder of manifests that this API server does not follow: they are kept as they are",
			Next: "start every API server with the same --manifests, or take them over with `weft apply --take-over`",
		}}
	case files == 0:
		return []api.Concern{s.folder("ManifestsKept", fmt.Sprintf("folder %s has no manifest, but %s came from it: they are kept", dir, objects), "is it mounted? To delete them, put a file in it that holds nothing but a comment, such as empty.yaml")}
	}
	return []api.Concern{s.folder("ManifestsKept", fmt.Sprintf("%s may no longer be in %s: kept until all of its files can be read", objects, dir), "correct the files above")}
}

// object names the object of a problem.
func object(p api.Problem) string {
	if p.Namespace != "" {
		return p.Kind + " " + p.Namespace + "/" + p.Name
	}
	return p.Kind + " " + p.Name
}

func (s *Source) folder(reason, message, next string) api.Concern {
	return api.Concern{Object: "folder " + s.conf.Dir, Reason: reason, Message: message, Next: next}
}

func (s *Source) file(name, message, next string) api.Concern {
	return api.Concern{Object: "file " + filepath.Join(s.conf.Dir, name), Reason: "ManifestRefused", Message: message, Next: next}
}

// say replaces what is known to be wrong.
func (s *Source) say(concerns ...api.Concern) {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := s.looked && slices.Equal(concerns, s.concerns)
	s.looked, s.concerns = true, concerns
	if same {
		return
	}
	for _, c := range concerns {
		s.conf.Log.Warn("not all manifests are applied", "problem", c.String())
	}
	select {
	case s.changed <- struct{}{}:
	default: // it is noted already
	}
}

// Changed implements problems.Source.
func (s *Source) Changed() <-chan struct{} { return s.changed }

// Problems implements problems.Source.
func (s *Source) Problems() (problems.Rows, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.concerns) == 0 {
		return problems.Rows{}, s.looked
	}
	return problems.Rows{wire.SourceProblemsKey(api.OwnerManifests): wire.Marshal(s.concerns)}, s.looked
}
