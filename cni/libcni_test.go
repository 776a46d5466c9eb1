package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/weft-mesh/weft/cni/conflist"
)

// containers is a runtime's use of the plugin by libcni.
type containers struct {
	*libcni.CNIConfig
	n    *node
	list *libcni.NetworkConfigList
}

// runtime reads the configuration that the agent or an operator installs.
func (n *node) runtime(edit func(conf map[string]any)) *containers {
	n.t.Helper()
	conf := conflist.Config{ConfDir: filepath.Join(n.dir, "conf"), BinDir: filepath.Join(n.dir, "bin"), Socket: filepath.Join(n.dir, "sock"), Spool: filepath.Join(n.dir, "spool")}
	if err := conf.InstallNetwork(); err != nil {
		n.t.Fatal(err)
	}
	path := filepath.Join(conf.ConfDir, conflist.File)
	if edit != nil {
		text, err := os.ReadFile(path)
		if err != nil {
			n.t.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal(text, &fields); err != nil {
			n.t.Fatal(err)
		}
		edit(fields)
		if text, err = json.Marshal(fields); err != nil {
			n.t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	list, err := libcni.NetworkConfFromFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	return &containers{libcni.NewCNIConfigWithCacheDir([]string{conf.BinDir}, filepath.Join(n.dir, "cache"), nil), n, list}
}

func (c *containers) conf(pod, uid, container string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: container, NetNS: c.n.netns(container), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", pod}, {"K8S_POD_UID", uid}},
	}
}

func (c *containers) add(pod, uid, container string) *current.Result {
	c.n.t.Helper()
	got, err := c.AddNetworkList(context.Background(), c.list, c.conf(pod, uid, container))
	if err != nil {
		c.n.t.Fatalf("add %s: %v", pod, err)
	}
	out, err := current.NewResultFromResult(got)
	if err != nil {
		c.n.t.Fatal(err)
	}
	return out
}

func (c *containers) del(pod, uid, container string) {
	c.n.t.Helper()
	if err := c.DelNetworkList(context.Background(), c.list, c.conf(pod, uid, container)); err != nil {
		c.n.t.Errorf("delete %s: %v", pod, err)
	}
}

// devices are the ends of pods' pairs on the machine.
func (n *node) devices() (names []string) {
	n.t.Helper()
	inside(n.t, n.net, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Attrs().Name != "lo" {
				names = append(names, l.Attrs().Name)
			}
		}
		return err
	})
	return names
}

// A runtime's whole use of the plugin on a kernel: the pod has what the result says.
func TestARuntimeGivesPodsTheirNetworks(t *testing.T) {
	n := newNode(t)
	n.start()
	c := n.runtime(nil)
	if c.list.CNIVersion != "1.1.0" {
		t.Errorf("the newest version is not used, but %s", c.list.CNIVersion)
	}
	if _, err := c.ValidateNetworkList(t.Context(), c.list); err != nil {
		t.Error(err)
	}
	if err := c.GetStatusNetworkList(t.Context(), c.list); err != nil {
		t.Error(err)
	}
	ns := n.namespace("c1")
	got := c.add("web-1", "one", "c1")
	inside(t, ns, func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(dev, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		if dev.Attrs().Flags&net.FlagUp == 0 || dev.Attrs().HardwareAddr.String() != got.Interfaces[1].Mac || dev.Attrs().MTU != got.Interfaces[1].Mtu {
			t.Errorf("device %+v, result %+v", dev.Attrs(), got.Interfaces[1])
		}
		for _, ip := range got.IPs {
			if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(ip.Address.IP) }) {
				t.Errorf("the pod does not have %v", ip.Address)
			}
		}
		return nil
	})
	if names := n.devices(); !slices.Equal(names, []string{got.Interfaces[0].Name}) || len(got.IPs) != 2 {
		t.Errorf("on the machine are %v, result %+v", names, got)
	}
	if err := c.CheckNetworkList(t.Context(), c.list, c.conf("web-1", "one", "c1")); err != nil {
		t.Error(err)
	}
	inside(t, ns, func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(dev)
	})
	var refused *types.Error
	if err := c.CheckNetworkList(t.Context(), c.list, c.conf("web-1", "one", "c1")); !errors.As(err, &refused) || refused.Code != 100 {
		t.Errorf("check of a device that is down: %v", err)
	}
	c.del("web-1", "one", "c1")
	if names := n.devices(); len(names) != 0 {
		t.Errorf("left over: %v", names)
	}
}

// Removals while the agent is dead are made once it runs, each once: a pod that has the name
// by then keeps its network. A kill at any moment of that loses nothing.
func TestRemovalsWhileTheAgentIsDead(t *testing.T) {
	n := newNode(t)
	n.start()
	c := n.runtime(nil)
	for _, name := range []string{"c1", "c2", "c3", "c4"} {
		n.namespace(name)
	}
	first := c.add("web-1", "one", "c1")
	c.add("web-2", "two", "c2")
	c.add("web-3", "three", "c3")
	n.kill()
	c.del("web-1", "one", "c1")
	c.del("web-1", "one", "c1") // again, as runtimes do
	c.del("web-2", "two", "c2")
	if left, err := os.ReadDir(filepath.Join(n.dir, "spool")); err != nil || len(left) != 2 {
		t.Errorf("%d removals wait, %v", len(left), err)
	}
	var refused *types.Error
	if _, err := c.AddNetworkList(t.Context(), c.list, c.conf("web-1", "four", "c4")); !errors.As(err, &refused) || refused.Code != types.ErrTryAgainLater {
		t.Errorf("add: %v", err)
	}
	if err := c.GetStatusNetworkList(t.Context(), c.list); !errors.As(err, &refused) || refused.Code != types.ErrPluginNotAvailable {
		t.Errorf("status: %v", err)
	}
	n.start()
	second := c.add("web-1", "four", "c4")
	if second.IPs[0].Address.String() == first.IPs[0].Address.String() {
		t.Errorf("another pod of the name got the address at once: %v", first.IPs[0].Address)
	}
	if names := n.devices(); len(names) != 2 { // web-1 and web-3
		t.Errorf("on the machine are %v", names)
	}
	// The file of a removal that was made comes back: the agent died before it was deleted.
	n.kill()
	c.del("web-1", "one", "c1")
	n.start()
	if err := c.CheckNetworkList(t.Context(), c.list, c.conf("web-1", "four", "c4")); err != nil {
		t.Errorf("a late removal took another pod's network: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(n.dir, "spool")); err != nil || len(left) != 0 {
		t.Errorf("%d removals wait, %v", len(left), err)
	}
}

// What a runtime has lost is collected, whoever is chained behind.
func TestGarbageIsCollected(t *testing.T) {
	n := newNode(t)
	n.start()
	c := n.runtime(nil)
	n.namespace("c1")
	n.namespace("c2")
	c.add("web-1", "one", "c1")
	kept := c.add("web-2", "two", "c2")
	// The runtime has lost its own notes: nothing makes it delete the first.
	if err := os.RemoveAll(filepath.Join(n.dir, "cache")); err != nil {
		t.Fatal(err)
	}
	err := c.GCNetworkList(t.Context(), c.list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "c2", IfName: "eth0"}}})
	if err != nil {
		t.Error(err)
	}
	if names := n.devices(); !slices.Equal(names, []string{kept.Interfaces[0].Name}) {
		t.Errorf("on the machine are %v, want %s", names, kept.Interfaces[0].Name)
	}
}

// A plugin behind ours gets our result, and its own counts.
func TestAPluginChainedBehind(t *testing.T) {
	n := newNode(t)
	n.start()
	script := "#!/bin/sh\nread -r conf\ncase $CNI_COMMAND in\nVERSION) echo '{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"1.0.0\",\"1.1.0\"]}' ;;\n" +
		"ADD) echo \"$conf\" >" + n.dir + "/seen; echo '{\"cniVersion\":\"1.1.0\",\"dns\":{\"domain\":\"behind\"}}' ;;\nesac\n"
	if err := os.WriteFile(filepath.Join(n.dir, "bin", "behind"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	c := n.runtime(func(conf map[string]any) {
		conf["plugins"] = append(conf["plugins"].([]any), map[string]any{"type": "behind"})
	})
	n.namespace("c1")
	if got := c.add("web-1", "one", "c1"); got.DNS.Domain != "behind" {
		t.Errorf("result %+v", got)
	}
	seen, err := os.ReadFile(filepath.Join(n.dir, "seen"))
	if err != nil || !strings.Contains(string(seen), `"10.1.1.2/32"`) {
		t.Errorf("it saw %s, %v", seen, err)
	}
	c.del("web-1", "one", "c1")
}

// BenchmarkPlugin is one pod's ADD and DEL as the runtime waits for them, without the start
// of the weft binary, which is this test's instead.
func BenchmarkPlugin(b *testing.B) {
	n := newNode(b)
	n.start()
	c := n.runtime(nil)
	n.namespace("c1")
	var adds, dels []time.Duration
	for i := 0; b.Loop(); i++ {
		conf := c.conf(fmt.Sprintf("web-%d", i%200), fmt.Sprint(i), "c1")
		start := time.Now()
		if _, err := c.AddNetworkList(b.Context(), c.list, conf); err != nil {
			if strings.Contains(err.Error(), "rest for") {
				break // addresses rest for a minute
			}
			b.Fatal(err)
		}
		adds = append(adds, time.Since(start))
		start = time.Now()
		if err := c.DelNetworkList(b.Context(), c.list, conf); err != nil {
			b.Fatal(err)
		}
		dels = append(dels, time.Since(start))
	}
	for name, all := range map[string][]time.Duration{"add": adds, "del": dels} {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, name+"-p99-ms")
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name+"-p50-ms")
	}
}
