package bpf

import "cmp"

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
