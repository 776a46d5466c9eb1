package scenario

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets the test binary act as a host whose lab, named by its PID, is up
// until SIGTERM.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "lab" && os.Args[2] == "host" {
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM)
		fmt.Println(hostUp + fmt.Sprint(os.Getpid()))
		<-end
		return
	}
	goleak.VerifyTestMain(m)
}
