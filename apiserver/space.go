package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/apiserver/store"
)

// spaceTurn is how often the disk is looked at. A write-ahead log segment has
// 64 MiB; the reserve is several of them.
const spaceTurn = time.Second

// space keeps the store from filling its disk: an etcd that cannot write ends,
// and takes everything else along. Below the reserve, all writes are refused by
// etcd's own alarm, agents' and ours alike; reads and watches go on.
type space struct {
	dir     string
	reserve uint64
	alarm   store.Alarm
	free    func(dir string) (uint64, error)
	log     *slog.Logger

	mu   sync.Mutex // guards what follows
	left uint64
	full bool
}

func newSpace(dir string, reserve int64, alarm store.Alarm, log *slog.Logger) *space {
	return &space{dir: dir, reserve: uint64(reserve), alarm: alarm, free: freeBytes, log: log}
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
// is a quarter more than it.
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
	} else if left >= s.reserve+s.reserve/4 {
		s.full = false
	}
	full := s.full
	s.mu.Unlock()
	switch {
	case full:
		if !was {
			s.log.Error("the disk is nearly full, the store takes no more writes", "dir", s.dir, "free", left, "reserve", s.reserve)
		}
		return s.alarm.RaiseNoSpace(ctx)
	case was:
		s.log.Info("there is space again", "dir", s.dir, "free", left)
		return s.alarm.EndNoSpace(ctx)
	}
	return nil
}

// problem is a sentence for the status; "" if there is space.
func (s *space) problem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.full {
		return ""
	}
	return fmt.Sprintf("the disk is nearly full: %d MiB are free for %s, %d MiB are kept in reserve; nothing is written until there is space", s.left>>20, s.dir, s.reserve>>20)
}

// refusal answers a request that would write while there is no space.
func (s *space) refusal() error {
	problem := s.problem()
	if problem == "" {
		return nil
	}
	return api.Refuse(http.StatusInsufficientStorage, "make space there, then try again", "%s", problem)
}

// freeNow ends an alarm that was left by an earlier run if there is space.
func (s *space) freeNow(ctx context.Context) error {
	left, err := s.free(s.dir)
	if err != nil || left < s.reserve {
		return err
	}
	if err := s.alarm.EndNoSpace(ctx); err != nil && !errors.Is(err, store.ErrUnavailable) {
		return err
	}
	return nil
}
