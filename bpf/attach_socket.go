package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// socketHook is a program on what sockets do, and where it is attached.
type socketHook struct {
	name string
	at   ebpf.AttachType
}

// socketHooks are attached in this order, and detached in the other: what turns backends into their
// services again is there for every socket that was given one.
var socketHooks = []socketHook{
	{"recvmsg4", ebpf.AttachCGroupUDP4Recvmsg},
	{"recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
	{"getpeername4", ebpf.AttachCgroupInet4GetPeername},
	{"getpeername6", ebpf.AttachCgroupInet6GetPeername},
	{"connect4", ebpf.AttachCGroupInet4Connect},
	{"connect6", ebpf.AttachCGroupInet6Connect},
	{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
	{"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
}

func socketPin(hook string) string { return linkPrefix + "socket_" + hook }

// AttachSockets lets processes in and below a cgroup reach services, as far as they are in
// this network namespace. It replaces the programs of an earlier generation and puts back
// what somebody else removed; repeating it is cheap. Programs of others stay.
func (d *Datapath) AttachSockets(cgroup string) error {
	var at unix.Stat_t
	if err := unix.Stat(cgroup, &at); err != nil {
		return fmt.Errorf("attach to sockets: cgroup %s: %w", cgroup, err)
	}
	for _, hook := range socketHooks {
		if err := d.attachSocket(cgroup, at.Ino, hook); err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", hook.name, cgroup, err)
		}
	}
	return nil
}

func (d *Datapath) attachSocket(cgroup string, id uint64, hook socketHook) error {
	path, prog := filepath.Join(d.dir, socketPin(hook.name)), d.sockets[hook.name]
	old, err := open(path)
	if err != nil {
		return err
	}
	if old != nil {
		defer old.Close()
		info, err := old.Info()
		if err != nil {
			return err
		}
		want, err := prog.Info()
		if err != nil {
			return err
		}
		if c := info.Cgroup(); c != nil && c.CgroupId == id {
			if ours, _ := want.ID(); ours == info.Program {
				return nil
			}
			return old.Update(prog)
		}
		if err := os.Remove(path); err != nil { // another cgroup, or one that is gone
			return err
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: hook.at, Program: prog})
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Pin(path)
}

// adoptSockets replaces the programs of an earlier generation, wherever they are attached.
func (d *Datapath) adoptSockets() error {
	for _, hook := range socketHooks {
		l, err := open(filepath.Join(d.dir, socketPin(hook.name)))
		if err != nil {
			return err
		}
		if l == nil {
			continue
		}
		err = l.Update(d.sockets[hook.name])
		l.Close()
		if err != nil {
			return fmt.Errorf("replace program %s of the previous generation: %w", hook.name, err)
		}
	}
	return nil
}

// DetachSockets ends what AttachSockets began, also what an earlier process attached.
func (d *Datapath) DetachSockets() error {
	for _, hook := range slices.Backward(socketHooks) {
		if err := os.Remove(filepath.Join(d.dir, socketPin(hook.name))); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("detach %s: %w", hook.name, err)
		}
	}
	return nil
}

// netnsCookie identifies the calling thread's network namespace.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}
