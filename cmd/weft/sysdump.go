package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/sysdump"
)

// dumpAtOnce is how many things are collected at the same time, and dumpPatience how long each
// of them may take.
const (
	dumpAtOnce   = 8
	dumpPatience = 20 * time.Second
)

// aboutDump is what an archive says about itself.
type aboutDump struct {
	Time     time.Time `json:"time"`
	Build    build     `json:"build"`
	Contexts []string  `json:"contexts,omitempty"`
	Machine  string    `json:"machine,omitempty"`
	Seconds  float64   `json:"seconds"`
}

func sysdumpCommand() *cobra.Command {
	var output, socket string
	var local bool
	var limit time.Duration
	var lines int64
	cmd := &cobra.Command{
		Use:   "sysdump",
		Short: "Collect what a bug report needs",
		Long: "Collect what a bug report needs in one archive: status, objects, tables, flows and recent\n" +
			"events of the clusters of -c, and from each node of a Kubernetes cluster what --local\n" +
			"collects there, with the logs of Weft's pods. With --local it is about this machine alone,\n" +
			"a node or API server: maps, tunnels, metrics, links, routes, settings of the kernel, logs.\n" +
			"What cannot be had is in missing.txt and on the standard error; the archive is written all\n" +
			"the same, within --limit. It holds no private keys, tokens and Secrets, and of users' pods\n" +
			"not what they run with; look through it before you pass it on: names and addresses are in it.",
		Example: "  weft -c east,west sysdump\n  weft sysdump --local --out node.tar.gz",
		GroupID: look,
		Args:    usageArgs(cobra.NoArgs),
	}
	cmd.Flags().StringVar(&output, "out", "", "file to write, - for the standard output (default: weft-sysdump-TIME.tar.gz)")
	cmd.Flags().BoolVar(&local, "local", false, "collect what is on this machine")
	cmd.Flags().StringVar(&socket, "socket", agentSocket, "the socket of this machine's agent, for --local")
	cmd.Flags().DurationVar(&limit, "limit", 3*time.Minute, "how long to collect at most")
	cmd.Flags().Int64Var(&lines, "log-lines", 5000, "how many lines of each log")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if local && cmd.Flags().Changed("context") {
			return usageError{errors.New("sysdump: give either -c, for clusters, or --local, for this machine")}
		}
		if lines < 1 {
			return usageError{errors.New("--log-lines: give a number of lines, 1 or more")}
		}
		begin := time.Now()
		about := aboutDump{Time: begin.UTC().Truncate(time.Second), Build: thisBuild()}
		ctx, cancel := context.WithTimeout(cmd.Context(), limit)
		defer cancel()
		var mu sync.Mutex // guards the standard error
		say := func(line string) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintln(cmd.ErrOrStderr(), printableLines("weft: missing: "+line))
		}
		d := &dump{lines: lines}
		if local {
			d.Archive = sysdump.New(say)
			about.Machine = new(machine).at()
			d.machine(ctx, cmd.Root(), socket)
		} else {
			names, err := d.clusters(ctx, cmd, say)
			if err != nil {
				return err
			}
			about.Contexts = names
		}
		if err := cmd.Context().Err(); err != nil {
			return errors.New("interrupted: nothing is written")
		}
		about.Seconds = time.Since(begin).Round(time.Millisecond).Seconds()
		d.JSON("about.json", about, nil)
		if output == "-" {
			return d.Write(cmd.OutOrStdout(), begin)
		}
		if output == "" {
			output = "weft-sysdump-" + begin.UTC().Format("20060102-150405") + ".tar.gz"
		}
		if err := writeFile(output, func(f *os.File) error { return d.Write(f, begin) }); err != nil {
			return err
		}
		files, missing := d.Complete()
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %d missing\n", output, api.Count(files, "file"), missing)
		return err
	}
	return cmd
}

// dump is an archive that is being filled.
type dump struct {
	*sysdump.Archive
	lines int64
}

// bounded limits one thing that is collected.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, dumpPatience)
}

// clusters fills the archive from the clusters of -c. It returns their contexts' names.
func (d *dump) clusters(ctx context.Context, cmd *cobra.Command, say func(string)) ([]string, error) {
	names, file, err := named(cmd)
	if err != nil {
		return nil, err
	}
	type source struct {
		name    string
		mesh    *api.Client
		why     error
		kube    *rest.Config
		secrets []string
	}
	var sources []source
	var secrets []string
	for _, name := range names {
		s := source{name: name}
		x, err := file.Context(name)
		if err != nil {
			// A cluster whose API server cannot be asked for a context still has nodes and logs.
			if s.kube, s.why = kubernetesAccess("", name); s.why != nil {
				return nil, usageError{err}
			}
			x, _, s.why = contextOfKubernetes(name, err)
		} else if slices.Contains(kubernetesContexts(), x.Name) {
			s.kube, _ = kubernetesAccess("", x.Name)
		}
		if s.why == nil {
			s.mesh, s.why = api.NewClient(x)
			secrets = append(secrets, x.Key)
			s.name = x.Name
		}
		if s.kube != nil {
			secrets = append(secrets, s.kube.BearerToken, s.kube.Password, string(s.kube.KeyData))
		}
		if s.name == "" {
			s.name = "current"
		}
		sources = append(sources, s)
	}
	d.Archive = sysdump.New(say, secrets...)
	var asked sync.WaitGroup
	names = nil
	for _, s := range sources {
		names = append(names, s.name)
		dir := "clusters/" + fileName(s.name)
		asked.Go(func() {
			if s.why != nil {
				d.Miss(dir+"/mesh", s.why)
				return
			}
			defer s.mesh.Close()
			d.mesh(ctx, dir+"/mesh", s.mesh)
		})
		if s.kube == nil {
			continue
		}
		asked.Go(func() {
			s.kube.WarningHandler = rest.NoWarnings{}
			client, err := kubernetes.NewForConfig(s.kube)
			if err != nil {
				d.Miss(dir+"/kubernetes", err)
				return
			}
			d.kubernetes(ctx, dir, s.kube, client)
		})
	}
	asked.Wait()
	return names, nil
}

// fileName is a name as one element of a path.
func fileName(name string) string {
	return strings.Map(func(r rune) rune {
		if r == '/' || r == ':' || r < ' ' {
			return '_'
		}
		return r
	}, name)
}

// keep adds an answer within its time.
func keep[T any](ctx context.Context, d *dump, name string, get func(context.Context) (T, error)) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	answer, err := get(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer in time: %w", err)
	}
	d.JSON(name, answer, err)
}

// archiveOf is what a command wrote, as an archive.
func archiveOf(text []byte) io.Reader { return bytes.NewReader(text) }
