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

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/apiserver/store"
)

// spaceTurn is how often the disk is looked at.
const spaceTurn = 200 * time.Millisecond

// space keeps the store from filling its disk: an etcd that cannot write ends,
// and takes everything else along. Below the reserve, all writes are refused by
// etcd's own alarm, agents' and ours alike; reads and watches go on.
//
// A quarter of the reserve is a file, the ballast. It is dropped before the
// alarm is raised, because somebody else may have filled the disk to the last
// byte meanwhile, and the alarm and what is under way need some themselves.
type space struct {
	dir     string
	reserve uint64
	ballast string
	alarm   store.Alarm
	free    func(dir string) (uint64, error)
	log     *slog.Logger

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
		return 0, fmt.Errorf("ask for the free space of %s: %w", dir, err)
	}
	return s.Bavail * uint64(s.Bsize), nil
}

// Run looks until ctx ends.
func (s *space) Run(ctx context.Context) error {
	tick := time.NewTicker(spaceTurn)
	defer tick.Stop()
	for {
		if err := s.look(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("looking after disk space", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look raises the alarm below the reserve, and ends one it has raised once there
// is half as much again.
func (s *space) look(ctx context.Context) error {
	left, err := s.free(s.dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	was := s.full
	s.left = left
	if left < s.reserve {
		s.full = true
	} else if left >= s.reserve+s.reserve/2 {
		s.full = false
	}
	full := s.full
	s.mu.Unlock()
	switch {
	case full && !was:
		s.log.Error("the disk is nearly full, the store takes no more writes", "dir", s.dir, "free", left, "reserve", s.reserve)
		return errors.Join(s.drop(), s.alarm.RaiseNoSpace(ctx))
	case full:
		// Again, because an alarm can be ended by others too.
		return s.alarm.RaiseNoSpace(ctx)
	case was:
		s.log.Info("there is space again", "dir", s.dir, "free", left)
		return errors.Join(s.alarm.EndNoSpace(ctx), s.lay())
	}
	return nil
}

// lay makes the ballast, of blocks that are really taken.
func (s *space) lay() error {
	f, err := os.OpenFile(s.ballast, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("lay ballast: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, int64(s.reserve/4))
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // such a file system goes without
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("lay ballast: %w", err), s.drop())
	}
	return nil
}

func (s *space) drop() error {
	if err := os.Remove(s.ballast); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop ballast: %w", err)
	}
	return nil
}

// concern says that there is no space; false if there is.
func (s *space) concern() (api.Concern, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return api.Concern{
		Object: "store", Reason: "DiskNearlyFull",
		Message: fmt.Sprintf("the disk is nearly full: %d MiB are free for %s, %d MiB are kept in reserve; nothing is written until there is space", s.left>>20, s.dir, s.reserve>>20),
		Next:    "make space there",
	}, s.full
}

// refusal answers a request that would write while there is no space.
func (s *space) refusal() error {
	c, full := s.concern()
	if !full {
		return nil
	}
	return api.Refuse(http.StatusInsufficientStorage, c.Next+", then try again", "%s", c.Message)
}

// begin ends an alarm that an earlier run has left, if there is space now, and
// lays the ballast.
func (s *space) begin(ctx context.Context) error {
	left, err := s.free(s.dir)
	if err != nil || left < s.reserve || s.reserve == 0 {
		return err
	}
	return errors.Join(s.alarm.EndNoSpace(ctx), s.lay())
}
