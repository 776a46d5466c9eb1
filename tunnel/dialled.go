package tunnel

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// dialled opens wgctrl for each call, because the kernel's module may be loaded, or
// `weft tunnel` started, after this process. What `weft tunnel` serves it reads itself:
// wgctrl makes several kilobytes of garbage for each peer, and takes an answer that is cut
// off for a whole one.
type dialled struct {
	dir   string         // of the sockets
	peers map[string]int // how many each device had
}

func newDialled(dir string) dialled { return dialled{dir, map[string]int{}} }

func (d dialled) Device(name string, kind Kind) (*wgtypes.Device, error) {
	if kind == Kernel {
		return readKernel(name)
	}
	dev, err := d.readServed(name, d.peers[name])
	if err == nil {
		d.peers[name] = len(dev.Peers)
	}
	return dev, err
}

func (d dialled) Head(name string, kind Kind) (*wgtypes.Device, error) {
	if kind == Kernel {
		return readKernel(name)
	}
	return d.readServed(name, headOnly)
}

func readKernel(name string) (*wgtypes.Device, error) {
	c, err := wgctrl.New()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	dev, err := c.Device(name)
	if err == nil && dev.Type == wgtypes.Userspace {
		return nil, fs.ErrNotExist // the kernel's is gone: the next look finds out
	}
	return dev, err
}

func (dialled) ConfigureDevice(name string, change wgtypes.Config) error {
	c, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.ConfigureDevice(name, change)
}

// readServed reads a device that `weft tunnel` serves. room is how many peers it may have,
// or headOnly.
func (d dialled) readServed(name string, room int) (*wgtypes.Device, error) {
	c, err := net.Dial("unix", filepath.Join(d.dir, name+".sock"))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "get=1\n\n"); err != nil {
		return nil, err
	}
	dev, err := parseServed(c, room)
	if err != nil {
		return nil, fmt.Errorf("the answer of what serves it: %w", err)
	}
	dev.Name = name
	return dev, nil
}

// headOnly leaves the peers out.
const headOnly = -1

// parseServed parses an answer in WireGuard's cross-platform configuration protocol: lines
// key=value, an empty one at the end. What is cut off is an error: it would look like peers
// that are gone.
func parseServed(r io.Reader, room int) (*wgtypes.Device, error) {
	d := &wgtypes.Device{Type: wgtypes.Userspace, Peers: make([]wgtypes.Peer, 0, max(0, room))}
	var seconds int64
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Bytes()
		if len(line) == 0 || room == headOnly && bytes.HasPrefix(line, []byte("public_key=")) {
			d.PublicKey = d.PrivateKey.PublicKey()
			return d, nil
		}
		key, value, _ := bytes.Cut(line, []byte("="))
		var err error
		if string(key) == "public_key" {
			d.Peers = append(d.Peers, wgtypes.Peer{})
			err = parseKey(&d.Peers[len(d.Peers)-1].PublicKey, value)
		} else if n := len(d.Peers); n == 0 || string(key) == "errno" {
			err = parseOfDevice(d, key, value)
		} else {
			err = parseOfPeer(&d.Peers[n-1], key, value, &seconds)
		}
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", key, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return nil, io.ErrUnexpectedEOF
}

func parseOfDevice(d *wgtypes.Device, key, value []byte) (err error) {
	switch string(key) {
	case "errno":
		if n, err := strconv.Atoi(string(value)); err != nil || n != 0 {
			return fmt.Errorf("it answers with error %q", value)
		}
	case "private_key":
		return parseKey(&d.PrivateKey, value)
	case "listen_port":
		d.ListenPort, err = strconv.Atoi(string(value))
	case "fwmark":
		d.FirewallMark, err = strconv.Atoi(string(value))
	}
	return err
}

// parseOfPeer takes the seconds of a handshake along to the line with the rest.
func parseOfPeer(p *wgtypes.Peer, key, value []byte, seconds *int64) (err error) {
	switch string(key) {
	case "preshared_key":
		return parseKey(&p.PresharedKey, value)
	case "protocol_version":
		p.ProtocolVersion, err = strconv.Atoi(string(value))
	case "endpoint":
		at, err := netip.ParseAddrPort(string(value))
		if err != nil {
			return err
		}
		p.Endpoint = net.UDPAddrFromAddrPort(at)
	case "last_handshake_time_sec":
		*seconds, err = strconv.ParseInt(string(value), 10, 64)
	case "last_handshake_time_nsec":
		rest, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil {
			return err
		}
		if *seconds > 0 || rest > 0 {
			p.LastHandshakeTime = time.Unix(*seconds, rest)
		}
	case "tx_bytes":
		p.TransmitBytes, err = strconv.ParseInt(string(value), 10, 64)
	case "rx_bytes":
		p.ReceiveBytes, err = strconv.ParseInt(string(value), 10, 64)
	case "persistent_keepalive_interval":
		n, err := strconv.Atoi(string(value))
		if err != nil {
			return err
		}
		p.PersistentKeepaliveInterval = time.Duration(n) * time.Second
	case "allowed_ip":
		prefix, err := netip.ParsePrefix(string(value))
		if err != nil {
			return err
		}
		p.AllowedIPs = append(p.AllowedIPs, ipNet(prefix.Masked()))
	}
	return err
}

func parseKey(to *wgtypes.Key, text []byte) error {
	if len(text) != 2*len(to) {
		return errors.New("not a key")
	}
	_, err := hex.Decode(to[:], text)
	return err
}
