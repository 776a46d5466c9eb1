// Command benchservices measures Weft's services beside kube-proxy's, in iptables and in
// nftables mode, and beside plain forwarding, in one run, and prints each figure as a line
// of JSON.
//
// Each of the four has a machine of a lab with the same client and the same backends, on
// the same machine so that no tunnel is in between, and knows the same services, of which
// most lead nowhere. The four take turns within every round; a figure is the median of the
// rounds. kube-proxy is the real one and reads a real Kubernetes API server; the
// module scenarios/kubernetes says in which version.
//
// `make bench-services` runs it as root, after building ./weft and Kubernetes' programs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weft-mesh/weft/internal/figures"
	"github.com/weft-mesh/weft/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchservices:", err)
		os.Exit(1)
	}
}

// run is a part that this program plays in a pod, or else the whole measurement.
func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if part := parts[args[0]]; part != nil {
			return part(ctx, args[1:], os.Stdout)
		}
	}
	o, err := parse(args, os.Stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("stopped after %v: raise -limit", o.limit))
	defer cancel()
	return o.run(ctx, os.Stdout)
}

// parts is what the benchmark starts in pods.
var parts = map[string]func(ctx context.Context, args []string, out io.Writer) error{
	"serve":  serve,
	"client": client,
	"await":  await,
	"watch":  watch,
}

// options are what the command line says.
type options struct {
	plan
	sizes      []int
	only       []string
	limit      time.Duration
	weft       string   // the program to measure
	kubernetes string   // the folder with Kubernetes' programs
	from       string   // a file of figures to keep and draw instead of measuring
	agent      []string // flags of weft agent
	variant    string   // of iptables
	docs       string   // the folder to keep figures and curves in; empty: none
}

func parse(args []string, out io.Writer) (o options, err error) {
	set := flag.NewFlagSet("benchservices", flag.ContinueOnError)
	set.SetOutput(out)
	sizes := set.String("services", "1,1000,10000,20000", "`numbers` of services to measure with")
	only := set.String("only", "", "`lines` to measure, all if empty: "+strings.Join(names, ", "))
	set.IntVar(&o.rounds, "rounds", 7, "how often everything is measured")
	set.DurationVar(&o.slice, "slice", 300*time.Millisecond, "for how `long` one client runs at a time")
	set.IntVar(&o.syncs, "syncs", 3, "how often all rules are made from nothing")
	set.IntVar(&o.changes, "changes", 20, "how often a single endpoint slice is changed")
	set.DurationVar(&o.patience, "patience", 10*time.Minute, "for how `long` services are waited for")
	set.DurationVar(&o.limit, "limit", 2*time.Hour, "end after this `time`, whatever is left")
	set.StringVar(&o.weft, "weft", "./weft", "the `program` to measure")
	set.StringVar(&o.kubernetes, "kubernetes", ".bin/kubernetes", "`folder` with kube-apiserver, kube-proxy and etcd")
	agent := set.String("agent", "", "`flags` of weft agent to measure with, in place of its defaults")
	set.StringVar(&o.variant, "iptables", "legacy", "`variant` of iptables for kube-proxy: legacy, or nft, whose iptables-restore takes minutes for 10,000 services")
	set.StringVar(&o.docs, "docs", "", "`folder` to write the figures and their curves to, as bench-services.jsonl and .svg")
	set.StringVar(&o.from, "from", "", "`file` of figures to write with -docs and to show, instead of measuring")
	set.Usage = func() {
		fmt.Fprintln(out, "Measure services beside kube-proxy. It needs root, what a lab needs, and iptables, nft and conntrack's\nkernel modules, as kube-proxy does; 20,000 services take some 6 GiB of memory.\n\nUsage: benchservices [flags]")
		set.PrintDefaults()
	}
	if err := set.Parse(args); err != nil {
		return o, err
	}
	if set.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", set.Arg(0))
	}
	for _, text := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > mostServices {
			return o, fmt.Errorf("-services: %q is not a number from 1 to %d", text, mostServices)
		}
		o.sizes = append(o.sizes, n)
	}
	slices.Sort(o.sizes)
	o.agent = strings.Fields(*agent)
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	for _, line := range o.only {
		if !slices.Contains(names, line) {
			return o, fmt.Errorf("-only: there is no line %q, only %s", line, strings.Join(names, ", "))
		}
	}
	if o.rounds < 1 || o.slice <= 0 || o.syncs < 1 || o.changes < 1 {
		return o, errors.New("-rounds, -slice, -syncs and -changes must be positive")
	}
	for _, path := range []*string{&o.weft, &o.kubernetes} {
		if *path, err = filepath.Abs(*path); err != nil {
			return o, err
		}
	}
	return o, nil
}

// run measures all sizes, shows the figures as a table and keeps them.
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
		fmt.Fprint(os.Stderr, table(all))
		return o.keep(all)
	}
	if err := lab.Preflight(); err != nil {
		return err
	}
	if err := missing(o.kubernetes); err != nil {
		return err
	}
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	var all []figure
	b := &bench{plan: o.plan, weft: o.weft, kubernetes: o.kubernetes, agent: o.agent, variant: o.variant, print: func(f figure) {
		all = append(all, f)
		_ = lines.Encode(f) // a broken pipe ends the program
	}}
	b.wants = func(line string) bool { return len(o.only) == 0 || slices.Contains(o.only, line) }
	err := b.run(ctx, o.sizes)
	fmt.Fprint(os.Stderr, table(all))
	if err != nil && len(all) == 0 {
		return err
	}
	return errors.Join(err, o.keep(all)) // of sizes that failed, what there is
}

// keep writes figures and curves into the folder for them.
func (o options) keep(all []figure) error {
	if o.docs == "" {
		return nil
	}
	return figures.Keep(filepath.Join(o.docs, "bench-services"), all, draw(all))
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "benchservices: "+format+"\n", args...)
}
