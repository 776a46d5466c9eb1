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

// A host process says by a line that begins like this that its lab is up, and how
// far it is. Whatever else it says is why there is no lab.
const (
	hostUp       = "up "
	hostProgress = "progress "
)

// Up starts a process that raises the clusters of a file, runs its script and
// keeps them until it is told to end. It returns when the script has ended, and
// tells progress until then. Without a path it is the default topology.
func Up(ctx context.Context, path string, progress io.Writer) (lab.Record, error) {
	binary, err := os.Executable()
	if err != nil {
		return lab.Record{}, err
	}
	if path != "" {
		if path, err = filepath.Abs(path); err != nil {
			return lab.Record{}, err
		}
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
		if line, ok := strings.CutPrefix(lines.Text(), hostProgress); ok {
			fmt.Fprintln(progress, line)
			continue
		}
		said = append(said, lines.Text())
	}
	_ = host.Wait()
	if ctx.Err() != nil {
		return lab.Record{}, errInterrupted
	}
	return lab.Record{}, errors.New(strings.Join(said, "\n"))
}

// Host is the life of the process that Up starts. It says on out how far it is, that
// the lab is up, or why it is not, and ends with ctx.
func Host(ctx context.Context, path string, out io.Writer) error {
	view := &hostView{Plain: NewPlain(&prefixed{out: out})}
	result := Run(ctx, path, Options{View: view, Keep: func(ctx context.Context, l *lab.Lab, err error) {
		if err != nil {
			return
		}
		// Nobody listens from here on: another word would end this process before
		// its lab.
		view.Out = io.Discard
		fmt.Fprintln(out, hostUp+l.ID)
		<-ctx.Done()
	}})
	if !result.OK && ctx.Err() == nil {
		return errors.New(result.Error)
	}
	return nil
}

// hostView tells all but the end, which Host tells.
type hostView struct{ *Plain }

func (hostView) End(Result) {}

// prefixed writes each line of what is whole lines as progress.
type prefixed struct{ out io.Writer }

func (p *prefixed) Write(text []byte) (int, error) {
	for line := range strings.Lines(string(text)) {
		if _, err := io.WriteString(p.out, hostProgress+line); err != nil {
			return 0, err
		}
	}
	return len(text), nil
}
