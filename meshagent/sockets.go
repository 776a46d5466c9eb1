package meshagent

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/internal/pace"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// sockets ends those of the node's processes that are connected to a service's backend that is
// gone or cut off, so that they connect to another one.
type sockets struct {
	datapath Datapath
	tables   *tables.Tables
	trouble  *trouble
	log      *slog.Logger
	// written is closed once everything known at the start is in the kernel: before, a map
	// that lacks a backend says nothing.
	written <-chan struct{}

	ended atomic.Uint64 // in all
}

const (
	// socketLook is the least time between two looks for stranded sockets.
	socketLook = 100 * time.Millisecond
	// socketWait is the time to the next look while a socket is in doubt, or after a failure.
	socketWait = 500 * time.Millisecond
	// socketRest is how many times as long as a look the pause after it is: a look passes over
	// the kernel's table of all connections, which takes a few milliseconds.
	socketRest = 40
	// socketPause is the longest pause, whatever a look takes.
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
		_, moved := s.tables.Paths.AllWatch(now)
		begun := time.Now()
		ended, doubtful, err := s.datapath.EndStranded()
		cost.Ran(time.Since(begun))
		s.trouble.tell(err)
		if ended > 0 {
			s.ended.Add(uint64(ended))
			s.log.Info("ended sockets of the node that had lost their service's backend", "sockets", ended)
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
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(cost.Rest(socketLook, socketRest), socketPause)):
		}
	}
}
