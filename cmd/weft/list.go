package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
)

// showEach asks every chosen cluster and shows the answers.
func showEach[T any](cmd *cobra.Command, ask func(context.Context, *api.Client) (T, error), tableOf func([]T) table) error {
	answers, err := each(cmd, ask)
	return showPart(cmd, answers, tableOf(answers), err)
}

// showPart shows the answers before the error of those that failed.
func showPart[T any](cmd *cobra.Command, answers []T, t table, err error) error {
	if err != nil && len(answers) == 0 {
		return err
	}
	return errors.Join(show(cmd, answers, t), err)
}

// listCommand returns a command that lists one kind of thing in every chosen cluster. ask
// is a method of api.Client; things takes the items out of an answer.
func listCommand[L, T any](short string, ask func(*api.Client, context.Context) (L, error), things func(L) []T, tableOf func([]T) table) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: short,
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			askOne := func(ctx context.Context, c *api.Client) (L, error) { return ask(c, ctx) }
			return showEach(cmd, askOne, func(lists []L) table {
				var all []T
				for _, l := range lists {
					all = append(all, things(l)...)
				}
				return tableOf(all)
			})
		},
	}
}
