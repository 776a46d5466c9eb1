package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/policy"
)

func policyCommand() *cobra.Command {
	return groupCommand("policy", "Inspect and validate network policies", operate, policyListCommand(), policyValidateCommand())
}

func policyListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the policies of every kind",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return showEach(cmd, func(ctx context.Context, c *api.Client) (*policyList, error) { return policies(ctx, c, namespace(cmd)) }, policyTable)
		},
	}
}

// policyList is a cluster's policies of every kind.
type policyList struct {
	Cluster  string            `json:"cluster"`
	Policies []json.RawMessage `json:"policies"` // as they were applied
	rows     [][]string
}

func policies(ctx context.Context, c *api.Client, namespace string) (*policyList, error) {
	all := &policyList{Policies: []json.RawMessage{}}
	identities, err := c.Identities(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range kinds {
		if !k.Policy {
			continue
		}
		l, err := c.Objects(ctx, k.Plural, namespace)
		if err != nil {
			return nil, err
		}
		for _, raw := range l.Items {
			row, err := k.row(l.Cluster, raw)
			if err != nil {
				return nil, err
			}
			if !k.Namespaced {
				row = slices.Insert(row, 1, "")
			}
			pods := "" // unknown, if this version cannot read the policy
			if n, err := selectedPods(identities.Identities, l.Cluster, raw); err == nil {
				pods = fmt.Sprint(n)
			}
			row = slices.Insert(row, 3, k.Name)
			all.rows = append(all.rows, slices.Insert(row, len(row)-2, pods))
		}
		all.Cluster, all.Policies = l.Cluster, append(all.Policies, l.Items...)
	}
	return all, nil
}

func policyTable(lists []*policyList) table {
	t := table{columns: columns("CLUSTER", "NAMESPACE", "NAME", "KIND", "SELECTS", "RULES", "PODS", "*OWNER", "AGE"), name: 2, empty: "there are no policies: everything is allowed"}
	for _, l := range lists {
		t.rows = append(t.rows, l.rows...)
	}
	return t
}

// checked is the result for one manifest.
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
	// Warnings do not make a policy invalid.
	Warnings []string `json:"warnings,omitempty"`
}

func policyValidateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE…",
		Short: "Check policies without a cluster",
		Long: "Check policies without a cluster, as strictly as `weft apply`. Mistakes in all files are\n" +
			"reported at once; the exit code is 1 if there are any. - is standard input.",
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var all []checked
			var bad bool
			for _, name := range args {
				files, err := readManifest(cmd, name)
				if err != nil {
					return usageError{fmt.Errorf("read policy: %w", err)}
				}
				for _, f := range files {
					c := check(f.name, f.text)
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
	policies, groups, err := policy.ParseManifest(text)
	if err != nil {
		c.Valid, c.Problems = false, strings.Split(err.Error(), "\n")
	}
	if err == nil && len(policies)+len(groups) == 0 {
		c.Valid, c.Problems = false, []string{"contains no policy"}
	}
	for _, p := range policies {
		c.Policies = append(c.Policies, checkedPolicy{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Warnings: p.Warnings()})
	}
	for _, g := range groups {
		c.Policies = append(c.Policies, checkedPolicy{Kind: policy.KindCIDRGroup, Name: g.Name})
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
	var lines strings.Builder
	for _, c := range all {
		for _, p := range c.Policies {
			name := p.Name
			if p.Namespace != "" {
				name = p.Namespace + "/" + name
			}
			fmt.Fprintln(&lines, printableLines(fmt.Sprintf("%s: %s %s is valid", c.File, p.Kind, name)))
			for _, w := range p.Warnings {
				fmt.Fprintln(&lines, printableLines(fmt.Sprintf("%s: warning: %s %s: %s", c.File, p.Kind, name, w)))
			}
		}
		for _, p := range c.Problems {
			fmt.Fprintln(&lines, printableLines(c.File+": "+p))
		}
	}
	_, err = io.WriteString(cmd.OutOrStdout(), lines.String())
	return err
}
