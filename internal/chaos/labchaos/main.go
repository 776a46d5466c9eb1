// Command labchaos breaks real clusters at random and checks what becomes of them: API
// servers, agents, tunnels, links, disks and stores fail and are mended while pods, services,
// policies and namespaces come and go and load runs.
//
// A seed decides what happens. What it decides is written as a lab script, which
// `weft lab run` runs; so a run that fails is a file that can be read, cut down and run again.
// Before the first round, many pods come and go at once on a busy machine.
package main

import (
	"context"
	_ "embed"
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
	flag.BoolVar(&o.pods, "pods", true, "first create and delete fifty pods at once, ten times")
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
	pods          bool
	weft, dir     string
}

// pods is the script in which many pods come and go.
//
//go:embed pods.txtar
var pods []byte

// run runs rounds. It goes on after one that failed, and keeps its script.
func run(ctx context.Context, o options) error {
	begun, failed := time.Now(), 0
	one := func(what, name string, text []byte) error {
		ok, err := o.round(ctx, what, name, text)
		if !ok {
			failed++
		}
		return err
	}
	if o.pods {
		if err := one("pods", "chaos-pods.txtar", pods); err != nil {
			return err
		}
	}
	for i := 0; ctx.Err() == nil && (i < o.rounds || o.span > 0); i++ {
		if o.span > 0 && i > 0 && time.Since(begun) > o.span {
			break
		}
		seed := o.seed + uint64(i)
		if err := one(fmt.Sprintf("round %d, seed %d", i+1, seed), fmt.Sprintf("chaos-%d.txtar", seed), Script(seed, o.steps)); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d rounds failed", failed)
	}
	return ctx.Err()
}

// round runs a script and says whether it passed. One that failed stays.
func (o options) round(ctx context.Context, what, name string, text []byte) (ok bool, err error) {
	path := filepath.Join(o.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return false, err
	}
	fmt.Printf("%s: %s lab run %s\n", what, o.weft, path)
	cmd := exec.CommandContext(ctx, o.weft, "lab", "run", path)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it takes its clusters down
	cmd.WaitDelay = time.Minute
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || ctx.Err() != nil {
			return false, errors.Join(err, ctx.Err())
		}
		fmt.Printf("%s FAILED; run it again with: %s lab run %s\n", what, o.weft, path)
		return false, nil
	}
	return true, os.Remove(path)
}
