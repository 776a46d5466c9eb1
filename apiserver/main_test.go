package apiserver

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// settled waits, after the tests, for connections between members: etcd ends them after 5 s
// of silence, and waits for none of them.
type settled struct{ *testing.M }

func (m settled) Run() int {
	code := m.M.Run()
	stacks := make([]byte, 4<<20)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if n := runtime.Stack(stacks, true); !bytes.Contains(stacks[:n], []byte("transport.timeoutConn")) {
			break
		}
	}
	return code
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(settled{m},
		// memberlist does not wait for the probe that is under way; it ends with
		// the probe's own patience.
		goleak.IgnoreTopFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"),
	)
}
