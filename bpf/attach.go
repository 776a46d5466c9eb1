package bpf

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
)

// Role is what the datapath uses a device for.
type Role string

const (
	RolePod    Role = "pod"    // host side of a pod's veth
	RoleTunnel Role = "tunnel" // a lane
	RoleDevice Role = "device" // towards the outside

	RoleWaiting Role = "waiting" // far end of the waiting room, see waiting.go
)

// Attachment is one device with programs in both directions.
type Attachment struct {
	Role    Role
	Ifindex int
	Lane    int // 0 or 1; for RoleTunnel only
}

// Compare orders attachments by device, then role.
func (a Attachment) Compare(b Attachment) int {
	return cmp.Or(cmp.Compare(a.Ifindex, b.Ifindex), cmp.Compare(a.Role, b.Role), cmp.Compare(a.Lane, b.Lane))
}

// programs are the role's programs for what the device receives and for what it
// sends.
func (r Role) programs() (receives, sends string) {
	switch r {
	case RolePod:
		return "from_pod", "to_pod"
	case RoleTunnel:
		return "from_tunnel", "to_tunnel"
	case RoleWaiting:
		return "from_waiting", "to_waiting"
	}
	return "from_device", "to_device"
}

// hooks attaches programs to devices in the way that this kernel supports.
type hooks interface {
	// attach attaches the role's two programs, replacing those of an older
	// generation.
	attach(Attachment) error
	// detach removes them; nil if there are none or the device is gone.
	detach(ifindex int) error
	// attached lists the devices that exist and have programs.
	attached() ([]Attachment, error)
	// holds says whether the role's two programs, of this generation, are attached.
	holds(Attachment) (bool, error)
	// adopt replaces the programs of earlier generations and returns how many.
	adopt() (int, error)
	// remove detaches everything.
	remove() error
}

func newHooks(d *Datapath, clsact bool) hooks {
	if clsact || !haveTCX() {
		return &filterHooks{d}
	}
	return &linkHooks{d}
}

// AttachPod attaches programs to the host side of a pod's veth. Repeating it is
// harmless.
func (d *Datapath) AttachPod(ifindex int) error {
	return d.attach(Attachment{Role: RolePod, Ifindex: ifindex})
}

// AttachTunnel attaches programs to the device of a lane, 0 or 1, and detaches the
// lane's previous device, if it was another.
func (d *Datapath) AttachTunnel(ifindex, lane int) error {
	if lane < 0 || lane > 1 {
		return fmt.Errorf("attach to tunnel %d: it does not exist; use 0 or 1", lane)
	}
	return d.attach(Attachment{Role: RoleTunnel, Ifindex: ifindex, Lane: lane})
}

// AttachDevice attaches programs to a device towards the outside.
func (d *Datapath) AttachDevice(ifindex int) error {
	return d.attach(Attachment{Role: RoleDevice, Ifindex: ifindex})
}

func (d *Datapath) attach(a Attachment) error {
	link, err := netlink.LinkByIndex(a.Ifindex)
	if err != nil {
		return fmt.Errorf("attach to %s device %d: %w", a.Role, a.Ifindex, err)
	}
	// The programs expect the IP header at a fixed offset for each role.
	ethernet := link.Attrs().EncapType == "ether" || link.Attrs().EncapType == "loopback"
	if ethernet != (a.Role != RoleTunnel) {
		return fmt.Errorf("attach to %s: a %s device cannot have link type %s", link.Attrs().Name, a.Role, link.Attrs().EncapType)
	}
	if err := d.hooks.attach(a); err != nil {
		return fmt.Errorf("attach to %s device %s: %w", a.Role, link.Attrs().Name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if a.Role == RoleTunnel {
		maps.DeleteFunc(d.attached, func(old Attachment, _ bool) bool { return old.Role == RoleTunnel && old.Lane == a.Lane })
	}
	d.attached[a] = true
	return nil
}

// Detach removes the programs from a device, whatever its role.
func (d *Datapath) Detach(ifindex int) error {
	d.mending.RLock()
	defer d.mending.RUnlock()
	d.mu.Lock()
	maps.DeleteFunc(d.attached, func(a Attachment, _ bool) bool { return a.Ifindex == ifindex })
	d.mu.Unlock()
	if err := d.hooks.detach(ifindex); err != nil {
		return fmt.Errorf("detach from device %d: %w", ifindex, err)
	}
	return nil
}

// Attached lists the devices that have programs, including those attached by an
// earlier agent, in order of ifindex. The waiting room is the datapath's own, and left out.
func (d *Datapath) Attached() ([]Attachment, error) {
	all, err := d.hooks.attached()
	if err != nil {
		return nil, fmt.Errorf("list attached devices: %w", err)
	}
	all = slices.DeleteFunc(all, func(a Attachment) bool { return a.Role == RoleWaiting })
	slices.SortFunc(all, Attachment.Compare)
	return slices.Compact(all), nil
}
