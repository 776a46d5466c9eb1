package firstthread

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOnlyMainIsOnTheFirstThread(t *testing.T) {
	for range 1000 {
		thread := make(chan int)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			thread <- unix.Gettid()
		}()
		if <-thread == unix.Getpid() {
			t.Fatal("a goroutine runs on the first thread")
		}
	}
}
