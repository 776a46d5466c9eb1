package lab

import (
	"bytes"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The network has priority on a busy machine, and what it starts does not inherit
// that.
func TestNetworkComesFirst(t *testing.T) {
	l := raise(t, bare)
	if raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err != nil || 20-raw != networkNice {
		t.Errorf("the network runs with nice %d, %v; want %d", 20-raw, err, networkNice)
	}
	for _, tt := range []struct{ unit, want int }{{0, OrdinaryNice()}, {-10, -10}} {
		p, err := l.nodes["west/n1"].spawnNice("sleeper"+strconv.Itoa(tt.unit), exec.Command("/bin/sleep", "1000"), tt.unit)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := unix.Getpriority(unix.PRIO_PROCESS, p.pid()); err != nil || 20-raw != tt.want {
			t.Errorf("nice %d in a unit gives %d, %v; want %d", tt.unit, 20-raw, err, tt.want)
		}
		if err := p.kill(); err != nil {
			t.Fatal(err)
		}
	}
}

// An operator's commands have no priority either.
func TestCommandsAreOrdinary(t *testing.T) {
	l := raise(t, bare)
	var out bytes.Buffer
	if err := l.runIn(l.nodes["west/n1"], exec.Command("/bin/sh", "-c", "cut -d' ' -f19 /proc/$$/stat"), &out, &out); err != nil {
		t.Fatal(err, out.String())
	}
	if got := strings.TrimSpace(out.String()); got != strconv.Itoa(OrdinaryNice()) {
		t.Errorf("a command runs with nice %s, want %d", got, OrdinaryNice())
	}
}
