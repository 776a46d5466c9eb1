package doctor

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// twin is a node in memory and in a folder.
type twin struct {
	*testing.T
	Host
	node     Node
	links    []Link
	tables   []Table
	programs []string
	clock    time.Duration
	deaf     map[string]bool
	free     float64
	removed  []Plan
}

// Read implements Rules.
func (w *twin) Read() ([]Table, error) { return w.tables, nil }

// Remove implements Rules.
func (w *twin) Remove(p Plan) error {
	w.removed = append(w.removed, p)
	for i := range w.tables {
		w.tables[i].Chains = slices.DeleteFunc(w.tables[i].Chains, func(c Chain) bool {
			return slices.Contains(p.Chains, ChainName{TableName{w.tables[i].Family, w.tables[i].Name}, c.Name})
		})
		for j := range w.tables[i].Chains {
			c := &w.tables[i].Chains[j]
			c.Rules = slices.DeleteFunc(c.Rules, func(r Rule) bool {
				return slices.ContainsFunc(p.Rules, func(n RuleName) bool { return n.Chain == c.Name && n.Handle == r.Handle })
			})
		}
	}
	w.tables = slices.DeleteFunc(w.tables, func(t Table) bool { return slices.Contains(p.Tables, TableName{t.Family, t.Name}) })
	return nil
}

// none are no rules.
type none struct{}

func (none) Read() ([]Table, error) { return nil, nil }
func (none) Remove(Plan) error      { return errors.New("there are none") }

func newTwin(t *testing.T) *twin {
	w := &twin{T: t, deaf: map[string]bool{}, free: 10 << 30}
	w.links = []Link{
		{Name: "eth0", Kind: "device", MTU: 1500, Up: true, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.11/24")}},
		{Name: "weft0", Kind: "wireguard", MTU: 1420}, {Name: "weft1", Kind: "wireguard", MTU: 1420}, {Name: "weft5a", Kind: "veth", MTU: 1420},
	}
	w.Host = Host{
		Root: t.TempDir(), Links: func() ([]Link, error) { return w.links, nil }, Rules: w, Legacy: none{},
		Programs: func(string) ([]string, error) { return append([]string{"from_pod", "to_pod"}, w.programs...), nil },
		RemoveLink: func(name string) error {
			w.links = slices.DeleteFunc(w.links, func(l Link) bool { return l.Name == name })
			return nil
		},
		Dial: func(_ context.Context, address string) (Answer, error) {
			if w.deaf[address] {
				return Answer{}, errors.New("connection refused")
			}
			return Answer{Clock: time.Now().Add(w.clock)}, nil
		},
		Free: func(string) (float64, float64, error) { return w.free, 50, nil },
	}
	w.node = Node{
		Cluster: "east", Name: "n1", Running: true, Ready: true, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.11")},
		StateDir: "/var/lib/weft/agent", CNIConfDir: "/etc/cni/net.d", BPFDir: "/sys/fs/bpf/weft", CgroupRoot: "/sys/fs/cgroup",
		Servers: []string{"192.0.2.1:7443"}, Ports: []Port{{"udp", 51871, "tunnels"}, {"tcp", 7444, "the agent's API"}},
	}
	w.tables = []Table{{"inet", "mine", []Chain{{"input", []Rule{{1, nil}}}}}}
	w.write(release, "6.12.3-generic")
	w.write("/sys/kernel/btf/vmlinux", "")
	w.write("/proc/self/mounts", "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")
	w.write("/var/lib/weft/agent/state", "")
	for _, s := range []string{"ip_forward", "conf/eth0/forwarding"} {
		w.write("/proc/sys/net/ipv4/"+s, "1")
	}
	for _, d := range []string{"weft0", "weft1"} {
		w.write("/proc/sys/net/ipv4/conf/"+d+"/rp_filter", "2")
	}
	w.write("/etc/cni/net.d/05-weft.conflist", `{"plugins":[{"type":"weft"}]}`)
	return w
}

func (w *twin) write(path, text string) {
	w.Helper()
	path = filepath.Join(w.Root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.Fatal(err)
	}
}

func (w *twin) text(path string) string {
	text, _ := os.ReadFile(filepath.Join(w.Root, path))
	return string(text)
}

func (w *twin) report() Report { return Run(w.Context(), w.Host, w.node) }

// wants checks what needs attention: each line a severity, a check, and a part of the message.
func (w *twin) wants(when string, want ...string) Report {
	w.Helper()
	r := w.report()
	var got []string
	for _, f := range r.Findings {
		if f.Severity == Warning || f.Severity == Error {
			got = append(got, string(f.Severity)+" "+f.Check+": "+f.Message)
			if f.Next == "" {
				w.Errorf("%s: %q does not say what to do", when, f.Message)
			}
		}
	}
	ok := len(got) == len(want) && r.Well() == (len(want) == 0)
	for i := 0; ok && i < len(want); i++ {
		ok = strings.Contains(got[i], want[i])
	}
	if !ok {
		w.Errorf("%s: it found\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	return r
}

func TestANodeThatIsWell(t *testing.T) {
	w := newTwin(t)
	r := w.wants("all is well")
	if len(r.Findings) < len(checks) {
		t.Errorf("%d findings of %d checks", len(r.Findings), len(checks))
	}
	w.node.Running = false
	w.wants("no agent", "warning agent: no agent answers")
}

func TestWhatAKernelLacks(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*twin)
		want   []string
	}{
		{"an old kernel", func(w *twin) { w.write(release, "5.15.0-91") }, []string{"error kernel: Linux 5.15.0-91 is older than 6.1"}},
		{"a kernel without tcx", func(w *twin) { w.write(release, "6.1.0-18") }, nil},
		{"no BTF", func(w *twin) { os.Remove(filepath.Join(w.Root, "/sys/kernel/btf/vmlinux")) }, []string{"warning kernel: the kernel has no BTF"}},
		{"no cgroups of version 2", func(w *twin) { w.node.CgroupRoot = "" }, []string{"error kernel: no cgroup tree of version 2"}},
		{"no BPF file system", func(w *twin) { w.write("/proc/self/mounts", "sysfs /sys sysfs rw 0 0\n") }, []string{"error kernel: no BPF file system is mounted at /sys/fs/bpf/weft"}},
		{"tunnels in user space", func(w *twin) { w.links[1].Kind = "tun" }, nil},
		{"neither WireGuard nor TUN", func(w *twin) { w.links = w.links[:1] }, []string{"error wireguard: neither WireGuard nor TUN"}},
		{"a tunnel that is too wide", func(w *twin) { w.links[1].MTU = 1500 }, []string{"error mtu: the MTU of weft0 is 1500, and eth0 would carry 1420"}},
		{"a device that is too narrow", func(w *twin) { w.links[0].MTU = 600 }, []string{"error mtu: eth0: device MTU 600"}},
		{"forwarding is off", func(w *twin) { w.write("/proc/sys/net/ipv4/ip_forward", "0\n") }, []string{"error sysctl: net.ipv4.ip_forward is 0, not 1"}},
		{"strict source checks", func(w *twin) { w.write("/proc/sys/net/ipv4/conf/weft1/rp_filter", "1\n") }, []string{"error sysctl: net.ipv4.conf.weft1.rp_filter is 1, not 2"}},
		{"a file sets them back", func(w *twin) {
			w.write("/etc/sysctl.d/90-hard.conf", "# net.ipv4.ip_forward = 0\nnet.ipv4.conf.*.rp_filter = 1\nnet.ipv4.ip_forward=0\nnet.ipv4.tcp_syncookies=1\n")
		}, []string{"warning sysctl: 2 lines of sysctl's files set back what the datapath needs: /etc/sysctl.d/90-hard.conf: net.ipv4.conf.*.rp_filter = 1"}},
		{"a full disk", func(w *twin) { w.free = 50 << 20 }, []string{"warning disk: /var/lib/weft/agent has 50 MiB free"}},
		{"a server that is away", func(w *twin) { w.deaf["192.0.2.1:7443"] = true }, []string{"error servers: API server 192.0.2.1:7443 is not reached: connection refused"}},
		{"one of two servers", func(w *twin) {
			w.node.Servers = append(w.node.Servers, "192.0.2.2:7443")
			w.deaf["192.0.2.2:7443"] = true
		}, []string{"warning servers: API server 192.0.2.2:7443"}},
		{"a clock that is behind", func(w *twin) { w.clock = 45 * time.Second }, []string{"warning servers: this node's clock is 4"}},
		{"a clock that is ahead by much", func(w *twin) { w.clock = -time.Hour - time.Minute }, []string{"error servers: this node's clock is 1h"}},
		{"a port is taken", func(w *twin) {
			w.node.Running = false
			w.write("/proc/self/net/udp", "  sl  local_address rem_address   st\n 1: 00000000:CA9F 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0\n")
		}, []string{"error ports: UDP port 51871, which Weft needs for tunnels, is taken by a process that is not visible", "warning agent"}},
		{"the kernel's WireGuard has it", func(w *twin) {
			w.write("/proc/self/net/udp", "  sl  local_address rem_address   st\n 1: 00000000:CA9F 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0 0\n")
		}, nil},
		{"another network comes first", func(w *twin) { w.write("/etc/cni/net.d/01-x.conf", `{"type":"bridge"}`) }, []string{"error cni: a container runtime uses /etc/cni/net.d/01-x.conf (bridge) instead"}},
		{"another network comes later", func(w *twin) { w.write("/etc/cni/net.d/90-x.conf", `{"type":"bridge"}`) }, nil},
		{"a network that calls ours", func(w *twin) { w.write("/etc/cni/net.d/00-multus.conf", `{"type":"multus-shim"}`) }, nil},
		{"Cilium's programs", func(w *twin) { w.programs = []string{"cil_from_netdev", "cil_sock4_connect"} }, []string{"warning leftover-programs: BPF programs of another network plugin are attached: cil_from_netdev, cil_sock4_connect"}},
	} {
		w := newTwin(t)
		c.change(w)
		w.wants(c.name, c.want...)
	}
}

// kubeProxyWasHere gives a node rules and devices of others, and some that are nobody's.
func kubeProxyWasHere(w *twin) {
	w.tables = append(w.tables,
		Table{"ip", "nat", []Chain{
			{"PREROUTING", []Rule{{1, []string{"KUBE-SERVICES"}}, {2, []string{"MINE"}}}},
			{"MINE", []Rule{{3, nil}}},
			{"KUBE-SERVICES", []Rule{{4, []string{"KUBE-SVC-A"}}}},
			{"KUBE-SVC-A", nil},
			{"CILIUM_PRE_nat", []Rule{{5, []string{"KUBE-SVC-A"}}}},
		}},
		Table{"ip", "filter", []Chain{
			{"INPUT", []Rule{{6, []string{"KUBE-FIREWALL"}}}},
			{"KUBE-FIREWALL", nil}, {"KUBE-KUBELET-CANARY", nil},
		}},
		Table{"ip6", "kube-proxy", nil},
	)
	w.links = append(w.links, Link{Name: "kube-ipvs0", Kind: "dummy"}, Link{Name: "cilium_host", Kind: "veth"}, Link{Name: "cilium_net", Kind: "veth"})
}

func TestWhatOthersLeftBehind(t *testing.T) {
	w := newTwin(t)
	kubeProxyWasHere(w)
	r := w.wants("left behind",
		"Cilium has left 1 chain in nftables", "kube-proxy has left 1 table, 2 chains, 2 rules that lead into them in nftables",
		"Cilium has left 2 devices: cilium_host, cilium_net", "kube-proxy has left 1 device: kube-ipvs0")
	if len(w.removed) > 0 || len(w.links) != 7 {
		t.Error("looking has changed something")
	}
	if err := r.Fix(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wants("fixed")
	var left []string
	for _, table := range w.tables {
		for _, c := range table.Chains {
			for _, rule := range c.Rules {
				left = append(left, c.Name+"→"+strings.Join(rule.Jumps, ","))
			}
			if len(c.Rules) == 0 {
				left = append(left, c.Name)
			}
		}
	}
	want := []string{"input→", "PREROUTING→MINE", "MINE→", "INPUT→KUBE-FIREWALL", "KUBE-FIREWALL", "KUBE-KUBELET-CANARY"}
	if !slices.Equal(left, want) {
		t.Errorf("there are %q left, want %q", left, want)
	}
}

// What still runs is not cleaned up after, and a pod's network is not taken away.
func TestWhatIsStillInUse(t *testing.T) {
	w := newTwin(t)
	kubeProxyWasHere(w)
	w.links = append(w.links, Link{Name: "lxc12ab", Kind: "veth"}, Link{Name: "lxc_health", Kind: "veth"})
	w.write("/proc/self/net/tcp6", "  sl  local_address rem_address   st\n 1: 00000000000000000000000000000000:2810 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0 0\n")
	r := w.wants("in use", "kube-proxy runs on this node", "Cilium has left", "kube-proxy has left", "the network of Cilium is still in use by 1 pod: lxc12ab", "Cilium has left 3 devices", "kube-proxy has left 1 device: kube-ipvs0")
	if err := r.Fix(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(w.removed) != 1 || len(w.removed[0].Chains) != 1 || w.removed[0].Chains[0].Chain != "CILIUM_PRE_nat" || len(w.links) != 9 {
		t.Errorf("it removed %+v, and left %d devices", w.removed, len(w.links))
	}
}

func TestSettingsAndNetworksAreFixed(t *testing.T) {
	w := newTwin(t)
	w.write("/proc/sys/net/ipv4/ip_forward", "0\n")
	w.write("/etc/cni/net.d/01-x.conf", `{"type":"bridge"}`)
	r := w.wants("wrong", "error sysctl", "error cni")
	if err := r.Fix(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wants("fixed")
	if w.text("/proc/sys/net/ipv4/ip_forward") != "1" || w.text("/etc/cni/net.d/01-x.conf.weft-disabled") == "" || w.text("/etc/cni/net.d/05-weft.conflist") == "" {
		t.Error("it is not as it should be")
	}
}

const saved = `# Generated by iptables-save
*nat
:PREROUTING ACCEPT [1:2]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:MINE - [0:0]
[3:4] -A PREROUTING -m comment --comment "to -j KUBE-SERVICES by name" -j MINE
[5:6] -A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[0:0] -A KUBE-SERVICES -d 10.0.0.1/32 -j DNAT --to-destination 10.1.1.1:80
[0:0] -A MINE -p tcp -j RETURN
COMMIT
`

func TestSavedTables(t *testing.T) {
	p := plans([]Table{parseSaved("ip", "nat", saved)})
	if len(p) != 1 || len(p[kubeProxy].Chains) != 1 || len(p[kubeProxy].Rules) != 1 || p[kubeProxy].Rules[0].Chain != "OUTPUT" {
		t.Fatalf("it plans %+v", p)
	}
	got := without(saved, p[kubeProxy])
	var want []string
	for i, line := range strings.SplitAfter(saved, "\n") {
		if i != 4 && i != 7 && i != 8 {
			want = append(want, line)
		}
	}
	if got != strings.Join(want, "") {
		t.Errorf("what stays is\n%s\nwant\n%s", got, strings.Join(want, ""))
	}
	if left := plans([]Table{parseSaved("ip", "nat", got)}); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}
