package bpf

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterHooks uses filters on a clsact qdisc, for kernels without tcx. The kernel
// keeps them without a pin; we recognize ours by name.
type filterHooks struct{ d *Datapath }

const filterPrefix = "weft_"

// filterName encodes role, lane and program.
func (a Attachment) filterName(program string) string {
	return fmt.Sprintf("%s%s_%d_%s", filterPrefix, a.Role, a.Lane, program)
}

func parseFilterName(name string) (a Attachment, program string, ok bool) {
	rest, ok := strings.CutPrefix(name, filterPrefix)
	if !ok {
		return a, "", false
	}
	role, rest, _ := strings.Cut(rest, "_")
	a.Role = Role(role)
	if _, err := fmt.Sscanf(rest, "%d_%s", &a.Lane, &program); err != nil {
		return a, "", false
	}
	return a, program, true
}

var parents = map[bool]uint32{true: netlink.HANDLE_MIN_INGRESS, false: netlink.HANDLE_MIN_EGRESS}

func (h *filterHooks) attach(a Attachment) error {
	if a.Role == RoleTunnel {
		if err := h.leaveLane(a); err != nil {
			return err
		}
	}
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: a.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact qdisc (CONFIG_NET_SCH_INGRESS): %w", err)
	}
	in, out := a.Role.programs()
	for _, program := range []string{in, out} {
		if err := h.set(a, program, parents[program == in]); err != nil {
			return err
		}
	}
	return nil
}

func (h *filterHooks) holds(a Attachment) (bool, error) {
	link, err := netlink.LinkByIndex(a.Ifindex)
	if err != nil {
		return false, err
	}
	in, out := a.Role.programs()
	for _, program := range []string{in, out} {
		filters, err := netlink.FilterList(link, parents[program == in])
		if err != nil {
			return false, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
		}
		if !slices.ContainsFunc(filters, func(f netlink.Filter) bool {
			ours, ok := f.(*netlink.BpfFilter)
			return ok && ours.Name == a.filterName(program)
		}) {
			return false, nil
		}
	}
	return true, nil
}

// set attaches this generation's program, replacing an older one's in place. Filters of others
// keep their handles; of those with the first priority, the kernel asks the newest first.
func (h *filterHooks) set(a Attachment, program string, parent uint32) error {
	handle, err := h.handle(a.Ifindex, parent)
	if err != nil {
		return err
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: a.Ifindex, Parent: parent, Handle: handle, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Fd: h.d.progs[program].FD(), Name: a.filterName(program), DirectAction: true,
	}
	if err := netlink.FilterReplace(filter); err != nil {
		return fmt.Errorf("set filter %s (CONFIG_NET_CLS_BPF): %w", program, err)
	}
	return nil
}

// handle is that of our filter in one direction of a device, or a free one.
func (h *filterHooks) handle(ifindex int, parent uint32) (uint32, error) {
	link, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return 0, err
	}
	filters, err := netlink.FilterList(link, parent)
	if err != nil {
		return 0, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
	}
	taken := map[uint32]bool{}
	for _, f := range filters {
		if f.Attrs().Priority != 1 {
			continue
		}
		taken[f.Attrs().Handle] = true
		if ours, ok := f.(*netlink.BpfFilter); ok {
			if _, _, ok := parseFilterName(ours.Name); ok {
				return ours.Handle, nil
			}
		}
	}
	handle := uint32(1)
	for taken[handle] {
		handle++
	}
	return handle, nil
}

// leaveLane detaches another device that served a's lane.
func (h *filterHooks) leaveLane(a Attachment) error {
	all, err := h.attached()
	if err != nil {
		return err
	}
	for _, old := range all {
		if old.Role == RoleTunnel && old.Lane == a.Lane && old.Ifindex != a.Ifindex {
			if err := h.detach(old.Ifindex); err != nil {
				return err
			}
		}
	}
	return nil
}

// each visits our filters on the devices of this network namespace.
func (h *filterHooks) each(visit func(a Attachment, program string, f *netlink.BpfFilter) error) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		for _, parent := range parents {
			filters, err := netlink.FilterList(l, parent)
			if err != nil {
				continue // the device is gone, or has no such qdisc
			}
			for _, f := range filters {
				ours, ok := f.(*netlink.BpfFilter)
				if !ok {
					continue
				}
				a, program, ok := parseFilterName(ours.Name)
				if !ok {
					continue
				}
				a.Ifindex = l.Attrs().Index
				if err := visit(a, program, ours); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (h *filterHooks) adopt() (n int, err error) {
	err = h.each(func(a Attachment, program string, f *netlink.BpfFilter) error {
		if h.d.progs[program] == nil {
			return nil // from a version with other programs: attach replaces it
		}
		n++
		return h.set(a, program, f.Parent)
	})
	return n, err
}

func (h *filterHooks) attached() (all []Attachment, err error) {
	err = h.each(func(a Attachment, _ string, _ *netlink.BpfFilter) error {
		all = append(all, a)
		return nil
	})
	return all, err
}

func (h *filterHooks) detach(index int) error {
	return h.each(func(a Attachment, _ string, f *netlink.BpfFilter) error {
		if a.Ifindex != index {
			return nil
		}
		return netlink.FilterDel(f)
	})
}

func (h *filterHooks) remove() error {
	return h.each(func(_ Attachment, _ string, f *netlink.BpfFilter) error { return netlink.FilterDel(f) })
}
