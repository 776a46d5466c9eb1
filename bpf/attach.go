package bpf

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
)

// Role is what a device is to the datapath.
type Role string

const (
	RolePod    Role = "pod"    // host side of a pod's veth
	RoleTunnel Role = "tunnel" // a lane
	RoleDevice Role = "device" // towards the outside
)

// Attachment is one device with programs on both its ways.
type Attachment struct {
	Role    Role
	Ifindex int
	Lane    int // of a tunnel
}

// Compare orders attachments by device, then role.
func (a Attachment) Compare(b Attachment) int {
	return cmp.Or(cmp.Compare(a.Ifindex, b.Ifindex), cmp.Compare(a.Role, b.Role), cmp.Compare(a.Lane, b.Lane))
}

// programs are those of a role on the device's two ways: what it receives, and
// what it sends.
func (r Role) programs() (receives, sends string) {
	switch r {
	case RolePod:
		return "from_pod", "to_pod"
	case RoleTunnel:
		return "from_tunnel", "to_tunnel"
	}
	return "from_device", "to_device"
}

// hooks puts programs onto devices, in the way this kernel knows.
type hooks interface {
	// attach puts the role's two programs in place, or this generation's into
	// the place of an older one's.
	attach(Attachment) error
	// detach takes them off; nil if there are none or the device is gone.
	detach(ifindex int) error
	// attached lists what lives.
	attached() ([]Attachment, error)
	// adopt replaces the programs of earlier generations and tells how many.
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

// AttachPod guards the host side of a pod's veth. Repeating it is harmless.
func (d *Datapath) AttachPod(ifindex int) error {
	return d.attach(Attachment{Role: RolePod, Ifindex: ifindex})
}

// AttachTunnel puts the programs onto a lane, 0 or 1. A device that served the
// lane before is let go.
func (d *Datapath) AttachTunnel(ifindex, lane int) error {
	if lane < 0 || lane > 1 {
		return fmt.Errorf("attach to tunnel: lane %d does not exist, there are 0 and 1", lane)
	}
	return d.attach(Attachment{Role: RoleTunnel, Ifindex: ifindex, Lane: lane})
}

// AttachDevice guards a device towards the outside.
func (d *Datapath) AttachDevice(ifindex int) error {
	return d.attach(Attachment{Role: RoleDevice, Ifindex: ifindex})
}

func (d *Datapath) attach(a Attachment) error {
	link, err := netlink.LinkByIndex(a.Ifindex)
	if err != nil {
		return fmt.Errorf("attach to %s device %d: %w", a.Role, a.Ifindex, err)
	}
	// Packets are read from where the header of such a device ends.
	ethernet := link.Attrs().EncapType == "ether" || link.Attrs().EncapType == "loopback"
	if ethernet != (a.Role != RoleTunnel) {
		return fmt.Errorf("attach to %s: a %s device cannot have link type %s", link.Attrs().Name, a.Role, link.Attrs().EncapType)
	}
	if err := d.hooks.attach(a); err != nil {
		return fmt.Errorf("attach to %s device %s: %w", a.Role, link.Attrs().Name, err)
	}
	return nil
}

// Detach takes the programs off a device, in whatever role.
func (d *Datapath) Detach(ifindex int) error {
	if err := d.hooks.detach(ifindex); err != nil {
		return fmt.Errorf("detach from device %d: %w", ifindex, err)
	}
	return nil
}

// Attached lists the devices that carry programs, also of an agent before this.
func (d *Datapath) Attached() ([]Attachment, error) {
	all, err := d.hooks.attached()
	if err != nil {
		return nil, fmt.Errorf("list attached devices: %w", err)
	}
	slices.SortFunc(all, Attachment.Compare)
	return slices.Compact(all), nil
}
