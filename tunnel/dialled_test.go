package tunnel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// What a device answers is read as it was set; what is cut off is not.
func TestReadServed(t *testing.T) {
	dev := bareDevice(t)
	key, err := NewPrivateKey()
	other, err2 := NewPrivateKey()
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	peer, secret := other.Public(), strings.Repeat("0a", 32)
	err = dev.IpcSet(fmt.Sprintf("private_key=%x\nlisten_port=0\nfwmark=7\npublic_key=%x\npreshared_key=%s\nendpoint=[fd00::1]:51871\npersistent_keepalive_interval=25\nallowed_ip=10.1.0.0/24\nallowed_ip=fd01::/64\npublic_key=%064x\nendpoint=192.0.2.1:5\n",
		key.raw[:], peer[:], secret, 9))
	if err != nil {
		t.Fatal(err)
	}
	text, err := dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	text += "errno=0\n\n"
	d, err := parseServed(strings.NewReader(text), 0)
	if err != nil || d.PrivateKey != key.raw || d.FirewallMark != 7 || len(d.Peers) != 2 {
		t.Fatalf("%+v, %v", d, err)
	}
	slices.SortFunc(d.Peers, func(a, b wgtypes.Peer) int { return len(b.AllowedIPs) - len(a.AllowedIPs) })
	p, q := d.Peers[0], d.Peers[1]
	if Key(p.PublicKey) != peer || p.PresharedKey[0] != 10 || p.Endpoint.String() != "[fd00::1]:51871" || p.PersistentKeepaliveInterval != 25*time.Second || p.ProtocolVersion != 1 || !p.LastHandshakeTime.IsZero() {
		t.Errorf("%+v", p)
	}
	for i, want := range []string{"10.1.0.0/24", "fd01::/64"} {
		if got := fromIPNet(p.AllowedIPs[i]); got != netip.MustParsePrefix(want) {
			t.Errorf("allowed %v, want %s", got, want)
		}
	}
	if q.PublicKey[31] != 9 || q.Endpoint.String() != "192.0.2.1:5" || len(q.AllowedIPs) > 0 {
		t.Errorf("%+v", q)
	}
	for n := range len(text) - 1 {
		if _, err := parseServed(strings.NewReader(text[:n]), 0); err == nil {
			t.Fatalf("the first %d of %d bytes are taken for the whole", n, len(text))
		}
	}
	if d, err = parseServed(strings.NewReader(text), headOnly); err != nil || d.PrivateKey != key.raw || len(d.Peers) > 0 {
		t.Errorf("the head alone: %+v, %v", d, err)
	}

	const shaken = "public_key=0000000000000000000000000000000000000000000000000000000000000001\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\nrx_bytes=7\ntx_bytes=8\nerrno=0\n\n"
	if d, err = parseServed(strings.NewReader(shaken), 0); err != nil || !d.Peers[0].LastHandshakeTime.Equal(time.Unix(5, 6)) || d.Peers[0].ReceiveBytes != 7 || d.Peers[0].TransmitBytes != 8 {
		t.Errorf("%+v, %v", d, err)
	}
	for text, want := range map[string]string{
		"": "unexpected EOF", "errno=1\n\n": "error", "public_key=12\n\n": "not a key", "public_key=" + strings.Repeat("x", 64) + "\n\n": "public_key",
		shaken[:76] + "endpoint=here\n\n": "endpoint", shaken[:76] + "allowed_ip=10.1.0.0\n\n": "allowed_ip", shaken[:76] + "rx_bytes=many\n\n": "rx_bytes",
	} {
		if _, err := parseServed(strings.NewReader(text), 0); err == nil || !strings.Contains(err.Error(), want) || text == "" && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// A device that `weft tunnel` serves is read from its socket alone, and an answer that is cut
// off is an error, whoever else would take it; where nothing answers, the error says so. The
// kernel's is not read from there.
func TestDialled(t *testing.T) {
	key, peer := strings.Repeat("11", 32), strings.Repeat("22", 32)
	whole := "private_key=" + key + "\npublic_key=" + peer + "\npublic_key=" + key + "\nerrno=0\n\n"
	const name = "weft-dialled"
	d := newDialled(t.TempDir())
	path := filepath.Join(d.dir, name+".sock")
	for _, read := range []reader{d.Device, d.Head} {
		if _, err := read(name, Userspace); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without a socket: %v", err)
		}
	}
	serve := func(text string) *net.UnixListener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = bufio.NewReader(c).ReadString('\n')
				_, _ = io.WriteString(c, text)
				c.Close()
			}
		}()
		return l
	}
	for _, tt := range []struct {
		text    string
		peers   int // -1: an error
		head    bool
		what    string
		failure error
	}{
		{whole, 2, true, "whole", nil},
		{strings.TrimSuffix(whole, "\n"), -1, true, "without the empty line", io.ErrUnexpectedEOF},
		{whole[:strings.LastIndex(whole, "public_key")], -1, true, "without its last peer", io.ErrUnexpectedEOF},
		{"private_key=" + key + "\n", -1, false, "without peers", io.ErrUnexpectedEOF},
	} {
		l := serve(tt.text)
		dev, err := d.Device(name, Userspace)
		if tt.peers < 0 && !errors.Is(err, tt.failure) || tt.peers >= 0 && (err != nil || len(dev.Peers) != tt.peers || dev.Name != name) {
			t.Errorf("%s: %+v, %v", tt.what, dev, err)
		}
		if dev, err := d.Head(name, Userspace); tt.head != (err == nil) || err == nil && (len(dev.Peers) > 0 || dev.PrivateKey[0] != 0x11) {
			t.Errorf("%s: the head alone: %+v, %v", tt.what, dev, err)
		}
		for _, read := range []reader{d.Device, d.Head} {
			if dev, err := read(name, Kernel); err == nil {
				t.Errorf("%s: read as the kernel's: %+v", tt.what, dev)
			}
		}
		l.Close()
		if _, err := d.Device(name, Userspace); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a socket that a killed process left: %v", err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
