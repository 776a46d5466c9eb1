package scenario

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/lab"
)

// A host process reports with these prefixes that its lab is up, and its progress.
// All other output says why there is no lab.
const (
	hostUp       = "up "
	hostProgress = "progress "
)

// Up starts a process that brings up the clusters of a file, runs its script and
// keeps the clusters up until it is told to end. Up reports progress and returns when
// the script has ended. Without a path it uses the default topology.
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
	// The host outlives this process, so it has a session of its own, is not bound to
	// ctx, and must not hold what our caller has open, such as a lock or a pipe.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		w.Close()
		return lab.Record{}, fmt.Errorf("detach from the caller's files: %w", err)
	}
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
	id, said := follow(r, progress)
	if id != "" {
		return lab.ReadRecord(id)
	}
	ended := host.Wait()
	switch {
	case ctx.Err() != nil:
		return lab.Record{}, errInterrupted
	case said == "":
		return lab.Record{}, fmt.Errorf("the lab's process ended without saying why: %w", cmp.Or(ended, errors.New("exit status 0")))
	}
	return lab.Record{}, errors.New(said)
}

// follow passes on what a host reports until its lab, whose ID it returns, is up, or
// until the host ends; then it returns what the host said. Lines may be of any
// length: an error quotes what commands printed.
func follow(host io.Reader, progress io.Writer) (id, said string) {
	var rest []string
	for lines := bufio.NewReader(host); ; {
		line, err := lines.ReadString('\n')
		line = strings.TrimSuffix(line, "\n")
		if id, ok := strings.CutPrefix(line, hostUp); ok {
			return id, ""
		}
		if text, ok := strings.CutPrefix(line, hostProgress); ok {
			fmt.Fprintln(progress, text)
		} else if line != "" || err == nil {
			rest = append(rest, line)
		}
		if err != nil {
			return "", strings.Join(rest, "\n")
		}
	}
}

// Host is what the process that Up starts runs, until ctx ends. It reports on out its
// progress and that the lab is up, or why not.
func Host(ctx context.Context, path string, out io.Writer) error {
	view := &hostView{Plain: NewPlain(&prefixed{out: out})}
	result := Run(ctx, path, Options{View: view, Keep: func(ctx context.Context, l *lab.Lab, err error) {
		if err != nil {
			return
		}
		// Nobody reads out from here on: writing to it would kill this process
		// before its lab is gone.
		view.Out = io.Discard
		fmt.Fprintln(out, hostUp+l.ID)
		<-ctx.Done()
	}})
	if !result.OK && ctx.Err() == nil {
		return errors.New(result.Error)
	}
	return nil
}

// hostView reports everything but the end, which Host reports.
type hostView struct{ *Plain }

func (hostView) End(Result) {}

// prefixed marks each line as progress. It is given whole lines.
type prefixed struct{ out io.Writer }

func (p *prefixed) Write(text []byte) (int, error) {
	for line := range strings.Lines(string(text)) {
		if _, err := io.WriteString(p.out, hostProgress+line); err != nil {
			return 0, err
		}
	}
	return len(text), nil
}
