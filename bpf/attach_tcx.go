package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// linkHooks uses tcx links (Linux 6.6): one pinned link per device and direction,
// whose program is replaced in place.
type linkHooks struct{ d *Datapath }

// haveTCX asks for a link on a device that does not exist: only a kernel that
// supports tcx complains about the device.
var haveTCX = sync.OnceValue(func() bool {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return false
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1<<31 - 1, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		l.Close()
	}
	return !errors.Is(err, ebpf.ErrNotSupported)
})

// way is one of a device's two directions.
type way struct {
	name   string
	attach ebpf.AttachType
}

var (
	receives = way{"receives", ebpf.AttachTCXIngress}
	sends    = way{"sends", ebpf.AttachTCXEgress}
)

const linkPrefix = "weft_link_"

// pin is the name of a link's pin: by device, except for tunnels, where it is by
// lane, because a lane has one device at a time.
func (a Attachment) pin(w way) string {
	serves := a.Ifindex
	if a.Role == RoleTunnel {
		serves = a.Lane
	}
	return fmt.Sprintf("%s%s_%d_%s", linkPrefix, a.Role, serves, w.name)
}

// parsePin is the inverse of pin, but for the device of a lane, which is not in the
// name.
func parsePin(name string) (a Attachment, w way, ok bool) {
	role, rest, _ := strings.Cut(strings.TrimPrefix(name, linkPrefix), "_")
	var serves int
	var which string
	if _, err := fmt.Sscanf(rest, "%d_%s", &serves, &which); err != nil || !strings.HasPrefix(name, linkPrefix) {
		return a, w, false
	}
	a = Attachment{Role: Role(role), Ifindex: serves}
	if a.Role == RoleTunnel {
		a.Ifindex, a.Lane = 0, serves
	}
	w = receives
	if which == sends.name {
		w = sends
	}
	return a, w, true
}

func (h *linkHooks) program(r Role, w way) *ebpf.Program {
	in, out := r.programs()
	if w == receives {
		return h.d.progs[in]
	}
	return h.d.progs[out]
}

func (h *linkHooks) attach(a Attachment) error {
	for _, w := range []way{receives, sends} {
		if err := h.attachWay(a, w); err != nil {
			return err
		}
	}
	return nil
}

func (h *linkHooks) attachWay(a Attachment, w way) error {
	path, prog := filepath.Join(h.d.dir, a.pin(w)), h.program(a.Role, w)
	old, err := open(path)
	if err != nil {
		return err
	}
	if old != nil {
		defer old.Close()
		if ifindex(old) == a.Ifindex {
			return old.Update(prog)
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove link of a device that is gone: %w", err)
		}
	}
	// Before all other programs, so that none of them can let a packet through
	// before ours has seen it.
	l, err := link.AttachTCX(link.TCXOptions{Interface: a.Ifindex, Program: prog, Attach: w.attach, Anchor: link.Head()})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

func (h *linkHooks) holds(a Attachment) (bool, error) {
	for _, w := range []way{receives, sends} {
		l, err := open(filepath.Join(h.d.dir, a.pin(w)))
		if l == nil || err != nil {
			return false, err
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			return false, fmt.Errorf("look at link %s: %w", a.pin(w), err)
		}
		want, err := h.program(a.Role, w).Info()
		if err != nil {
			return false, fmt.Errorf("look at program of %s: %w", a.pin(w), err)
		}
		id, _ := want.ID()
		if info.TCX() == nil || int(info.TCX().Ifindex) != a.Ifindex || info.Program != id {
			return false, nil
		}
	}
	return true, nil
}

// open opens a pinned link; nil if there is none.
func open(path string) (link.Link, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open link %s: %w", filepath.Base(path), err)
	}
	return l, nil
}

// ifindex is the device of a link; 0 if the device is gone.
func ifindex(l link.Link) int {
	info, err := l.Info()
	if err != nil || info.TCX() == nil {
		return 0
	}
	return int(info.TCX().Ifindex)
}

// each visits the pinned links.
func (h *linkHooks) each(visit func(path string, a Attachment, w way, l link.Link) error) error {
	entries, err := os.ReadDir(h.d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		a, w, ok := parsePin(e.Name())
		if !ok {
			continue
		}
		path := filepath.Join(h.d.dir, e.Name())
		l, err := open(path)
		if err != nil {
			return err
		}
		if l == nil {
			continue
		}
		a.Ifindex = ifindex(l)
		err = visit(path, a, w, l)
		l.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *linkHooks) adopt() (n int, err error) {
	err = h.each(func(path string, a Attachment, w way, l link.Link) error {
		if a.Ifindex == 0 {
			return os.Remove(path)
		}
		n++
		if err := l.Update(h.program(a.Role, w)); err != nil {
			return fmt.Errorf("update link %s: %w", filepath.Base(path), err)
		}
		return nil
	})
	return n, err
}

func (h *linkHooks) attached() (all []Attachment, err error) {
	err = h.each(func(_ string, a Attachment, _ way, _ link.Link) error {
		if a.Ifindex != 0 {
			all = append(all, a)
		}
		return nil
	})
	return all, err
}

// detach removes the links of the device, and those that an earlier device with the
// same number left. It does not walk all links: a node has many pods, and they may
// all go at once.
func (h *linkHooks) detach(index int) error {
	for _, w := range []way{receives, sends} {
		for _, role := range []Role{RolePod, RoleDevice} {
			path := filepath.Join(h.d.dir, Attachment{Role: role, Ifindex: index}.pin(w))
			if err := unpin(path, func(link.Link) bool { return true }); err != nil {
				return err
			}
		}
		for lane := range 2 {
			path := filepath.Join(h.d.dir, Attachment{Role: RoleTunnel, Lane: lane}.pin(w))
			if err := unpin(path, func(l link.Link) bool { return ifindex(l) == index }); err != nil {
				return err
			}
		}
	}
	return nil
}

// unpin removes a pinned link if meant says so; nil if there is none. The link is
// kept open until its pin is gone: the kernel detaches at once when the last
// reference is a descriptor, but only some time later when it is the pin.
func unpin(path string, meant func(link.Link) bool) error {
	l, err := open(path)
	if l == nil || err != nil {
		return err
	}
	defer l.Close()
	if !meant(l) {
		return nil
	}
	return os.Remove(path)
}

func (h *linkHooks) remove() error {
	return h.each(func(path string, _ Attachment, _ way, _ link.Link) error { return os.Remove(path) })
}
