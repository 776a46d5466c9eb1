package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"reflect"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/clustermesh"
)

const ciliumHelp = "A cluster that runs Cilium is added by its name and with --cilium FILE: a manifest with Secret\n" +
	"cilium-clustermesh or cilium-kvstoremesh of a cluster that reads it, with its own Secret\n" +
	"clustermesh-apiserver-remote-cert, or with both (- is standard input), or a folder of the files in\n" +
	"them. Its pods, identities and services become known here, and policies select them. Its nodes\n" +
	"have no Weft tunnels: everything to its pods is dropped, so that nothing leaves unencrypted."

// ciliumFlags are the flags of `weft peer add` for clusters that run Cilium.
type ciliumFlags struct {
	file             string
	cidrs, endpoints []string
	serviceCIDRs     []string
	id               uint32
	pods, services   []netip.Prefix
}

// ciliumOnly are the flags that --cilium gives a meaning.
var ciliumOnly = []string{"pod-cidr", "service-cidr", "endpoint", "id"}

func (f *ciliumFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "cilium", "", "`FILE` or folder with the clustermesh secret of a cluster that runs Cilium")
	cmd.Flags().StringSliceVar(&f.cidrs, "pod-cidr", nil, "with --cilium: the cluster's pod CIDRs; nothing outside of them is believed")
	cmd.Flags().StringSliceVar(&f.serviceCIDRs, "service-cidr", nil, "with --cilium: the cluster's service CIDRs, at most one of each IP family, if they must not overlap ours")
	cmd.Flags().StringSliceVar(&f.endpoints, "endpoint", nil, "with --cilium: where its etcd is, https://ADDRESS:PORT, if the file does not say or only Cilium resolves the name")
	cmd.Flags().Uint32Var(&f.id, "id", 0, "with --cilium: its cluster ID, to add it before it answers (default: as it says)")
}

// check reads the flags.
func (f *ciliumFlags) check(cmd *cobra.Command) error {
	if f.file == "" {
		for _, name := range ciliumOnly {
			if cmd.Flags().Changed(name) {
				return usageError{fmt.Errorf("--%s is only for clusters that run Cilium: name their secret with --cilium FILE", name)}
			}
		}
		return nil
	}
	for _, flag := range []struct {
		name  string
		texts []string
		into  *[]netip.Prefix
	}{{"pod-cidr", f.cidrs, &f.pods}, {"service-cidr", f.serviceCIDRs, &f.services}} {
		for _, text := range flag.texts {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return usageError{fmt.Errorf("--%s: %w", flag.name, valueError(text, reflect.TypeFor[netip.Prefix]()))}
			}
			*flag.into = append(*flag.into, p)
		}
	}
	if s := f.services; len(s) > 2 || len(s) == 2 && s[0].Addr().Is4() == s[1].Addr().Is4() {
		return usageError{errors.New("--service-cidr: give one prefix of each IP family at most")}
	}
	return nil
}

// add adds a cluster that runs Cilium.
func (f *ciliumFlags) add(ctx context.Context, cmd *cobra.Command, here *api.Client, name string) error {
	files, err := f.read(cmd, name)
	if errors.Is(err, fs.ErrNotExist) {
		return usageError{fmt.Errorf("--cilium %s: there is no such file or folder", f.file)}
	}
	var a clustermesh.Access
	if err == nil {
		a, err = files.Access(name, f.endpoints...)
	}
	if err != nil {
		return usageError{fmt.Errorf("--cilium %s: %w", f.file, err)}
	}
	in := api.CiliumPeer{
		Cluster: name, Endpoints: a.Endpoints, ServerName: a.ServerName, CA: a.CA, Cert: a.Cert, Key: a.Key,
		PodCIDRs: f.pods, ID: f.id,
	}
	for _, p := range f.services {
		if p.Addr().Is4() {
			in.ServiceCIDR = p
		} else {
			in.IPv6ServiceCIDR = p
		}
	}
	p, err := here.AddCiliumPeer(ctx, &in)
	if err != nil {
		return err
	}
	if err := done(cmd, here, "peer %s added", p.Name); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.ErrOrStderr(), "hint: %s is known here, and everything to its pods is dropped, because there are no tunnels to its nodes; `weft -c %s peer export %[1]s --cilium` lets it read this cluster\n", name, here.Name())
	return err
}

func (f *ciliumFlags) read(cmd *cobra.Command, cluster string) (clustermesh.Files, error) {
	if f.file != standardOutput {
		return clustermesh.Load(f.file, cluster)
	}
	text, err := io.ReadAll(cmd.InOrStdin())
	if err != nil {
		return nil, err
	}
	return clustermesh.Parse(text)
}

func peerExportCommand() *cobra.Command {
	var cilium, kvstoremesh bool
	var namespace, file string
	cmd := &cobra.Command{
		Use:   "export NAME --cilium --write FILE",
		Short: "Write what the Cilium cluster NAME needs",
		Long: "Write what the cluster NAME, which runs Cilium, needs to read this one: Secrets with our\n" +
			"addresses, CA bundle, and a client certificate for it alone. Apply them there with\n\n" +
			"  kubectl apply --server-side --field-manager weft -f FILE\n\n" +
			"which leaves the entries of other clusters alone; Cilium notices by itself. They hold a private\n" +
			"key: restrict the file to mode 0600 (--write does this), or pipe it with --write -. The\n" +
			"certificate lasts a year, and `weft peer remove` ends it. Both clusters need the same\n" +
			"maxConnectedClusters. Cilium has no tunnels to our nodes: it learns our services and identities,\n" +
			"and packets that it sends to our pods are dropped.",
		Example: "  weft -c east peer export west --cilium --write east-for-west.yaml\n  weft -c east peer export west --cilium --write - | kubectl apply --server-side --field-manager weft -f -",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cilium {
				return usageError{fmt.Errorf("say for what with --cilium; for a cluster that runs Weft there is `weft peer invite %s`", args[0])}
			}
			if err := writable(file); err != nil {
				return err
			}
			return on(cmd, func(ctx context.Context, c *api.Client) error {
				in, err := c.InviteCilium(ctx, args[0])
				if err != nil {
					return err
				}
				a := clustermesh.Access{Endpoints: in.EtcdEndpoints, CA: in.CA, Cert: in.Cert, Key: in.Key}
				list := clustermesh.Manifest(in.Cluster, a, namespace, kvstoremesh)
				var names []string
				for _, s := range list.Items {
					names = append(names, s.Metadata.Name)
				}
				return secret(cmd, c, file, fmt.Sprintf("the manifest with which %s reads this cluster (Secret %s)", args[0], strings.Join(names, " and ")), list)
			})
		},
	}
	cmd.Flags().BoolVar(&cilium, "cilium", false, "for a cluster that runs Cilium")
	cmd.Flags().BoolVar(&kvstoremesh, "kvstoremesh", true, "its clustermesh-apiserver runs a KVStoreMesh, as by default; false: its agents read this cluster themselves")
	cmd.Flags().StringVar(&namespace, "cilium-namespace", "kube-system", "namespace that Cilium runs in there")
	writeFlag(cmd, &file, "manifest")
	return cmd
}
