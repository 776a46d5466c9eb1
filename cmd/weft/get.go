package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/flow"
)

func getCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:     "get KIND [NAME…]",
		Short:   "Show objects as they were applied",
		GroupID: operate,
		Long: "Show objects as they were applied: all of a kind, or those named.\n\nKinds: " +
			strings.Join(kindNames(), ", ") + ".",
		Example: "  weft get pods -n shop\n  weft -c east,west get services\n" +
			"  weft get cnp web -n shop -o yaml\n  weft get pods --watch",
		Args:              usageArgs(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			words, names := args[0], args[1:]
			if k, name, ok := strings.Cut(words, "/"); ok {
				words, names = k, append([]string{name}, names...)
			}
			k, err := kindOf(words)
			if err != nil {
				return err
			}
			if watch {
				return watchObjects(cmd, k, names)
			}
			return getObjects(cmd, k, names)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on with every change")
	return cmd
}

// getObjects lists a kind, or shows the named ones in the order given.
func getObjects(cmd *cobra.Command, k kind, names []string) error {
	lists, err := each(cmd, func(ctx context.Context, c *api.Client) (*api.ObjectList, error) {
		if len(names) == 0 {
			return c.Objects(ctx, k.plural, namespace(cmd))
		}
		all := &api.ObjectList{}
		for _, name := range names {
			one, err := c.Object(ctx, k.plural, objectNamespace(cmd, k), name)
			if err != nil {
				return nil, err
			}
			one.Items = append(all.Items, one.Items...)
			all = one
		}
		return all, nil
	})
	if err != nil {
		return err
	}
	t := table{columns: k.heads(), name: len(k.heads()) - len(k.columns) - 2, empty: "there are no " + k.plural}
	var documents []json.RawMessage
	for _, l := range lists {
		for _, raw := range l.Items {
			row, err := k.row(l.Cluster, raw)
			if err != nil {
				return err
			}
			t.rows = append(t.rows, row)
			documents = append(documents, raw)
		}
	}
	// YAML is what can be applied again; so is the JSON of named objects.
	if f, err := format(cmd); err != nil || f == "yaml" || f == "json" && len(names) > 0 {
		return show(cmd, documents, t)
	}
	return show(cmd, lists, t)
}

// objectNamespace is where a named object is looked for.
func objectNamespace(cmd *cobra.Command, k kind) string {
	if k.clusters {
		return ""
	}
	if ns := namespace(cmd); ns != "" {
		return ns
	}
	return "default"
}

// listPolicies lists both kinds of policy in one table.
func listPolicies(cmd *cobra.Command) error {
	var lists []*api.ObjectList
	t := table{columns: columns("CLUSTER", "NAMESPACE", "NAME", "SELECTS", "RULES", "AGE"), name: 2, empty: "there are no policies: everything is allowed"}
	for _, word := range []string{"cnp", "ccnp"} {
		k, err := kindOf(word)
		if err != nil {
			return err
		}
		found, err := each(cmd, func(ctx context.Context, c *api.Client) (*api.ObjectList, error) {
			return c.Objects(ctx, k.plural, namespace(cmd))
		})
		if err != nil {
			return err
		}
		for _, l := range found {
			for _, raw := range l.Items {
				row, err := k.row(l.Cluster, raw)
				if err != nil {
					return err
				}
				if k.clusters {
					row = slices.Insert(row, 1, "")
				}
				t.rows = append(t.rows, row)
			}
		}
		lists = append(lists, found...)
	}
	return show(cmd, lists, t)
}

// watchObjects prints a line for each object there is and each change.
func watchObjects(cmd *cobra.Command, k kind, names []string) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	c, err := client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	out := cmd.OutOrStdout()
	err = c.Watch(cmd.Context(), k.plural, namespace(cmd), func(ev api.WatchEvent) error {
		if ev.Type != "synced" && len(names) > 0 && !slices.Contains(names, ev.Name) {
			return nil
		}
		if f == "json" || f == "yaml" {
			line, err := json.Marshal(ev)
			if err == nil {
				_, err = fmt.Fprintf(out, "%s\n", line)
			}
			return err
		}
		if ev.Type == "synced" {
			return nil
		}
		row := []string{ev.Cluster, ev.Namespace, ev.Name}
		if len(ev.Object) > 0 {
			if row, err = k.row(ev.Cluster, ev.Object); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintln(out, flow.Printable(strings.Join(append([]string{ev.Type}, row...), "  ")))
		return err
	})
	return ended(cmd, err)
}
