package lab

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// The lab's own process is the network between its clusters. A real network keeps
// running however busy the machines are, so the lab has priority over everything it
// starts; otherwise a wait for the CPU would look like a cut cable.
const networkNice = -15

// OrdinaryNice is the priority that the process started with. What it starts gets
// the same, unless its unit says otherwise.
var OrdinaryNice = sync.OnceValue(func() int {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return 0
	}
	return 20 - raw // the system call's result is 20 - nice
})

// hurry gives all threads of the process the network's priority; later threads
// inherit it.
func hurry() error {
	OrdinaryNice()
	for done := map[int]bool{}; ; {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		news := false
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil || done[id] {
				continue
			}
			done[id], news = true, true
			if err := unix.Setpriority(unix.PRIO_PROCESS, id, networkNice); err != nil && err != unix.ESRCH {
				return fmt.Errorf("give the network between the clusters its priority: %w", err)
			}
		}
		if !news {
			return nil
		}
	}
}

// startNice starts a command with a priority; 0 is OrdinaryNice. The thread takes
// on that priority for as long as it takes to start the command.
func startNice(cmd *exec.Cmd, nice int) error {
	if nice == 0 {
		nice = OrdinaryNice()
	}
	thread := unix.Gettid()
	if err := unix.Setpriority(unix.PRIO_PROCESS, thread, nice); err != nil {
		return fmt.Errorf("set priority %d: %w", nice, err)
	}
	err := cmd.Start()
	if again := unix.Setpriority(unix.PRIO_PROCESS, thread, networkNice); err == nil {
		err = again
	}
	return err
}
