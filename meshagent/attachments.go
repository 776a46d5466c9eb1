package meshagent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// attachments restores what somebody else took from the kernel: programs of devices
// and pins of maps. It also attaches programs to the node's own device again when
// that was replaced by another of the same name.
type attachments struct {
	datapath Datapath
	// device is the index of the node's device now; nil: it is not watched.
	device func() (ifindex int, err error)
	// cgroup is that of the node's processes, which reach services; nil: they do not.
	cgroup func() (dir string, err error)
	tables *tables.Tables
	log    *slog.Logger

	at int // index of the node's device, of the loop alone
}

// attachmentsTurn is how long programs can be missing: until then traffic of that
// device is not checked.
const attachmentsTurn = 2 * time.Second

// Run works until ctx ends.
func (a *attachments) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		problems := map[string]string{}
		if err := a.follow(); err != nil {
			problems["device"] = err.Error()
		}
		if err := a.followSockets(); err != nil {
			problems["sockets"] = err.Error()
		}
		mended, failed := a.datapath.Mend()
		if len(mended) > 0 {
			a.log.Warn("restored what was removed from the kernel by somebody else", "restored", mended)
		}
		for what, err := range failed {
			problems[what] = err.Error()
		}
		tables.SetProblems(a.tables, wire.ProblemPrograms, problems)
		select {
		case <-ctx.Done():
		case <-time.After(attachmentsTurn):
		}
	}
	return nil
}

// followSockets lets the node's processes reach services, or not any more.
func (a *attachments) followSockets() error {
	if a.cgroup == nil {
		return a.datapath.DetachSockets()
	}
	dir, err := a.cgroup()
	if err != nil {
		return err
	}
	return a.datapath.AttachSockets(dir)
}

// cgroup finds the cgroup whose processes reach services; nil: none does.
func (c Config) cgroup() func() (string, error) {
	switch {
	case !c.SocketLB:
		return nil
	case c.CgroupRoot != "":
		return func() (string, error) { return c.CgroupRoot, nil }
	}
	return CgroupRoot
}

// CgroupRoot is where the version 2 tree of cgroups is mounted.
func CgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("no cgroup2 file system is mounted, so the node's own processes cannot reach services: mount one, or set socketLB to false")
}

// follow attaches programs to the node's device if it is another than before.
func (a *attachments) follow() error {
	if a.device == nil {
		return nil
	}
	index, err := a.device()
	if err != nil || index == a.at {
		return err
	}
	if err := a.datapath.AttachDevice(index); err != nil {
		return err
	}
	if a.at != 0 {
		a.log.Warn("the node's device was replaced; its programs are attached again", "ifindex", index)
	}
	a.at = index
	return nil
}
