package bpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// ProgramsAt returns the names of the programs at some devices and at a cgroup ("": none),
// whosever they are. A kernel that cannot say has none there.
func ProgramsAt(devices []int, cgroup string) (names []string, err error) {
	ask := func(target int, at ebpf.AttachType) error {
		got, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: at})
		if err != nil {
			return nil // this kernel has no such hook, or the device has gone
		}
		for _, p := range got.Programs {
			name, err := nameOf(p.ID)
			if err != nil {
				return err
			}
			names = append(names, name)
		}
		return nil
	}
	for _, index := range devices {
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			if err := ask(index, at); err != nil {
				return nil, err
			}
		}
		filters, err := filtersOf(index)
		if err != nil {
			return nil, err
		}
		names = append(names, filters...)
	}
	if cgroup == "" {
		return names, nil
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	for _, at := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
		ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
	} {
		if err := ask(int(dir.Fd()), at); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// nameOf is a program's name; "" if it has gone meanwhile.
func nameOf(id ebpf.ProgramID) (string, error) {
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at program %d: %w", id, err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}

// filtersOf are the programs that are a device's tc filters.
func filtersOf(index int) (names []string, err error) {
	dev, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil, nil // it has gone
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(dev, parent)
		if err != nil {
			continue // it has no clsact
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok {
				names = append(names, b.Name)
			}
		}
	}
	return names, nil
}
