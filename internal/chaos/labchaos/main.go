// Command labchaos breaks real clusters at random and checks what becomes of them: API
// servers, agents, tunnels, links, disks and stores fail and are mended while pods, services,
// policies and namespaces come and go and load runs.
//
// A seed decides what happens. What it decides is written as a lab script, which
// `weft lab run` runs; so a run that fails is a file that can be read, cut down and run again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()%1e9), "seed of the first round; each round adds one")
	flag.IntVar(&o.steps, "steps", 25, "what breaks, is mended or changes in a round")
	flag.IntVar(&o.rounds, "rounds", 1, "number of rounds")
	flag.DurationVar(&o.span, "for", 0, "begin no further round after this time, instead of a number of rounds")
	flag.StringVar(&o.weft, "weft", "./weft", "program under test")
	flag.StringVar(&o.dir, "dir", os.TempDir(), "folder for the scripts of rounds that fail")
	print := flag.Bool("print", false, "print the script of the first round and run nothing")
	flag.Parse()
	if *print {
		os.Stdout.Write(Script(o.seed, o.steps))
		return
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "labchaos:", err)
		os.Exit(1)
	}
}

type options struct {
	seed          uint64
	steps, rounds int
	span          time.Duration
	weft, dir     string
}

// run runs rounds. It goes on after one that failed, and keeps its script.
func run(ctx context.Context, o options) error {
	begun, failed := time.Now(), 0
	for i := 0; ctx.Err() == nil && (i < o.rounds || o.span > 0); i++ {
		if o.span > 0 && i > 0 && time.Since(begun) > o.span {
			break
		}
		seed := o.seed + uint64(i)
		path := filepath.Join(o.dir, fmt.Sprintf("chaos-%d.txtar", seed))
		if err := os.WriteFile(path, Script(seed, o.steps), 0o600); err != nil {
			return err
		}
		fmt.Printf("round %d, seed %d: %s lab run %s\n", i+1, seed, o.weft, path)
		cmd := exec.CommandContext(ctx, o.weft, "lab", "run", path)
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it takes its clusters down
		cmd.WaitDelay = time.Minute
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			var exit *exec.ExitError
			if !errors.As(err, &exit) || ctx.Err() != nil {
				return errors.Join(err, ctx.Err())
			}
			failed++
			fmt.Printf("round %d FAILED; run it again with: %s lab run %s\n", i+1, o.weft, path)
			continue
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d rounds failed", failed)
	}
	return ctx.Err()
}
