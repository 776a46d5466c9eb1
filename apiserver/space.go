package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
)

// spaceTurn is how often the free space is looked up.
const spaceTurn = 200 * time.Millisecond

// Pauses after a failure double from the first to the last.
const (
	firstSpaceRetry = time.Second
	lastSpaceRetry  = 30 * time.Second
)

// spacePatience is how long the store may take to answer about its alarm.
const spacePatience = 5 * time.Second

// space keeps the embedded etcd from filling its disk: an etcd that cannot write exits
// and takes the API server with it. Below the reserve, etcd's own no-space alarm refuses
// all writes, agents' and ours alike; reads and watches go on.
//
// A quarter of the reserve is a file, the ballast. It is deleted before the alarm is
// raised, because another program may have filled the disk to the last byte, and the
// alarm and what is under way need some space themselves.
type space struct {
	dir     string
	reserve uint64
	ballast string
	alarm   store.Alarm // nil: the store is an existing etcd, which has its own disk
	free    func(dir string) (uint64, error)
	log     *slog.Logger

	// Used only by look and begin, which one goroutine calls.
	raised bool // the alarm is ours to end
	laid   bool // the ballast is there
	pause  time.Duration
	next   time.Time // no alarm or ballast is touched before

	failing failing

	mu   sync.Mutex // guards what follows
	left uint64
	full bool
}

func newSpace(dir string, reserve int64, alarm store.Alarm, log *slog.Logger) *space {
	return &space{dir: dir, reserve: uint64(reserve), ballast: filepath.Join(dir, "ballast"), alarm: alarm, free: freeBytes, log: log}
}

func freeBytes(dir string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("read the free space of %s: %w", dir, err)
	}
	return s.Bavail * uint64(s.Bsize), nil
}

// Run looks until ctx ends.
func (s *space) Run(ctx context.Context) error {
	tick := time.NewTicker(spaceTurn)
	defer tick.Stop()
	for {
		// Between two tries after a failure nothing is known to work again.
		if err := s.look(ctx); ctx.Err() == nil && (err != nil || !time.Now().Before(s.next)) {
			s.failing.note(s.log, "cannot keep disk space in reserve; retrying", err, "dir", s.dir)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look makes the store refuse writes below the reserve, and accept them again once half
// as much again is free. While the alarm stands it is left alone: raising it costs a
// write to the disk that is full.
func (s *space) look(ctx context.Context) error {
	left, err := s.free(s.dir)
	if err != nil {
		return err
	}
	full := s.measure(left)
	if s.alarm == nil || s.reserve == 0 || time.Now().Before(s.next) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, spacePatience)
	defer cancel()
	if full {
		err = s.refuseWrites(ctx)
	} else {
		err = s.acceptWrites(ctx)
	}
	if err == nil {
		s.pause, s.next = 0, time.Time{}
		return nil
	}
	s.pause = min(max(firstSpaceRetry, 2*s.pause), lastSpaceRetry)
	s.next = time.Now().Add(s.pause)
	return err
}

// measure takes in how much is free and reports whether the disk counts as full. Between
// the reserve and half as much again it stays what it was.
func (s *space) measure(left uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.full
	s.left = left
	s.full = left < s.reserve || was && left < s.reserve+s.reserve/2
	switch {
	case s.full && !was:
		s.log.Error("the disk is nearly full; the store refuses writes", "dir", s.dir, "free", left, "reserve", s.reserve)
	case was && !s.full:
		s.log.Info("the disk has space again", "dir", s.dir, "free", left)
	}
	return s.full
}

// refuseWrites raises the alarm unless it stands; anyone may have ended it meanwhile.
func (s *space) refuseWrites(ctx context.Context) error {
	if !s.raised {
		if err := s.drop(); err != nil {
			return err
		}
	}
	stands, err := s.alarm.NoSpace(ctx)
	if err != nil {
		return err
	}
	if !stands {
		if err := s.alarm.RaiseNoSpace(ctx); err != nil {
			return err
		}
	}
	s.raised = true
	return nil
}

// acceptWrites ends our alarm, and makes the ballast if there is none.
func (s *space) acceptWrites(ctx context.Context) error {
	if s.raised {
		if err := s.alarm.EndNoSpace(ctx); err != nil {
			return err
		}
		s.raised = false
	}
	if s.laid {
		return nil
	}
	return s.lay()
}

// lay makes the ballast, of blocks that are really allocated.
func (s *space) lay() error {
	f, err := os.OpenFile(s.ballast, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make the ballast: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, int64(s.reserve/4))
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // such a file system does without
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("make the ballast: %w", err), s.drop())
	}
	s.laid = true
	return nil
}

func (s *space) drop() error {
	if err := os.Remove(s.ballast); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete the ballast: %w", err)
	}
	s.laid = false
	return nil
}

// concerns says that the disk is nearly full, or that nobody knows.
func (s *space) concerns() (out []api.Concern) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		out = append(out, s.fullLocked())
	}
	return append(out, s.failing.concern(api.Concern{
		Object: "store", Reason: "DiskNotWatched", Grace: startingGrace,
		Message: "disk space in " + s.dir + " cannot be kept in reserve",
		Next:    "correct that on the API server's machine, before the store fills its disk and exits",
	})...)
}

func (s *space) fullLocked() api.Concern {
	c := api.Concern{Object: "store", Reason: "DiskNearlyFull", Next: "free some space there"}
	effect := "writes are refused until there is space"
	if s.alarm == nil {
		c.Object, effect = "API server", "its own files may not be written"
	}
	c.Message = fmt.Sprintf("the disk is nearly full: %d MiB free in %s, %d MiB wanted in reserve; %s", s.left>>20, s.dir, s.reserve>>20, effect)
	return c
}

// refusal answers a request that would write while the store refuses writes.
func (s *space) refusal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.full || s.alarm == nil {
		return nil
	}
	c := s.fullLocked()
	return api.Refuse(http.StatusInsufficientStorage, c.Next+", then try again", "%s", c.Message)
}

// begin ends an alarm that an earlier run has left, if there is space now, and makes the
// ballast.
func (s *space) begin(ctx context.Context) error {
	left, err := s.free(s.dir)
	if err != nil || left < s.reserve || s.reserve == 0 || s.alarm == nil {
		return err
	}
	s.raised = true
	return s.acceptWrites(ctx)
}
