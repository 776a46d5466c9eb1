// Command bench measures the figures that Weft promises and prints each as a line
// of JSON: {"name":…,"value":…,"unit":…}.
//
// It runs Go benchmarks and lab scenarios and reads their output; how something
// is measured is up to them. `make bench` runs it as root, after building ./weft.
//
// `bench datapath` measures packets alone, more thoroughly, and compares them with their
// targets: `make bench-datapath`.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// limit bounds the whole run, datapathLimit that of the datapath.
const limit, datapathLimit = 10 * time.Minute, 30 * time.Minute

func main() {
	limit, run := limit, run
	if len(os.Args) > 1 && os.Args[1] == "datapath" {
		limit, run = datapathLimit, func(ctx context.Context, out io.Writer) error {
			return measureDatapath(ctx, os.Args[2:], out)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, limit)
	err := run(ctx, os.Stdout)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A step measures one thing.
type step struct {
	name    string
	command []string
	figures func(output []byte) ([]figure, error)
}

// steps is everything that is measured; what needs a quiet machine comes first.
var steps = []step{
	{"packets", []string{"go", "test", "-run", "^$", "-bench", "^BenchmarkPacket$", "-benchtime", "200000x", "./bpf"}, benchmarks("packet")},
	{"changing", []string{"go", "test", "-run", "^$", "-bench", "^BenchmarkChanging$", "-benchtime", "2s", "./bpf"}, benchmarks("packet")},
	{"cases", []string{"go", "test", "-run", "^$", "-bench", "^BenchmarkCases$", "-benchtime", "1000x", "./bpf"}, benchmarks("cases")},
	{"ports", []string{"go", "test", "-run", "^$", "-bench", "^BenchmarkReadPorts$", "-benchtime", "50x", "./bpf"}, benchmarks("ports")},
	{"policy", []string{"go", "test", "-run", "^$", "-bench", ".", "-benchtime", "1s", "./policy", "./service"}, benchmarks("control")},
	{"apply", []string{"go", "test", "-run", "^$", "-bench", "^BenchmarkApply$", "-benchtime", "3x", "./apiserver"}, benchmarks("apply")},
	{"spread", []string{"./weft", "lab", "run", "-o", "json", "internal/bench/spread.txtar"}, scenarios("spread", "_failed")},
	{"burst", []string{"./weft", "lab", "run", "-o", "json", "internal/bench/burst.txtar"}, scenarios("burst", "fsyncs", "revisions", "before_cpu_seconds", "after_cpu_seconds")},
	{"failover", []string{"./weft", "lab", "run", "-o", "json", "internal/bench/failover.txtar"}, scenarios("failover")},
}

// patience is how long a command may take to end: one with a lab takes that down.
const patience = 20 * time.Second

// command returns a command that is asked to end, with all that it started, when ctx ends:
// the go command would not ask the tests that it runs.
func command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = patience
	return cmd
}

// run takes every step even if one fails, and returns all failures. When ctx ends it goes no
// further.
func run(ctx context.Context, out io.Writer) error {
	lines := json.NewEncoder(out)
	var failed error
	for _, s := range steps {
		begin := time.Now()
		fmt.Fprintf(os.Stderr, "bench: %s\n", s.name)
		cmd := command(ctx, s.command...)
		cmd.Stderr = os.Stderr
		output, err := cmd.Output()
		if ctx.Err() != nil {
			return errors.Join(failed, fmt.Errorf("%s: %w", s.name, context.Cause(ctx)))
		}
		figures, readErr := s.figures(output)
		if err == nil {
			err = readErr
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", s.name, err)
			failed = errors.Join(failed, err)
			fmt.Fprintf(os.Stderr, "bench: %v\n%s", err, output)
		}
		figures = append(figures, figure{Name: "bench/" + s.name + "/duration", Value: time.Since(begin).Seconds(), Unit: "s"})
		for _, f := range figures {
			if err := lines.Encode(f); err != nil {
				return err
			}
		}
	}
	return failed
}
