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

// run takes every step even if one fails, and returns all failures.
func run(ctx context.Context, out io.Writer) error {
	lines := json.NewEncoder(out)
	var failed error
	for _, s := range steps {
		begin := time.Now()
		fmt.Fprintf(os.Stderr, "bench: %s\n", s.name)
		cmd := exec.CommandContext(ctx, s.command[0], s.command[1:]...)
		cmd.Stderr = os.Stderr
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = 20 * time.Second
		output, err := cmd.Output()
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
