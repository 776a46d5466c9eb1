package fabric

import (
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A block drops what is for its address, of its flows alone if it names some, in either
// family.
func TestBlocks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads a BPF program")
	}
	frame := func(etherType uint16, packet []byte) []byte {
		head := make([]byte, 14)
		head[12], head[13] = byte(etherType>>8), byte(etherType)
		return append(append(head, packet...), make([]byte, 40)...)
	}
	blocks := []Block{
		{To: netip.MustParseAddr("172.16.2.1"), Flows: []Flow{{6, 2379}}},
		{To: netip.MustParseAddr("fd00:172:16:2::1"), Flows: []Flow{{17, 51871}}},
		{To: netip.MustParseAddr("fd00:172:16:2::2")},
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: instructions(blocks)})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	for name, c := range map[string]struct {
		frame   []byte
		dropped bool
	}{
		"a flow":            {frame(unix.ETH_P_IP, packet(6, nodeA, nodeB, "")), true},
		"another":           {frame(unix.ETH_P_IP, packet(17, nodeA, nodeB, "")), false},
		"the way back":      {frame(unix.ETH_P_IP, packet(6, nodeB, nodeA, "")), false},
		"a flow of IPv6":    {frame(unix.ETH_P_IPV6, ported6(17, "fd00:172:16:1::1", "fd00:172:16:2::1", 51871)), true},
		"another of IPv6":   {frame(unix.ETH_P_IPV6, ported6(17, "fd00:172:16:1::1", "fd00:172:16:2::1", 51872)), false},
		"all of an address": {frame(unix.ETH_P_IPV6, ported6(6, "fd00:172:16:1::1", "fd00:172:16:2::2", 1)), true},
		"another address":   {frame(unix.ETH_P_IPV6, ported6(6, "fd00:172:16:1::1", "fd00:172:16:2::3", 1)), false},
	} {
		code, err := prog.Run(&ebpf.RunOptions{Data: c.frame})
		if err != nil {
			t.Fatal(err)
		}
		if (code == 2) != c.dropped {
			t.Errorf("%s: the program returns %d", name, int32(code))
		}
	}
}
