package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
)

// refuseUnknownShells makes an unknown shell an error: cobra would answer with the help.
func refuseUnknownShells(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	if cmd, _, err := root.Find([]string{"completion"}); err == nil {
		cmd.Args = subcommand
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
}

// completer lists the possible words at a place on the command line.
type completer = func(cmd *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective)

const onlyThese = cobra.ShellCompDirectiveNoFileComp

// completionTime bounds how long a key press may wait for a cluster. Tests wait longer.
var completionTime = 2 * time.Second

// complete sets the completer of a flag that exists.
func complete(cmd *cobra.Command, flag string, f completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // the flag does not exist: a bug in this package
	}
}

func fixed(words ...string) completer {
	return func(_ *cobra.Command, _ []string, begin string) ([]string, cobra.ShellCompDirective) {
		return starting(words, begin), onlyThese
	}
}

func starting(words []string, begin string) (fit []string) {
	for _, w := range words {
		if strings.HasPrefix(w, begin) {
			fit = append(fit, w)
		}
	}
	return fit
}

func completeContexts(_ *cobra.Command, _ []string, begin string) ([]string, cobra.ShellCompDirective) {
	file, err := api.LoadConfig("")
	if err != nil {
		return nil, onlyThese
	}
	// After a comma only the last name is being typed.
	head := begin[:strings.LastIndex(begin, ",")+1]
	var names []string
	for _, name := range append(file.Names(), "all") {
		names = append(names, head+name)
	}
	return starting(names, begin), onlyThese | cobra.ShellCompDirectiveNoSpace
}

// fromCluster completes with names that the chosen clusters know. If they do not answer in
// time, there are no completions.
func fromCluster(names func(context.Context, *api.Client, *cobra.Command, []string) ([]string, error)) completer {
	return func(cmd *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective) {
		all, err := clients(cmd)
		if err != nil {
			return nil, onlyThese
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		found, _ := askAll(ctx, all, func(ctx context.Context, c *api.Client) ([]string, error) { return names(ctx, c, cmd, args) })
		words := slices.Concat(found...)
		slices.Sort(words)
		return starting(slices.Compact(words), begin), onlyThese
	}
}

// first completes only the first argument.
func first(f completer) completer {
	return func(cmd *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, onlyThese
		}
		return f(cmd, args, begin)
	}
}

var completePeers = fromCluster(func(ctx context.Context, c *api.Client, _ *cobra.Command, _ []string) (names []string, err error) {
	peers, err := c.Peers(ctx)
	if err == nil {
		for _, p := range peers.Peers {
			names = append(names, p.Name)
		}
	}
	return names, err
})

var completeFormer = fromCluster(func(ctx context.Context, c *api.Client, _ *cobra.Command, _ []string) (names []string, err error) {
	peers, err := c.Peers(ctx)
	if err == nil {
		for _, f := range peers.Former {
			names = append(names, f.Name)
		}
	}
	return names, err
})

var completeNodes = fromCluster(func(ctx context.Context, c *api.Client, _ *cobra.Command, _ []string) (names []string, err error) {
	nodes, err := c.Nodes(ctx)
	if err == nil {
		for _, n := range nodes.Nodes {
			names = append(names, n.Name)
		}
	}
	return names, err
})

var completeNamespaces = fromCluster(func(ctx context.Context, c *api.Client, _ *cobra.Command, _ []string) ([]string, error) {
	return objectNames(ctx, c, manifest.Namespaces, "")
})

// completeObjects completes "KIND", then "KIND NAME…".
func completeObjects(cmd *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return fixed(kindNames()...)(cmd, args, begin)
	}
	return fromCluster(func(ctx context.Context, c *api.Client, cmd *cobra.Command, args []string) ([]string, error) {
		return objectNames(ctx, c, args[0], namespace(cmd))
	})(cmd, args, begin)
}
