// Command benchmesh measures one real agent and one real API server in a mesh of up to 511
// clusters, all but one of them generated, and prints each figure as a line of JSON.
//
// Generated clusters export under the keys and in the values of package wire, change at the
// rates of Cilium's own scale test, and are served on the operator's machine of a lab,
// package peers says how. The API server and the agent are the programs that run
// everywhere, with the kernel's maps. A figure is what was measured; only `traffic` is
// computed, from the bytes of measured messages, and says so.
//
// `make bench-mesh` runs it as root, after building ./weft.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weft-mesh/weft/internal/benchmesh/peers"
	"github.com/weft-mesh/weft/internal/figures"
	"github.com/weft-mesh/weft/lab"
)

func main() {
	o, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmesh:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("stopped after %v: raise -limit", o.limit))
	err = o.run(ctx, os.Stdout)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmesh:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	plan
	sizes []int
	only  []string
	limit time.Duration
	from  string // a file of figures to keep and draw instead of measuring
	docs  string // the folder to keep figures and curves in; empty: none
}

// mostClusters is the largest mesh: IDs have nine bits.
const mostClusters = 511

func parse(args []string, out io.Writer) (o options, err error) {
	set := flag.NewFlagSet("benchmesh", flag.ContinueOnError)
	set.SetOutput(out)
	clusters := set.String("clusters", "10,50,250,511", "`sizes` of the mesh to measure, the real cluster included")
	only := set.String("only", "", "`lines` to measure, all if empty: "+strings.Join(names, ", ")+"; millions is left out unless it is named")
	effort := set.String("effort", "full", "how thoroughly to measure: full; quick, a look at a change; or check, with small clusters,\nto see that everything works")
	set.DurationVar(&o.limit, "limit", 30*time.Minute, "end after this `time`, whatever is left")
	memory := set.Uint64("memory", 16<<10, "`MiB` that all processes may take; beyond it a size is given up")
	profiles := set.String("profiles", "", "`folder` to write profiles of agent and API server to; taking them costs a little")
	binary := set.String("weft", "./weft", "the `program` to measure")
	set.StringVar(&o.docs, "docs", "", "`folder` to write the figures and their curves to, as bench-mesh.jsonl and .svg")
	set.StringVar(&o.from, "from", "", "`file` of figures to write with -docs, instead of measuring")
	set.Usage = func() {
		fmt.Fprintln(out, "Measure one agent and one API server in a mesh of generated clusters. It needs root, Linux 6.1,\nand what a lab needs; 511 clusters take some 12 GiB of memory, two thirds of them for\ntunnels if the kernel has no WireGuard.\n\nUsage: benchmesh [flags]")
		set.PrintDefaults()
	}
	if err := set.Parse(args); err != nil {
		return o, err
	}
	if set.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", set.Arg(0))
	}
	var known bool
	if o.plan, known = efforts[*effort]; !known {
		return o, fmt.Errorf("-effort: %q is not full, quick or check", *effort)
	}
	o.memory, o.profiles = *memory<<20, *profiles
	// It is started from other folders.
	if o.binary, err = filepath.Abs(*binary); err != nil {
		return o, err
	}
	if o.from != "" && o.docs == "" {
		return o, errors.New("-from writes figures: say where to with -docs")
	}
	if o.sizes, err = sizes(*clusters); err != nil {
		return o, err
	}
	o.only, err = lines(*only)
	return o, err
}

// sizes reads numbers of clusters separated by commas.
func sizes(text string) (all []int, err error) {
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 3 || n > mostClusters {
			return nil, fmt.Errorf("-clusters: %q is not a number from 3 to %d", part, mostClusters)
		}
		all = append(all, n)
	}
	return all, nil
}

// lines reads names of measurements; none means all but the one that needs a mesh of its
// own.
func lines(text string) (all []string, err error) {
	if text == "" {
		return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "millions" }), nil
	}
	for part := range strings.SplitSeq(text, ",") {
		name := strings.TrimSpace(part)
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("-only: there is no line %q; choose from %s", name, strings.Join(names, ", "))
		}
		all = append(all, name)
	}
	return all, nil
}

// run measures, or reads figures, and keeps them. It measures every size even if one
// fails, and returns all failures.
func (o options) run(ctx context.Context, out io.Writer) error {
	if o.from != "" {
		file, err := os.Open(o.from)
		if err != nil {
			return err
		}
		defer file.Close()
		all, err := figures.Read(file, figure.lacks)
		if err != nil {
			return fmt.Errorf("%s: %w", o.from, err)
		}
		return o.keep(all)
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := lab.Preflight(); err != nil {
		return err
	}
	if _, err := lab.Prune(); err != nil {
		return err
	}
	if o.profiles != "" {
		if err := os.MkdirAll(o.profiles, 0o700); err != nil {
			return err
		}
	}
	var mu sync.Mutex // guards all and failed
	var all []figure
	var failed error
	print := func(f figure) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, f)
		failed = errors.Join(failed, json.NewEncoder(out).Encode(f))
	}
	for _, clusters := range o.sizes {
		failed = errors.Join(failed, o.size(ctx, clusters, print))
		if ctx.Err() != nil {
			return errors.Join(failed, context.Cause(ctx))
		}
	}
	if slices.Contains(o.only, "millions") {
		b := o.bench(millionsClusters, print)
		b.shape = millionsShape(peers.PerCluster())
		failed = errors.Join(failed, b.run(ctx, b.millions))
	}
	if o.docs != "" {
		failed = errors.Join(failed, o.keep(all))
	}
	return failed
}

// keep writes figures and their curves.
func (o options) keep(all []figure) error {
	return figures.Keep(filepath.Join(o.docs, "bench-mesh"), all, draw(all))
}

func (o options) bench(clusters int, print func(figure)) *bench {
	return &bench{plan: o.plan, clusters: clusters, print: print, wants: func(line string) bool { return slices.Contains(o.only, line) }}
}

// size measures a mesh of one size.
func (o options) size(ctx context.Context, clusters int, print func(figure)) error {
	began := time.Now()
	var failed error
	own := slices.DeleteFunc(slices.Clone(o.only), func(line string) bool { return line == "failover" || line == "millions" })
	if b := o.bench(clusters, print); len(own) > 0 {
		if err := b.run(ctx, b.stages); err != nil {
			failed = fmt.Errorf("%d clusters: %w", clusters, err)
			progress("%v", failed)
		}
	}
	if b := o.bench(clusters, print); b.wants("failover") && ctx.Err() == nil {
		if err := b.failover(ctx); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%d clusters: failover: %w", clusters, err))
		}
	}
	progress("%d clusters: done after %v", clusters, time.Since(began).Round(time.Second))
	return failed
}
