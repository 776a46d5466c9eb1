// Command bench measures what Weft promises in figures and prints them as JSON
// lines, one figure each: {"name":…,"value":…,"unit":…}.
//
// It runs the benchmarks of the packages and scripts in a lab, and only reads
// what they say: how something is measured stands there. It is started by
// `make bench`, as root, with ./weft built.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// limit is how long everything together may take.
const limit = 10 * time.Minute

func main() {
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

// steps are everything that is measured, the quiet machine's first.
var steps = []step{
	{"packets", []string{"go", "test", "-run", "^$", "-bench", "^BenchmarkPacket$", "-benchtime", "200000x", "./bpf"}, benchmarks("packet")},
	{"cases", []string{"go", "test", "-run", "^$", "-bench", "^BenchmarkCases$", "-benchtime", "1000x", "./bpf"}, benchmarks("cases")},
	{"ports", []string{"go", "test", "-run", "^$", "-bench", "^BenchmarkReadPorts$", "-benchtime", "50x", "./bpf"}, benchmarks("ports")},
	{"policy", []string{"go", "test", "-run", "^$", "-bench", ".", "-benchtime", "1s", "./policy", "./service"}, benchmarks("control")},
	{"spread", []string{"./weft", "lab", "run", "-o", "json", "internal/bench/spread.txtar"}, scenarios("spread", "_failed")},
	{"burst", []string{"./weft", "lab", "run", "-o", "json", "internal/bench/burst.txtar"}, scenarios("burst", "fsyncs", "revisions", "before_cpu_seconds", "after_cpu_seconds")},
	{"failover", []string{"./weft", "lab", "run", "-o", "json", "internal/bench/failover.txtar"}, scenarios("failover")},
}

// run takes all steps, also after one that failed, and returns what failed.
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
			failed = fmt.Errorf("%s: %w", s.name, err)
			fmt.Fprintf(os.Stderr, "bench: %v\n%s", failed, output)
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
