// Package removal takes everything of Weft away from a node: plugin, programs, maps, routes,
// devices and folders.
//
// Stopping an agent removes nothing. Whether a node may lose its network is up to whoever calls
// this; what others have chained to the plugin is respected here.
package removal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/cni/conflist"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/tunnel"
)

// Config says where things are on a node.
type Config struct {
	// PinDir has the pins of maps and links.
	PinDir string
	CNI    conflist.Config
	// Sockets is the folder of WireGuard's sockets in user space, of which those of Devices go.
	Sockets string
	Devices []string
	// Dirs go with all that is in them.
	Dirs []string
	// Force removes the devices of pods too, which then have no network.
	Force bool
}

// Defaults is where an ordinary node has things.
func Defaults() Config {
	return Config{
		PinDir: bpf.Defaults().PinDir, CNI: conflist.Config{ConfDir: conflist.DefaultConfDir, BinDir: conflist.DefaultBinDir},
		Sockets: "/run/wireguard", Devices: tunnel.DefaultDevices[:], Dirs: []string{"/var/lib/weft", "/run/weft"},
	}
}

// Report says what was removed from a node.
type Report struct {
	Node string `json:"node"`
	// Removed are things of which there were any, such as "4 routes".
	Removed []string `json:"removed"`
	// Left is what stays on purpose.
	Left []string `json:"left"`
}

// podPrefix begins the names of the node's ends of pods' devices.
const podPrefix = "weft-"

// Remove removes everything. It may be repeated. Unless forced, it refuses while pods have their
// network from Weft, and then has changed nothing.
func Remove(c Config) (r Report, err error) {
	r = Report{Removed: []string{}, Left: []string{"settings of the kernel (net.ipv4.ip_forward, rp_filter), which others may need; a reboot resets them"}}
	if r.Node, err = os.Hostname(); err != nil {
		return r, err
	}
	release, err := statefile.LockMachine("agent")
	if err != nil {
		return r, fmt.Errorf("stop the agent first: %w", err)
	}
	defer release()
	pods, err := podDevices()
	if err != nil {
		return r, err
	}
	if len(pods) > 0 && !c.Force {
		return r, fmt.Errorf("%d pods on this node have their network from Weft: stop them, or remove it with --force, after which they have none until they are started again by another plugin", len(pods))
	}
	if err := r.plugin(c.CNI); err != nil {
		return r, err
	}
	pins, err := bpf.RemovePinned(c.PinDir)
	r.count(pins, "pinned map or program", "pinned maps and programs")
	errs := []error{err}
	routes, err := tunnel.RemoveRoutes()
	r.count(routes, "route", "routes")
	errs = append(errs, err)
	for _, name := range append(pods, c.Devices...) {
		gone, err := removeDevice(name)
		if gone {
			r.Removed = append(r.Removed, "device "+name)
		}
		errs = append(errs, err)
	}
	for _, name := range c.Devices {
		errs = append(errs, r.file(filepath.Join(c.Sockets, name+".sock")))
	}
	for _, dir := range append(c.Dirs, c.PinDir) {
		errs = append(errs, r.folder(dir))
	}
	return r, errors.Join(errs...)
}

func (r *Report) count(n int, one, many string) {
	switch n {
	case 0:
	case 1:
		r.Removed = append(r.Removed, "1 "+one)
	default:
		r.Removed = append(r.Removed, fmt.Sprintf("%d %s", n, many))
	}
}

// plugin removes the CNI plugin and its configuration.
func (r *Report) plugin(c conflist.Config) error {
	paths := []string{filepath.Join(c.ConfDir, conflist.File), filepath.Join(c.BinDir, conflist.Type)}
	there := slices.DeleteFunc(slices.Clone(paths), func(path string) bool {
		_, err := os.Lstat(path)
		return err != nil
	})
	if err := c.Uninstall(); err != nil {
		return fmt.Errorf("uninstall the CNI plugin: %w", err)
	}
	r.Removed = append(r.Removed, there...)
	return nil
}

// podDevices are the node's ends of pods' devices, in order.
func podDevices() (names []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		if l.Type() == "veth" && strings.HasPrefix(l.Attrs().Name, podPrefix) {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func removeDevice(name string) (gone bool, err error) {
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return false, fmt.Errorf("remove device %s: %w", name, err)
	}
	return true, nil
}

func (r *Report) file(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		r.Removed = append(r.Removed, path)
	}
	return err
}

// folder removes a folder. One that is a mount point stays, empty.
func (r *Report) folder(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := removeAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.EBUSY) {
		return err
	}
	r.Removed = append(r.Removed, dir)
	return nil
}

// removeAll is os.RemoveAll, except that mount points stay, empty.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := removeAll(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
