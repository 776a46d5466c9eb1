package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/apiserver/api"
)

func deleteCommand() *cobra.Command {
	var files []string
	var opts api.ManifestOptions
	cmd := &cobra.Command{
		Use:     "delete KIND NAME… | -f FILE",
		Short:   "Delete objects, by name or as manifests list them",
		GroupID: operate,
		Long: "Delete objects by kind and name, or those that manifests list. Objects of a manifest that\n" +
			"do not exist are reported, not treated as errors; a name that does not exist is an error.\n" +
			"Namespaces are resolved as in weft apply.",
		Example:           "  weft delete pod web-1 -n shop\n  weft delete pod/web-1 -n shop\n  weft delete -f web.yaml",
		ValidArgsFunction: completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			act, err := deletion(cmd, files, opts, args)
			if err != nil {
				return err
			}
			results, err := each(cmd, act)
			return errors.Join(showApplied(cmd, results), err)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "delete what this manifest lists")
	ignoreUnknownFlag(cmd, &opts)
	return cmd
}

// deletion reads the command line.
func deletion(cmd *cobra.Command, files []string, opts api.ManifestOptions, args []string) (func(context.Context, *api.Client) (*api.ApplyResult, error), error) {
	if len(files) > 0 {
		if len(args) > 0 {
			return nil, usageError{errors.New("weft delete: give either files or a kind and names")}
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
	if len(args) < 2 {
		return nil, usageError{fmt.Errorf("weft delete: name a kind and what to delete, or a manifest with -f")}
	}
	k, err := kindOf(args[0])
	if err != nil && slices.Contains(manifestEndings, filepath.Ext(args[1])) {
		err = hinted{err, "delete what a manifest lists with -f: `weft delete -f FILE`"}
	}
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *api.Client) (*api.ApplyResult, error) {
		all := new(api.ApplyResult)
		for _, name := range args[1:] {
			r, err := c.Delete(ctx, k.plural, objectNamespace(cmd, k), name)
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
	}, nil
}
