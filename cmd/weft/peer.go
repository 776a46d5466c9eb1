package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
)

func peerCommand() *cobra.Command {
	return groupCommand("peer", "Join and separate clusters", operate,
		peerListCommand(), peerAddCommand(), peerInviteCommand(), peerExportCommand(), peerRemoveCommand(), peerForgetCommand(), peerReleaseCommand())
}

func peerListCommand() *cobra.Command {
	return listCommand("Show the peers and their control links", (*api.Client).Peers,
		func(l *api.PeerList) []api.PeerStatus { return l.Peers }, peerTable)
}

func peerTable(peers []api.PeerStatus) table {
	t := table{
		columns: columns("CLUSTER", "PEER", "ID", "CONTROL", "DATA-AGE", "ENTRIES", "SYNCED", "HELD", "REFUSED", "DEAD-NODES", "*RUNS", "*POD-CIDR", "*SERVICE-CIDR", "*ERROR"),
		name:    1,
		empty:   "there are no peers; `weft -c HERE peer add THERE` joins two clusters",
	}
	for _, p := range peers {
		var entries, held, synced int
		var refused uint64
		for _, m := range p.Mirrors {
			entries, held = entries+m.Entries, held+m.Held
			if m.Synced {
				synced++
			}
		}
		for _, r := range p.Refused {
			refused += r.Count
		}
		heard := "never"
		switch {
		case !p.Control.LastHeard.IsZero():
			heard = age(p.Control.AgeSeconds)
		case entries > 0:
			heard = "unknown" // copied by an API server that has since restarted
		}
		runs := "weft"
		if p.Cilium {
			runs = "cilium"
		}
		t.rows = append(t.rows, []string{p.Cluster, p.Name, fmt.Sprint(p.ID), p.Control.State, heard,
			fmt.Sprint(entries), fmt.Sprintf("%d/%d", synced, len(p.Mirrors)), fmt.Sprint(held), fmt.Sprint(refused),
			strings.Join(p.DeadNodes, ","), runs, list(p.PodCIDRs), list(p.ServiceCIDRs()), p.Control.Error})
	}
	return t
}

func peerAddCommand() *cobra.Command {
	var cilium ciliumFlags
	cmd := &cobra.Command{
		Use:   "add CONTEXT|FILE | add NAME --cilium FILE",
		Short: "Join with another cluster",
		Long: "Join with another cluster. If you have its context, CA bundles and client certificates are\n" +
			"exchanged in both directions at once. An invite file (from `weft peer invite`, run by the\n" +
			"other operator; - is standard input) joins this side only; the other side needs an invite\n" +
			"from here.\n\n" +
			ciliumHelp,
		Example: "  weft -c east peer add west\n  weft -c east peer add invite-of-west.yaml\n" +
			"  weft -c east peer add west --cilium cilium-clustermesh.yaml --pod-cidr 10.2.0.0/16",
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: first(completeContexts),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cilium.check(cmd); err != nil {
				return err
			}
			return on(cmd, func(ctx context.Context, here *api.Client) error {
				if cilium.file != "" {
					return cilium.add(ctx, cmd, here, args[0])
				}
				file, err := contexts()
				if err != nil {
					return err
				}
				if known := append(file.Names(), kubernetesContexts()...); !slices.Contains(known, args[0]) {
					return addInvite(ctx, cmd, here, args[0], known)
				}
				there, err := clientOf(file, args[0])
				if err != nil {
					return err
				}
				defer there.Close()
				return join(ctx, cmd, here, there)
			})
		},
	}
	cilium.register(cmd)
	return cmd
}

func addInvite(ctx context.Context, cmd *cobra.Command, here *api.Client, name string, known []string) error {
	text, err := readInvite(cmd, name)
	if errors.Is(err, os.ErrNotExist) {
		return usageError{fmt.Errorf("%q is neither a context (%s) nor a file", name, strings.Join(known, ", "))}
	}
	if err != nil {
		return err
	}
	var in api.Invite
	if err := yaml.UnmarshalStrict(text, &in); err != nil || in.Kind != api.InviteKind {
		return usageError{fmt.Errorf("%s is not an invite; the other cluster's operator writes one with `weft peer invite %s`", name, here.Name())}
	}
	p, err := here.AddPeer(ctx, &in)
	if err != nil {
		return err
	}
	return done(cmd, here, "peer %s added", p.Name)
}

func readInvite(cmd *cobra.Command, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(cmd.InOrStdin())
	}
	return os.ReadFile(name)
}

// join exchanges invites. If one side refuses, a peer that was not there before is removed
// again on both sides, so that nothing is half joined.
func join(ctx context.Context, cmd *cobra.Command, here, there *api.Client) (err error) {
	sides := [2]*api.Client{here, there}
	var names [2]string
	var known [2]bool
	for i, c := range sides {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		names[i] = s.Cluster.Name
	}
	for i, c := range sides {
		l, err := c.Peers(ctx)
		if err != nil {
			return err
		}
		known[i] = slices.ContainsFunc(l.Peers, func(p api.PeerStatus) bool { return p.Name == names[1-i] })
	}
	defer func() {
		if err == nil {
			return
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		for i, c := range sides {
			if !known[i] {
				_ = c.RemovePeer(undo, names[1-i]) // it may not have been added
			}
		}
	}()
	for i, c := range sides {
		in, err := sides[1-i].Invite(ctx, names[i])
		if err != nil {
			return fmt.Errorf("cluster %s invites %s: %w", names[1-i], names[i], err)
		}
		if _, err := c.AddPeer(ctx, in); err != nil {
			return fmt.Errorf("cluster %s adds %s: %w", names[i], names[1-i], err)
		}
	}
	return report(cmd, outcome{here.Name(), fmt.Sprintf("peer %s added", names[1])}, outcome{there.Name(), fmt.Sprintf("peer %s added", names[0])})
}

func peerInviteCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "invite NAME --write FILE",
		Short: "Write what the cluster NAME needs to join",
		Long: "Write what the cluster NAME needs to join this one: a client certificate for it alone, the\n" +
			"CA bundle and addresses. It holds a private key: restrict the file to mode 0600 (--write does\n" +
			"this), or pipe it with --write -.\n\n" +
			"The certificate lasts a year. The status of the cluster that added it asks for another\n" +
			"invite two months ahead; adding that one interrupts nothing.",
		Example: "  weft -c east peer invite west --write invite-of-east.yaml",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := writable(file); err != nil {
				return err
			}
			return on(cmd, func(ctx context.Context, c *api.Client) error {
				in, err := c.Invite(ctx, args[0])
				if err != nil {
					return err
				}
				return secret(cmd, c, file, "the invite for "+args[0], in)
			})
		},
	}
	writeFlag(cmd, &file, "invite")
	return cmd
}

func peerRemoveCommand() *cobra.Command {
	var both bool
	cmd := &cobra.Command{
		Use:     "remove NAME",
		Aliases: []string{"delete"},
		Short:   "Remove a peer and exactly its state",
		Long: "Remove a peer and exactly its state from this cluster, and its right to read from here: its\n" +
			"certificates stop working for good, even after a new invite. The other side keeps what it\n" +
			"knows about this cluster until it removes it too; --both does that through its context, and\n" +
			"completes a half-finished removal.\n\n" +
			"Open connections end: TCP is reset, everything else is dropped. The peer's pod CIDRs stay\n" +
			"blocked, so that nothing that went through tunnels continues in the clear, until it is added\n" +
			"again or forgotten (`weft peer forget`). `weft status` shows what is blocked.\n\n" +
			"The peer's watches end too, except with an existing etcd (etcdEndpoints), which checks rights\n" +
			"only when a watch starts: restart its members one by one, or the peer keeps receiving changes\n" +
			"until its connection ends.",
		Example:           "  weft -c east peer remove west\n  weft -c east peer remove west --both",
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: first(completePeers),
		RunE: func(cmd *cobra.Command, args []string) error {
			return on(cmd, func(ctx context.Context, here *api.Client) error {
				if both {
					return part(ctx, cmd, here, args[0])
				}
				if err := here.RemovePeer(ctx, args[0]); err != nil {
					return err
				}
				if err := done(cmd, here, "peer %s removed", args[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.ErrOrStderr(), "hint: %s keeps what it knows of this cluster until it removes it too: its operator does that, or `weft -c %s peer remove %s --both` with its context\n", args[0], here.Name(), args[0])
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&both, "both", false, "also remove this cluster from the peer, through the context of its name")
	return cmd
}

// part removes two clusters from each other, this one first. A side that is already
// removed is not an error, so that the same command completes a half-finished removal.
func part(ctx context.Context, cmd *cobra.Command, here *api.Client, peer string) error {
	file, err := contexts()
	if err != nil {
		return err
	}
	there, err := clientOf(file, peer)
	if err != nil {
		return err
	}
	defer there.Close()
	s, err := here.Status(ctx)
	if err != nil {
		return err
	}
	self := s.Cluster.Name
	first := here.RemovePeer(ctx, peer)
	if first != nil && !absent(first) {
		return first
	}
	second := there.RemovePeer(ctx, self)
	if absent(first) && absent(second) {
		return first
	}
	var acts []outcome
	if first == nil {
		acts = append(acts, outcome{here.Name(), fmt.Sprintf("peer %s removed", peer)})
	}
	switch {
	case second == nil:
		acts = append(acts, outcome{there.Name(), fmt.Sprintf("peer %s removed", self)})
	case absent(second):
		second = nil
	default:
		second = fmt.Errorf("%s may still have %s: finish with `weft -c %s peer remove %s`: %w", peer, self, there.Name(), self, second)
	}
	if len(acts) == 0 {
		return second
	}
	return errors.Join(report(cmd, acts...), second)
}

// absent reports whether a server says that something does not exist.
func absent(err error) bool {
	var refusal *api.Error
	return errors.As(err, &refusal) && refusal.Status == http.StatusNotFound
}

func peerReleaseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "release NAME",
		Short: "Allow a held mass deletion by a peer",
		Long: "Allow a mass deletion by a peer that is being held back. A peer that returns with an empty\n" +
			"store asks for everything it exported to be deleted; that waits until an operator has looked\n" +
			"(HELD in `weft peer list` is the number of entries).",
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: first(completePeers),
		RunE: func(cmd *cobra.Command, args []string) error {
			return on(cmd, func(ctx context.Context, c *api.Client) error {
				if _, err := c.ReleasePeer(ctx, args[0]); err != nil {
					return err
				}
				return done(cmd, c, "peer %s released", args[0])
			})
		},
	}
}

func peerForgetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "forget NAME|CIDR",
		Short: "Unblock the pod CIDRs of a removed peer",
		Long: "Unblock the pod CIDRs of a peer that was removed. Until then, nodes drop everything from and\n" +
			"to them, because connections to them went through tunnels. Afterwards the addresses are part\n" +
			"of the world: packets to them leave unencrypted, if policies allow. Connections that were\n" +
			"open when the peer was removed stay closed.\n\n" +
			"Name a CIDR if a node reports one that no removed peer explains (because the store was\n" +
			"restored from a time before the peer was added).",
		Example:           "  weft -c east peer forget west\n  weft -c east peer forget 10.2.0.0/16",
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: first(completeFormer),
		RunE: func(cmd *cobra.Command, args []string) error {
			return on(cmd, func(ctx context.Context, c *api.Client) error {
				cidr, mistake := netip.ParsePrefix(args[0])
				if mistake == nil {
					return forgetCIDR(ctx, cmd, c, cidr)
				}
				f, err := c.ForgetPeer(ctx, args[0])
				if err != nil {
					return err
				}
				return done(cmd, c, "peer %s forgotten: %s is no longer blocked", f.Name, list(f.PodCIDRs))
			})
		},
	}
}

// forgetCIDR unblocks a CIDR that nodes block although no removed peer explains it. It says
// so if nothing in the status names the CIDR, as after a slip of the pen.
func forgetCIDR(ctx context.Context, cmd *cobra.Command, c *api.Client, cidr netip.Prefix) error {
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	blocked := slices.ContainsFunc(slices.Concat(s.Concerns, s.Settling), func(x api.Concern) bool {
		return strings.Contains(x.Message+x.Next, "weft peer forget") // of many, only one is named
	})
	if _, err := c.ForgetPeer(ctx, cidr.String()); err != nil {
		return err
	}
	if !blocked {
		return done(cmd, c, "%s was not blocked: neither a removed peer nor a node names it", cidr)
	}
	return done(cmd, c, "%s is no longer blocked", cidr)
}

// outcome is an action that succeeded.
type outcome struct {
	Cluster string `json:"cluster"` // the context of the cluster
	Done    string `json:"done"`
}

// done reports that an action on a cluster succeeded.
func done(cmd *cobra.Command, c *api.Client, what string, args ...any) error {
	return report(cmd, outcome{Cluster: c.Name(), Done: fmt.Sprintf(what, args...)})
}

// report prints the actions that succeeded.
func report(cmd *cobra.Command, acts ...outcome) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	if f == "json" || f == "yaml" {
		return show(cmd, acts, table{})
	}
	for _, act := range acts {
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", act.Cluster, act.Done); err != nil {
			return err
		}
	}
	return nil
}
