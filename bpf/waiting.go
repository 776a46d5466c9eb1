package bpf

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The waiting room of fragments that overtook the first of their datagram, see lib/early.h:
// a pair of devices of the node. What enters by waitingIn comes out of waitingOut.
const (
	waitingIn  = "weft_wait_in"
	waitingOut = "weft_wait_out"
)

// waitingQueue lets one packet pass every 250 µs, and holds 64. Whoever waits alone comes back 31
// times, so for 8 ms. The overhead (bytes) makes all packets take about as long, whatever their
// size, and the burst (bytes) is the largest that fits.
const (
	waitingOverhead = 1<<16 - 1
	waitingRate     = waitingOverhead * 4000 // bytes per second
	waitingBurst    = 1 << 14
	waitingPackets  = 64
	waitingMTU      = waitingBurst - 14
)

// errNoQueue says that the kernel has no such queue. This is a limit, not a problem: nothing
// mends it.
var errNoQueue = errors.New("this kernel has no token bucket queue (CONFIG_NET_SCH_TBF)")

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h: a device gets no address by itself.
const addrGenNone = 1

// openWaitingRoom makes what is missing of the waiting room, and has fragments wait there.
func (d *Datapath) openWaitingRoom() error {
	in, out, err := waitingDevices()
	if err != nil {
		err = fmt.Errorf("devices in which fragments wait for their first: %w", err)
		return errors.Join(err, d.waiting.Put(uint32(0), uint32(0)))
	}
	if err := d.attach(Attachment{Role: RoleWaiting, Ifindex: out}); err != nil {
		return err
	}
	return d.waiting.Put(uint32(0), uint32(in))
}

// mendWaitingRoom opens the waiting room again if something of it is gone.
func (d *Datapath) mendWaitingRoom() (again bool, err error) {
	var in uint32
	if err := d.waiting.Lookup(uint32(0), &in); err != nil {
		return false, fmt.Errorf("look at the waiting room: %w", err)
	}
	if waitingRoomStands(int(in)) {
		return false, nil
	}
	if err = d.openWaitingRoom(); errors.Is(err, errNoQueue) {
		return false, nil
	}
	return err == nil, err
}

// waitingRoomStands says whether both devices are up, the one with this index with its queue.
func waitingRoomStands(in int) bool {
	for _, name := range []string{waitingIn, waitingOut} {
		l, err := netlink.LinkByName(name)
		if err != nil || l.Attrs().Flags&net.FlagUp == 0 || name == waitingIn && l.Attrs().Index != in {
			return false
		}
		if name == waitingOut {
			continue
		}
		queues, err := netlink.QdiscList(l)
		if err != nil || !slices.ContainsFunc(queues, func(q netlink.Qdisc) bool { return q.Type() == "tbf" }) {
			return false
		}
	}
	return true
}

// waitingDevices finds the pair, or makes it, with its queue.
func waitingDevices() (in, out int, err error) {
	a, err := netlink.LinkByName(waitingIn)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = waitingIn, waitingMTU
		if err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: waitingOut, PeerMTU: waitingMTU}); err == nil {
			a, err = netlink.LinkByName(waitingIn)
		}
	}
	if err != nil {
		return 0, 0, err
	}
	b, err := netlink.LinkByName(waitingOut)
	if err != nil {
		return 0, 0, err
	}
	for _, l := range []netlink.Link{a, b} {
		if l.Type() != "veth" {
			return 0, 0, fmt.Errorf("device %s is a %s, not a veth: remove it", l.Attrs().Name, l.Type())
		}
		// Nothing of the node's own shall go there.
		if err := netlink.LinkSetIP6AddrGenMode(l, addrGenNone); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return 0, 0, fmt.Errorf("keep addresses from %s: %w", l.Attrs().Name, err)
		}
	}
	// The queue first: without it packets would go round without a pause.
	if err := setWaitingQueue(a.Attrs().Index); err != nil {
		return 0, 0, fmt.Errorf("queue of %s: %w", waitingIn, err)
	}
	for _, l := range []netlink.Link{a, b} {
		if err := netlink.LinkSetUp(l); err != nil {
			return 0, 0, fmt.Errorf("set %s up: %w", l.Attrs().Name, err)
		}
	}
	return a.Attrs().Index, b.Attrs().Index, nil
}

// setWaitingQueue replaces a device's queue: a token bucket (sch_tbf) over one of so many packets
// (sch_fifo). netlink.Tbf knows no overhead.
func setWaitingQueue(ifindex int) error {
	rate := nl.TcRateSpec{Linklayer: nl.LINKLAYER_ETHERNET, Overhead: waitingOverhead, Rate: waitingRate}
	conf := nl.TcTbfQopt{Rate: rate, Limit: waitingPackets * waitingBurst}
	bucket := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	bucket.AddRtAttr(nl.TCA_TBF_PARMS, conf.Serialize())
	bucket.AddRtAttr(nl.TCA_TBF_BURST, nl.Uint32Attr(waitingBurst))
	if err := setQueue(ifindex, "tbf", netlink.HANDLE_ROOT, netlink.MakeHandle(1, 0), bucket); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return errNoQueue
		}
		return err
	}
	return setQueue(ifindex, "pfifo", netlink.MakeHandle(1, 1), 0, nl.NewRtAttr(nl.TCA_OPTIONS, nl.Uint32Attr(waitingPackets)))
}

// setQueue puts a queue of this kind under a parent, in place of another.
func setQueue(ifindex int, kind string, parent, handle uint32, options *nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(ifindex), Handle: handle, Parent: parent})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(kind)))
	req.AddData(options)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// removeWaitingRoom removes the devices; nil if there are none.
func removeWaitingRoom() error {
	a, err := netlink.LinkByName(waitingIn)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(a)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", waitingIn, err)
	}
	return nil
}
