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

// stallStep is how often a stall looks at the clock, and stallWorth from when
// on its lateness is worth a word.
const (
	stallStep  = 10 * time.Millisecond
	stallWorth = 250 * time.Millisecond
)

// stall measures how long this machine let a process wait that was ready to
// run. It excuses nothing; it tells a reader of a failure where to look.
type stall struct{ worst atomic.Int64 }

// Run measures until ctx ends, on a thread of ordinary priority, which ends with
// it: the lab's others are more urgent than what they run.
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

// remark is a sentence for a failure, empty when the machine kept up.
func (s *stall) remark() error {
	if worst := time.Duration(s.worst.Load()); worst >= stallWorth {
		return fmt.Errorf("(this machine stood still for up to %v meanwhile: it is too busy for times below that)", worst.Round(time.Millisecond))
	}
	return nil
}
