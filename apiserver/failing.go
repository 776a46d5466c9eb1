package apiserver

import (
	"cmp"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
)

// logAgain is how long a failure whose cause changes is not logged again.
const logAgain = time.Minute

// failing remembers a failure that lasts: for the status, and so that the log says it
// once and not at every try. The zero value is one that does not fail.
type failing struct {
	mu     sync.Mutex // guards what follows
	since  time.Time
	text   string
	hint   string // what to do, if the failure says so
	logged time.Time
}

// note takes in how the latest try ended. what begins the line in the log.
func (f *failing) note(log *slog.Logger, what string, err error, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.since, f.text, f.hint = time.Time{}, "", ""
		return
	}
	now, begins, changed := time.Now(), f.since.IsZero(), f.text != err.Error()
	f.hint = ""
	if refusal := (*api.Error)(nil); errors.As(err, &refusal) {
		f.hint = refusal.Hint
	}
	if f.text = err.Error(); begins {
		f.since = now
	}
	if begins || changed && now.Sub(f.logged) >= logAgain {
		f.logged = now
		log.Warn(what, append(args, "err", err)...)
	}
}

// now reports whether the latest try failed.
func (f *failing) now() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.since.IsZero()
}

// concern returns c with what fails and since when; nothing if nothing fails.
func (f *failing) concern(c api.Concern) []api.Concern {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.since.IsZero() {
		return nil
	}
	c.Since = f.since
	c.Message += ": " + f.text
	c.Next = cmp.Or(f.hint, c.Next)
	return []api.Concern{c}
}
