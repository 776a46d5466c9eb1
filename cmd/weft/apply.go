package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/apiserver/api"
)

func applyCommand() *cobra.Command {
	var files []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "apply FILE…",
		Short:   "Create or change objects from manifests",
		GroupID: operate,
		Long: "Create or change the objects of manifests: Kubernetes and Cilium YAML as it is. All of\n" +
			"them are accepted, or none is. A folder stands for its .yaml, .yml and .json files, and\n" +
			"- for the standard input. Objects without a namespace go to default.",
		Example: "  weft apply web.yaml\n  weft -c east,west apply manifests/\n  weft apply --dry-run -f policy.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			manifest, err := readManifests(cmd, append(files, args...))
			if err != nil {
				return err
			}
			results, err := each(cmd, func(ctx context.Context, c *api.Client) (*api.ApplyResult, error) {
				return c.Apply(ctx, manifest, dryRun)
			})
			return errors.Join(showApplied(cmd, results), err)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "manifest, folder or - (as the arguments are)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check only; nothing is changed")
	return cmd
}

// readManifests joins files, folders and the standard input.
func readManifests(cmd *cobra.Command, names []string) ([]byte, error) {
	if len(names) == 0 {
		return nil, usageError{fmt.Errorf("%s: name a manifest, a folder, or - for the standard input", cmd.CommandPath())}
	}
	var all [][]byte
	for _, name := range names {
		texts, err := readManifest(cmd, name)
		if err != nil {
			return nil, usageError{fmt.Errorf("read manifest: %w", err)}
		}
		all = append(all, texts...)
	}
	return bytes.Join(all, []byte("\n---\n")), nil
}

func readManifest(cmd *cobra.Command, name string) ([][]byte, error) {
	if name == "-" {
		text, err := io.ReadAll(cmd.InOrStdin())
		return [][]byte{text}, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	paths := []string{name}
	if info.IsDir() {
		entries, err := os.ReadDir(name)
		if err != nil {
			return nil, err
		}
		paths = nil
		for _, e := range entries {
			if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) && !e.IsDir() {
				paths = append(paths, filepath.Join(name, e.Name()))
			}
		}
		if len(paths) == 0 {
			return nil, fmt.Errorf("folder %s has no .yaml, .yml or .json file", name)
		}
	}
	var texts [][]byte
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return texts, nil
}

// showApplied says what became of each object, in the order of the manifest.
func showApplied(cmd *cobra.Command, results []*api.ApplyResult) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	if f == "json" || f == "yaml" {
		return show(cmd, results, table{})
	}
	for _, r := range results {
		for _, o := range r.Objects {
			name := o.Name
			if o.Namespace != "" {
				name = o.Namespace + "/" + name
			}
			note := ""
			if r.DryRun {
				note = " (dry run)"
			}
			fmt.Fprintln(cmd.OutOrStdout(), printableLines(fmt.Sprintf("%s: %s %s %s%s", r.Cluster, o.Kind, name, o.Action, note)))
		}
	}
	return nil
}
