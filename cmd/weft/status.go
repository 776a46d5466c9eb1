package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
)

func statusCommand() *cobra.Command {
	var check bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the state of clusters, nodes and peers",
		GroupID: look,
		Long: "Show the state of clusters, nodes and peers. A peer's control link says whether its changes\n" +
			"arrive, and nothing about the data path; DATA-AGE is how long ago the peer last confirmed\n" +
			"that our copy is current.",
		Example: "  weft status\n  weft -c all status --check\n  weft status --wait 1m",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := statuses(cmd, check, wait)
			if err != nil && len(all) == 0 {
				return err
			}
			if err := errors.Join(showStatus(cmd, all), err); err != nil {
				return err
			}
			for _, s := range all {
				if (check || wait > 0) && len(s.Concerns) > 0 || wait > 0 && len(s.Settling) > 0 {
					return errNo
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "exit 1 if anything needs attention")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait up to this long for all to be well, then exit 1")
	return cmd
}

// waitStep is the pause between two polls of --wait.
const waitStep = 200 * time.Millisecond

// settleTime is how long --check waits for things to settle: longer than the grace of any
// concern.
const settleTime = 20 * time.Second

// statuses asks until all is well or time is up, and retries clusters that cannot be
// reached yet. A check waits while things are only settling, so that its answer is final.
func statuses(cmd *cobra.Command, check bool, wait time.Duration) ([]*api.Status, error) {
	began := time.Now()
	for {
		all, err := each(cmd, func(ctx context.Context, c *api.Client) (*api.Status, error) { return c.Status(ctx) })
		bad, settling := err != nil, false
		for _, s := range all {
			bad = bad || len(s.Concerns) > 0
			settling = settling || len(s.Settling) > 0
		}
		took := time.Since(began)
		again := took < wait && (bad || settling) || check && settling && !bad && took < settleTime
		if !again || err != nil && !unreachable(err) {
			return all, err
		}
		select {
		case <-cmd.Context().Done():
			return all, cmd.Context().Err()
		case <-time.After(waitStep):
		}
	}
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
	fmt.Fprintln(out, printableLines(fmt.Sprintf("Cluster %s (ID %d), API server %s, up %s", c.Name, c.ID, c.Version, age(c.UptimeSeconds))))
	members := ""
	if s.Quorum != nil && s.Quorum.Members > 1 {
		members = ", " + quorumLine(*s.Quorum)
	}
	fmt.Fprintln(out, printableLines(fmt.Sprintf("  store      %s etcd %s%s, %s, revision %d, generation %s", c.Store, c.StoreVersion, members, size(c.StoreBytes), c.Revision, c.Generation)))
	if len(s.Servers) > 0 {
		fmt.Fprintln(out, printableLines("  servers    "+serversLine(s.Servers)))
	}
	fmt.Fprintf(out, "  addresses  pods %s, services %s\n", list(c.PodCIDRs), list(c.ServiceCIDRs()))
	fmt.Fprintf(out, "  holds      %s, %s, %s, %s\n", api.Count(c.Endpoints, "endpoint"), api.Count(c.Identities, "identity"), api.Count(c.Services, "service"), api.Count(c.Policies, "policy"))
	for _, t := range []table{nodeTable(s.Nodes), peerTable(s.Peers)} {
		if len(t.rows) > 0 {
			fmt.Fprintln(out)
			t.sorted().write(out, wide, colour)
		}
	}
	fmt.Fprintln(out)
	for _, f := range s.Former {
		fmt.Fprintln(out, printableLines(fmt.Sprintf("Blocked: %s of peer %s, removed %s ago; `weft peer forget %s` unblocks it", list(f.PodCIDRs), f.Name, age(f.AgeSeconds), f.Name)))
	}
	if len(s.Concerns)+len(s.Settling) == 0 {
		fmt.Fprintln(out, "All is well.")
	}
	for _, part := range []struct {
		head     string
		concerns []api.Concern
	}{{"Needs attention:", s.Concerns}, {"Settling:", s.Settling}} {
		if len(part.concerns) > 0 {
			fmt.Fprintln(out, part.head)
		}
		for _, c := range part.concerns {
			fmt.Fprintln(out, "  - "+printableLines(c.String()))
		}
	}
}

// serversLine says which API servers there are, the one that leads first.
func serversLine(servers []api.ServerStatus) string {
	var texts []string
	for _, leads := range []bool{true, false} {
		for _, s := range servers {
			if (s.State == api.ServerLeads) == leads {
				texts = append(texts, fmt.Sprintf("%s %s for %s", s.Name, s.State, age(s.AgeSeconds)))
			}
		}
	}
	return strings.Join(texts, ", ")
}

// size formats a number of bytes for people.
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
