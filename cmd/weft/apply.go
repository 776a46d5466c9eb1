package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/weft-mesh/weft/api"
)

func applyCommand() *cobra.Command {
	var files []string
	var opts api.ManifestOptions
	cmd := &cobra.Command{
		Use:     "apply FILE…",
		Short:   "Create or change objects from manifests",
		GroupID: operate,
		Long: "Create or change the objects in manifests, which are plain Kubernetes and Cilium YAML. Either\n" +
			"all of them are accepted or none is, however many they are (up to 16 MiB of text). A folder\n" +
			"stands for its .yaml, .yml and .json files, a list for its items, and - for standard input.\n" +
			"Objects without a namespace go to the one given with -n, or to default; with -n, objects of\n" +
			"other namespaces are refused.\n\n" +
			"What the store does not take at once is made in steps, policies before services and pods.\n\n" +
			"Objects from a source, such as the folder that an API server follows (--manifests), are changed\n" +
			"there. With --take-over they are changed here, and the source leaves them alone from then on;\n" +
			"get -o wide shows who owns an object.",
		Example: "  weft apply web.yaml\n  weft -c east,west apply manifests/\n  weft apply --dry-run -f policy.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			manifest, err := readManifests(cmd, append(files, args...))
			if err != nil {
				return err
			}
			opts.Namespace = namespace(cmd)
			results, err := eachPatiently(cmd, "applying", func(ctx context.Context, c *api.Client) (*api.ApplyResult, error) {
				result, err := c.Apply(ctx, manifest.text(), opts)
				return result, manifest.located(result, err)
			})
			return errors.Join(showApplied(cmd, results), err)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "manifest, folder or -, like an argument")
	cmd.Flags().BoolVar(&opts.DryRun, "dry-run", false, "check only, change nothing")
	ignoreUnknownFlag(cmd, &opts)
	takeOverFlag(cmd, &opts)
	return cmd
}

func takeOverFlag(cmd *cobra.Command, opts *api.ManifestOptions) {
	cmd.Flags().BoolVar(&opts.TakeOver, "take-over", false, "include objects that belong to a source, such as a folder of manifests")
}

func ignoreUnknownFlag(cmd *cobra.Command, opts *api.ManifestOptions) {
	cmd.Flags().BoolVar(&opts.IgnoreUnknown, "ignore-unknown", false, "skip objects of kinds Weft does not know, such as Deployment")
}

// manifestEndings are the extensions that are read from a folder.
var manifestEndings = []string{".yaml", ".yml", ".json"}

// manifests are files in the order in which they are sent, as a single manifest.
type manifests []manifestFile

type manifestFile struct {
	name string
	text []byte
}

// between ends a file's last document.
const between = "\n---\n"

func (m manifests) text() []byte {
	var texts [][]byte
	for _, f := range m {
		texts = append(texts, f.text)
	}
	return bytes.Join(texts, []byte(between))
}

// located names the files in an answer's warnings, or in a refusal's problems.
func (m manifests) located(result *api.ApplyResult, err error) error {
	var refusal *api.Error
	switch {
	case errors.As(err, &refusal):
		m.locate(refusal.Problems)
	case err == nil:
		m.locate(result.Warnings)
	}
	return err
}

// locate names the file in each problem, and counts documents in that file.
func (m manifests) locate(problems []api.Problem) {
	for i := range problems {
		p := &problems[i]
		for _, f := range m {
			if n := f.documents(); p.Document > n {
				p.Document -= n
				continue
			}
			if p.Document > 0 { // 0 is the manifest as a whole
				p.File = f.name
			}
			break
		}
	}
}

// documents counts documents as the server does, including empty ones.
func (f manifestFile) documents() (n int) {
	docs := utilyaml.NewYAMLReader(bufio.NewReader(io.MultiReader(bytes.NewReader(f.text), strings.NewReader(between))))
	for {
		if _, err := docs.Read(); err != nil {
			return n
		}
		n++
	}
}

// readManifests reads files, folders and the standard input.
func readManifests(cmd *cobra.Command, names []string) (manifests, error) {
	if len(names) == 0 {
		return nil, usageError{fmt.Errorf("%s: name a manifest, a folder, or - for standard input", cmd.CommandPath())}
	}
	var all manifests
	for _, name := range names {
		files, err := readManifest(cmd, name)
		if err != nil {
			return nil, usageError{fmt.Errorf("read manifest: %w", err)}
		}
		all = append(all, files...)
	}
	return all, nil
}

func readManifest(cmd *cobra.Command, name string) (manifests, error) {
	if name == "-" {
		text, err := io.ReadAll(cmd.InOrStdin())
		return manifests{{name, text}}, err
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
			if slices.Contains(manifestEndings, filepath.Ext(e.Name())) && !e.IsDir() {
				paths = append(paths, filepath.Join(name, e.Name()))
			}
		}
		if len(paths) == 0 {
			return nil, fmt.Errorf("folder %s has no .yaml, .yml or .json file", name)
		}
	}
	var files manifests
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files = append(files, manifestFile{path, text})
	}
	return files, nil
}

// showApplied prints what became of each object, in the order of the manifest.
func showApplied(cmd *cobra.Command, results []*api.ApplyResult) error {
	for _, r := range results {
		for _, w := range r.Warnings {
			fmt.Fprintln(cmd.ErrOrStderr(), printableLines(fmt.Sprintf("%s: warning: %s", r.Cluster, w)))
		}
	}
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
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), printableLines(fmt.Sprintf("%s: %s %s %s%s", r.Cluster, o.Kind, name, o.Action, note))); err != nil {
				return err
			}
		}
	}
	return nil
}
