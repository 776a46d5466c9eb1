package apiserver

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// baton is held by a test but while it sleeps: then what runs beside it may touch what
// they share.
type baton struct{ sync.Mutex }

func (b *baton) sleep(d time.Duration) {
	b.Unlock()
	time.Sleep(d)
	synctest.Wait()
	b.Lock()
}

// alarmTwin is an alarm in memory that counts what costs the store a write.
type alarmTwin struct {
	baton
	stands        bool
	raised, ended int
	fail          error
}

func (a *alarmTwin) RaiseNoSpace(context.Context) error {
	a.Lock()
	defer a.Unlock()
	if a.raised++; a.fail != nil {
		return a.fail
	}
	a.stands = true
	return nil
}

func (a *alarmTwin) NoSpace(context.Context) (bool, error) {
	a.Lock()
	defer a.Unlock()
	return a.stands, nil
}

func (a *alarmTwin) EndNoSpace(context.Context) error {
	a.Lock()
	defer a.Unlock()
	if a.ended++; a.fail != nil {
		return a.fail
	}
	a.stands = false
	return nil
}

// watchSpace runs a space whose disk has free bytes, in a bubble.
func watchSpace(t *testing.T, test func(a *alarmTwin, s *space, free *uint64, log *strings.Builder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		a, free := &alarmTwin{}, uint64(1<<30)
		s := newSpace(t.TempDir(), 1<<20, a, slog.New(slog.NewTextHandler(&log, nil)))
		s.free = func(string) (uint64, error) {
			a.Lock()
			defer a.Unlock()
			return free, nil
		}
		if err := s.begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.Lock()
		a.raised, a.ended = 0, 0
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		test(a, s, &free, &log)
		a.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Raising an alarm is a write to the disk that is full: once is enough while it stands.
func TestTheAlarmIsRaisedOnceWhileItStands(t *testing.T) {
	watchSpace(t, func(a *alarmTwin, s *space, free *uint64, _ *strings.Builder) {
		after := func(d time.Duration) { a.sleep(d + spaceTurn/2) }
		*free = 1 << 10
		after(time.Hour)
		if a.raised != 1 || !a.stands {
			t.Errorf("raised %d times in an hour, stands %v", a.raised, a.stands)
		}
		a.stands = false // somebody else has ended it
		after(spaceTurn)
		if a.raised != 2 || !a.stands {
			t.Errorf("raised %d times, stands %v", a.raised, a.stands)
		}
		*free = 1 << 30
		after(time.Hour)
		if a.ended != 1 || a.stands || s.refusal() != nil {
			t.Errorf("ended %d times, stands %v, %v", a.ended, a.stands, s.refusal())
		}
		if _, err := os.Stat(s.ballast); err != nil {
			t.Error("no ballast for the next time:", err)
		}
	})
}

// A store that does not take the alarm, or does not let go of it, is asked again, ever
// more rarely; the status says so and the log says it once.
func TestAnAlarmThatFailsIsTriedAgain(t *testing.T) {
	watchSpace(t, func(a *alarmTwin, s *space, free *uint64, log *strings.Builder) {
		look := func(what string, tries *int, stands bool) {
			t.Helper()
			*tries, a.fail = 0, errors.New("no leader")
			log.Reset()
			a.sleep(5 * time.Minute)
			if *tries < 10 || *tries > 16 {
				t.Errorf("%s: tried %d times in 5 min", what, *tries)
			}
			var texts []string
			for _, c := range s.concerns() {
				texts = append(texts, c.Reason)
			}
			if !strings.Contains(strings.Join(texts, " "), "DiskNotWatched") || strings.Count(log.String(), "no leader") != 1 {
				t.Errorf("%s: concerns %q, log %s", what, texts, log)
			}
			a.fail = nil
			a.sleep(lastSpaceRetry + 2*spaceTurn)
			if a.stands != stands {
				t.Errorf("%s: alarm stands: %v", what, a.stands)
			}
			for _, c := range s.concerns() {
				if c.Reason == "DiskNotWatched" {
					t.Errorf("%s: it works again, and still: %v", what, c)
				}
			}
		}
		*free = 1 << 10
		look("raise", &a.raised, true)
		*free = 1 << 30
		look("end", &a.ended, false)
	})
}

// An existing etcd has its own disk and perhaps other users: our disk stops nobody there.
func TestOurDiskDoesNotStopAnExistingEtcd(t *testing.T) {
	s := newSpace(t.TempDir(), 1<<20, nil, slog.New(slog.DiscardHandler))
	s.free = func(string) (uint64, error) { return 0, nil }
	if err := errors.Join(s.begin(t.Context()), s.look(t.Context())); err != nil || s.refusal() != nil {
		t.Error(err, s.refusal())
	}
	if c := s.concerns(); len(c) != 1 || !strings.Contains(c[0].Message, "its own files may not be written") {
		t.Errorf("%v", c)
	}
}
