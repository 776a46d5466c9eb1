// Package scenario runs stories about clusters in a lab: it provides the verbs of
// scripts, measures, and reports what happens.
//
// Package script defines the language of the scripts; package lab runs the clusters.
package scenario

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/fabric"
	"github.com/weft-mesh/weft/lab/script"
)

// Options controls how a scenario runs.
type Options struct {
	Binary string // weft; the running program if empty
	Next   string // another version of it, for the verb version; may be empty
	// Kubernetes is the folder with Kubernetes' programs, as lab.Config has it.
	Kubernetes string
	// Set replaces what scripts set with env.
	Set map[string]string
	// Patience is how many times longer than they say scripts wait for things, on a slow
	// machine; 0 and 1: no longer.
	Patience int
	View     View     // shows what happens; may be nil
	Keep     KeepFunc // if not nil, called before the lab is taken down
}

// KeepFunc is called at the end of a run, while the lab is still up. The lab is taken
// down when it returns.
type KeepFunc func(context.Context, *lab.Lab, error)

// View shows what happens in a run. One goroutine calls its methods.
type View interface {
	// Begin is called first, before anything is started.
	Begin(s *script.Script)
	// Up is called when the clusters are up.
	Up(*Live)
	// Event is called for every step of the script.
	Event(script.Event)
	// Say is called with a line that a script shows.
	Say(line string)
	// Down is called when the clusters are about to be taken down.
	Down()
	// End is called last.
	End(Result)
}

// Result is the outcome of a run.
type Result struct {
	Scenario string         `json:"scenario"`
	OK       bool           `json:"ok"`
	Figures  map[string]any `json:"figures"`
	Error    string         `json:"error,omitempty"`
	Seconds  float64        `json:"seconds"`
}

// Live is a run in progress: what views look at and verbs work on.
type Live struct {
	Lab     *lab.Lab
	Figures *Figures

	view  View
	state *script.State
	marks map[string]time.Time
	// daemons are those that the script has started, by name.
	daemons map[string]*lab.Task

	mu       sync.Mutex
	loads    map[string]*load           // guarded by mu, for views
	captures map[string]*fabric.Capture // guarded by mu, for views
}

// errInterrupted is the outcome of a run that was told to end, however its last line
// ended.
var errInterrupted = errors.New("interrupted: the clusters were taken down")

// Load reads a scenario and its topology, or the default topology if it has no
// lab.yaml. Without a path it returns an empty script with that topology.
func Load(path string) (*script.Script, lab.Topology, error) {
	if path == "" {
		return &script.Script{Name: "lab", Story: "two clusters and no script"}, lab.DefaultTopology(), nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, lab.Topology{}, err
	}
	s, err := script.Parse(filepath.Base(path), data)
	if err != nil {
		return nil, lab.Topology{}, err
	}
	topology := lab.DefaultTopology()
	if text, ok := s.File("lab.yaml"); ok {
		if topology, err = lab.ParseTopology(text); err != nil {
			return nil, lab.Topology{}, fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return s, topology, (&script.Engine{Commands: (&Live{}).verbs()}).Check(s)
}

// Run starts the clusters of a scenario, runs it and takes them down again. If the
// scenario fails, the Result is not OK.
func Run(ctx context.Context, path string, o Options) Result {
	begin := time.Now()
	result := Result{Scenario: strings.TrimSuffix(filepath.Base(path), ".txtar"), Figures: map[string]any{}}
	view := o.View
	if view == nil {
		view = silent{}
	}
	figures := newFigures()
	err := run(ctx, path, o, view, figures)
	result.OK, result.Figures, result.Seconds = err == nil, figures.Summary(), time.Since(begin).Seconds()
	if err != nil {
		result.Error = err.Error()
	}
	view.End(result)
	return result
}

func run(ctx context.Context, path string, o Options, view View, figures *Figures) (err error) {
	s, topology, err := Load(path)
	if err != nil {
		return err
	}
	if err := lab.Preflight(); err != nil {
		return err
	}
	if err := topology.Missing(); err != nil {
		return fmt.Errorf("scenario %s: %w", s.Name, err)
	}
	if _, err := lab.Prune(); err != nil {
		return err
	}
	view.Begin(s)
	if path != "" {
		if path, err = filepath.Abs(path); err != nil {
			return err
		}
	}
	raising := time.Now()
	l, err := lab.Raise(ctx, lab.Config{Topology: topology, Binary: o.Binary, Next: o.Next, Kubernetes: o.Kubernetes, File: path, Slower: o.Patience})
	if err != nil && ctx.Err() != nil {
		return errInterrupted
	}
	if err != nil {
		return err
	}
	live := newLive(l, view, figures)
	defer func() {
		switch {
		case err != nil && ctx.Err() != nil:
			err = errInterrupted
		case err != nil:
			err = errors.Join(err, live.salvage(ctx))
		}
		if o.Keep != nil { // often ends only with ctx
			o.Keep(ctx, l, err)
		}
		view.Down()
		err = errors.Join(err, live.close())
	}()
	if err := live.unpack(s); err != nil {
		return err
	}
	live.state.Given = o.Set
	maps.Copy(live.state.Env, o.Set)
	if !topology.Manual {
		if err := l.Boot(ctx); err != nil {
			return fmt.Errorf("start the clusters: %w", err)
		}
		figures.Set("raise_seconds", time.Since(raising).Seconds())
	}
	view.Up(live)
	return live.tell(ctx, s, max(o.Patience, 1))
}

// tell runs the script and notes when the machine stalled.
func (v *Live) tell(ctx context.Context, s *script.Script, slower int) error {
	var machine stall
	var measuring sync.WaitGroup
	watched, stop := context.WithCancel(ctx)
	measuring.Go(func() { machine.Run(watched) })
	engine := &script.Engine{Commands: v.verbs(), Watch: v.view.Event, Slower: slower}
	err := engine.Run(ctx, s, v.state)
	stop()
	measuring.Wait()
	if err = errors.Join(err, v.Lab.Failures()); err != nil {
		return errors.Join(err, machine.remark())
	}
	return nil
}

func newLive(l *lab.Lab, view View, figures *Figures) *Live {
	return &Live{Lab: l, Figures: figures, view: view, loads: map[string]*load{}, captures: map[string]*fabric.Capture{}, marks: map[string]time.Time{}}
}

// unpack writes the attached files to the operator's working directory.
func (v *Live) unpack(s *script.Script) error {
	dir := filepath.Join(v.Lab.Dir, "work")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	v.state = &script.State{Dir: dir, Env: map[string]string{"WORK": dir, "LAB": v.Lab.ID}}
	for _, n := range v.Lab.Nodes() {
		v.state.Env[strings.ReplaceAll(n.Full(), "/", "_")] = n.Addr.String()
	}
	return script.Unpack(s, dir)
}

func (v *Live) close() error {
	var failed []error
	for _, l := range v.loads {
		_ = l.stop()
	}
	for _, c := range v.captures {
		_, err := c.Stop()
		failed = append(failed, err)
	}
	return errors.Join(append(failed, v.Lab.Close())...)
}

// fault marks the moment of a fault that a script caused.
func (v *Live) fault() { v.marks["fault"] = time.Now() }

type silent struct{}

func (silent) Begin(*script.Script) {}
func (silent) Up(*Live)             {}
func (silent) Event(script.Event)   {}
func (silent) Say(string)           {}
func (silent) Down()                {}
func (silent) End(Result)           {}
