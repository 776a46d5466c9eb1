package script

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// State is what the commands of one run share. Only the goroutine that runs
// the script uses it.
type State struct {
	Dir    string            // holds the attached files
	Env    map[string]string // variables
	Given  map[string]string // of those, what env does not set: the values are already there
	Stdout string            // of the last command that made output
	Stderr string

	remake func(context.Context) error // reruns that command
}

func (s *State) lookup(name string) (string, bool) {
	v, ok := s.Env[name]
	return v, ok
}

// Path resolves a file name of a script.
func (s *State) Path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(s.Dir, name)
}

// Command is a verb of a script.
type Command struct {
	Usage   string // its arguments, such as NODE...
	Summary string // one sentence
	// Run executes it. An error fails the line.
	Run func(ctx context.Context, s *State, args []string) error
	// Makes says that it sets Stdout and Stderr, so that a later line that checks
	// them may rerun it.
	Makes bool
}

// Misuse is an error in a line itself: a word it does not understand, or
// something it names that does not exist. It says nothing about what the line
// looks at, so it fails lines that must or may fail too.
type Misuse struct{ Err error }

func (m Misuse) Error() string { return m.Err.Error() }
func (m Misuse) Unwrap() error { return m.Err }

func misuse(format string, args ...any) error { return Misuse{fmt.Errorf(format, args...)} }

// Event is something that happens while a script runs.
type Event struct {
	Kind    EventKind
	Section string // of SectionBegins
	Line    *Line  // of LineBegins and LineEnds
	Text    string // the line with variables replaced
	Took    time.Duration
	Err     error
	Round   int // of RoundBegins, from 1
	Rounds  int
}

// EventKind is the kind of an Event.
type EventKind int

// What happens in a run.
const (
	SectionBegins EventKind = iota
	LineBegins
	LineEnds
	RoundBegins
)

// Engine runs scripts.
type Engine struct {
	Commands map[string]Command
	// Watch, if not nil, is told about everything that happens.
	Watch func(Event)
	// Patience bounds one attempt of one command; 0 is a minute.
	Patience time.Duration
	// Slower is how many times longer than that and than lines say everything may take; 0 and 1:
	// no longer.
	Slower int
}

// retryPause is the time between two attempts of a line.
const retryPause = 100 * time.Millisecond

// Check reports unknown commands, so that no lab is brought up for a script that
// cannot succeed.
func (e *Engine) Check(s *Script) error {
	var mistakes []error
	var walk func(lines []Line)
	walk = func(lines []Line) {
		for _, l := range lines {
			if l.Words[0] == "repeat" {
				if len(l.Words) == 2 && strings.Contains(l.Words[1], "$") {
					// known when it is run
				} else if _, err := times(l.Words); err != nil {
					mistakes = append(mistakes, fmt.Errorf("%s:%d: %w", s.Name, l.Number, err))
				}
				walk(l.Body)
				continue
			}
			if _, ok := e.Commands[l.Words[0]]; !ok {
				if _, ok := builtins[l.Words[0]]; !ok {
					mistakes = append(mistakes, fmt.Errorf("%s:%d: there is no command %q", s.Name, l.Number, l.Words[0]))
				}
			}
		}
	}
	walk(s.Lines)
	return errors.Join(mistakes...)
}

// Unpack writes the attached files into a directory.
func Unpack(s *Script, dir string) error {
	for _, f := range s.Files {
		path := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Run runs a script until it ends or fails, or ctx ends. The error names the line.
func (e *Engine) Run(ctx context.Context, s *Script, state *State) error {
	if err := e.Check(s); err != nil {
		return err
	}
	if state.Env == nil {
		state.Env = map[string]string{}
	}
	return e.block(ctx, s, state, s.Lines)
}

func (e *Engine) tell(event Event) {
	if e.Watch != nil {
		e.Watch(event)
	}
}

func (e *Engine) block(ctx context.Context, s *Script, state *State, lines []Line) error {
	for i := range lines {
		l := &lines[i]
		if l.Section != "" {
			e.tell(Event{Kind: SectionBegins, Section: l.Section, Line: l})
		}
		if l.Words[0] == "repeat" {
			if err := e.repeat(ctx, s, state, l); err != nil {
				return err
			}
			continue
		}
		begin := time.Now()
		text, err := e.line(ctx, state, l)
		e.tell(Event{Kind: LineEnds, Line: l, Text: text, Took: time.Since(begin), Err: err})
		if err != nil {
			return fmt.Errorf("%s:%d: %s: %w%s", s.Name, l.Number, l.Text, err, output(state))
		}
	}
	return nil
}

func (e *Engine) repeat(ctx context.Context, s *Script, state *State, l *Line) error {
	words := slices.Clone(l.Words)
	for i, word := range words {
		var err error
		if words[i], err = expand(word, state.lookup); err != nil {
			return fmt.Errorf("%s:%d: %s: %w", s.Name, l.Number, l.Text, err)
		}
	}
	n, err := times(words)
	if err != nil {
		return fmt.Errorf("%s:%d: %s: %w", s.Name, l.Number, l.Text, err)
	}
	saved := maps.Clone(state.Env)
	defer func() { state.Env = saved }()
	for i := range n {
		state.Env = maps.Clone(saved)
		state.Env["i"] = strconv.Itoa(i + 1)
		e.tell(Event{Kind: RoundBegins, Line: l, Round: i + 1, Rounds: n})
		if err := e.block(ctx, s, state, l.Body); err != nil {
			return fmt.Errorf("round %d of %d: %w", i+1, n, err)
		}
	}
	return nil
}

// line runs one command, retrying it if the line says so, and judges the result.
func (e *Engine) line(ctx context.Context, state *State, l *Line) (text string, err error) {
	args := make([]string, len(l.Words))
	for i, word := range l.Words {
		if args[i], err = expand(word, state.lookup); err != nil {
			return l.Text, err
		}
	}
	text = strings.Join(args, " ")
	e.tell(Event{Kind: LineBegins, Line: l, Text: text})
	command, ok := e.Commands[args[0]]
	if !ok {
		command = builtins[args[0]]
	}
	retry := l.Retry * time.Duration(max(e.Slower, 1))
	once := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, max(e.patience(), retry))
		defer cancel()
		return judge(l.Want, command.Run(ctx, state, args[1:]))
	}
	attempt := once
	if looks := looksAtOutput(args); looks && l.Retry > 0 && state.remake != nil {
		attempt = func(ctx context.Context) error {
			if err := once(ctx); err == nil {
				return nil
			}
			if err := state.remake(ctx); err != nil {
				return err
			}
			return once(ctx)
		}
	}
	if command.Makes {
		state.remake = once
	}
	deadline := time.Now().Add(retry)
	for {
		err = attempt(ctx)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
	if err != nil && l.Retry > 0 {
		err = fmt.Errorf("not within %v: %w", retry, err)
	}
	return text, err
}

func (e *Engine) patience() time.Duration {
	return cmp.Or(e.Patience, time.Minute) * time.Duration(max(e.Slower, 1))
}

var errSucceeded = errors.New("it succeeded but should have failed")

func judge(want Want, err error) error {
	var wrong Misuse
	if errors.As(err, &wrong) {
		return err
	}
	switch want {
	case Failure:
		if err == nil {
			return errSucceeded
		}
		return nil
	case Either:
		return nil
	}
	return err
}

// output shows what the last command printed, for a line that failed.
func output(s *State) string {
	var b strings.Builder
	for _, part := range []struct{ name, text string }{{"stdout", s.Stdout}, {"stderr", s.Stderr}} {
		if part.text == "" {
			continue
		}
		lines := strings.Split(strings.TrimRight(part.text, "\n"), "\n")
		if len(lines) > 40 {
			lines = append(lines[:40], "…")
		}
		fmt.Fprintf(&b, "\n  %s of the last command:\n    %s", part.name, strings.Join(lines, "\n    "))
	}
	return b.String()
}
