package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/policy"
)

func policyCommand() *cobra.Command {
	return groupCommand("policy", "Network policies", operate, policyListCommand(), policyValidateCommand())
}

func policyListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the policies of both kinds",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listPolicies(cmd)
		},
	}
}

// checked is what became of one manifest.
type checked struct {
	File     string          `json:"file"`
	Valid    bool            `json:"valid"`
	Policies []checkedPolicy `json:"policies,omitempty"`
	Problems []string        `json:"problems,omitempty"`
}

type checkedPolicy struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func policyValidateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE…",
		Short: "Check policies without a cluster",
		Long: "Check policies without a cluster, as strictly as `weft apply` does. Every mistake of every\n" +
			"file is reported at once; exit code 1 if there is any. - is the standard input.",
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var all []checked
			var bad bool
			for _, name := range args {
				texts, err := readManifest(cmd, name)
				if err != nil {
					return usageError{fmt.Errorf("read policy: %w", err)}
				}
				for _, text := range texts {
					c := check(name, text)
					bad = bad || !c.Valid
					all = append(all, c)
				}
			}
			if err := showChecked(cmd, all); err != nil {
				return err
			}
			if bad {
				return errNo
			}
			return nil
		},
	}
}

func check(file string, text []byte) checked {
	c := checked{File: file, Valid: true}
	policies, err := policy.Parse(text)
	if err != nil {
		c.Valid, c.Problems = false, strings.Split(err.Error(), "\n")
	}
	for _, p := range policies {
		c.Policies = append(c.Policies, checkedPolicy{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name})
	}
	return c
}

func showChecked(cmd *cobra.Command, all []checked) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	if f == "json" || f == "yaml" {
		return show(cmd, all, table{})
	}
	for _, c := range all {
		for _, p := range c.Policies {
			name := p.Name
			if p.Namespace != "" {
				name = p.Namespace + "/" + name
			}
			fmt.Fprintln(cmd.OutOrStdout(), printableLines(fmt.Sprintf("%s: %s %s is valid", c.File, p.Kind, name)))
		}
		for _, p := range c.Problems {
			fmt.Fprintln(cmd.OutOrStdout(), printableLines(c.File+": "+p))
		}
		if len(c.Policies)+len(c.Problems) == 0 {
			fmt.Fprintln(cmd.OutOrStdout(), printableLines(c.File+": holds no policy"))
		}
	}
	return nil
}
