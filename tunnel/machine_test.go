package tunnel

import (
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// machine has the devices of one node in memory. They behave like WireGuard's: an
// address has one owner, and a new private key ends every session.
type machine struct {
	devices  map[string]*wgtypes.Device
	kind     Kind
	packets  map[string]uint64
	changes  []wgtypes.Config // in order
	failure  error
	reads    int
	touched  map[wgtypes.Key]int // how often a peer was named in a change
	sessions int                 // how often all sessions of a device were ended
}

func newMachine() *machine {
	return &machine{devices: map[string]*wgtypes.Device{}, kind: Userspace, packets: map[string]uint64{}, touched: map[wgtypes.Key]int{}}
}

func (m *machine) ensure(name string) (int, Kind, error) {
	if m.devices[name] == nil {
		m.devices[name] = &wgtypes.Device{Name: name}
	}
	return 10 + slices.Index(DefaultDevices[:], name), m.kind, nil
}

func (m *machine) received(name string) (uint64, error) { return m.packets[name], nil }

func (m *machine) Device(name string, kind Kind) (*wgtypes.Device, error) {
	if m.failure != nil {
		return nil, m.failure
	}
	m.reads++
	d, there := m.devices[name]
	if !there {
		return nil, fs.ErrNotExist
	}
	clone := *d
	clone.Peers = slices.Clone(d.Peers)
	return &clone, nil
}

func (m *machine) Head(name string, kind Kind) (*wgtypes.Device, error) { return m.Device(name, kind) }

func (m *machine) ConfigureDevice(name string, c wgtypes.Config) error {
	if m.failure != nil {
		return m.failure
	}
	m.changes = append(m.changes, c)
	d := m.devices[name]
	if c.PrivateKey != nil {
		d.PrivateKey = *c.PrivateKey
		m.sessions++
	}
	if c.ListenPort != nil {
		d.ListenPort = *c.ListenPort
	}
	for _, change := range c.Peers {
		m.touched[change.PublicKey]++
		i := slices.IndexFunc(d.Peers, func(p wgtypes.Peer) bool { return p.PublicKey == change.PublicKey })
		if change.Remove {
			if i >= 0 {
				d.Peers = slices.Delete(d.Peers, i, i+1)
			}
			continue
		}
		if i < 0 {
			d.Peers = append(d.Peers, wgtypes.Peer{PublicKey: change.PublicKey})
			i = len(d.Peers) - 1
		}
		if change.Endpoint != nil {
			d.Peers[i].Endpoint = change.Endpoint
		}
		if change.PersistentKeepaliveInterval != nil {
			d.Peers[i].PersistentKeepaliveInterval = *change.PersistentKeepaliveInterval
		}
		for _, n := range change.AllowedIPs {
			for j := range d.Peers {
				d.Peers[j].AllowedIPs = slices.DeleteFunc(slices.Clone(d.Peers[j].AllowedIPs), func(o net.IPNet) bool { return o.String() == n.String() })
			}
			d.Peers[i].AllowedIPs = append(d.Peers[i].AllowedIPs, n)
		}
	}
	return nil
}

// firstKeys gives the devices keys that are smaller than those of somebody, so that this
// node is the one that calls.
func (m *machine) firstKeys(t *testing.T) {
	t.Helper()
	for _, name := range DefaultDevices {
		for {
			key, err := NewPrivateKey()
			if err != nil {
				t.Fatal(err)
			}
			if public := key.Public(); public[0] < ' ' {
				m.devices[name] = &wgtypes.Device{Name: name, PrivateKey: key.raw}
				break
			}
		}
	}
}

func (m *machine) lanes(dir string) *WireGuard {
	w := NewLanes(LanesConfig{StateDir: dir})
	w.links, w.control = m, m
	return w
}

// holds describes a device's peers: one line "key endpoint prefix…" each.
func (m *machine) holds(name string) string {
	var lines []string
	for _, p := range m.devices[name].Peers {
		var allowed []string
		for _, n := range p.AllowedIPs {
			allowed = append(allowed, n.String())
		}
		slices.Sort(allowed)
		lines = append(lines, fmt.Sprintf("%c%c %v %s", p.PublicKey[0], p.PublicKey[1], p.Endpoint, strings.Join(allowed, " ")))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
