package peers

import (
	"context"
	"crypto/ecdh"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// A real WireGuard shakes hands with a generated node and has its echo request answered.
func TestGeneratedNodesAnswerWireGuard(t *testing.T) {
	theirs, ours := privateKey("gen-002", "n0000", 1), privateKey("real", "n1", 1)
	responders := NewResponders(func(netip.AddrPort) *ecdh.PrivateKey { return theirs })
	socket, err := NewSocket(0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return responders.Serve(ctx, socket) })
	defer func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}()

	link := tuntest.NewChannelTUN()
	dev := device.NewDevice(link.TUN(), conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	defer dev.Close()
	// Any address of the loopback network is ours; the answer has to come from the one asked.
	err = dev.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=127.7.7.7:%d\nallowed_ip=20.0.0.0/8\n",
		hex.EncodeToString(ours.Bytes()), hex.EncodeToString(theirs.PublicKey().Bytes()), socket.port))
	if err == nil {
		err = dev.Up()
	}
	if err != nil {
		t.Fatal(err)
	}
	here, there := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("20.0.0.1")
	link.Outbound <- echoRequest(here, there)
	select {
	case got := <-link.Inbound:
		if want := echoRequest(there, here); got[20] != 0 || string(got[12:20]) != string(want[12:20]) || checksum(got[20:]) != 0 {
			t.Errorf("answered %x", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not answered")
	}
}

func TestGeneratedNodesAnswerOnlyWhatTheyAre(t *testing.T) {
	s := PerCluster()
	s.Clusters, s.Nodes, s.Endpoints, s.Identities, s.Services, s.Backends, s.Large = 2, 3, 3, 1, 0, 0, 0
	w, err := New(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	r := w.Responders()
	if key := r.keys(netip.AddrPortFrom(s.outside(1, 2), LanePorts[1])); key == nil || !key.Equal(privateKey(w.Clusters[1].Name(), nodeName(2), 1)) {
		t.Error("another key than the node's")
	}
	for name, at := range map[string]netip.AddrPort{
		"another port":    netip.AddrPortFrom(s.outside(1, 2), LanePorts[0]),
		"no such node":    netip.AddrPortFrom(s.outside(1, mostNodes-2), LanePorts[1]),
		"no such cluster": netip.AddrPortFrom(s.outside(2, 0), LanePorts[1]),
		"elsewhere":       netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), LanePorts[1]),
	} {
		if r.keys(at) != nil {
			t.Errorf("%s: somebody is at %v", name, at)
		}
	}
}

// Whatever is sent to a node, it answers at most with a message of the same protocol.
func FuzzAnswer(f *testing.F) {
	key := privateKey("gen-002", "n0000", 1)
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0})
	f.Add(append([]byte{1, 0, 0, 0}, make([]byte, device.MessageInitiationSize-4)...))
	f.Add(append([]byte{4, 0, 0, 0}, make([]byte, device.MessageTransportSize)...))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		r := NewResponders(func(netip.AddrPort) *ecdh.PrivateKey { return key })
		if answer, err := r.Answer(netip.AddrPort{}, datagram); err == nil && len(answer) < device.MessageResponseSize {
			t.Errorf("answered %x", answer)
		}
	})
}

func echoRequest(from, to netip.Addr) []byte {
	p := make([]byte, 20+8)
	p[0], p[8], p[9], p[20] = 0x45, 64, 1, 8
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	source, destination := from.As4(), to.As4()
	copy(p[12:], source[:])
	copy(p[16:], destination[:])
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
	binary.BigEndian.PutUint16(p[22:], checksum(p[20:]))
	return p
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
