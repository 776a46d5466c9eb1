package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
)

func configCommand() *cobra.Command {
	return groupCommand("config", "Manage the contexts file", operate,
		configListCommand(), configUseCommand(), configMergeCommand(), configDeleteCommand())
}

func configListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the contexts and their file",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, err := contexts()
			if err != nil {
				return err
			}
			current, _ := file.Context("")
			t := table{columns: columns("CURRENT", "CONTEXT", "SERVER", "FILE"), name: 1, ordered: true, empty: "there are no contexts in " + api.ConfigPath()}
			type row struct {
				Name    string `json:"name"`
				Server  string `json:"server"`
				Current bool   `json:"current"`
			}
			all := []row{} // never the keys
			for _, x := range file.Contexts {
				mark := ""
				if x.Name == current.Name {
					mark = "*"
				}
				t.rows = append(t.rows, []string{mark, x.Name, x.Server, api.ConfigPath()})
				all = append(all, row{x.Name, x.Server, x.Name == current.Name})
			}
			return show(cmd, all, t)
		},
	}
}

func configUseCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "use CONTEXT",
		Short:             "Choose the context used without -c",
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: first(completeContexts),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := contexts()
			if err != nil {
				return err
			}
			if _, err := file.Context(args[0]); err != nil {
				return usageError{err}
			}
			file.Current = args[0]
			return saveContexts(cmd, file, fmt.Sprintf("%s is the current context", args[0]))
		},
	}
}

func configMergeCommand() *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use:   "merge FILE…",
		Short: "Add the contexts of other files",
		Long: "Add the contexts of other files, for example the admin.conf of each cluster's API server,\n" +
			"to your own. A context whose name is taken is refused, unless it is the same or --replace\n" +
			"is given; nothing is changed then. If there is no file of your own yet, it is created.",
		Example: "  weft config merge east-admin.conf west-admin.conf\n  weft config merge --replace renewed.conf",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("weft config merge: name at least one file of contexts")}
			}
			own, err := ownContexts()
			if err != nil {
				return err
			}
			added := 0
			for _, path := range args {
				other, err := api.LoadConfig(path)
				if err != nil {
					return usageError{err}
				}
				for _, x := range other.Contexts {
					i := slices.IndexFunc(own.Contexts, func(y api.Context) bool { return y.Name == x.Name })
					if i >= 0 && own.Contexts[i].Equal(x) {
						continue
					}
					if i >= 0 && !replace {
						return usageError{fmt.Errorf("%s: there is another context %q already; take the new one with --replace, or give it another name in the file", path, x.Name)}
					}
					own.Set(x)
					added++
				}
			}
			return saveContexts(cmd, own, api.Count(added, "context")+" added")
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "replace contexts of the same name")
	return cmd
}

func configDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "delete CONTEXT",
		Short:             "Remove a context from the file",
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: first(completeContexts),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := contexts()
			if err != nil {
				return err
			}
			if _, err := file.Context(args[0]); err != nil {
				return usageError{err}
			}
			file.Contexts = slices.DeleteFunc(file.Contexts, func(x api.Context) bool { return x.Name == args[0] })
			if file.Current == args[0] {
				file.Current = ""
			}
			return saveContexts(cmd, file, fmt.Sprintf("context %s removed", args[0]))
		},
	}
}

// ownContextsPath is the operator's own file. The file that an API server writes is never
// changed: if that one is in use, changes start a file of the operator's own.
func ownContextsPath() (string, error) {
	if path := api.ConfigPath(); path != api.AdminConfigPath || os.Getenv("WEFT_CONFIG") != "" {
		return path, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", usageError{fmt.Errorf("no home folder to keep contexts in: name the file in WEFT_CONFIG: %w", err)}
	}
	return filepath.Join(home, ".config", "weft", "config"), nil
}

// ownContexts returns the contexts to change, empty if there is no file yet.
func ownContexts() (*api.Config, error) {
	if _, err := os.Stat(api.ConfigPath()); errors.Is(err, os.ErrNotExist) {
		return &api.Config{}, nil
	}
	return contexts()
}

func saveContexts(cmd *cobra.Command, file *api.Config, what string) error {
	path, err := ownContextsPath()
	if err != nil {
		return err
	}
	if err := file.Save(path); err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), printableLines(fmt.Sprintf("%s (%s)", what, path)))
	return err
}
