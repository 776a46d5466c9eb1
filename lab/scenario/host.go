package scenario

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/weft-mesh/weft/lab"
)

// hostUp begins the line by which a host process says that its lab is up.
const hostUp = "up "

// Up starts a process that raises the clusters of a file, runs its script and
// keeps them until it is told to end. It returns when the script has ended.
func Up(ctx context.Context, path string) (lab.Record, error) {
	binary, err := os.Executable()
	if err != nil {
		return lab.Record{}, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return lab.Record{}, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return lab.Record{}, err
	}
	defer r.Close()
	// The host lives on, so it is not bound to ctx and has a session of its own.
	host := exec.Command(binary, "lab", "host", path)
	host.Stdout, host.Stderr = w, w
	host.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = host.Start()
	w.Close()
	if err != nil {
		return lab.Record{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = host.Process.Signal(syscall.SIGTERM) })
	defer stop()
	var said []string
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), hostUp); ok {
			return lab.ReadRecord(id)
		}
		said = append(said, lines.Text())
	}
	_ = host.Wait()
	return lab.Record{}, errors.New(strings.Join(said, "\n"))
}

// Host is the life of the process that Up starts. It says on out that the lab
// is up, or why it is not, and ends with ctx.
func Host(ctx context.Context, path string, out io.Writer) error {
	result := Run(ctx, path, Options{Keep: func(ctx context.Context, l *lab.Lab, err error) {
		if err != nil {
			return
		}
		fmt.Fprintln(out, hostUp+l.ID)
		<-ctx.Done()
	}})
	if !result.OK && ctx.Err() == nil {
		return errors.New(result.Error)
	}
	return nil
}
