// Command conformance runs Kubernetes' own end-to-end specs of networks, unmodified, against a
// cluster of a lab with Weft, and keeps what came out in docs/conformance.md.
//
// It raises the cluster of lab.txtar, gives its nodes the images that specs pull, because a lab
// reaches no registry, and starts CoreDNS. Each suite writes a report of each of its runs to a folder; the
// page has for each spec the last of them. It fails if a spec failed for which the page has no
// reason, and if one passed for whose failure it has one.
//
// `make conformance` runs it as root, after building ./weft, its image and Kubernetes' programs.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

//go:embed coredns.yaml
var coredns []byte

// script is the lab's, in the tree.
const script = "internal/conformance/lab.txtar"

// nodes are the machines of the script's cluster.
var nodes = []string{"east/n1", "east/n2"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

type options struct {
	weft, programs, reports, docs string
	agnhost                       string
	version                       string
	suites                        []suite
	focus, lab                    string
	keep                          bool
}

func parse(args []string) (o options, err error) {
	var names string
	f := flag.NewFlagSet("conformance", flag.ContinueOnError)
	f.StringVar(&o.weft, "weft", "./weft", "the program")
	f.StringVar(&o.programs, "kubernetes", ".bin/kubernetes", "folder with Kubernetes' programs; the image of weft is beside it")
	f.StringVar(&o.agnhost, "agnhost", "", "folder with Kubernetes' source of agnhost")
	f.StringVar(&o.version, "version", "", "version of weft, for the page")
	f.StringVar(&o.reports, "reports", ".bin/conformance-reports", "folder for reports, which are kept: the page has the last report of each spec")
	f.StringVar(&o.docs, "docs", "docs/conformance.md", "the page to write; none if empty")
	f.StringVar(&names, "suites", "netpol,network", "suites to run; none writes the page from the reports that there are")
	f.StringVar(&o.focus, "focus", "", "of those, only specs that match this regular expression")
	f.StringVar(&o.lab, "lab", "", "a lab that -keep has kept, instead of another")
	f.BoolVar(&o.keep, "keep", false, "keep the lab")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected %q", f.Args())
	}
	for name := range strings.SplitSeq(names, ",") {
		if name == "" {
			continue
		}
		s, ok := suiteOf(name)
		if !ok {
			return o, fmt.Errorf("there is no suite %s", name)
		}
		o.suites = append(o.suites, s)
	}
	return o, nil
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if len(o.suites) > 0 {
		if err := o.test(ctx); err != nil {
			return err
		}
	}
	results, err := read(o.reports)
	if err != nil {
		return err
	}
	if o.docs != "" {
		if err := os.WriteFile(o.docs, o.page(results, known), 0o644); err != nil {
			return err
		}
	}
	return judge(results, known)
}

// test runs the suites against a lab.
func (o options) test(ctx context.Context) (err error) {
	if o.lab == "" {
		if o.lab, err = o.raise(ctx); err != nil {
			return err
		}
		if o.keep {
			fmt.Printf("lab %s is kept: -lab %[1]s uses it again, and `weft lab down %[1]s` ends it\n", o.lab)
		} else {
			defer func() {
				// Also when interrupted.
				err = errors.Join(err, o.command(context.WithoutCancel(ctx), nil, "lab", "down", o.lab))
			}()
		}
	}
	for _, s := range o.suites {
		if err := o.suite(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// raise raises a lab with all that specs need, and returns its ID.
func (o options) raise(ctx context.Context) (id string, err error) {
	if err := os.MkdirAll(o.reports, 0o755); err != nil {
		return "", err
	}
	archive := filepath.Join(o.reports, "images.tar")
	if err := writeImages(archive, sources{o.programs, o.weft, o.agnhost}); err != nil {
		return "", err
	}
	var out bytes.Buffer
	up := exec.CommandContext(ctx, o.weft, "lab", "up", script)
	up.Stdout, up.Stderr, up.Cancel = &out, os.Stderr, func() error { return up.Process.Signal(syscall.SIGTERM) }
	if err := up.Run(); err != nil {
		return "", fmt.Errorf("raise the lab: %w", err)
	}
	id = strings.TrimSpace(out.String())
	o.lab = id
	defer func() {
		if err != nil {
			err = errors.Join(err, o.command(context.WithoutCancel(ctx), nil, "lab", "down", id))
		}
	}()
	for _, node := range nodes {
		in, err := os.Open(archive)
		if err != nil {
			return "", err
		}
		err = o.command(ctx, in, "lab", "exec", id, node, "--", "ctr", "-n", "k8s.io", "images", "import", "-")
		in.Close()
		if err != nil {
			return "", fmt.Errorf("images for %s: %w", node, err)
		}
	}
	if err := o.kubectl(ctx, bytes.NewReader(coredns), "apply", "-f", "-"); err != nil {
		return "", err
	}
	return id, o.kubectl(ctx, nil, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout", "5m")
}

func (o options) kubectl(ctx context.Context, in io.Reader, args ...string) error {
	program, err := filepath.Abs(filepath.Join(o.programs, "kubectl"))
	if err != nil {
		return err
	}
	return o.command(ctx, in, append([]string{"lab", "exec", o.lab, "operator", "--", program, "--context", "east"}, args...)...)
}

func (o options) command(ctx context.Context, in io.Reader, args ...string) error {
	cmd := exec.CommandContext(ctx, o.weft, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("weft %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
