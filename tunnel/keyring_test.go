package tunnel

import (
	"os"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// diesAfter is a machine whose process ends once a device was given something.
type diesAfter struct {
	*machine
	die func()
}

func (d diesAfter) ConfigureDevice(name string, c wgtypes.Config) error {
	defer d.die()
	return d.machine.ConfigureDevice(name, c)
}

// A process that dies when the device has its new key, before it could note since when,
// takes no handshake of the key before for one with the new key.
func TestARotationEndsHandshakesAlsoIfTheProcessDies(t *testing.T) {
	m := newMachine()
	dir, died := t.TempDir(), t.TempDir()
	w := m.lanes(dir)
	peer := somebody("a", 'a', "10.2.1.0/24")
	mustSet(t, w, true, peer)
	if _, err := w.Ensure(t.Context()); err != nil { // the file of peers is written
		t.Fatal(err)
	}
	m.devices["weft1"].Peers[0].LastHandshakeTime = time.Now()
	shaken := func(w *WireGuard) bool {
		t.Helper()
		if _, err := w.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		st, err := w.Status(t.Context())
		if err != nil || len(st.Peers) != 1 {
			t.Fatalf("%+v, %v", st, err)
		}
		return st.Peers[0].Handshaken()[1]
	}
	if !shaken(w) {
		t.Fatal("no handshake before the rotation")
	}
	w.control = diesAfter{m, func() {
		if err := os.CopyFS(died, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}}
	if _, err := w.Rotate(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if shaken(m.lanes(died)) {
		t.Error("a handshake with the key before counts")
	}
}
