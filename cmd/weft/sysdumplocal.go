package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/connectivity/probe"
	"github.com/weft-mesh/weft/flow"
)

// What a machine's archive holds of its kernel, as it is there. The command line of other
// processes and their memory are not looked at.
var (
	kernelFiles = []string{
		"/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/modules", "/proc/filesystems",
		"/proc/net/dev", "/proc/net/snmp", "/proc/net/snmp6", "/proc/net/netstat", "/proc/net/sockstat", "/proc/net/softnet_stat",
		"/proc/pressure/cpu", "/proc/pressure/memory", "/proc/self/cgroup", "/proc/self/mountinfo", "/proc/self/status", "/etc/os-release",
	}
	kernelSettings = []string{
		"kernel/osrelease", "kernel/unprivileged_bpf_disabled", "net/core/bpf_jit_enable", "net/core/bpf_jit_harden", "net/core/bpf_jit_limit",
		"net/core/default_qdisc", "net/core/netdev_max_backlog", "net/core/rmem_max", "net/core/wmem_max", "net/core/somaxconn",
		"net/ipv4/ip_forward", "net/ipv4/ip_local_port_range", "net/ipv4/ip_no_pmtu_disc", "net/ipv4/tcp_mtu_probing", "net/ipv4/conf/*/rp_filter",
		"net/ipv4/conf/*/forwarding", "net/ipv4/conf/*/accept_local", "net/ipv4/conf/*/route_localnet", "net/ipv4/conf/*/arp_*",
		"net/ipv4/neigh/default/gc_thresh*", "net/ipv6/conf/*/forwarding", "net/ipv6/conf/*/disable_ipv6", "net/ipv6/conf/*/accept_ra", "net/ipv6/neigh/default/gc_thresh*",
		"net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_count", "net/bridge/bridge-nf-call-iptables",
	}
	// metricsOf are the addresses at which processes of Weft have their metrics by default.
	metricsOf = map[string]string{"agent": "http://127.0.0.1:9962/metrics", "apiserver": "http://127.0.0.1:9963/metrics"}
)

// maxMapRows bounds the rows of a map.
const maxMapRows = 2000

// machine collects what is on this machine. What belongs to a process that does not run here
// is missing.
func (d *dump) machine(ctx context.Context, root *cobra.Command, socket string) {
	d.kernel()
	d.network()
	d.maps(ctx)
	peers, err := tunnelPeers(new(machine).at())
	d.JSON("tunnels.json", peers, err)
	d.localAgent(ctx, socket)
	for name, url := range metricsOf {
		answers, err := probe.All(ctx, []probe.Question{{Protocol: probe.Fetch, To: url, Patience: dumpPatience}})
		switch {
		case err != nil:
			d.Miss("metrics/"+name+".txt", err)
		case answers[0].Tries[0].Failure == probe.Refused && name == "apiserver":
			// This machine is a node alone.
		case !answers[0].Tries[0].OK:
			d.Miss("metrics/"+name+".txt", errors.New(answers[0].Tries[0].Error))
		default:
			d.Add("metrics/"+name+".txt", []byte(answers[0].Tries[0].Text))
		}
	}
	if path, err := exec.LookPath("journalctl"); err == nil {
		d.output(ctx, "logs/journal.log", path, "--no-pager", "--unit", "weft-*", "--lines", fmt.Sprint(d.lines))
	}
	if cmd, _, err := root.Find([]string{"doctor"}); err == nil && cmd != root {
		d.output(ctx, "doctor.txt", "/proc/self/exe", "doctor")
	}
}

// output collects what a command says, whatever it thinks of that.
func (d *dump) output(ctx context.Context, name, program string, args ...string) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	text, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	var ended *exec.ExitError
	if err != nil && (!errors.As(err, &ended) || ctx.Err() != nil) {
		d.Miss(name, err)
		return
	}
	d.AddLog(name, text)
}

func (d *dump) kernel() {
	for _, path := range kernelFiles {
		d.file("kernel/"+strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "_")+".txt", path)
	}
	var settings bytes.Buffer
	for _, pattern := range kernelSettings {
		paths, _ := filepath.Glob("/proc/sys/" + pattern)
		for _, path := range paths {
			if text, err := os.ReadFile(path); err == nil {
				fmt.Fprintf(&settings, "%s = %s\n", strings.TrimPrefix(path, "/proc/sys/"), strings.TrimSpace(string(text)))
			}
		}
	}
	d.Add("kernel/settings.txt", settings.Bytes())
}

// file adds a file of this machine, if it is there.
func (d *dump) file(name, path string) {
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
	case err != nil:
		d.Miss(name, err)
	default:
		d.Add(name, text)
	}
}

// network collects devices, addresses, routes and rules of this machine.
func (d *dump) network() {
	type device struct {
		Name, Type, State string
		Index, MTU        int
		Addresses         []string `json:",omitempty"`
	}
	links, err := netlink.LinkList()
	var devices []device
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		out := device{Name: a.Name, Type: l.Type(), State: a.OperState.String(), Index: a.Index, MTU: a.MTU}
		addrs, _ := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, at := range addrs {
			out.Addresses = append(out.Addresses, at.IPNet.String())
		}
		devices = append(devices, out)
	}
	d.JSON("network/devices.json", devices, err)
	var lines strings.Builder
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	for _, r := range routes {
		fmt.Fprintf(&lines, "%s dev %s table %d\n", r, names[r.LinkIndex], r.Table)
	}
	d.text("network/routes.txt", lines.String(), err)
	lines.Reset()
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	for _, r := range rules {
		fmt.Fprintln(&lines, r)
	}
	d.text("network/rules.txt", lines.String(), err)
}

func (d *dump) text(name, text string, err error) {
	if err != nil {
		d.Miss(name, err)
		return
	}
	d.Add(name, []byte(text))
}

// maps collects the rows of the kernel's maps.
func (d *dump) maps(ctx context.Context) {
	dir := bpf.Defaults().PinDir
	type usage struct {
		Rows int    `json:"rows"`
		Max  uint32 `json:"max"`
	}
	all := map[string]usage{}
	for _, k := range kernelMaps() {
		if ctx.Err() != nil {
			d.Miss("maps/"+k.name+".json", ctx.Err())
			continue
		}
		m, err := k.open(dir)
		if err != nil {
			d.Miss("maps/"+k.name+".json", err)
			continue
		}
		t := k.table()
		rows := []map[string]string{}
		u := usage{Max: m.MaxEntries()}
		err = k.rows(m, func(key, value reflect.Value) {
			if u.Rows++; u.Rows <= maxMapRows {
				rows = append(rows, t.document(append([]string{""}, k.cells(key, value)...)))
			}
		})
		m.Close()
		all[k.name] = u
		d.JSON("maps/"+k.name+".json", rows, err)
	}
	d.JSON("maps.json", all, nil)
}

// localAgent collects what this machine's agent says at its socket.
func (d *dump) localAgent(ctx context.Context, socket string) {
	c := api.NewUnixClient(socket)
	defer c.Close()
	limited, cancel := bounded(ctx)
	l, err := c.Tables(limited, "")
	cancel()
	d.JSON("tables.json", l, err)
	if err != nil {
		return
	}
	keep(ctx, d, "agent.json", func(ctx context.Context) (json.RawMessage, error) { return c.GetRaw(ctx, "/v1/status", nil) })
	for _, t := range l.Tables {
		keep(ctx, d, "tables/"+t.Name+".json", func(ctx context.Context) (*api.Table, error) { return c.Table(ctx, "", t.Name) })
	}
	d.flows(ctx, "flows.jsonl", c, flow.Request{Last: dumpedFlows})
}
