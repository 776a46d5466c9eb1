package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/api"
)

func deleteCommand() *cobra.Command {
	var files []string
	var selector string
	var opts api.ManifestOptions
	cmd := &cobra.Command{
		Use:     "delete KIND NAME… | KIND -l SELECTOR | -f FILE",
		Short:   "Delete objects by name, label or manifest",
		GroupID: operate,
		Long: "Delete objects by kind and name or label, or those in manifests. Those of a manifest or with a\n" +
			"label are deleted all or none, however many they are. Objects of a manifest that do not exist\n" +
			"are reported, not treated as errors; a name that does not exist is an error.\n" +
			"Namespaces are resolved as in weft apply. Objects from a source are deleted there; with\n" +
			"--take-over they are deleted here, but return if the source still has them.",
		Example:           "  weft delete pod web-1 -n shop\n  weft delete pod/web-1 -n shop\n  weft delete pods -n shop -l app=web\n  weft delete -f web.yaml",
		ValidArgsFunction: completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			act, err := deletion(cmd, files, opts, selector, args)
			if err != nil {
				return err
			}
			results, err := eachPatiently(cmd, "deleting", act)
			return errors.Join(showApplied(cmd, results), err)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "delete the objects in this manifest")
	ignoreUnknownFlag(cmd, &opts)
	takeOverFlag(cmd, &opts)
	selectorFlag(cmd, &selector)
	return cmd
}

// deletion reads the command line.
func deletion(cmd *cobra.Command, files []string, opts api.ManifestOptions, selector string, args []string) (func(context.Context, *api.Client) (*api.ApplyResult, error), error) {
	if len(files) > 0 {
		if len(args) > 0 || selector != "" {
			return nil, usageError{errors.New("weft delete: give either files, or a kind with names or a selector")}
		}
		manifest, err := readManifests(cmd, files)
		opts.Namespace = namespace(cmd)
		return func(ctx context.Context, c *api.Client) (*api.ApplyResult, error) {
			result, err := c.DeleteManifest(ctx, manifest.text(), opts)
			return result, manifest.located(result, err)
		}, err
	}
	if len(args) > 0 {
		if word, name, ok := strings.Cut(args[0], "/"); ok {
			args = append([]string{word, name}, args[1:]...)
		}
	}
	if selector != "" {
		return selected(cmd, selector, opts, args)
	}
	if len(args) < 2 {
		return nil, usageError{fmt.Errorf("weft delete: name a kind and what to delete, or a manifest with -f")}
	}
	k, err := kindOf(args[0])
	if err != nil && slices.Contains(manifestEndings, filepath.Ext(args[1])) {
		err = hinted{err, "to delete the objects in a manifest, use `weft delete -f FILE`"}
	}
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *api.Client) (*api.ApplyResult, error) {
		return deleteNames(ctx, c, k, objectNamespace(cmd, k), args[1:], opts)
	}, nil
}

// selected deletes the objects of a kind that match a selector, in one namespace: the
// one given with -n, or default. All of them are deleted or none.
func selected(cmd *cobra.Command, selector string, opts api.ManifestOptions, args []string) (func(context.Context, *api.Client) (*api.ApplyResult, error), error) {
	if len(args) != 1 {
		return nil, usageError{errors.New("weft delete: with a selector, give one kind and no names")}
	}
	k, err := kindOf(args[0])
	if err != nil {
		return nil, err
	}
	chosen, err := parseSelector(cmd, selector)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *api.Client) (*api.ApplyResult, error) {
		l, err := c.Objects(ctx, k.Plural, objectNamespace(cmd, k))
		if err != nil {
			return nil, err
		}
		items := []metav1.PartialObjectMetadata{}
		for _, raw := range l.Items {
			var o metav1.PartialObjectMetadata
			if chooses(chosen, raw) && json.Unmarshal(raw, &o) == nil {
				o.ObjectMeta = metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace}
				items = append(items, o)
			}
		}
		if len(items) == 0 {
			return nil, api.NotFound("`weft get "+k.Plural+" -o wide` shows their labels", "cluster %s has no %s matching %s", l.Cluster, k.Plural, selector)
		}
		manifest, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
		if err != nil {
			return nil, err
		}
		return c.DeleteManifest(ctx, manifest, api.ManifestOptions{TakeOver: opts.TakeOver})
	}, nil
}

func deleteNames(ctx context.Context, c *api.Client, k kind, namespace string, names []string, opts api.ManifestOptions) (*api.ApplyResult, error) {
	all := new(api.ApplyResult)
	for _, name := range names {
		r, err := c.Delete(ctx, k.Plural, namespace, name, opts)
		if err != nil && len(all.Objects) > 0 {
			return all, halfDone{err}
		}
		if err != nil {
			return nil, err
		}
		r.Objects = append(all.Objects, r.Objects...)
		all = r
	}
	return all, nil
}
