package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
)

func nodeCommand() *cobra.Command {
	return groupCommand("node", "Manage the nodes of a cluster", operate,
		nodeListCommand(), nodeAddCommand(), nodeDeleteCommand(), nodeRotateCommand(), nodeReleaseCommand())
}

func nodeListCommand() *cobra.Command {
	return listCommand("Show the nodes and their state", (*api.Client).Nodes,
		func(l *api.NodeList) []api.NodeStatus { return l.Nodes }, nodeTable)
}

func nodeTable(nodes []api.NodeStatus) table {
	t := table{
		columns: columns("CLUSTER", "NODE", "STATE", "ENDPOINTS", "ADDRESS", "POD-CIDR", "KEY-EPOCH", "SEEN", "REVISION", "LAG", "*INTERNAL", "*REFUSED"),
		name:    1,
		empty:   "there are no nodes; `weft node add NAME` makes a join bundle for one",
	}
	for _, n := range nodes {
		seen := ""
		if !n.LastSeen.IsZero() {
			seen = age(n.AgeSeconds)
		}
		revision, lag := "", ""
		if n.Store != nil {
			revision, lag = fmt.Sprint(n.Store.Revision), age(n.Store.LagSeconds)
		}
		t.rows = append(t.rows, []string{n.Cluster, n.Name, n.State, fmt.Sprint(n.Endpoints), list(n.Addresses),
			list(n.PodCIDRs), fmt.Sprint(n.Epoch), seen, revision, lag, list(n.Internals), fmt.Sprint(n.Refused)})
	}
	return t
}

func nodeAddCommand() *cobra.Command {
	var addresses, cidrs []string
	var labels map[string]string
	var file string
	var replace bool
	cmd := &cobra.Command{
		Use:   "add NAME --address IP --write FILE",
		Short: "Register a node and write its join bundle",
		Long: "Register a node and write its join bundle, the file that its agent starts from. It holds\n" +
			"private keys: restrict it to mode 0600 (--write does this), or pipe it with --write -. Of each IP\n" +
			"family of the cluster that no --pod-cidr names, the node gets the next free pod CIDR. A node\n" +
			"that is registered already gets new certificates, and a pod CIDR of a family that is new to\n" +
			"the cluster; only --replace gives it another address.",
		Example: "  weft node add east-3 --address 172.16.1.3 --write join.yaml\n" +
			"  weft node add east-3 --address 172.16.1.3 --pod-cidr 10.1.3.0/24 --write - | ssh east-3 tee /etc/weft/join.yaml",
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := api.NodeRequest{Name: args[0], Labels: labels, Replace: replace}
			for _, text := range addresses {
				a, err := netip.ParseAddr(text)
				if err != nil {
					return usageError{fmt.Errorf("--address: %w", valueError(text, reflect.TypeFor[netip.Addr]()))}
				}
				request.Addresses = append(request.Addresses, a)
			}
			for _, text := range cidrs {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return usageError{fmt.Errorf("--pod-cidr: %w", valueError(text, reflect.TypeFor[netip.Prefix]()))}
				}
				request.PodCIDRs = append(request.PodCIDRs, p)
			}
			if err := writable(file); err != nil {
				return err
			}
			return on(cmd, func(ctx context.Context, c *api.Client) error {
				bundle, err := c.AddNode(ctx, request)
				if err != nil {
					return err
				}
				about := fmt.Sprintf("node %s has pod CIDR %s; its join bundle", bundle.Node, list(bundle.PodCIDRs))
				return secret(cmd, c, file, about, bundle)
			})
		},
	}
	cmd.Flags().StringSliceVar(&addresses, "address", nil, "addresses of the node, at most one of each IP family; API server, gossip and tunnels use the first")
	cmd.Flags().StringSliceVar(&cidrs, "pod-cidr", nil, "addresses of its pods, a prefix of each IP family (default: the next free one)")
	cmd.Flags().StringToStringVar(&labels, "label", nil, "labels of the node, for example topology.kubernetes.io/zone=eu-1a")
	cmd.Flags().BoolVar(&replace, "replace", false, "move the registered node to this address")
	writeFlag(cmd, &file, "join bundle")
	return cmd
}

// standardOutput is the file name that means standard output in --write.
const standardOutput = "-"

// writeFlag adds --write, for output that holds private keys and is printed only on
// request.
func writeFlag(cmd *cobra.Command, file *string, what string) {
	cmd.Flags().StringVar(file, "write", "", "`FILE` to write the "+what+" to, mode 0600; - for standard output")
}

// writable refuses a --write file that cannot be written, before the cluster is asked for
// something that would then be lost.
func writable(file string) error {
	if file == "" {
		return usageError{errors.New("name a file with --write, or --write - for standard output: it holds private keys")}
	}
	if file == standardOutput {
		return nil
	}
	return placeFor("--write "+file, file)
}

// placeFor refuses a file that cannot be written; named is how the command line names it.
func placeFor(named, file string) error {
	folder := filepath.Dir(file)
	if info, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return usageError{fmt.Errorf("%s: there is no folder %s", named, folder)}
	}
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return usageError{fmt.Errorf("%s: that is a folder; name a file in it", named)}
	}
	probe, err := os.CreateTemp(folder, ".weft-*") // the file itself is written in the same way
	if err != nil {
		var path *fs.PathError // its name is random
		if errors.As(err, &path) {
			err = path.Err
		}
		return usageError{fmt.Errorf("%s: no file can be written in folder %s: %w", named, folder, err)}
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// secret writes something that holds private keys to a 0600 file, or to standard output
// for a pipe. It is YAML unless -o says JSON. what begins a sentence about it, which for a
// pipe goes to standard error.
func secret(cmd *cobra.Command, c *api.Client, file, what string, v any) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	if file != standardOutput {
		text, err := yaml.Marshal(v)
		if err != nil {
			return fmt.Errorf("write %s: %w", file, err)
		}
		if err := api.WriteSecretFile(file, text); err != nil {
			return err
		}
		return done(cmd, c, "%s is written to %s", what, file)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), printableLines(fmt.Sprintf("%s: %s follows", c.Name(), what)))
	if f != "json" {
		f = "yaml"
	}
	return document(cmd.OutOrStdout(), f, v, 0)
}

func nodeDeleteCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Remove a node, its pods and its rights",
		Long: "Remove a node: its registration, the pods declared on it, their endpoints, and its agent's\n" +
			"access (its certificate stops working). Everything removed is listed. A node whose agent is\n" +
			"running is removed only with --force, because its pods would keep running, cut off.",
		Aliases:           []string{"remove"},
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: first(completeNodes),
		RunE: func(cmd *cobra.Command, args []string) error {
			return on(cmd, func(ctx context.Context, c *api.Client) error {
				result, err := c.RemoveNode(ctx, args[0], force)
				if err != nil {
					return err
				}
				return showApplied(cmd, []*api.ApplyResult{result})
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it even if its agent is running")
	return cmd
}

func nodeRotateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate-keys",
		Short: "Ask every node for new tunnel keys",
		Long: "Ask every node of the cluster for new tunnel keys. Each node changes them on its idle tunnel,\n" +
			"one epoch at a time, so no packet is lost; `weft node list` shows the epoch that each has\n" +
			"reached.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ask := func(ctx context.Context, c *api.Client) (*api.RotateResult, error) { return c.RotateKeys(ctx) }
			return showEach(cmd, ask, func(results []*api.RotateResult) table {
				t := table{columns: columns("CLUSTER", "KEY-EPOCH")}
				for _, r := range results {
					t.rows = append(t.rows, []string{r.Cluster, fmt.Sprint(r.Epoch)})
				}
				return t
			})
		},
	}
}

func nodeReleaseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "release",
		Short: "Make nodes accept a rebuilt store",
		Long: "Make nodes accept a rebuilt store. After a cluster loses its store, its nodes keep everything\n" +
			"they have and remove nothing, because what the new store lacks was never withdrawn. Add the\n" +
			"nodes and peers again, apply the manifests, then run this command: whatever is not in the\n" +
			"store by then is removed. Refused if no store was lost, and while nodes of the lost store have\n" +
			"been neither added again nor deleted.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ask := func(ctx context.Context, c *api.Client) (*api.ReleaseResult, error) { return c.ReleaseNodes(ctx) }
			return showEach(cmd, ask, func(results []*api.ReleaseResult) table {
				t := table{columns: columns("CLUSTER", "RELEASED", "GENERATION")}
				for _, r := range results {
					t.rows = append(t.rows, []string{r.Cluster, list(r.Nodes), r.Generation})
				}
				return t
			})
		},
	}
}
