package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/tunnel"
)

// read reads a file of the node without the white space around it.
func (h Host) read(path string) (string, error) {
	text, err := os.ReadFile(filepath.Join(h.Root, path))
	return strings.TrimSpace(string(text)), err
}

func (h Host) there(path string) bool {
	_, err := os.Stat(filepath.Join(h.Root, path))
	return err == nil
}

const release = "/proc/sys/kernel/osrelease"

func kernel(_ context.Context, l *look) (out []Finding) {
	text, err := l.read(release)
	var major, minor int
	if _, scan := fmt.Sscanf(text, "%d.%d", &major, &minor); err != nil || scan != nil {
		out = append(out, unseen("the kernel's version", fmt.Errorf("%s: %q", release, text)))
	} else {
		f := Finding{Severity: OK, Message: "Linux " + text}
		switch {
		case major < 6 || major == 6 && minor < 1:
			f.Severity, f.Message = Error, "Linux "+text+" is older than 6.1"
			f.Means, f.Next = "the agent's programs are not loaded", "upgrade the kernel"
		case major == 6 && minor < 6:
			f.Severity, f.Message = Info, "Linux "+text+" has no tcx, which came with 6.6"
			f.Means = "programs are attached by tc filters, beside which others' filters may come first"
		}
		out = append(out, f)
	}
	if !l.there("/sys/kernel/btf/vmlinux") {
		out = append(out, Finding{
			Severity: Warning, Message: "the kernel has no BTF", Means: "connected sockets of the node's own processes are not told when their backend is gone",
			Next: "use a kernel with CONFIG_DEBUG_INFO_BTF",
		})
	}
	if l.node.CgroupRoot == "" {
		out = append(out, Finding{
			Severity: Error, Message: "no cgroup tree of version 2 is mounted", Means: "processes of the node itself do not reach services",
			Next: "mount -t cgroup2 none /sys/fs/cgroup, or start the agent with --socket-lb=false",
		})
	}
	if mounts, err := l.read("/proc/self/mounts"); err == nil && !mounted(mounts, "bpf", l.node.BPFDir) {
		out = append(out, Finding{
			Severity: Error, Message: "no BPF file system is mounted at " + l.node.BPFDir, Means: "maps and programs would not outlive the agent, so that it does not start",
			Next: "mount -t bpf bpf /sys/fs/bpf",
		})
	}
	return out
}

// mounted says whether a folder is on a file system of a kind.
func mounted(mounts, kind, dir string) bool {
	best, is := -1, false
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 3 || !within(dir, f[1]) || len(f[1]) < best {
			continue
		}
		best, is = len(f[1]), f[2] == kind
	}
	return is
}

func within(dir, parent string) bool {
	return dir == parent || parent == "/" || strings.HasPrefix(dir, parent+"/")
}

func wireGuard(_ context.Context, l *look) []Finding {
	for _, link := range l.links {
		if link.Name != tunnel.DefaultDevices[0] {
			continue
		}
		if link.Kind == "wireguard" {
			return []Finding{{Severity: OK, Message: "WireGuard is in the kernel"}}
		}
		return []Finding{{
			Severity: Info, Message: "WireGuard is in user space (`weft tunnel`)", Means: "tunnels take more CPU time, and their packets wait for that process",
			Next: "use a kernel with CONFIG_WIREGUARD where throughput matters",
		}}
	}
	if l.there("/sys/module/wireguard") {
		return []Finding{{Severity: OK, Message: "WireGuard is in the kernel; there are no tunnels yet"}}
	}
	text, _ := l.read(release)
	for _, name := range []string{"modules.dep", "modules.builtin"} {
		if list, err := l.read(filepath.Join("/lib/modules", text, name)); err == nil && strings.Contains(list, "/wireguard.ko") {
			return []Finding{{Severity: OK, Message: "the kernel has a module for WireGuard; there are no tunnels yet"}}
		}
	}
	if !l.there("/dev/net/tun") {
		return []Finding{{
			Severity: Error, Message: "neither WireGuard nor TUN devices are found", Means: "there can be no tunnels to other nodes", Next: "modprobe wireguard, or modprobe tun and run `weft tunnel`",
		}}
	}
	return []Finding{{Severity: Info, Message: "WireGuard is not found in the kernel", Next: "modprobe wireguard; if there is none, run `weft tunnel` beside the agent"}}
}

// setting is one below /proc/sys and what it has to be.
type setting struct {
	name, want string
	// least says that more is as good.
	least bool
	means string
}

func (l *look) settings() []setting {
	all := []setting{{name: "net.ipv4.ip_forward", want: "1", means: "packets between pods and the outside do not pass"}}
	if l.node.Device != "" {
		all = append(all, setting{name: "net.ipv4.conf." + slashed(l.node.Device) + ".forwarding", want: "1", means: "packets that come from the other nodes' side do not reach pods"})
	}
	if l.node.IPv6 {
		all = append(all, setting{name: "net.ipv6.conf.all.forwarding", want: "1", means: "IPv6 packets between pods and the outside do not pass"})
	}
	for _, link := range l.links {
		if slices.Contains(tunnel.DefaultDevices[:], link.Name) {
			all = append(all, setting{name: "net.ipv4.conf." + link.Name + ".rp_filter", want: "2", least: true, means: "half of what other nodes' pods send is dropped: it comes through either tunnel, and routes name the first"})
			if l.node.IPv6 {
				all = append(all, setting{name: "net.ipv6.conf." + link.Name + ".disable_ipv6", want: "0", means: "no IPv6 packets pass between nodes"})
			}
		}
	}
	return all
}

// A device's name may have a dot, which sysctl writes as a slash.
func slashed(device string) string { return strings.ReplaceAll(device, ".", "/") }

// pathOf is where a setting is.
func pathOf(name string) string {
	var b strings.Builder
	for _, c := range name {
		switch c {
		case '.':
			c = '/'
		case '/':
			c = '.'
		}
		b.WriteRune(c)
	}
	return filepath.Join("/proc/sys", b.String())
}

func sysctls(_ context.Context, l *look) (out []Finding) {
	for _, s := range l.settings() {
		now, err := l.read(pathOf(s.name))
		if err != nil || now == s.want || s.least && now > s.want {
			continue
		}
		path, want := filepath.Join(l.Root, pathOf(s.name)), s.want
		f := Finding{
			Severity: Error, Message: fmt.Sprintf("%s is %s, not %s", s.name, now, s.want), Means: s.means, Details: []string{"set " + s.name + "=" + s.want},
			Next: "weft doctor --fix sets it; an agent that runs does so too, if nothing sets it back",
			fix:  func(context.Context) error { return os.WriteFile(path, []byte(want), 0) },
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		out = append(out, Finding{Severity: OK, Message: "forwarding and source checks are as the datapath needs them"})
	}
	return append(out, l.setBack()...)
}

// sysctlFiles are read at boot, and by whoever calls `sysctl --system`.
var sysctlFiles = []string{"/etc/sysctl.d/*.conf", "/run/sysctl.d/*.conf", "/usr/lib/sysctl.d/*.conf", "/etc/sysctl.conf"}

// setBack are lines in files that set something back.
func (l *look) setBack() (out []Finding) {
	var details []string
	for _, pattern := range sysctlFiles {
		paths, _ := filepath.Glob(filepath.Join(l.Root, pattern))
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(text)) {
				if line = strings.TrimSpace(line); setsBack(line, l.node.IPv6) {
					details = append(details, strings.TrimPrefix(path, l.Root)+": "+line)
				}
			}
		}
	}
	if len(details) == 0 {
		return nil
	}
	return []Finding{{
		Severity: Warning, Message: plural(len(details), "line") + " of sysctl's files set back what the datapath needs: " + some(details, 2),
		Means: "after `sysctl --system` packets are lost until the agent corrects it", Next: "remove these lines", Details: details,
	}}
}

// setsBack says whether a line of sysctl.conf sets what the datapath needs to something else.
func setsBack(line string, ipv6 bool) bool {
	name, value, ok := strings.Cut(strings.TrimPrefix(line, "-"), "=")
	name, value = strings.ReplaceAll(strings.TrimSpace(name), "/", "."), strings.TrimSpace(value)
	if !ok || strings.HasPrefix(name, "#") || strings.HasPrefix(name, ";") {
		return false
	}
	switch name {
	case "net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding", "net.ipv4.conf.*.forwarding", "net.ipv4.conf.default.forwarding":
		return value == "0"
	case "net.ipv6.conf.all.forwarding", "net.ipv6.conf.*.forwarding":
		return value == "0" && ipv6
	case "net.ipv4.conf.*.rp_filter", "net.ipv4.conf.weft*.rp_filter", "net.ipv4.conf.weft0.rp_filter", "net.ipv4.conf.weft1.rp_filter":
		return value != "2"
	}
	return false
}

func mtu(_ context.Context, l *look) (out []Finding) {
	device := slices.IndexFunc(l.links, func(k Link) bool { return k.Name == l.node.Device })
	if l.node.Device == "" || device < 0 {
		return nil
	}
	outer := l.links[device].MTU
	inner, err := tunnel.MTU(outer)
	if err != nil {
		return []Finding{{Severity: Error, Message: l.node.Device + ": " + err.Error(), Means: "there can be no tunnels", Next: "ip link set " + l.node.Device + " mtu 1500, and on the way to the other nodes too"}}
	}
	for _, link := range l.links {
		if !slices.Contains(tunnel.DefaultDevices[:], link.Name) || link.MTU == inner {
			continue
		}
		f := Finding{Severity: Info, Message: fmt.Sprintf("the MTU of %s is %d, and %s would carry %d", link.Name, link.MTU, l.node.Device, inner), Next: "restart the agent to use it"}
		if link.MTU > inner {
			f.Severity, f.Means = Error, "large packets between nodes are lost"
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		out = append(out, Finding{Severity: OK, Message: fmt.Sprintf("%s has an MTU of %d, of which pods get %d", l.node.Device, outer, inner)})
	}
	return out
}
