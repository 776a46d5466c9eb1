package scenario

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab"
)

// stallStep is how often a stall looks at the clock, and stallWorth is the delay from
// which on it is worth reporting.
const (
	stallStep  = 10 * time.Millisecond
	stallWorth = 250 * time.Millisecond
)

// stall measures how long this machine kept a runnable process waiting. It excuses no
// failure, but tells the reader where to look.
type stall struct{ worst atomic.Int64 }

// Run measures until ctx ends, on a thread with the ordinary priority of what the lab
// runs; the lab's other threads have a higher one. The thread ends with Run.
func (s *stall) Run(ctx context.Context) {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), lab.OrdinaryNice())
	step := unix.NsecToTimespec(int64(stallStep))
	for last := time.Now(); ctx.Err() == nil; {
		_ = unix.Nanosleep(&step, nil)
		now := time.Now()
		if late := int64(now.Sub(last) - stallStep); late > s.worst.Load() {
			s.worst.Store(late)
		}
		last = now
	}
}

// remark is a note to add to a failure, nil if the machine kept up.
func (s *stall) remark() error {
	if worst := time.Duration(s.worst.Load()); worst >= stallWorth {
		return fmt.Errorf("(this machine stalled for up to %v during the run: shorter times mean nothing)", worst.Round(time.Millisecond))
	}
	return nil
}
