package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/deploy/install"
	"github.com/weft-mesh/weft/meshagent/removal"
)

func uninstallCommand() *cobra.Command {
	u := install.Uninstaller{Namespace: api.SystemNamespace}
	c := removal.Defaults()
	var kubeconfig, kubeContext string
	var dirs []string
	var node, done bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove Weft from a Kubernetes cluster",
		Long: "Remove Weft from a Kubernetes cluster: its processes, then everything it has on each node\n" +
			"(plugin, programs, maps, routes, devices, folders), then its other objects. Refused while pods\n" +
			"have their network from it. The Secrets weft-kept… stay: with them, a later installation has the\n" +
			"same identities, certificates and peers. With --node, clean this machine alone, whose agent has\n" +
			"to be stopped.",
		Example: "  weft uninstall --kube-context east --force\n  weft uninstall --node",
		GroupID: operate,
		Args:    usageArgs(cobra.NoArgs),
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig (default: $KUBECONFIG, or ~/.kube/config)")
	f.StringVar(&kubeContext, "kube-context", "", "its context (default: the current one)")
	f.StringVar(&u.Image, "image", "", "image that cleans the nodes (default: that of the agents)")
	f.BoolVar(&u.Force, "force", false, "go on although pods lose their network")
	f.BoolVar(&u.Purge, "purge", false, "delete the Secrets weft-kept… and the namespace too")
	f.DurationVar(&wait, "wait", 5*time.Minute, "how long to wait until all nodes are clean")
	f.BoolVar(&node, "node", false, "clean this machine alone, without Kubernetes")
	f.StringVar(&c.CNI.ConfDir, "cni-conf-dir", c.CNI.ConfDir, "with --node: the runtime's folder of network configurations")
	f.StringVar(&c.CNI.BinDir, "cni-bin-dir", c.CNI.BinDir, "with --node: the runtime's folder of plugins")
	f.StringSliceVar(&dirs, "dir", nil, "with --node: more folders to remove")
	f.BoolVar(&done, "done", false, "with --node: only wait, as the pod does that has cleaned a node")
	_ = f.MarkHidden("done")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if done {
			<-cmd.Context().Done()
			return nil
		}
		text, err := format(cmd)
		if err != nil {
			return err
		}
		asJSON := text != "table" && text != "wide"
		if node {
			c.Force, c.Dirs = u.Force, append(c.Dirs, dirs...)
			r, err := removal.Remove(c)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			return showRemoval(cmd.OutOrStdout(), r)
		}
		conf, err := kubernetesAccess(kubeconfig, kubeContext)
		if err != nil {
			return err
		}
		if u.Client, err = kubernetes.NewForConfig(conf); err != nil {
			return err
		}
		u.Say = func(text string) {
			if !asJSON {
				fmt.Fprintln(cmd.OutOrStdout(), printableLines(text))
			}
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), wait)
		defer cancel()
		out, err := u.Run(ctx)
		if errors.Is(err, install.ErrInUse) {
			return hinted{err, "delete them, or repeat with --force: they have no network then, until another plugin starts them again"}
		}
		if err != nil {
			return err
		}
		if asJSON {
			return writeJSON(cmd.OutOrStdout(), out)
		}
		return showUninstalled(cmd.OutOrStdout(), out)
	}
	return cmd
}

func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func showRemoval(out io.Writer, r removal.Report) error {
	removed := "nothing was left"
	if len(r.Removed) > 0 {
		removed = strings.Join(r.Removed, ", ")
	}
	_, err := fmt.Fprintf(out, "Removed from %s: %s.\nLeft: %s.\n", printableLines(r.Node), printableLines(removed), strings.Join(r.Left, ", "))
	return err
}

func showUninstalled(out io.Writer, r *install.Removed) error {
	kept := ""
	if len(r.Kept) > 0 {
		kept = fmt.Sprintf("\nKept: %s. With them, a later installation has the same identities, certificates and peers; `weft uninstall --purge` deletes them.", printableLines(strings.Join(r.Kept, ", ")))
	}
	_, err := fmt.Fprintf(out, "Weft is uninstalled, and %s clean.%s\n", are(len(r.Nodes)), kept)
	return err
}

func are(nodes int) string {
	if nodes == 1 {
		return "1 node is"
	}
	return fmt.Sprintf("%d nodes are", nodes)
}
