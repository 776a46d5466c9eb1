package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/lab/space"
)

// In a cluster with cni: true the lab is more of a container runtime: it makes a pod's network
// namespace, and has the CNI plugin called for it as runtimes do, by the configuration and the
// program that the node's agent has installed.

const (
	cniConfDir  = "/etc/weft/cni"
	cniBinDir   = "/var/lib/weft/cni-bin"
	cniCacheDir = "/var/lib/weft/cni-cache"
	// cniDevice is the name of the device in each pod.
	cniDevice = "eth0"
)

// cniFlags are an agent's where the plugin is used.
func cniFlags() []string { return []string{"--cni-conf-dir", cniConfDir, "--cni-bin-dir", cniBinDir} }

// askPlugin makes a request by the CNI plugin, in a process on the node. A pod has one sandbox
// in its life, with its UID as ID.
func (l *Lab) askPlugin(ctx context.Context, n *Node, what request, req api.EndpointRequest) error {
	ctx, cancel := context.WithTimeout(ctx, requestPatience)
	defer cancel()
	verb := "add"
	if what == removeNetwork {
		verb = "del"
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, l.binary, "lab", "cni", verb, req.Key(), req.UID, req.UID)
	cmd.Dir, cmd.Env = "/", l.environment()
	if err := l.runIn(n, cmd, io.Discard, &stderr); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// Plugin calls the CNI plugin on this machine as a container runtime does:
//
//	add NAMESPACE/POD UID CONTAINER
//	del NAMESPACE/POD UID CONTAINER
//	check NAMESPACE/POD UID CONTAINER
//	gc [CONTAINER]     forgets that container, and has all collected that it does not know
//	status
func Plugin(ctx context.Context, args []string) error {
	files, err := libcni.ConfFiles(cniConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) == 0 {
		return errors.Join(fmt.Errorf("no network is configured in %s yet", cniConfDir), err)
	}
	slices.Sort(files)
	list, err := libcni.NetworkConfFromFile(files[0])
	if err != nil {
		return err
	}
	runtime := libcni.NewCNIConfigWithCacheDir([]string{cniBinDir}, cniCacheDir, nil)
	switch {
	case len(args) == 1 && args[0] == "status":
		return runtime.GetStatusNetworkList(ctx, list)
	case len(args) <= 2 && args[0] == "gc":
		return collect(ctx, runtime, list, args[1:])
	case len(args) != 4:
		return fmt.Errorf("%q is not a call of the plugin", args)
	}
	namespace, name, _ := strings.Cut(args[1], "/")
	pod := Pod{Namespace: namespace, Name: name}
	conf := &libcni.RuntimeConf{
		ContainerID: args[3], NetNS: pod.namespaceFile(), IfName: cniDevice,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", namespace}, {"K8S_POD_NAME", name}, {"K8S_POD_INFRA_CONTAINER_ID", args[3]}, {"K8S_POD_UID", args[2]}},
	}
	switch args[0] {
	case "add":
		if err := makeNamespace(conf.NetNS); err != nil {
			return err
		}
		_, err := runtime.AddNetworkList(ctx, list, conf)
		return err
	case "check":
		return runtime.CheckNetworkList(ctx, list, conf)
	case "del":
		if err := runtime.DelNetworkList(ctx, list, conf); err != nil {
			return err
		}
		return removeNamespace(conf.NetNS)
	}
	return fmt.Errorf("%q is not a command of the plugin", args[0])
}

// collect forgets containers, as a runtime that has lost its state, and has their networks
// collected.
func collect(ctx context.Context, runtime *libcni.CNIConfig, list *libcni.NetworkConfigList, forget []string) error {
	for _, container := range forget {
		cached := filepath.Join(cniCacheDir, "results", list.Name+"-"+container+"-"+cniDevice)
		if err := os.Remove(cached); err != nil {
			return err
		}
	}
	all, err := runtime.GetCachedAttachments("")
	if err != nil {
		return err
	}
	valid := []types.GCAttachment{}
	for _, a := range all {
		valid = append(valid, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return runtime.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
}

// makeNamespace makes a pod's network namespace, unless it exists.
func makeNamespace(path string) error {
	var kind unix.Statfs_t
	if unix.Statfs(path, &kind) == nil && kind.Type == unix.NSFS_MAGIC {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	return space.Once(nil, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep network namespace %s: %w", path, err)
		}
		return nil
	})
}

func removeNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
