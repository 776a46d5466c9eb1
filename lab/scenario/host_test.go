package scenario

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A lab that outlives the command that brought it up holds nothing that the
// command's caller had open, such as a lock.
func TestHostHoldsNothingOfTheCaller(t *testing.T) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], 0); err != nil { // which children inherit
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	_, err := Up(t.Context(), "", io.Discard)
	unix.Close(ends[1])
	var pid int
	if err == nil {
		t.Fatal("there is no such lab")
	}
	if _, scan := fmt.Sscanf(err.Error(), "there is no lab \"%d\"", &pid); scan != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(ends[0])}}
	if n, err := unix.Poll(poll, 10_000); n != 1 || poll[0].Revents&unix.POLLHUP == 0 {
		t.Errorf("the host still has the caller's pipe open (%v)", err)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Error(err)
	}
}

func TestFollowHost(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for name, tt := range map[string]struct{ text, id, said, progress string }{
		"up":            {"progress a\nup 1f2e\nmore\n", "1f2e", "", "a\n"},
		"failed":        {"progress a\nout of\n\nluck", "", "out of\n\nluck", "a\n"},
		"of any length": {"progress " + long + "\n" + long + "\nthe end\n", "", long + "\nthe end", long + "\n"},
		"nothing said":  {"", "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var progress bytes.Buffer
			if id, said := follow(strings.NewReader(tt.text), &progress); id != tt.id || said != tt.said || progress.String() != tt.progress {
				t.Errorf("ID %q, %d bytes said, progress of %d bytes", id, len(said), progress.Len())
			}
		})
	}
}
