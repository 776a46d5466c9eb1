package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/connectivity"
	"github.com/weft-mesh/weft/connectivity/probe"
)

func connectivityCommand() *cobra.Command {
	cmd := groupCommand("connectivity", "Check what a running mesh does", look, connectivityTestCommand())
	cmd.AddCommand(connectivityServeCommand(), connectivityProbeCommand())
	return cmd
}

func connectivityTestCommand() *cobra.Command {
	var only, junit string
	var list bool
	o := connectivity.Options{}
	var image string
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Check pods, services, policies and the mesh",
		Long: "Check a running mesh from within: pods in the namespaces " + connectivity.Namespace + " and " + connectivity.Other + " ask each\n" +
			"other over every way that Weft is responsible for. -c names contexts of the kubeconfig; with\n" +
			"several, the ways between clusters are checked too. The pods run the agents' own image, so\n" +
			"that nothing is pulled, and are removed at the end, also after an interrupt. What the clusters\n" +
			"lack (a second node, IPv6, a peer) is skipped, with the reason. A check that fails says what\n" +
			"was tried, what should have happened and what did, what agents reported of it, and what to\n" +
			"look at next. This machine takes part as a client and a server outside of the mesh, if nodes\n" +
			"reach it. Clusters of plain machines have nobody who could start pods: there use\n" +
			"`weft status` and `weft debug trace`.",
		Example: "  weft -c east,west connectivity test\n  weft -c east connectivity test --test '^policy-' --junit junit.xml\n  weft connectivity test --list",
		Args:    usageArgs(cobra.NoArgs),
	}
	f := cmd.Flags()
	f.StringVar(&only, "test", "", "regular expression; only checks whose names match (default: all)")
	f.BoolVar(&list, "list", false, "list the checks, and run none")
	f.StringVar(&junit, "junit", "", "also write the results to this file, in JUnit's format")
	f.StringVar(&image, "image", "", "image of the pods (default: that of the agents)")
	f.BoolVar(&o.Keep, "keep", false, "leave the pods for a closer look; the next test needs --replace")
	f.BoolVar(&o.Replace, "replace", false, "remove what another test has left, and begin")
	f.DurationVar(&o.Patience, "patience", 15*time.Second, "how long something may take to be as expected")
	f.DurationVar(&o.Start, "start", 3*time.Minute, "how long the pods may take to start")
	f.IntVar(&o.Parallel, "parallel", 4, "how many checks of a cluster run at the same time, where they may")
	o.Removal = 2 * time.Minute
	complete(cmd, "test", fixed(checkNames()...))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		format, err := format(cmd)
		if err != nil {
			return err
		}
		if o.Checks, err = connectivity.Select(connectivity.Checks(), only); err != nil {
			return usageError{fmt.Errorf("--test: %w", err)}
		}
		if len(o.Checks) == 0 {
			return usageError{fmt.Errorf("--test: no check matches %q; `weft connectivity test --list` shows all", only)}
		}
		if list {
			return listChecks(cmd, o.Checks)
		}
		if format == "name" || format == "wide" {
			return usageError{fmt.Errorf("-o %s is not supported by `connectivity test` (use table, json or yaml)", format)}
		}
		sites, err := connectivitySites(cmd, image)
		if err != nil {
			return err
		}
		progress := cmd.OutOrStdout()
		if format != "table" {
			progress = cmd.ErrOrStderr()
		}
		o.Say = func(text string) { fmt.Fprintln(progress, printableLines("# "+text)) }
		o.Done = func(r connectivity.Report) { fmt.Fprintln(progress, printableLines(r.Text())) }
		begin := time.Now()
		results, failed := answeringHere(cmd.Context(), &o, func(ctx context.Context) ([]connectivity.Report, error) { return connectivity.Run(ctx, sites, o) })
		var left *connectivity.LeftoversError
		if errors.As(failed, &left) {
			return hinted{failed, "wait until that test ends, or remove what it left and begin with --replace"}
		}
		s := connectivity.Summarize(results, o.Checks)
		if junit != "" {
			failed = errors.Join(failed, writeFile(junit, func(f *os.File) error { return s.JUnit(f) }))
		}
		if format != "table" {
			failed = errors.Join(failed, document(cmd.OutOrStdout(), format, s, 0))
		}
		fmt.Fprintf(progress, "%d passed, %d failed, %d skipped in %v\n", s.Passed, s.Failed, s.Skipped, time.Since(begin).Round(time.Second))
		if s.Failed > 0 {
			failed = errors.Join(failed, errNo)
		}
		return failed
	}
	return cmd
}

func checkNames() (names []string) {
	for _, c := range connectivity.Checks() {
		names = append(names, c.Name)
	}
	return names
}

// writeFile writes a file as a whole or not at all.
func writeFile(path string, write func(f *os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(0o600), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func listChecks(cmd *cobra.Command, checks []connectivity.Check) error {
	t := table{columns: columns("CHECK", "WHAT HAS TO BE SO"), ordered: true}
	type line struct {
		Name string `json:"name"`
		Says string `json:"says"`
	}
	var all []line
	for _, c := range checks {
		t.rows = append(t.rows, []string{c.Name, c.Says})
		all = append(all, line{c.Name, c.Says})
	}
	return show(cmd, [][]line{all}, t)
}

// connectivitySites are the Kubernetes clusters of -c.
func connectivitySites(cmd *cobra.Command, image string) (sites []connectivity.Site, err error) {
	names := chosen(cmd)
	known := kubernetesContexts()
	if len(names) == 1 && names[0] == "all" {
		names = known
	}
	if len(names) == 0 {
		raw, err := kubernetesConfig("", "").RawConfig()
		if err != nil || raw.CurrentContext == "" {
			return nil, usageError{errors.New("connectivity test runs on Kubernetes clusters: name contexts of the kubeconfig with -c")}
		}
		names = []string{raw.CurrentContext}
	}
	file, err := api.LoadConfig("")
	if errors.Is(err, fs.ErrNotExist) {
		file, err = &api.Config{}, nil
	}
	if err != nil {
		return nil, usageError{err}
	}
	ctx, cancel := patient(cmd)
	defer cancel()
	seen := map[string]string{}
	for _, name := range names {
		conf, err := kubernetesAccess("", name)
		if err != nil {
			return nil, usageError{fmt.Errorf("connectivity test runs on Kubernetes clusters, where it starts pods; %s is not a context of the kubeconfig: %w", name, err)}
		}
		mesh, err := clientOf(file, name)
		if err != nil {
			return nil, err
		}
		k, err := connectivity.NewKubernetes(ctx, name, conf, mesh)
		if err != nil {
			return nil, err
		}
		if other, ok := seen[k.Name()]; ok {
			return nil, usageError{fmt.Errorf("contexts %s and %s are the same cluster, %s", other, name, k.Name())}
		}
		seen[k.Name()] = name
		k.Image = image
		sites = append(sites, k)
	}
	return sites, nil
}

// answeringHere answers on this machine while a test runs.
func answeringHere(ctx context.Context, o *connectivity.Options, test func(ctx context.Context) ([]connectivity.Report, error)) ([]connectivity.Report, error) {
	server, port, err := probe.ListenAnywhere(ctx, "here")
	if err != nil {
		return nil, err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- server.Run(serving) }()
	o.HerePort = port
	o.HereAddr = func(s connectivity.Site) ([]netip.Addr, error) {
		a, err := connectivity.LocalAddress(s.(*connectivity.Kubernetes).Host())
		return []netip.Addr{a}, err
	}
	results, err := test(ctx)
	stop()
	return results, errors.Join(err, <-done)
}

func connectivityServeCommand() *cobra.Command {
	var s probe.Server
	cmd := &cobra.Command{
		Use: "serve [--self NAME] [--tcp ADDR] [--udp ADDR]", Short: "Answer in a pod of a connectivity test", Hidden: true, Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.Listen(cmd.Context()); err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&s.Self, "self", "", "the server's name, as cluster/namespace/pod")
	cmd.Flags().StringSliceVar(&s.TCP, "tcp", nil, "addresses to answer at over TCP, such as :8080")
	cmd.Flags().StringSliceVar(&s.UDP, "udp", nil, "addresses to answer at over UDP")
	return cmd
}

func connectivityProbeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "probe QUESTIONS", Short: "Ask in a pod of a connectivity test", Hidden: true, Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var q []probe.Question
			d := json.NewDecoder(strings.NewReader(args[0]))
			d.DisallowUnknownFields()
			if err := d.Decode(&q); err != nil {
				return usageError{fmt.Errorf("questions: %w", err)}
			}
			answers, err := probe.All(cmd.Context(), q)
			if err != nil {
				return usageError{err}
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(answers)
		},
	}
}
