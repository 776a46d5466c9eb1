package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
)

// globalFlags adds the flags of all commands that talk to a cluster.
func globalFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringSliceP("context", "c", nil, "contexts of the clusters to talk to, or all")
	flags.StringP("namespace", "n", "", "namespace; without it, lists show all and other commands use default")
	flags.StringP("output", "o", "table", "table, wide, name, json or yaml")
	flags.Duration("timeout", 30*time.Second, "time limit of a request; streams have none")
	complete(root, "context", completeContexts)
	complete(root, "namespace", completeNamespaces)
	complete(root, "output", fixed(formats...))
}

// named returns the contexts given with -c, each of them for "all" and "", the current one,
// for none, and the file that they are from.
func named(cmd *cobra.Command) (names []string, file *api.Config, err error) {
	names = chosen(cmd)
	if file, err = contexts(); err != nil {
		return nil, nil, err
	}
	if slices.Contains(names, "all") && !slices.Contains(file.Names(), "all") {
		if names = file.Names(); len(names) == 0 {
			names = kubernetesContexts()
		}
	}
	if len(names) == 0 {
		names = []string{""}
	}
	return names, file, nil
}

// clients connects to the contexts given with -c, or to the current one.
func clients(cmd *cobra.Command) ([]*api.Client, error) {
	names, file, err := named(cmd)
	if err != nil {
		return nil, err
	}
	var all []*api.Client
	for _, name := range names {
		client, err := clientOf(file, name)
		if err != nil {
			return nil, err
		}
		all = append(all, client)
	}
	return all, nil
}

// chosen returns the values of -c, each once: completion parses the command line twice.
func chosen(cmd *cobra.Command) (names []string) {
	all, _ := cmd.Flags().GetStringSlice("context")
	for _, name := range all {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// several reports whether -c may name more than one cluster.
func several(cmd *cobra.Command) bool {
	names := chosen(cmd)
	return len(names) > 1 || slices.Contains(names, "all")
}

// contexts reads the file of contexts.
func contexts() (*api.Config, error) {
	file, err := api.LoadConfig("")
	var syntax *api.ConfigSyntax
	if errors.As(err, &syntax) {
		err = fmt.Errorf("contexts file %s: %w", syntax.Path, fileError(syntax.Err))
	}
	if errors.Is(err, fs.ErrNotExist) && len(kubernetesContexts()) > 0 {
		return &api.Config{}, nil
	}
	if err != nil {
		return nil, usageError{err}
	}
	return file, nil
}

func clientOf(file *api.Config, name string) (*api.Client, error) {
	x, err := file.Context(name)
	if err != nil {
		var there bool
		if x, there, err = contextOfKubernetes(name, err); !there {
			return nil, usageError{err}
		}
		if err != nil {
			return nil, err
		}
	}
	c, err := api.NewClient(x)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// client connects to the single context of -c.
func client(cmd *cobra.Command) (*api.Client, error) { return clientFor(cmd, cmd.CommandPath()) }

// clientFor is client for a part of a command, which its error names.
func clientFor(cmd *cobra.Command, what string) (*api.Client, error) {
	all, err := clients(cmd)
	if err != nil {
		return nil, err
	}
	if len(all) != 1 {
		return nil, usageError{fmt.Errorf("%s works on one cluster, not on %d", what, len(all))}
	}
	return all[0], nil
}

// patient returns the command's context limited by --timeout.
func patient(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	timeout, err := cmd.Flags().GetDuration("timeout")
	if err != nil || timeout <= 0 {
		return context.WithCancel(cmd.Context())
	}
	return context.WithTimeout(cmd.Context(), timeout)
}

// namespace returns the value of -n, empty if it is not given.
func namespace(cmd *cobra.Command) string {
	ns, _ := cmd.Flags().GetString("namespace")
	return ns
}

// each asks every chosen cluster. It returns the answers it got even if others failed.
func each[T any](cmd *cobra.Command, ask func(context.Context, *api.Client) (T, error)) ([]T, error) {
	all, err := clients(cmd)
	if err != nil {
		return nil, err
	}
	ctx, cancel := patient(cmd)
	defer cancel()
	return askAll(ctx, all, ask)
}

// halfDone is the error of a command that failed halfway; its answer says what was done.
type halfDone struct{ error }

func (e halfDone) Unwrap() error { return e.error }

// askAll asks all clients at once, so that one that does not answer does not delay the
// others, and closes them. Answers and errors are in the order of all.
func askAll[T any](ctx context.Context, all []*api.Client, ask func(context.Context, *api.Client) (T, error)) ([]T, error) {
	answers, failed := make([]T, len(all)), make([]error, len(all))
	var asked sync.WaitGroup
	for i, c := range all {
		asked.Go(func() {
			defer c.Close()
			answers[i], failed[i] = ask(ctx, c)
			failed[i] = advised(c, failed[i])
			if failed[i] != nil && len(all) > 1 {
				failed[i] = fmt.Errorf("%s: %w", c.Name(), failed[i])
			}
		})
	}
	asked.Wait()
	var given []T
	for i, err := range failed {
		if half := (halfDone{}); err == nil || errors.As(err, &half) {
			given = append(given, answers[i])
		}
	}
	return given, errors.Join(failed...)
}

// on runs work on the single chosen cluster.
func on(cmd *cobra.Command, work func(context.Context, *api.Client) error) error {
	c, err := client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := patient(cmd)
	defer cancel()
	return advised(c, work(ctx, c))
}

// advised adds the context to the commands in a hint, unless it is the current one: a
// server does not know by which name it was asked.
func advised(c *api.Client, err error) error {
	var refusal *api.Error
	if !absent(err) || !errors.As(err, &refusal) {
		return err
	}
	file, unread := contexts()
	if unread != nil || !slices.Contains(file.Names(), c.Name()) { // an agent's socket has no context
		return err
	}
	if current, unset := file.Context(""); unset == nil && current.Name == c.Name() {
		return err
	}
	return hinted{err, strings.ReplaceAll(refusal.Hint, "`weft ", "`weft -c "+c.Name()+" ")}
}

// groupCommand returns a command that only groups others.
func groupCommand(use, short, group string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, GroupID: group, Args: subcommand}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(commands...)
	return cmd
}

// subcommand refuses an unknown command and suggests others.
func subcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return usageError{fmt.Errorf("%s: there is no %q; %s", cmd.CommandPath(), args[0], manifest.DidYouMean(args[0], names))}
}
