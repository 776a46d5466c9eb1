package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/apiserver/api"
)

func statusCommand() *cobra.Command {
	var check bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show how a cluster, its nodes and its peers are",
		GroupID: look,
		Long: "Show how a cluster, its nodes and its peers are. A peer's control link says whether its\n" +
			"changes arrive, and nothing about the data path; the age of its data is how long ago it\n" +
			"last proved that our copy is current.",
		Example: "  weft status\n  weft -c all status --check\n  weft status --wait 1m",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := statuses(cmd, wait)
			if err != nil && len(all) == 0 {
				return err
			}
			if err := errors.Join(showStatus(cmd, all), err); err != nil {
				return err
			}
			for _, s := range all {
				if (check || wait > 0) && len(concerns(s)) > 0 {
					return errNo
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "exit 1 if anything needs attention")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait this long for all to be well, then exit 1")
	return cmd
}

// waitStep is the pause between two looks of --wait.
const waitStep = 200 * time.Millisecond

// statuses asks until all is well or the time is up. A cluster that cannot be
// reached yet is asked again too.
func statuses(cmd *cobra.Command, wait time.Duration) ([]*api.Status, error) {
	deadline := time.Now().Add(wait)
	for {
		all, err := each(cmd, func(ctx context.Context, c *api.Client) (*api.Status, error) { return c.Status(ctx) })
		well := err == nil
		for _, s := range all {
			well = well && len(concerns(s)) == 0
		}
		if well || !time.Now().Before(deadline) || err != nil && !unreachable(err) {
			return all, err
		}
		select {
		case <-cmd.Context().Done():
			return all, cmd.Context().Err()
		case <-time.After(waitStep):
		}
	}
}

// concerns are sentences about everything that is not as it should be.
func concerns(s *api.Status) []string {
	sentences := append([]string(nil), s.Problems...)
	for _, n := range s.Nodes {
		if n.State != "ready" {
			sentences = append(sentences, fmt.Sprintf("node %s is %s", n.Name, n.State))
		}
		for _, p := range n.Problems {
			sentences = append(sentences, nodeProblem(n.Name, p))
		}
	}
	for _, p := range s.Peers {
		if p.Control.State != api.LinkUp {
			text := fmt.Sprintf("control link to %s is %s", p.Name, p.Control.State)
			if p.Control.Error != "" {
				text += ": " + p.Control.Error
			}
			sentences = append(sentences, text)
		}
		for _, m := range p.Mirrors {
			if m.Held > 0 {
				sentences = append(sentences, fmt.Sprintf("peer %s wants to delete %d of %d %s at once, which is held: look, then `weft peer release %s`", p.Name, m.Held, m.Entries, m.Resource, p.Name))
			}
			if !m.Synced && p.Control.State == api.LinkUp {
				sentences = append(sentences, fmt.Sprintf("%s of peer %s are not complete yet", m.Resource, p.Name))
			}
		}
		if len(p.DeadNodes) > 0 {
			sentences = append(sentences, fmt.Sprintf("peer %s has dead nodes: %s", p.Name, strings.Join(p.DeadNodes, ", ")))
		}
	}
	for _, r := range refusals(s) {
		from := "peer " + r.Cluster
		if r.Node != "" {
			from = "node " + r.Node
		}
		sentences = append(sentences, fmt.Sprintf("%s: %d × %s refused: %s (for example %s)", from, r.Count, r.Resource, r.Reason, r.Example))
	}
	return sentences
}

// nodeProblem says what a node's kernel lacks, and where all of it is listed:
// some tables hold no row that could be looked at.
func nodeProblem(node string, p api.NodeProblem) string {
	what := p.Table + ": "
	switch {
	case p.Rows > 1:
		what = fmt.Sprintf("%d rows of %s are not in the kernel (for example %s): ", p.Rows, p.Table, p.Row)
	case p.Row != "":
		what = fmt.Sprintf("%s %s is not in the kernel: ", p.Table, p.Row)
	}
	return fmt.Sprintf("node %s: %s%s (`weft debug table problems --node %s`)", node, what, p.Error, node)
}

func refusals(s *api.Status) []api.Refusal {
	all := append([]api.Refusal(nil), s.Refused...)
	for _, p := range s.Peers {
		all = append(all, p.Refused...)
	}
	return all
}

func showStatus(cmd *cobra.Command, all []*api.Status) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	var names table
	for _, s := range all {
		names.rows = append(names.rows, []string{s.Cluster.Name})
	}
	if f != "table" && f != "wide" {
		return show(cmd, all, names)
	}
	out := cmd.OutOrStdout()
	var text strings.Builder
	for i, s := range all {
		if i > 0 {
			fmt.Fprintln(&text)
		}
		writeStatus(&text, s, f == "wide", colourful(out))
	}
	_, err = io.WriteString(out, text.String())
	return err
}

func writeStatus(out *strings.Builder, s *api.Status, wide, colour bool) {
	c := s.Cluster
	fmt.Fprintln(out, printableLines(fmt.Sprintf("Cluster %s (ID %d of %d), API server %s, up %s", c.Name, c.ID, c.MaxConnectedClusters, c.Version, age(c.UptimeSeconds))))
	fmt.Fprintln(out, printableLines(fmt.Sprintf("  store      %s etcd %s, %s, revision %d, generation %s", c.Store, c.StoreVersion, size(c.StoreBytes), c.Revision, c.Generation)))
	fmt.Fprintf(out, "  addresses  pods %s, services %s\n", list(c.PodCIDRs), c.ServiceCIDR)
	fmt.Fprintf(out, "  holds      %d endpoints, %d identities, %d services, %d policies\n", c.Endpoints, c.Identities, c.Services, c.Policies)
	for _, t := range []table{nodeTable(s.Nodes), peerTable(s.Peers)} {
		if len(t.rows) > 0 {
			fmt.Fprintln(out)
			t.sorted().write(out, wide, colour)
		}
	}
	fmt.Fprintln(out)
	sentences := concerns(s)
	if len(sentences) == 0 {
		fmt.Fprintln(out, "All is well.")
		return
	}
	fmt.Fprintln(out, "Needs attention:")
	for _, line := range sentences {
		fmt.Fprintln(out, "  - "+printableLines(line))
	}
}

// size is bytes for people.
func size(bytes int64) string {
	units := []string{"B", "KiB", "MiB", "GiB"}
	v := float64(bytes)
	for len(units) > 1 && v >= 1024 {
		v, units = v/1024, units[1:]
	}
	if v == float64(int64(v)) {
		return fmt.Sprintf("%.0f %s", v, units[0])
	}
	return fmt.Sprintf("%.1f %s", v, units[0])
}
