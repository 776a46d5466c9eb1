package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/deploy/install"
)

func installCommand() *cobra.Command {
	var files, set []string
	var kubeconfig, kubeContext, dry string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "install --set cluster.name=NAME,cluster.id=ID,...",
		Short: "Install Weft on a Kubernetes cluster",
		Long: "Install Weft on a Kubernetes cluster, or upgrade it there, by server-side apply. The objects\n" +
			"are those of the Helm chart in deploy/chart, with the same values, and are owned by the field\n" +
			"manager weft-install: do not use Helm on the same cluster. Everything is in the namespace weft-system.",
		Example: "  weft install --set cluster.name=east,cluster.id=1,cluster.serviceCIDR=10.96.0.0/12 \\\n" +
			"    --set 'cluster.podCIDRs={10.244.0.0/16}' --set k8sServiceHost=192.0.2.10 --wait 5m\n" +
			"  weft install -f east.yaml --kube-context east --dry-run=server",
		GroupID: operate,
		Args:    usageArgs(cobra.NoArgs),
	}
	cmd.Flags().StringArrayVarP(&files, "values", "f", nil, "file with values, repeatable; later ones win; - is standard input")
	cmd.Flags().StringArrayVar(&set, "set", nil, "values, as in --set cluster.name=east,cluster.id=1")
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig (default: $KUBECONFIG, or ~/.kube/config)")
	cmd.Flags().StringVar(&kubeContext, "kube-context", "", "its context (default: the current one)")
	cmd.Flags().StringVar(&dry, "dry-run", "", "client: print the objects; server: ask what would change; neither changes anything")
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait until all pods are ready (default: do not wait)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if dry != "" && dry != "client" && dry != "server" {
			return usageError{fmt.Errorf("--dry-run=%s: give client or server", dry)}
		}
		values, err := install.Values(files, set, cmd.InOrStdin())
		if err != nil {
			return usageError{err}
		}
		namespace := api.SystemNamespace
		if n := cmd.Flag("namespace"); n != nil && n.Changed {
			if namespace = n.Value.String(); namespace != api.SystemNamespace {
				return usageError{fmt.Errorf("--namespace %s: Weft is installed in %s alone, where `weft -c` looks for it", namespace, api.SystemNamespace)}
			}
		}
		definitions, err := install.Definitions()
		if err != nil {
			return err
		}
		if dry == "client" {
			objects, err := install.Render(namespace, version, "", values)
			if err != nil {
				return usageError{err}
			}
			objects = append(definitions, objects...)
			for _, o := range objects {
				text, err := yaml.Marshal(o)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "---\n%s", text)
			}
			return nil
		}
		conf, err := kubernetesAccess(kubeconfig, kubeContext)
		if err != nil {
			return err
		}
		i, err := install.NewInstaller(conf)
		if err != nil {
			return err
		}
		i.Say = func(text string) { fmt.Fprintln(cmd.OutOrStdout(), text) }
		objects, err := install.Render(namespace, version, i.Version(), values)
		if err != nil {
			return usageError{err}
		}
		objects = append(definitions, objects...)
		if err := i.Apply(cmd.Context(), namespace, objects, dry == "server"); err != nil || wait == 0 || dry != "" {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), wait)
		defer cancel()
		return i.Wait(ctx, objects)
	}
	return cmd
}
