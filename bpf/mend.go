package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mostMended is how many pods Mend looks at, drawn at random, so that its cost does
// not grow with their number.
const mostMended = 64

// Mend restores what somebody else took away since it was made: programs of devices
// and pins of maps. Without its programs a device lets everything pass; without its
// pin a map is empty for the next agent. It returns what it restored, and the errors
// of what it could not, by device or map. Devices that no longer exist are left to
// those who make them.
func (d *Datapath) Mend() (mended []string, failed map[string]error) {
	failed = map[string]error{}
	d.mu.Lock()
	var all []Attachment
	pods := 0
	for a := range d.attached {
		if a.Role == RolePod {
			if pods++; pods > mostMended {
				continue
			}
		}
		all = append(all, a)
	}
	d.mu.Unlock()
	for _, a := range all {
		name, again, err := d.mend(a)
		switch {
		case err != nil:
			failed[name] = err
		case again:
			mended = append(mended, "programs of "+name)
		}
	}
	if again, err := d.mendWaitingRoom(); err != nil {
		failed[waitingIn] = err
	} else if again {
		mended = append(mended, "devices in which fragments wait")
	}
	for _, of := range described {
		name, path := of.name, filepath.Join(d.dir, of.pin())
		m, ok := d.maps[name]
		if !ok {
			continue
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		// A copy, because the map itself believes that it is still pinned there.
		c, err := m.Clone()
		if err == nil {
			if err = os.MkdirAll(d.dir, 0o700); err == nil {
				err = c.Pin(path)
			}
			c.Close()
		}
		if err != nil {
			failed["map "+name] = fmt.Errorf("pin map %s again: %w", name, err)
			continue
		}
		mended = append(mended, "pin of map "+name)
	}
	return mended, failed
}

// mend attaches programs to one device again if they are gone.
func (d *Datapath) mend(a Attachment) (name string, again bool, err error) {
	d.mending.Lock()
	defer d.mending.Unlock()
	d.mu.Lock()
	wanted := d.attached[a]
	d.mu.Unlock()
	if !wanted {
		return "", false, nil
	}
	name = fmt.Sprintf("%s device %d", a.Role, a.Ifindex)
	link, err := netlink.LinkByIndex(a.Ifindex)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		d.mu.Lock()
		delete(d.attached, a)
		d.mu.Unlock()
		return name, false, nil
	}
	if err != nil {
		return name, false, fmt.Errorf("look at %s: %w", name, err)
	}
	name = fmt.Sprintf("%s device %s", a.Role, link.Attrs().Name)
	if ok, err := d.hooks.holds(a); ok || err != nil {
		return name, false, err
	}
	err = d.attach(a)
	if errors.Is(err, unix.EEXIST) {
		// The kernel takes a link away some time after its pin. Until then its program
		// still runs; the next look attaches a new one.
		return name, false, nil
	}
	return name, err == nil, err
}
