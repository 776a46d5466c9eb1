package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/policy"
)

func describeCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "describe KIND NAME…",
		Short:   "Show everything known about an object",
		GroupID: look,
		Long: "Show everything known about an object, a node or a peer: what was applied, what became of\n" +
			"it, and what needs attention. -o json and yaml print the object as `weft get` does.",
		Example:           "  weft describe pod web-1 -n shop\n  weft -c all describe service web\n  weft describe node east-1",
		Args:              usageArgs(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeDescribed,
		RunE: func(cmd *cobra.Command, args []string) error {
			if word, name, ok := strings.Cut(args[0], "/"); ok {
				args = append([]string{word, name}, args[1:]...)
			}
			if len(args) < 2 {
				return usageError{errors.New("weft describe: name a kind and what to describe")}
			}
			if f, err := format(cmd); err != nil || f != "table" && f != "wide" {
				return errors.Join(err, getDescribed(cmd, args))
			}
			descriptions, err := each(cmd, func(ctx context.Context, c *api.Client) ([]description, error) {
				return describe(ctx, cmd, c, args[0], args[1:])
			})
			for i, d := range slices.Concat(descriptions...) {
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				if err := d.write(cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			return err
		},
	}
}

// getDescribed prints for programs the document that `get`, `node list` or `peer list`
// prints.
func getDescribed(cmd *cobra.Command, args []string) error {
	switch args[0] {
	case "node", "nodes", "peer", "peers":
		return usageError{fmt.Errorf("weft describe is for people; `weft %s list -o json` has the same for programs", strings.TrimSuffix(args[0], "s"))}
	}
	k, err := kindOf(args[0])
	if err != nil {
		return err
	}
	return getObjects(cmd, k, args[1:], labels.Everything())
}

// description is a list of names and values, some of several lines.
type description struct{ lines [][2]string }

func (d *description) add(name, value string) {
	if value != "" {
		d.lines = append(d.lines, [2]string{name, value})
	}
}

func (d *description) write(out io.Writer) error {
	width := 0
	for _, l := range d.lines {
		width = max(width, len(l[0])+1)
	}
	for _, l := range d.lines {
		for i, line := range strings.Split(strings.TrimRight(l[1], "\n"), "\n") {
			name := ""
			if i == 0 {
				name = l[0] + ":"
			}
			if _, err := fmt.Fprintln(out, strings.TrimRight(fmt.Sprintf("%-*s %s", width, name, printableLines(line)), " ")); err != nil {
				return err
			}
		}
	}
	return nil
}

// cells adds the cells of a table's row, except for the columns named in but.
func (d *description) cells(columns []column, row []string, but ...string) {
	for i, c := range columns {
		if head := strings.TrimPrefix(c.head, "*"); !slices.Contains(but, head) {
			d.add(title(head), row[i])
		}
	}
}

// concerns adds the cluster's concerns about the object.
func (d *description) concerns(status *api.Status, is func(api.Concern) bool) {
	var lines []string
	for _, c := range slices.Concat(status.Concerns, status.Settling) {
		if is(c) {
			lines = append(lines, c.String())
		}
	}
	d.add("Needs attention", strings.Join(lines, "\n"))
}

// title turns a column's head into a name: "POD-CIDR" becomes "Pod CIDR".
func title(head string) string {
	words := strings.Split(strings.ToLower(head), "-")
	for i, w := range words {
		switch w {
		case "cidr", "ip", "id":
			words[i] = strings.ToUpper(w)
		}
	}
	text := strings.Join(words, " ")
	return strings.ToUpper(text[:1]) + text[1:]
}

func describe(ctx context.Context, cmd *cobra.Command, c *api.Client, word string, names []string) (all []description, err error) {
	status, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	switch word {
	case "node", "nodes":
		return describeRows(status, nodeTable(status.Nodes), "node", names)
	case "peer", "peers":
		return describeRows(status, peerTable(status.Peers), "peer", names)
	}
	k, err := kindOf(word)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		l, err := c.Object(ctx, k.Plural, objectNamespace(cmd, k), name)
		if err != nil {
			return all, err
		}
		d, err := describeObject(ctx, c, status, k, l)
		if err != nil {
			return all, err
		}
		all = append(all, d)
	}
	return all, nil
}

// describeRows describes objects that have no manifest.
func describeRows(status *api.Status, t table, kind string, names []string) (all []description, err error) {
	for _, name := range names {
		i := slices.IndexFunc(t.rows, func(row []string) bool { return row[t.name] == name })
		if i < 0 {
			return all, api.NotFound(fmt.Sprintf("`weft %s list` lists them", kind), "cluster %s has no %s %q", status.Cluster.Name, kind, name)
		}
		var d description
		d.cells(t.columns, t.rows[i])
		object := kind + " " + name
		d.concerns(status, func(c api.Concern) bool {
			return c.Object == object || kind == "node" && c.Node == name || strings.Contains(c.Message, object+" ")
		})
		all = append(all, d)
	}
	return all, nil
}

func describeObject(ctx context.Context, c *api.Client, status *api.Status, k kind, l *api.ObjectList) (d description, err error) {
	var meta struct {
		metav1.TypeMeta
		metav1.ObjectMeta `json:"metadata"`
	}
	raw := l.Items[0]
	if err := json.Unmarshal(raw, &meta); err != nil {
		return d, fmt.Errorf("read object: %w", err)
	}
	row, err := k.row(l.Cluster, raw)
	if err != nil {
		return d, err
	}
	heads := k.heads()
	d.add("Kind", meta.Kind)
	d.cells(heads[:len(heads)-1], row, "LABELS")
	d.add("Age", row[len(row)-1])
	d.add("Labels", lines(meta.Labels))
	d.add("Annotations", lines(meta.Annotations))
	full := strings.TrimPrefix(meta.Namespace+"/"+meta.Name, "/")
	switch {
	case k.Plural == manifest.Services:
		err = d.backends(ctx, c, meta.Namespace, meta.Name)
	case k.Policy:
		err = d.selected(ctx, c, l.Cluster, raw)
	case k.Plural == manifest.Pods:
		d.add("Waits", podMessage(raw))
		err = d.holders(ctx, c, l.Cluster, meta.Namespace, row[slices.IndexFunc(heads, func(c column) bool { return c.head == "ADDRESS" })])
	}
	if err != nil {
		return d, err
	}
	d.concerns(status, func(c api.Concern) bool {
		return strings.HasSuffix(c.Object, " "+full) || slices.Contains(strings.FieldsFunc(c.Message, func(r rune) bool { return strings.ContainsRune(" ,:;()", r) }), full)
	})
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		return d, fmt.Errorf("read object: %w", err)
	}
	for _, part := range []string{"spec", "specs"} {
		if object[part] != nil {
			text, err := yaml.Marshal(object[part])
			if err != nil {
				return d, err
			}
			d.add(title(part), string(text))
		}
	}
	return d, nil
}

// podMessage is why a pod is not ready; "" if it is.
func podMessage(raw []byte) string {
	var p struct {
		Status struct{ Message string } `json:"status"`
	}
	_ = json.Unmarshal(raw, &p) // it was read before
	return p.Status.Message
}

// backends adds the backends of a service in every cluster.
func (d *description) backends(ctx context.Context, c *api.Client, namespace, name string) error {
	l, err := c.Services(ctx)
	if err != nil {
		return err
	}
	for _, s := range l.Services {
		if s.Namespace == namespace && s.Name == name {
			d.add("Balancing", balancing(s))
			d.add("Backends", backendLines(s))
			if left := leftOut(s.Backends); left != "" {
				d.add("Left out", strings.ReplaceAll(left, "; ", "\n"))
			}
		}
	}
	return nil
}

// backendLines counts and lists the backends of a service.
func backendLines(s api.Service) string {
	if len(s.Backends) == 0 {
		return "none: the selector matches no pod, and no slice or peer adds any"
	}
	return backendCounts(s) + "\n" + strings.ReplaceAll(backendAddresses(s.Backends), " ", "\n")
}

// selected adds how many pods a policy applies to: with a misspelt label it protects none.
func (d *description) selected(ctx context.Context, c *api.Client, cluster string, raw []byte) error {
	l, err := c.Identities(ctx)
	if err != nil {
		return err
	}
	pods, err := selectedPods(l.Identities, cluster, raw)
	if err != nil {
		return err
	}
	if pods == 0 {
		d.add("Pods", "none: no pod of this cluster has these labels")
		return nil
	}
	d.add("Pods", fmt.Sprint(pods))
	return nil
}

// selectedPods counts the cluster's pods that a policy applies to.
func selectedPods(all []api.Identity, cluster string, raw []byte) (pods int, err error) {
	policies, err := policy.ParseStored(raw)
	if err != nil {
		return 0, fmt.Errorf("read policy: %w", err)
	}
	for _, i := range all {
		if labels, err := identity.ParseLabels(i.Labels); err == nil && i.Cluster == cluster &&
			slices.ContainsFunc(policies, func(p *policy.Policy) bool { return p.Selects(cluster, labels) }) {
			pods += i.Endpoints
		}
	}
	return pods, nil
}

// holders adds the services that a pod is a backend of.
func (d *description) holders(ctx context.Context, c *api.Client, cluster, namespace, address string) error {
	l, err := c.Services(ctx)
	if err != nil || address == "" {
		return err
	}
	var names []string
	for _, s := range l.Services {
		if s.Namespace == namespace && slices.ContainsFunc(s.Backends, func(b api.ServiceBackend) bool {
			return b.Cluster == cluster && b.Address.String() == address
		}) {
			names = append(names, s.Namespace+"/"+s.Name)
		}
	}
	d.add("Services", strings.Join(names, ", "))
	return nil
}

// lines returns a map as one line per entry.
func lines(m map[string]string) string {
	var all []string
	for k, v := range m {
		all = append(all, k+"="+v)
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

func completeDescribed(cmd *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective) {
	switch {
	case len(args) == 0:
		return fixed(append(kindNames(), "node", "peer")...)(cmd, args, begin)
	case args[0] == "node" || args[0] == "nodes":
		return completeNodes(cmd, args, begin)
	case args[0] == "peer" || args[0] == "peers":
		return completePeers(cmd, args, begin)
	}
	return completeObjects(cmd, args, begin)
}
