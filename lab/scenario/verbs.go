package scenario

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/script"
)

type handler func(ctx context.Context, args []string) error

// verbs are the commands of scenarios beside the engine's own. They act at once and
// check the current state; scripts wait by using *.
func (v *Live) verbs() map[string]script.Command {
	all := map[string]script.Command{
		"weft": {Usage: "ARGS...", Summary: "runs weft as the operator, from a machine that reaches every API server", Makes: true, Run: v.weft},
	}
	add := func(makes bool, name, usage, summary string, do handler) {
		all[name] = script.Command{Usage: usage, Summary: summary, Makes: makes, Run: func(ctx context.Context, _ *script.State, args []string) error {
			return asMisuse(name, usage, do(ctx, args))
		}}
	}
	add(true, "at", "NODE|POD COMMAND...", "runs a command on a machine or in a pod", v.at)
	add(true, "kubectl", "ARGS...", "runs kubectl as the operator; its contexts are the Kubernetes clusters", v.kubectl)
	add(false, "put", "FILE NODE PATH", "copies a file of the operator to a machine, mode 0600", v.put)
	add(true, "request", "[--count N] [--timeout D] [--refused D] [--from ADDR] NODE|POD TARGET", "asks a server and prints who answered; fails if one of N requests fails. --refused: each must be refused within D instead", v.request)
	add(false, "daemon", "NAME NODE|POD COMMAND...", "starts a command and leaves it running", v.daemon)

	add(true, "etcd", "CLUSTER USER "+lab.EtcdUsage, "asks a cluster's store as one of its users, bypassing the API server", v.etcd)
	add(false, "context", "[--signed-by CLUSTER] [--user USER] [--expired] NAME CLUSTER", "forges a context for weft", v.context)
	add(false, "certificate", "[--signed-by CLUSTER] [--user USER] [--expired] FILE", "forges the certificate in an invite or a join bundle", v.certificate)
	add(false, "boot", "", "starts the clusters, if lab.yaml says manual: true", v.boot)
	add(false, "kill", "PROCESS@NODE|POD...", "kills processes with SIGKILL, all at once", v.kill)
	add(false, "stop", "PROCESS@NODE...", "stops processes with SIGTERM and waits for them", v.stop)
	add(false, "start", "PROCESS@NODE...", "starts processes", v.start)
	add(false, "restart", "PROCESS@NODE...", "stops processes and starts them again", v.restart)
	add(false, "version", "first|next PROCESS@NODE...", "processes start from this version of weft from now on; next is that of --next", v.version)
	add(false, "ended", "PROCESS@NODE|DAEMON...", "processes exited by themselves, as expected; daemons with status 0", v.ended)
	add(false, "power", "off|on NODE...", "kills everything on a machine and unplugs it; or boots it", v.power)
	add(false, "disk", "fill|free NODE", "fills a limited disk, or frees it", v.disk)
	add(true, "metrics", "PROCESS@NODE...", "prints the metrics of processes", v.metrics)
	add(true, "datapath", "NODE...", "prints what the BPF maps of machines tell packets: rows without the numbers that agents choose, sorted", v.datapath)
	add(false, "memory", "PREFIX", "sets a figure per kind of process: its largest resident size, in MiB", v.memory)

	add(false, "cut", "NODE | CLUSTER | CLUSTER CLUSTER [[PROTOCOL/]PORT...|control] | NODE NODE [[PROTOCOL/]PORT...|control]", "cuts a link, or some of its flows; between two nodes only from the first to the second", v.cut)
	add(false, "heal", "all | what was cut", "undoes cuts", v.heal)
	add(false, "route", "PREFIX NODE", "the network sends packets for a prefix to a machine", v.route)
	add(false, "delay", "[CLUSTER CLUSTER] D", "delays packets between clusters by D each way", v.delay)
	add(false, "limit", "[CLUSTER CLUSTER] BYTES", "silently drops larger packets between clusters; 0: none", v.limit)
	add(false, "loss", "[CLUSTER CLUSTER] SHARE", "drops a share of the packets between clusters, 0 to 1", v.loss)

	add(false, "load", "start|stop|steady|blocked|answers|check|recovered|reset ...", "a steady load and what became of it", v.load)
	add(false, "capture", "start|check|stop [NAME]", "looks at every packet between machines; check and stop fail if pod traffic was seen outside the tunnels", v.capture)

	add(false, "mark", "NAME", "remembers this moment; each cut, kill and other fault sets the mark fault", v.mark)
	add(false, "sample", "SERIES VALUE | SERIES since MARK", "adds a sample to a series of figures", v.sample)
	add(false, "figure", "NAME VALUE | NAME sum REGEXP | NAME FIGURE -|/ FIGURE", "sets a figure; sum adds up what the regexp's group matches in the last command's output", v.figure)
	add(false, "expect", "FIGURE <|<=|=|>=|> VALUE", "a figure is as expected; of a series, FIGURE.p50, .p99, .max or .count", v.expect)
	add(false, "show", "[REGEXP]", "shows the last command's output, or the lines that match", v.show)
	return all
}

// asMisuse tells errors of a line itself from those of what it looks at.
func asMisuse(name, usage string, err error) error {
	var wrong usageError
	var absent lab.NotThere
	var helper *exec.ExitError
	switch {
	case errors.As(err, &wrong):
		return script.Misuse{Err: fmt.Errorf("usage: %s %s", name, usage)}
	case errors.As(err, &absent), name == "request" && errors.As(err, &helper) && helper.ExitCode() == 2:
		return script.Misuse{Err: err}
	}
	return err
}

// misuse is an error of the line itself.
func misuse(format string, args ...any) error { return script.Misuse{Err: fmt.Errorf(format, args...)} }

// Verbs lists all commands of the scenario language, for its manual.
func Verbs() map[string]script.Command {
	all := (&Live{}).verbs()
	for name, c := range script.Builtins() {
		all[name] = c
	}
	return all
}

// usageError is replaced by the verb's usage.
type usageError struct{}

func (usageError) Error() string { return "wrong usage" }

// flags parses a verb's flags, which may stand anywhere, and returns its other words.
func flags(args []string, define func(*flag.FlagSet)) ([]string, error) {
	set := flag.NewFlagSet("", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	define(set)
	var rest []string
	for {
		if err := set.Parse(args); err != nil {
			return nil, err
		}
		if args = set.Args(); len(args) == 0 {
			return rest, nil
		}
		rest, args = append(rest, args[0]), args[1:]
	}
}

// keep sets the output that later lines check.
func (v *Live) keep(stdout, stderr *bytes.Buffer) {
	v.state.Stdout, v.state.Stderr = stdout.String(), stderr.String()
}

// said adds a command's stderr to its error.
func said(err error, stderr *bytes.Buffer) error {
	if err == nil {
		return nil
	}
	if text := strings.TrimSpace(stderr.String()); text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}

func (v *Live) weft(ctx context.Context, _ *script.State, args []string) error {
	var stdout, stderr bytes.Buffer
	err := v.Lab.Run(ctx, v.state.Dir, &stdout, &stderr, append([]string{"weft"}, args...)...)
	v.keep(&stdout, &stderr)
	if err = said(err, &stderr); err != nil && unknownWord.MatchString(stderr.String()) {
		return script.Misuse{Err: err}
	}
	return err
}

// unknownWord is how weft refuses a command line that it does not understand.
var unknownWord = regexp.MustCompile(`^weft: (unknown (flag|shorthand flag)|([a-z ]+: )?(there is no "|usage: ))`)

func (v *Live) at(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return usageError{}
	}
	place, err := v.Lab.Place(args[0])
	if err != nil {
		return err
	}
	var stdout, stderr bytes.Buffer
	err = v.Lab.RunAt(ctx, place, &stdout, &stderr, args[1:]...)
	v.keep(&stdout, &stderr)
	return said(err, &stderr)
}

// kubectl is for Kubernetes clusters.
func (v *Live) kubectl(ctx context.Context, args []string) error {
	var stdout, stderr bytes.Buffer
	err := v.Lab.Run(ctx, v.state.Dir, &stdout, &stderr, append([]string{"/usr/bin/env", "kubectl"}, args...)...)
	v.keep(&stdout, &stderr)
	return said(err, &stderr)
}

// daemon starts anything that is not one of Weft's systemd units.
func (v *Live) daemon(_ context.Context, args []string) error {
	if len(args) < 3 {
		return usageError{}
	}
	place, err := v.Lab.Place(args[1])
	if err != nil {
		return err
	}
	task, err := v.Lab.StartAt(place, args[0], nil, args[2:]...)
	if err != nil {
		return err
	}
	if v.daemons == nil {
		v.daemons = map[string]*lab.Task{}
	}
	v.daemons[args[0]] = task
	return nil
}

func (v *Live) request(ctx context.Context, args []string) error {
	command := []string{"weft", "lab", "request"}
	var count, from string
	var refused time.Duration
	timeout := 2 * time.Second
	rest, err := flags(args, func(f *flag.FlagSet) {
		f.StringVar(&count, "count", "1", "")
		f.StringVar(&from, "from", "", "")
		f.DurationVar(&timeout, "timeout", timeout, "")
		f.DurationVar(&refused, "refused", 0, "")
	})
	if err != nil || len(rest) != 2 {
		return usageError{}
	}
	command = append(command, "--count", count, "--timeout", timeout.String(), "--refused", refused.String(), "--from", from, rest[1])
	return v.at(ctx, append([]string{rest[0]}, command...))
}

func (v *Live) etcd(ctx context.Context, args []string) error {
	if len(args) < 3 {
		return usageError{}
	}
	var stdout, stderr bytes.Buffer
	err := v.Lab.Etcd(ctx, args[0], args[1], &stdout, &stderr, args[2:]...)
	v.keep(&stdout, &stderr)
	return said(err, &stderr)
}

func (v *Live) context(_ context.Context, args []string) error {
	forgery, rest, err := forgery(args)
	if err != nil || len(rest) != 2 {
		return usageError{}
	}
	forgery.Name, forgery.Cluster = rest[0], rest[1]
	forgery.SignedBy = cmp.Or(forgery.SignedBy, forgery.Cluster)
	forgery.User = cmp.Or(forgery.User, "admin")
	return v.Lab.ForgeContext(forgery)
}

func (v *Live) certificate(_ context.Context, args []string) error {
	forgery, rest, err := forgery(args)
	if err != nil || len(rest) != 1 {
		return usageError{}
	}
	return v.Lab.ForgeCertificate(v.state.Path(rest[0]), forgery)
}

func forgery(args []string) (f lab.Forgery, rest []string, err error) {
	rest, err = flags(args, func(set *flag.FlagSet) {
		set.StringVar(&f.SignedBy, "signed-by", "", "")
		set.StringVar(&f.User, "user", "", "")
		set.BoolVar(&f.Expired, "expired", false, "")
	})
	return f, rest, err
}

func (v *Live) boot(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return usageError{}
	}
	if !v.Lab.Topology.Manual {
		return misuse("the clusters are already up: boot is for a lab.yaml that says manual: true")
	}
	begin := time.Now()
	if err := v.Lab.Boot(ctx); err != nil {
		return err
	}
	v.Figures.Set("raise_seconds", time.Since(begin).Seconds())
	return nil
}

func (v *Live) mark(_ context.Context, args []string) error {
	if len(args) != 1 {
		return usageError{}
	}
	v.marks[args[0]] = time.Now()
	return nil
}

func (v *Live) since(mark string) (time.Time, error) {
	at, ok := v.marks[mark]
	if !ok {
		return at, misuse("there is no mark %q", mark)
	}
	return at, nil
}

func (v *Live) sample(_ context.Context, args []string) error {
	switch {
	case len(args) == 3 && args[1] == "since":
		at, err := v.since(args[2])
		if err != nil {
			return err
		}
		v.Figures.Sample(args[0], time.Since(at).Seconds())
		return nil
	case len(args) == 2:
		value, err := number(args[1])
		if err == nil {
			v.Figures.Sample(args[0], value)
		}
		return err
	}
	return usageError{}
}

func (v *Live) figure(_ context.Context, args []string) (err error) {
	var value float64
	switch {
	case len(args) == 3 && args[1] == "sum":
		value, err = v.sum(args[2])
	case len(args) == 4:
		value, err = v.Figures.combine(args[1], args[2], args[3])
	case len(args) == 2:
		value, err = number(args[1])
	default:
		return usageError{}
	}
	if err == nil {
		v.Figures.Set(args[0], value)
	}
	return err
}

// sum adds up what the expression's group matches in the last command's output. No
// match is an error, not 0.
func (v *Live) sum(expression string) (total float64, err error) {
	re, err := regexp.Compile("(?m)" + expression)
	if err != nil {
		return 0, script.Misuse{Err: err}
	}
	if re.NumSubexp() != 1 {
		return 0, misuse("give an expression with one group")
	}
	found := re.FindAllStringSubmatch(v.state.Stdout, -1)
	if len(found) == 0 {
		return 0, errors.New("it does not occur")
	}
	for _, m := range found {
		value, err := number(m[1])
		if err != nil {
			return 0, err
		}
		total += value
	}
	return total, nil
}

func (v *Live) expect(_ context.Context, args []string) error {
	if len(args) != 3 {
		return usageError{}
	}
	return v.Figures.expect(args[0], args[1], args[2])
}

func (v *Live) show(_ context.Context, args []string) error {
	lines := slices.Collect(strings.Lines(v.state.Stdout))
	if len(args) > 0 {
		re, err := pattern(strings.Join(args, " "))
		if err != nil {
			return err
		}
		lines = slices.DeleteFunc(lines, func(line string) bool { return !re.MatchString(line) })
	}
	for _, line := range lines {
		v.view.Say(strings.TrimRight(line, "\n"))
	}
	return nil
}
