package fabric

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Block is what a port drops from its machine: packets to an address, all of them or
// those of some flows. It cuts one direction between two machines, even within a
// cluster.
type Block struct {
	To    netip.Addr
	Flows []Flow // none: everything
}

// SetBlocks replaces the blocks of a port. They survive a power loss of the machine.
func (f *Fabric) SetBlocks(port string, blocks []Block) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	had := f.blocks[port]
	f.blocks[port] = slices.Clone(blocks)
	if len(had) == 0 && len(blocks) == 0 {
		return nil
	}
	return f.blockLocked(port)
}

// Blocks returns the blocks of a port.
func (f *Fabric) Blocks(port string) []Block {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.blocks[port])
}

func (f *Fabric) blockLocked(port string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("block port %s of fabric %s: %w", port, f.Cluster, err)
		}
	}()
	dev, err := f.link.LinkByName(port)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil // Plug will call this again
	}
	if err != nil {
		return err
	}
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: dev.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := f.link.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "block", Type: ebpf.SchedCLS, License: "GPL", Instructions: instructions(f.blocks[port])})
	if err != nil {
		return err
	}
	defer prog.Close() // the filter keeps it
	return f.link.FilterReplace(&netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: dev.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:           prog.FD(),
		Name:         "block",
		DirectAction: true,
	})
}

// layout says where things are in an Ethernet frame whose IP header has no options or
// extensions.
type layout struct {
	etherType                int32
	atProtocol, atDst, ports int32
}

const atEtherType = 12

var (
	layoutIPv4 = layout{unix.ETH_P_IP, 23, 30, 34}
	layoutIPv6 = layout{unix.ETH_P_IPV6, 20, 38, 54}
)

// instructions is a program that drops what is blocked. A packet too short for a load
// ends it with 0, which lets the packet pass.
func instructions(blocks []Block) asm.Instructions {
	pass := asm.Mov.Imm(asm.R0, -1) // TC_ACT_UNSPEC: as without a filter
	if len(blocks) == 0 {
		return asm.Instructions{pass, asm.Return()}
	}
	ins := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)} // loads expect the packet in R6
	for i, b := range blocks {
		at := layoutIPv4
		if b.To.Is6() {
			at = layoutIPv6
		}
		next := fmt.Sprintf("block%d", i+1)
		ins = append(ins, asm.LoadAbs(atEtherType, asm.Half), asm.JNE.Imm(asm.R0, at.etherType, next))
		for j, word := 0, b.To.AsSlice(); j < len(word); j += 4 {
			ins = append(ins,
				asm.LoadAbs(at.atDst+int32(j), asm.Word),
				// As 64 bits: an immediate would be sign-extended.
				asm.LoadImm(asm.R1, int64(binary.BigEndian.Uint32(word[j:])), asm.DWord),
				asm.JNE.Reg(asm.R0, asm.R1, next))
		}
		if len(b.Flows) == 0 {
			ins = append(ins, asm.Ja.Label("drop"))
		}
		for j, f := range b.Flows {
			other := fmt.Sprintf("block%dflow%d", i, j+1)
			ins = append(ins, asm.LoadAbs(at.atProtocol, asm.Byte))
			if f.Protocol != 0 {
				ins = append(ins, asm.JNE.Imm(asm.R0, int32(f.Protocol), other))
			}
			for _, port := range []int32{at.ports, at.ports + 2} {
				ins = append(ins, asm.LoadAbs(port, asm.Half), asm.JEq.Imm(asm.R0, int32(f.Port), "drop"))
			}
			ins = append(ins, asm.Mov.Imm(asm.R0, 0).WithSymbol(other))
		}
		ins = append(ins, asm.Mov.Imm(asm.R0, 0).WithSymbol(next))
	}
	return append(ins,
		asm.Ja.Label("pass"),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("drop"), // TC_ACT_SHOT
		asm.Return(),
		pass.WithSymbol("pass"),
		asm.Return())
}
