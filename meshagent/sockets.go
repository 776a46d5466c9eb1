package meshagent

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/internal/pace"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/meshagent/trace"
)

// sockets ends those that have lost their service's backend, so that they connect to another one.
type sockets struct {
	// look ends those that it finds, and says how many, and for how many another look has to tell.
	look func(context.Context) (ended, doubtful int, err error)
	// what are the sockets, for people.
	what string
	// paths says that those whose path is dead are ended as well.
	paths bool
	// longest is the longest pause between two looks, whatever a look takes; 0: there is none.
	longest time.Duration
	tables  *tables.Tables
	trouble *trouble
	log     *slog.Logger
	// written is closed once everything known at the start is in the kernel: before, a map
	// that lacks a backend says nothing.
	written <-chan struct{}

	ended atomic.Uint64 // in all
}

const (
	// socketLook is the time from a change to the look for stranded sockets: what belongs
	// together is written by then.
	socketLook = 100 * time.Millisecond
	// socketWait is the time to the next look while a socket is in doubt, or after a failure.
	socketWait = 500 * time.Millisecond
	// socketRest is how many times as long as a look the pause after it is: a look passes over
	// the kernel's table of all connections, or over that of flows, which takes a few milliseconds.
	socketRest = 40
	// socketPause is the longest pause between two looks for those of the node's processes.
	socketPause = time.Second
)

// Run looks whenever backends or paths may have changed, until ctx ends.
func (s *sockets) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.written:
	}
	var cost pace.Pace
	for {
		now := s.tables.DB.ReadTxn()
		_, written := s.tables.Progress.AllWatch(now)
		var moved <-chan struct{}
		if s.paths {
			_, moved = s.tables.Paths.AllWatch(now)
		}
		begun := time.Now()
		ended, doubtful, err := s.look(ctx)
		looked := time.Now()
		cost.Ran(looked.Sub(begun))
		if ctx.Err() != nil {
			return nil
		}
		s.trouble.tell(err)
		if ended > 0 {
			s.ended.Add(uint64(ended))
			s.log.Info("ended "+s.what+" that had lost their service's backend", "sockets", ended)
		}
		var again <-chan time.Time
		if err != nil || doubtful > 0 {
			again = time.After(socketWait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-written:
		case <-moved:
		case <-again:
		}
		rest := cost.Rest(0, socketRest)
		if s.longest > 0 {
			rest = min(rest, s.longest)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(socketLook, rest-time.Since(looked))):
		}
	}
}

// connections are those of pods. Their next packet is answered with a reset anyway; only who waits
// for an answer would wait on. So looking never takes more than one part in socketRest of the
// time, however many flows there are.
type connections struct {
	maps *bpf.Maps
	pods interface {
		EndConnections([]bpf.FlowKey, func(bpf.FlowKey) (bool, error)) (int, error)
	}
	// tried are those that were ended, or had no socket any more: their flows are there for a
	// while.
	tried map[bpf.FlowKey]bool
}

func (c *connections) look(ctx context.Context) (ended, doubtful int, err error) {
	all, err := trace.Lost(ctx, c.maps)
	if err != nil {
		return 0, 0, err
	}
	tried, lost := make(map[bpf.FlowKey]bool, len(all)), []bpf.FlowKey(nil)
	for _, key := range all {
		tried[key] = true
		if !c.tried[key] {
			lost = append(lost, key)
		}
	}
	ended, err = c.pods.EndConnections(lost, func(key bpf.FlowKey) (bool, error) { return trace.StillLost(ctx, c.maps, key) })
	if err != nil {
		return ended, 0, err
	}
	c.tried = tried
	return ended, 0, nil
}
