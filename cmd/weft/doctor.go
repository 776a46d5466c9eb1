package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/cni/conflist"
	"github.com/weft-mesh/weft/meshagent"
	"github.com/weft-mesh/weft/meshagent/doctor"
	"github.com/weft-mesh/weft/tunnel"
)

func doctorCommand() *cobra.Command {
	var socket, join, confDir string
	var fix, yes bool
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Look for what keeps this node from working",
		GroupID: look,
		Long: "Look for what keeps Weft from working on this node: its kernel, settings, MTU, ports, clock and\n" +
			"disk, API servers that are not reached, and what kube-proxy or another network plugin has left\n" +
			"behind. Nothing is changed without --fix, which shows first what it would do and asks.\n" +
			"Run it as root on the node, or in the agent's pod. The exit code is 1 if anything needs attention.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return incapable{errors.New("only root can look at a node: run it with sudo")}
			}
			node := askNode(cmd.Context(), socket, join)
			if node.CNIConfDir == "" && !node.Running || cmd.Flags().Changed("cni-conf-dir") {
				node.CNIConfDir = confDir
			}
			host := doctor.Kernel()
			report := doctor.Run(cmd.Context(), host, node)
			if fix {
				again, err := fixReport(cmd, report, yes)
				if err != nil {
					return err
				}
				if again {
					report = doctor.Run(cmd.Context(), host, node)
				}
			}
			if err := showReport(cmd, report); err != nil {
				return err
			}
			if !report.Well() {
				return errNo
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&socket, "socket", agentSocket, "socket of the agent on this node")
	cmd.Flags().StringVar(&join, "join", meshagent.Defaults().Join, "join bundle of this node, if no agent answers")
	cmd.Flags().StringVar(&confDir, "cni-conf-dir", conflist.DefaultConfDir, "the runtime's folder of network configurations (default: what the agent was told)")
	cmd.Flags().BoolVar(&fix, "fix", false, "remove leftover rules and devices, put aside other networks, correct settings")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask before fixing")
	return cmd
}

// factsPatience is how long an agent may take to answer.
const factsPatience = 3 * time.Second

// askNode is what an agent says of this node, or if none answers, its join bundle.
func askNode(ctx context.Context, socket, join string) doctor.Node {
	defaults := meshagent.Defaults()
	n := doctor.Node{StateDir: defaults.StateDir, BPFDir: defaults.BPFDir}
	n.CgroupRoot, _ = meshagent.CgroupRoot() // if there is none, that is what is found
	inner, cancel := context.WithTimeout(ctx, factsPatience)
	defer cancel()
	agent := api.NewUnixClient(socket)
	defer agent.Close()
	f, err := agent.NodeFacts(inner)
	if err != nil {
		f = api.NodeFacts{Listen: api.AgentPort, GossipPort: defaults.GossipPort}
		var b api.JoinBundle
		if text, err := os.ReadFile(join); err == nil && yaml.Unmarshal(text, &b) == nil {
			f.Cluster, f.Node, f.Addresses, f.PodCIDRs = b.Cluster, b.Node, b.Addresses, b.PodCIDRs
			f.Servers, f.Etcd = append([]string{b.Server}, b.Servers...), b.EtcdEndpoints
		}
	} else {
		n.Running, n.Ready, n.Why, n.Next = true, f.Ready.Ready || !f.TakesPods, f.Ready.Why, f.Ready.Hint
		n.StateDir, n.BPFDir, n.CNIConfDir = f.StateDir, f.BPFDir, f.CNIConfDir
	}
	n.Cluster, n.Name, n.Device, n.Addresses = f.Cluster, f.Node, f.Device, f.Addresses
	for _, p := range f.PodCIDRs {
		n.IPv6 = n.IPv6 || p.Addr().Is6()
	}
	for _, text := range append(f.Servers, f.Etcd...) {
		if u, err := url.Parse(text); err == nil && u.Port() != "" {
			n.Servers = append(n.Servers, net.JoinHostPort(u.Hostname(), u.Port()))
		}
	}
	for _, port := range tunnel.DefaultPorts {
		n.Ports = append(n.Ports, doctor.Port{Network: "udp", Number: port, For: "tunnels"})
	}
	if f.Listen != 0 {
		n.Ports = append(n.Ports, doctor.Port{Network: "tcp", Number: f.Listen, For: "the agent's API"})
	}
	if f.GossipPort != 0 {
		n.Ports = append(n.Ports, doctor.Port{Network: "tcp", Number: f.GossipPort, For: "gossip"}, doctor.Port{Network: "udp", Number: f.GossipPort, For: "gossip"})
	}
	return n
}

// fixReport shows what can be fixed, asks, and does it.
func fixReport(cmd *cobra.Command, r doctor.Report, yes bool) (bool, error) {
	errOut := cmd.ErrOrStderr()
	any := false
	for _, f := range r.Findings {
		if !f.Fixable {
			continue
		}
		if !any {
			fmt.Fprintln(errOut, "To fix:")
		}
		any = true
		fmt.Fprintf(errOut, "  %s\n", printableLines(f.Message))
		for _, d := range f.Details {
			fmt.Fprintf(errOut, "    %s\n", printableLines(d))
		}
	}
	if !any {
		fmt.Fprintln(errOut, "There is nothing that can be fixed here.")
		return false, nil
	}
	if !yes {
		in, ok := cmd.InOrStdin().(*os.File)
		if !ok || !term.IsTerminal(int(in.Fd())) {
			return false, usageError{errors.New("nothing was changed: give --yes to do this without being asked")}
		}
		fmt.Fprint(errOut, "Do this? [y/N] ")
		answer, _ := bufio.NewReader(in).ReadString('\n')
		if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
			fmt.Fprintln(errOut, "Nothing was changed.")
			return false, nil
		}
	}
	return true, r.Fix(cmd.Context())
}

func showReport(cmd *cobra.Command, r doctor.Report) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	var names table
	for _, finding := range r.Findings {
		names.rows = append(names.rows, []string{finding.Check})
	}
	if f != "table" && f != "wide" {
		return show(cmd, []doctor.Report{r}, names)
	}
	out := cmd.OutOrStdout()
	if r.Node != "" {
		fmt.Fprintf(out, "Node %s/%s\n", printableLines(r.Cluster), printableLines(r.Node))
	}
	for _, finding := range r.Findings {
		fmt.Fprintf(out, "%-8s %-17s %s\n", finding.Severity, finding.Check, printableLines(finding.Message))
		more := func(text string) {
			if text != "" {
				fmt.Fprintf(out, "%-26s %s\n", "", printableLines(text))
			}
		}
		if finding.Means != "" {
			more("This means: " + finding.Means + ".")
		}
		if finding.Next != "" {
			more("Do: " + finding.Next + ".")
		}
		if f == "wide" {
			for _, d := range finding.Details {
				more("- " + d)
			}
		}
	}
	if r.Well() {
		fmt.Fprintln(out, "All is well on this node.")
	}
	return nil
}
