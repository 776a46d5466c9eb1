//go:build !nolab

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/scenario"
	"github.com/weft-mesh/weft/lab/traffic"
)

// labCommands is the lab, which images do not hold.
func labCommands() []*cobra.Command { return []*cobra.Command{labCommand()} }

func labCommand() *cobra.Command {
	cmd := groupCommand("lab", "Run whole clusters on this machine", look,
		labRunCommand(), labUpCommand(), labDownCommand(), labListCommand(), labExecCommand(), labPruneCommand(), labVerbsCommand())
	cmd.AddCommand(labHostCommand(), labServeCommand(), labRequestCommand(), labLoadCommand(), labFloodCommand())
	for _, name := range lab.Helpers {
		cmd.AddCommand(&cobra.Command{Use: name, Hidden: true, DisableFlagParsing: true, RunE: func(cmd *cobra.Command, args []string) error {
			return lab.Helper(cmd.Context(), append([]string{name}, args...))
		}})
	}
	return cmd
}

func labRunCommand() *cobra.Command {
	var watch, keep bool
	var patience int
	var next, kubernetes string
	var set map[string]string
	cmd := &cobra.Command{
		Use:   "run FILE...",
		Short: "Run scenarios",
		Long: "Run scenarios: bring up the clusters that a script needs, run it, and take them down again.\n" +
			"With -o json, each scenario prints an object with its outcome and figures on one line. If one\n" +
			"fails after its machines are up, the logs and the final state of its clusters are kept; the\n" +
			"last lines say where.",
		Example: "  weft lab run --watch scenarios/demo.txtar",
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, files []string) error {
			f, err := format(cmd)
			if err != nil {
				return err
			}
			if f != "table" && f != "json" {
				return usageError{fmt.Errorf("-o %s is not supported by `lab run` (use table or json)", f)}
			}
			for _, file := range files {
				if _, _, err := scenario.Load(file); err != nil {
					return usageError{err}
				}
			}
			if next != "" {
				var err error
				if next, err = filepath.Abs(next); err == nil {
					_, err = os.Stat(next)
				}
				if err != nil {
					return usageError{fmt.Errorf("--next: %w", err)}
				}
			}
			if err := lab.Preflight(); err != nil {
				return incapable{err}
			}
			failed := false
			for _, file := range files {
				o := scenario.Options{View: labView(cmd, watch, f == "json"), Next: next, Kubernetes: kubernetes, Set: set, Patience: patience}
				if keep {
					o.Keep = keepLab(cmd.ErrOrStderr())
				}
				result := scenario.Run(cmd.Context(), file, o)
				failed = failed || !result.OK
				if f == "json" {
					if err := json.NewEncoder(cmd.OutOrStdout()).Encode(result); err != nil {
						return err
					}
				}
			}
			if failed {
				return errNo
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "draw a live picture if the output is a terminal")
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the clusters up at the end, until interrupted")
	cmd.Flags().StringVar(&next, "next", "", "another version of weft, to which scripts upgrade (internal/next-version.sh builds one)")
	cmd.Flags().StringVar(&kubernetes, "kubernetes", ".bin/kubernetes", "folder with Kubernetes' programs, for Kubernetes clusters; the image of weft is beside it")
	cmd.Flags().StringToStringVar(&set, "set", nil, "variables of scripts, instead of the values that they have there")
	cmd.Flags().IntVar(&patience, "patience", 1, "how many times longer than they say scripts wait for things, on a slow machine")
	return cmd
}

// labView draws on a terminal and prints lines otherwise. With JSON, the lines go to
// standard error.
func labView(cmd *cobra.Command, watch, asJSON bool) scenario.View {
	out := cmd.OutOrStdout()
	if asJSON {
		out = cmd.ErrOrStderr()
	}
	file, ok := out.(*os.File)
	if !watch || !ok || !term.IsTerminal(int(file.Fd())) {
		return scenario.NewPlain(out)
	}
	size := func() (columns, rows int) {
		if w, h, err := term.GetSize(int(file.Fd())); err == nil && w > 0 && h > 0 {
			return w, h
		}
		return 80, 24
	}
	return scenario.NewWatch(out, size, os.Getenv("NO_COLOR") == "")
}

func keepLab(out io.Writer) scenario.KeepFunc {
	return func(ctx context.Context, l *lab.Lab, err error) {
		if err != nil {
			fmt.Fprintln(out, err)
		}
		fmt.Fprintf(out, "lab %s is kept; logs are in %s/logs; look around with\n  weft lab exec %s operator -- weft -c all status\nand press Ctrl-C to end it\n", l.ID, l.Dir, l.ID)
		<-ctx.Done()
	}
}

func labUpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "up [FILE]",
		Short: "Bring up a lab and keep it",
		Long: "Bring up clusters on this machine and keep them until `weft lab down`. Without FILE they are\n" +
			"east and west, two nodes each, not joined. FILE is a scenario: its lab.yaml says which\n" +
			"clusters there are, and its script, if it has one, is run first.\n" +
			"The lab's ID is the only line on the standard output.",
		Example: "  weft lab up\n  weft lab exec ID operator -- weft -c east peer add west\n  weft lab up scenarios/demo.txtar",
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := ""
			if len(args) > 0 {
				file = args[0]
				if _, _, err := scenario.Load(file); err != nil {
					return usageError{err}
				}
			}
			if err := lab.Preflight(); err != nil {
				return incapable{err}
			}
			r, err := scenario.Up(cmd.Context(), file, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if f, _ := format(cmd); f == "json" || f == "yaml" {
				err = document(cmd.OutOrStdout(), f, r, 0)
			} else {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), r.ID)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "lab %s is up; try\n  weft lab exec %s operator -- weft -c all status\n  weft lab down %s\n", r.ID, r.ID, r.ID)
			return err
		},
	}
}

func labHostCommand() *cobra.Command {
	return &cobra.Command{
		Use: "host FILE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return scenario.Host(cmd.Context(), args[0], cmd.OutOrStdout())
		},
	}
}

func labDownCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down LAB...",
		Short: "Take labs down",
		Long: "Take labs down: stop each lab's process and wait until it has removed everything, for at most\n" +
			"a minute. A lab that stays locked is an error that names the process holding it.",
		Args:              usageArgs(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeLabs,
		RunE: func(cmd *cobra.Command, ids []string) error {
			var gone []string
			var failed error
			for _, id := range ids {
				if err := lab.Down(cmd.Context(), id); err != nil {
					failed = errors.Join(failed, err) // the others still go
					continue
				}
				gone = append(gone, id)
			}
			return errors.Join(showRemoved(cmd, gone, failed), failed)
		},
	}
}

func completeLabs(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	labs, _ := lab.List()
	var ids []string
	for _, r := range labs {
		ids = append(ids, r.ID+"\t"+r.File)
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func labListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the labs that are up",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			labs, err := lab.List()
			if err != nil {
				return err
			}
			t := table{columns: columns("LAB", "CLUSTERS", "AGE", "NODES", "FILE", "*PID"), empty: "no lab is up"}
			for _, r := range labs {
				t.rows = append(t.rows, []string{r.ID, list(r.Clusters()), age(time.Since(r.Started).Seconds()), fmt.Sprint(max(0, len(r.Nodes)-1)), r.File, fmt.Sprint(r.PID)})
			}
			return show(cmd, [][]lab.Record{append([]lab.Record{}, labs...)}, t)
		},
	}
}

func labExecCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "exec LAB NODE|POD -- COMMAND...",
		Short: "Run a command in a lab",
		Long: "Run a command on a machine or in a pod of a lab. A machine is CLUSTER/NODE, a pod\n" +
			"CLUSTER/NAMESPACE/POD; operator is the machine that can reach every API server.\n" +
			"The command ends when its machine loses power, at the latest with the lab.\n" +
			"If the command is weft, it is this binary; after another word, such as env, PATH counts.",
		Example: "  weft lab exec 1f2e east/n1 -- weft debug tables\n  weft lab exec 1f2e operator -- weft -c west status",
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() == 1 {
				return errors.New("the machine is missing")
			}
			return cobra.MinimumNArgs(3)(cmd, args)
		}),
		ValidArgsFunction: first(completeLabs),
		RunE: func(_ *cobra.Command, args []string) error {
			return lab.Exec(args[0], args[1], args[2:])
		},
	}
}

func labPruneCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "prune",
		Short: "Remove leftovers of killed runs",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := lab.Prune()
			return errors.Join(showRemoved(cmd, removed, err), err)
		},
	}
}

// showRemoved prints which labs were removed. It says that there were none only if
// removing did not fail.
func showRemoved(cmd *cobra.Command, ids []string, failed error) error {
	t := table{columns: columns("REMOVED")}
	if failed == nil {
		t.empty = "no lab was left behind"
	}
	for _, id := range ids {
		t.rows = append(t.rows, []string{id})
	}
	return show(cmd, [][]string{append([]string{}, ids...)}, t)
}

func labVerbsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verbs",
		Short: "Show the verbs of scenarios",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			verbs := scenario.Manual()
			t := table{columns: columns("VERB")}
			var text strings.Builder
			for _, v := range verbs {
				t.rows = append(t.rows, []string{v.Name})
				text.WriteString(wrap(v.Name+" "+v.Usage, "", "        ", manualWidth))
				text.WriteString(wrap(v.Summary, "    ", "    ", manualWidth))
			}
			if f, err := format(cmd); err != nil || f == "table" || f == "wide" {
				_, err = io.WriteString(cmd.OutOrStdout(), text.String())
				return err
			}
			return show(cmd, [][]scenario.Verb{verbs}, t)
		},
	}
}

// manualWidth is the longest line of a manual, in characters.
const manualWidth = 100

// wrap breaks text into lines of at most width characters, if its words allow. The first
// line begins with first, the others with next.
func wrap(text, first, next string, width int) string {
	var b strings.Builder
	line, empty := first, true
	for _, word := range strings.Fields(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			b.WriteString(line + "\n")
			line, empty = next, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	return b.String() + line + "\n"
}

func labServeCommand() *cobra.Command {
	c := traffic.ServeConfig{Self: traffic.Self()}
	var each string
	cmd := &cobra.Command{
		Use:    "serve [--each DIR] [--http ADDR] [--tcp ADDR] [--udp ADDR]",
		Short:  "Answer with the server's own name and the peer",
		Hidden: true, Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if each != "" {
				return traffic.ServeEach(cmd.Context(), each, c)
			}
			return traffic.Serve(cmd.Context(), c)
		},
	}
	cmd.Flags().StringVar(&each, "each", "", "serve in each network namespace under this folder, as /run/netns on a node")
	cmd.Flags().StringSliceVar(&c.HTTP, "http", nil, "addresses to serve HTTP on, such as :80")
	cmd.Flags().StringSliceVar(&c.TCP, "tcp", nil, "addresses to serve line by line")
	cmd.Flags().StringSliceVar(&c.UDP, "udp", nil, "addresses to serve packet by packet")
	return cmd
}

func labRequestCommand() *cobra.Command {
	var count int
	var timeout, refused time.Duration
	var from string
	var idle bool
	cmd := &cobra.Command{
		Use: "request TARGET...", Short: "Ask a server who it is, or several at once from one port", Hidden: true, Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var targets []traffic.Target
			for _, arg := range args {
				target, err := traffic.ParseTarget(arg)
				if err != nil {
					return usageError{err}
				}
				if len(args) > 1 && (strings.HasPrefix(target.Scheme, "http") || !strings.Contains(from, ":") || refused > 0) {
					return usageError{errors.New("several targets are asked with tcp or udp, and need --from address:port")}
				}
				targets = append(targets, target)
			}
			var failed []error
			if len(targets) > 1 {
				answers, err := traffic.Together(cmd.Context(), timeout, targets, from, count)
				for _, a := range answers {
					fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSuffix(a.String(), " "+traffic.Marker))
				}
				if err != nil {
					return hinted{fmt.Errorf("%s: %w", traffic.Reason(err), err), ""}
				}
				return nil
			}
			target := targets[0]
			if idle {
				a, ended, err := traffic.Idle(cmd.Context(), timeout, target, from)
				if err != nil {
					return hinted{fmt.Errorf("%s: %w", traffic.Reason(err), err), ""}
				}
				if traffic.Reason(ended) != "reset" {
					return hinted{fmt.Errorf("the connection with %s was not reset: %w", a.Pod, ended), ""}
				}
				return nil
			}
			for range count {
				start := time.Now()
				a, err := traffic.RequestWithin(cmd.Context(), timeout, target, from, "")
				if refused > 0 {
					if err := traffic.RefusedWithin(refused, time.Since(start), err); err != nil {
						failed = append(failed, hinted{err, ""})
					}
					continue
				}
				if err != nil {
					// No hint: the server that does not answer is the lab's, not ours.
					failed = append(failed, hinted{fmt.Errorf("%s: %w", traffic.Reason(err), err), ""})
					continue
				}
				fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSuffix(a.String(), " "+traffic.Marker))
			}
			return errors.Join(failed...)
		},
	}
	cmd.Flags().IntVar(&count, "count", 1, "number of requests")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Second, "time limit of each request")
	cmd.Flags().DurationVar(&refused, "refused", 0, "fail unless each request is refused within this time; 0 expects answers")
	cmd.Flags().StringVar(&from, "from", "", "local address, or address:port")
	cmd.Flags().BoolVar(&idle, "idle", false, "after one answer over TCP, send nothing and wait until the connection ends; fail unless it is reset")
	return cmd
}

func labFloodCommand() *cobra.Command {
	var rate float64
	var during time.Duration
	cmd := &cobra.Command{
		Use: "flood TARGET", Short: "Send datagrams, each from another port", Hidden: true, Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := traffic.ParseTarget(args[0])
			if err != nil {
				return usageError{err}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), during)
			defer cancel()
			sent, err := traffic.Flood(ctx, target, rate)
			fmt.Fprintf(cmd.OutOrStdout(), "%d datagrams sent\n", sent)
			return err
		},
	}
	cmd.Flags().Float64Var(&rate, "rate", 45000, "datagrams per second")
	cmd.Flags().DurationVar(&during, "for", 20*time.Second, "duration of the flood")
	return cmd
}

func labLoadCommand() *cobra.Command {
	var c traffic.LoadConfig
	cmd := &cobra.Command{
		Use: "load TARGET", Short: "Make requests at a steady rate", Hidden: true, Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if c.Target, err = traffic.ParseTarget(args[0]); err != nil {
				return usageError{err}
			}
			return traffic.Load(cmd.Context(), c, cmd.OutOrStdout())
		},
	}
	cmd.Flags().Float64Var(&c.Rate, "rate", 50, "requests per second")
	cmd.Flags().DurationVar(&c.Timeout, "timeout", time.Second, "time limit of each request")
	cmd.Flags().IntVar(&c.Keep, "keep", 0, "connections to keep open; 0 makes a new one for each request")
	return cmd
}
