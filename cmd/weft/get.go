package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-mesh/weft/api"
)

func getCommand() *cobra.Command {
	var watch bool
	var selector string
	cmd := &cobra.Command{
		Use:     "get KIND[,KIND…] [NAME…]",
		Short:   "Show objects as they were applied",
		GroupID: operate,
		Long: "Show objects as they were applied: all of a kind, or those named. Lists cover all namespaces\n" +
			"unless -n is given. With several kinds, -o name prints KIND/NAME.\n\nKinds: " +
			strings.Join(kindNames(), ", ") + ".",
		Example: "  weft get pods -n shop\n  weft -c east,west get services\n" +
			"  weft get cnp web -n shop -o yaml\n  weft get pods -l app=web --watch",
		Args:              usageArgs(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			words, names := args[0], args[1:]
			if k, name, ok := strings.Cut(words, "/"); ok {
				words, names = k, append([]string{name}, names...)
			}
			var wanted []kind
			for word := range strings.SplitSeq(words, ",") {
				k, err := kindOf(word)
				if err != nil {
					return err
				}
				wanted = append(wanted, k)
			}
			chosen, err := parseSelector(cmd, selector)
			if err != nil {
				return err
			}
			switch {
			case selector != "" && len(names) > 0:
				return usageError{errors.New("weft get: give either names or a selector")}
			case cmd.Flags().Changed("all-namespaces") && namespace(cmd) != "":
				return usageError{errors.New("weft get: give either a namespace or -A")}
			case len(wanted) > 1 && (watch || len(names) > 0):
				return usageError{errors.New("weft get: give one kind to use names or --watch")}
			case len(wanted) > 1:
				return getKinds(cmd, wanted, chosen)
			case watch:
				return watchObjects(cmd, wanted[0], names, chosen)
			}
			return getObjects(cmd, wanted[0], names, chosen)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "keep watching for changes")
	selectorFlag(cmd, &selector)
	cmd.Flags().BoolP("all-namespaces", "A", false, "all namespaces (the default)")
	return cmd
}

// getKinds shows several kinds, one after another.
func getKinds(cmd *cobra.Command, kinds []kind, chosen labels.Selector) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	together := f == "name" || f == "json"
	names := table{columns: columns("NAME"), empty: "there are no such objects"}
	var all []*api.ObjectList
	var failed error
	for i, k := range kinds {
		lists, t, err := listObjects(cmd, k, nil, chosen)
		failed = errors.Join(failed, err)
		if err != nil && len(lists) == 0 {
			break // no cluster answers
		}
		if !together {
			if i > 0 {
				fmt.Fprintln(cmd.OutOrStdout(), map[string]string{"yaml": "---"}[f])
			}
			if err := showObjects(cmd, lists, t, f == "yaml"); err != nil {
				return err
			}
		}
		for _, row := range t.rows {
			names.rows = append(names.rows, []string{k.Plural + "/" + t.fullName(cmd, row)})
		}
		all = append(all, lists...)
	}
	if !together {
		return failed
	}
	return showPart(cmd, all, names, failed)
}

// listObjects gets all objects of a kind, or the named ones in the order given, and
// returns the raw answers and a table, even if not all clusters answered.
func listObjects(cmd *cobra.Command, k kind, names []string, chosen labels.Selector) (lists []*api.ObjectList, t table, err error) {
	lists, err = each(cmd, func(ctx context.Context, c *api.Client) (*api.ObjectList, error) {
		if len(names) == 0 {
			l, err := c.Objects(ctx, k.Plural, namespace(cmd))
			if err == nil {
				l.Items = slices.DeleteFunc(l.Items, func(raw json.RawMessage) bool { return !chooses(chosen, raw) })
			}
			return l, err
		}
		all := &api.ObjectList{}
		for _, name := range names {
			one, err := c.Object(ctx, k.Plural, objectNamespace(cmd, k), name)
			if err != nil {
				return nil, err
			}
			one.Items = append(all.Items, one.Items...)
			all = one
		}
		return all, nil
	})
	t = table{columns: k.heads(), name: len(k.heads()) - len(k.columns) - 3, empty: "there are no " + k.Plural}
	if of := namespace(cmd); of != "" && k.Namespaced {
		t.empty += fmt.Sprintf(" in namespace %q", of)
	}
	for _, l := range lists {
		for _, raw := range l.Items {
			row, err := k.row(l.Cluster, raw)
			if err != nil {
				return nil, t, err
			}
			t.rows = append(t.rows, row)
		}
	}
	return lists, t, err
}

func getObjects(cmd *cobra.Command, k kind, names []string, chosen labels.Selector) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	lists, t, err := listObjects(cmd, k, names, chosen)
	if err != nil && len(lists) == 0 {
		return err
	}
	// YAML output can be applied again; so can the JSON of named objects.
	return errors.Join(showObjects(cmd, lists, t, f == "yaml" || f == "json" && len(names) > 0), err)
}

// showObjects shows lists, or each of their objects as it was applied.
func showObjects(cmd *cobra.Command, lists []*api.ObjectList, t table, applied bool) error {
	if applied {
		var objects []json.RawMessage
		for _, l := range lists {
			objects = append(objects, l.Items...)
		}
		return show(cmd, objects, t)
	}
	return show(cmd, lists, t)
}

// objectNamespace is the namespace of a named object.
func objectNamespace(cmd *cobra.Command, k kind) string {
	if !k.Namespaced {
		return ""
	}
	if ns := namespace(cmd); ns != "" {
		return ns
	}
	return "default"
}

// watchObjects prints a table of the current objects, then a row for each change.
func watchObjects(cmd *cobra.Command, k kind, names []string, chosen labels.Selector) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	if f == "name" {
		return usageError{errors.New("--watch does not support -o name; use table, json or yaml")}
	}
	c, err := clientFor(cmd, cmd.CommandPath()+" --watch")
	if err != nil {
		return err
	}
	defer c.Close()
	out := cmd.OutOrStdout()
	t := table{columns: append(columns("EVENT"), k.heads()...)}
	synced, events := false, 0
	part := selection{chosen, map[string]bool{}}
	err = c.Watch(cmd.Context(), k.Plural, namespace(cmd), func(ev api.WatchEvent) error {
		if ev.Type != "synced" && len(names) > 0 && !slices.Contains(names, ev.Name) {
			return nil
		}
		ev, ok := part.pass(ev)
		if !ok {
			return nil
		}
		switch {
		case f == "json":
			line, err := json.Marshal(ev)
			if err == nil {
				_, err = fmt.Fprintf(out, "%s\n", line)
			}
			return err
		case f == "yaml":
			events++
			return document(out, f, ev, events-1)
		}
		if ev.Type == "synced" {
			synced = true
		} else {
			row, err := k.eventRow(ev)
			if err != nil {
				return err
			}
			t.rows = append(t.rows, append(row, make([]string, len(t.columns)-len(row))...))
		}
		if !synced || len(t.rows) == 0 {
			return nil // the current objects make one table
		}
		err := t.write(out, f == "wide", colourful(out))
		t.rows = nil
		return err
	})
	return ended(cmd, err)
}

// eventRow is the row that a watch shows for a change. Of a deleted object only the
// name is known.
func (k kind) eventRow(ev api.WatchEvent) ([]string, error) {
	row := []string{ev.Cluster, ev.Namespace, ev.Name}
	if !k.Namespaced {
		row = []string{ev.Cluster, ev.Name}
	}
	if len(ev.Object) > 0 {
		var err error
		if row, err = k.row(ev.Cluster, ev.Object); err != nil {
			return nil, err
		}
	}
	return append([]string{ev.Type}, row...), nil
}
