package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-mesh/weft/statefile"
)

// somebody returns a peer with keys <key>0 and <key>1.
func somebody(name string, key byte, prefixes ...string) Peer {
	p := Peer{Cluster: "w", Node: name, Keys: [2]Key{{key, '0'}, {key, '1'}}}
	for i := range p.Endpoint {
		p.Endpoint[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, key}), DefaultPorts[i])
	}
	for _, prefix := range prefixes {
		p.Allowed = append(p.Allowed, netip.MustParsePrefix(prefix))
	}
	return p
}

// pass lets time pass, inside a bubble.
func pass(d time.Duration) { <-time.After(d) }

func mustSet(t *testing.T, w *WireGuard, complete bool, want ...Peer) {
	t.Helper()
	st, err := w.Set(t.Context(), want, complete)
	if err != nil || len(st.Refused) > 0 {
		t.Fatalf("set: %v, refused %v", err, st.Refused)
	}
}

func TestSetChangesOnlyWhatDiffers(t *testing.T) {
	m := newMachine()
	w := m.lanes(t.TempDir())
	a, b := somebody("a", 'a', "10.2.1.0/24"), somebody("b", 'b', "10.2.2.0/24")
	mustSet(t, w, true, a, b)
	if got, want := m.holds("weft1"), "a1 192.0.2.97:51872 10.2.1.0/24\nb1 192.0.2.98:51872 10.2.2.0/24"; got != want {
		t.Fatalf("weft1 holds\n%s\nwant\n%s", got, want)
	}
	m.changes = nil
	mustSet(t, w, true, a, b)
	if len(m.changes) > 0 {
		t.Errorf("the same again changed %+v", m.changes)
	}

	clear(m.touched)
	b.Allowed = append(b.Allowed, netip.MustParsePrefix("10.2.9.0/24"))
	mustSet(t, w, true, a, b)
	if m.touched[wgtypes.Key{'a', '0'}] > 0 {
		t.Error("an unchanged peer was touched")
	}
	if got, want := m.holds("weft0"), "a0 192.0.2.97:51871 10.2.1.0/24\nb0 192.0.2.98:51871 10.2.2.0/24 10.2.9.0/24"; got != want {
		t.Errorf("weft0 holds\n%s\nwant\n%s", got, want)
	}

	// One prefix is removed: the peer is never without the other.
	b.Allowed = b.Allowed[1:]
	m.changes = nil
	mustSet(t, w, true, a, b)
	for _, c := range m.changes {
		for _, p := range c.Peers {
			if p.ReplaceAllowedIPs || c.ReplacePeers {
				t.Errorf("a list was emptied to take one prefix out: %+v", p)
			}
		}
	}
	if got, want := m.holds("weft0"), "a0 192.0.2.97:51871 10.2.1.0/24\nb0 192.0.2.98:51871 10.2.9.0/24"; got != want {
		t.Errorf("weft0 holds\n%s\nwant\n%s", got, want)
	}
}

func TestIncompleteTruthRemovesNobody(t *testing.T) {
	m := newMachine()
	dir := t.TempDir()
	a, b := somebody("a", 'a', "10.2.1.0/24"), somebody("b", 'b', "10.2.2.0/24")
	mustSet(t, m.lanes(dir), true, a, b)
	before := m.holds("weft0")

	w := m.lanes(dir) // restarted, and the first source has reported only b
	mustSet(t, w, false, b)
	mustSet(t, w, false)
	if got := m.holds("weft0"); got != before {
		t.Errorf("weft0 holds\n%s\nwant\n%s", got, before)
	}
	st, err := w.Status(t.Context())
	if err != nil || len(st.Peers) != 2 {
		t.Errorf("status forgets who is configured: %+v, %v", st.Peers, err)
	}
	mustSet(t, w, true, b)
	if got, want := m.holds("weft0"), "b0 192.0.2.98:51871 10.2.2.0/24"; got != want {
		t.Errorf("weft0 holds\n%s\nwant\n%s", got, want)
	}
}

func TestNewKeyReplacesTheOldOneEvenWhileIncomplete(t *testing.T) {
	m := newMachine()
	w := m.lanes(t.TempDir())
	a := somebody("a", 'a', "10.2.1.0/24")
	mustSet(t, w, true, a, somebody("b", 'b', "10.2.2.0/24"))
	a.Keys[1] = Key{'A', '1'}
	clear(m.touched)
	mustSet(t, w, false, a)
	if got, want := m.holds("weft1"), "A1 192.0.2.97:51872 10.2.1.0/24\nb1 192.0.2.98:51872 10.2.2.0/24"; got != want {
		t.Errorf("weft1 holds\n%s\nwant\n%s", got, want)
	}
	if m.touched[wgtypes.Key{'a', '0'}] > 0 {
		t.Error("the lane in use was touched")
	}
	last := m.changes[len(m.changes)-1].Peers
	if !last[len(last)-1].Remove || last[0].Remove {
		t.Errorf("the new key has to take the addresses before the old one goes: %+v", last)
	}
}

func TestRoamingPeerKeepsItsEndpoint(t *testing.T) {
	m := newMachine()
	w := m.lanes(t.TempDir())
	a := somebody("a", 'a', "10.2.1.0/24")
	mustSet(t, w, true, a)
	roamed := &net.UDPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 1234}
	m.devices["weft0"].Peers[0].Endpoint = roamed
	mustSet(t, w, true, a)
	if got := m.devices["weft0"].Peers[0].Endpoint; got != roamed {
		t.Errorf("sent back to %v from where it was heard, %v", got, roamed)
	}
	a.Endpoint[0] = netip.MustParseAddrPort("192.0.2.200:51871")
	mustSet(t, w, true, a)
	if got := m.devices["weft0"].Peers[0].Endpoint.String(); got != "192.0.2.200:51871" {
		t.Errorf("announced a new endpoint, sent to %s", got)
	}
}

func TestRefusedPeerIsLeftAsItWas(t *testing.T) {
	m := newMachine()
	w := m.lanes(t.TempDir())
	a, b := somebody("a", 'a', "10.2.1.0/24"), somebody("b", 'b', "10.2.2.0/24")
	mustSet(t, w, true, a, b)
	before := m.holds("weft0")
	b.Allowed = a.Allowed
	st, err := w.Set(t.Context(), []Peer{a, b}, true)
	if err != nil || len(st.Refused) != 1 || st.Refused[0].Node != "b" {
		t.Fatalf("refused %v, %v, want b", st.Refused, err)
	}
	if got := m.holds("weft0"); got != before {
		t.Errorf("weft0 holds\n%s\nwant what it had\n%s", got, before)
	}
	mimic := somebody("mimic", 'm', "10.2.3.0/24")
	own, err := w.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mimic.Keys[0] = own.Lanes[1].PublicKey
	if st, err = w.Set(t.Context(), []Peer{mimic}, false); err != nil || len(st.Refused) != 1 || !strings.Contains(st.Refused[0].Reason, "own public key") {
		t.Errorf("with our own key: %v, %v", st.Refused, err)
	}
}

// After any sequence of Set calls the devices have what the last one wanted, and no
// call touches a peer that stays the same.
func TestSetAgainstTheObvious(t *testing.T) {
	synctest.Test(t, setAgainstTheObvious) // so that no question falls due on a slow machine
}

func setAgainstTheObvious(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	m := newMachine()
	dir := t.TempDir()
	w := m.lanes(dir)
	last := map[string]Peer{}
	for round := range 300 {
		now := map[string]Peer{}
		var want []Peer
		for i := range byte(8) {
			name := fmt.Sprint(i)
			p, there := last[name]
			switch {
			case there && random.IntN(2) == 0:
			case random.IntN(4) == 0:
				continue
			default:
				p = somebody(name, 'a'+i, fmt.Sprintf("10.2.%d.0/24", 2*i+byte(random.IntN(2))))
				p.Keys[random.IntN(2)][2] = byte(random.IntN(3))
				if random.IntN(3) == 0 {
					p.Allowed = append(p.Allowed, netip.MustParsePrefix(fmt.Sprintf("10.3.%d.0/24", i)))
				}
				if random.IntN(4) == 0 {
					p.Keys[1] = Key{}
				}
			}
			now[name] = p
			want = append(want, p)
		}
		clear(m.touched)
		if random.IntN(10) == 0 {
			w = m.lanes(dir) // restarted
		}
		mustSet(t, w, true, want...)
		for lane, device := range DefaultDevices {
			var lines []string
			for name, p := range now {
				if p.Keys[lane].IsZero() {
					continue
				}
				var allowed []string
				for _, prefix := range p.Allowed {
					allowed = append(allowed, prefix.String())
				}
				slices.Sort(allowed)
				lines = append(lines, fmt.Sprintf("%c%c %v %s", p.Keys[lane][0], p.Keys[lane][1], p.Endpoint[lane], strings.Join(allowed, " ")))
				if same := reflect.DeepEqual(normal(last[name]), normal(p)); same && m.touched[wgtypes.Key(p.Keys[lane])] > 0 {
					t.Fatalf("round %d: %s did not change and was touched on %s", round, name, device)
				}
			}
			slices.Sort(lines)
			if got, want := m.holds(device), strings.Join(lines, "\n"); got != want {
				t.Fatalf("round %d: %s holds\n%s\nwant\n%s", round, device, got, want)
			}
		}
		last = now
	}
}

func TestKeysOutliveTheProcess(t *testing.T) {
	m := newMachine()
	dir := t.TempDir()
	first, err := m.lanes(dir).Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sessions := m.sessions
	again, err := m.lanes(dir).Ensure(t.Context())
	if err != nil || again.Lanes != first.Lanes || again.Epoch != first.Epoch || !again.Since.Equal(first.Since) {
		t.Errorf("after a restart: %+v, %v\nbefore: %+v", again, err, first)
	}
	if m.sessions != sessions {
		t.Error("a key that was right was set again: that ends every session")
	}
	if info, err := os.Stat(keyringFile(dir)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v, want 0600", info.Mode(), err)
	}

	// The device was replaced behind our back: it gets the same keys again.
	m.devices = map[string]*wgtypes.Device{}
	if replaced, err := m.lanes(dir).Ensure(t.Context()); err != nil || replaced.Lanes != first.Lanes {
		t.Errorf("on a new device: %+v, %v", replaced, err)
	}

	// The directory was lost but not the device: its keys are kept.
	if adopted, err := m.lanes(t.TempDir()).Ensure(t.Context()); err != nil || adopted.Lanes != first.Lanes {
		t.Errorf("without a directory: %+v, %v", adopted, err)
	}

}

// A damaged file of keys or peers is put aside. The devices have everything, so nothing
// changes for peers, and the file is written again.
func TestADamagedFileIsPutAsideAndWrittenAgain(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "cut off": `{"epoch": 3, "lanes": [{"priva`, "a key is missing": `{"epoch":1,"lanes":[{"privateKey":""},{"privateKey":""}]}`} {
		t.Run(name, func(t *testing.T) {
			m, dir := newMachine(), t.TempDir()
			first, err := m.lanes(dir).Ensure(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			sessions := m.sessions
			for _, path := range []string{keyringFile(dir), rosterFile(dir)} {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			again, err := m.lanes(dir).Ensure(t.Context())
			if err != nil || again.Lanes != first.Lanes || m.sessions != sessions {
				t.Errorf("damaged: %+v, %v, sessions %d and then %d", again, err, sessions, m.sessions)
			}
			aside := map[string]bool{}
			for _, d := range statefile.Damages(dir) {
				aside[d.Path] = true
			}
			if !aside[keyringFile(dir)] || name != "a key is missing" && !aside[rosterFile(dir)] {
				t.Errorf("put aside: %v", aside)
			}
			m.devices = map[string]*wgtypes.Device{} // only the file has the keys now
			if after, err := m.lanes(dir).Ensure(t.Context()); err != nil || after.Lanes != first.Lanes {
				t.Errorf("written again: %+v, %v", after, err)
			}
		})
	}
}

// A full disk keeps no tunnel down. Tell is called for the file that is out of date, and
// again when it is written.
func TestAFullDiskKeepsNoTunnelDown(t *testing.T) {
	m, dir := newMachine(), filepath.Join(t.TempDir(), "lanes")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where a folder should be
		t.Fatal(err)
	}
	told := map[string]error{}
	w := m.lanes(dir)
	w.cfg.Tell = func(path string, err error) { told[path] = err }
	own, err := w.Ensure(t.Context())
	if err != nil || own.Lanes[0].PublicKey.IsZero() || told[keyringFile(dir)] == nil {
		t.Fatalf("without a disk: %+v, %v, told %v", own, err, told)
	}
	mustSet(t, w, true, somebody("a", 'a', "10.2.1.0/24"))
	if told[rosterFile(dir)] == nil || m.holds("weft0") == "" {
		t.Errorf("peers: told %v, weft0 holds %q", told, m.holds("weft0"))
	}
	if _, err := w.Rotate(t.Context(), 1); err == nil {
		t.Error("a key that is nowhere else was put into a device")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if again, err := w.Ensure(t.Context()); err != nil || again.Lanes != own.Lanes || told[keyringFile(dir)] != nil || told[rosterFile(dir)] != nil {
		t.Errorf("with a disk: %+v, %v, told %v", again, err, told)
	}
	if keys, ok, err := loadKeyring(dir); !ok || err != nil || keys.Lanes[0].PrivateKey.Public() != own.Lanes[0].PublicKey {
		t.Errorf("it holds %v, %v", ok, err)
	}
	if known, err := loadRoster(dir); err != nil || len(known) != 1 {
		t.Errorf("it holds peers %v, %v", known, err)
	}
}

func TestRotateRekeysTheOtherLaneAlone(t *testing.T) {
	m := newMachine()
	dir := t.TempDir()
	w := m.lanes(dir)
	before, err := w.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Rotate(t.Context(), 2); err == nil {
		t.Error("rotated the lane in use")
	}
	after, err := w.Rotate(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if after.Epoch != 1 || after.Lanes[0] != before.Lanes[0] || after.Lanes[1].PublicKey == before.Lanes[1].PublicKey {
		t.Errorf("from %+v\nto   %+v", before, after)
	}
	if public := m.devices["weft1"].PrivateKey.PublicKey(); Key(public) != after.Lanes[1].PublicKey {
		t.Error("what is published is not what the device has")
	}

	// Killed between disk and device: the next start finishes it.
	m.failure = errors.New("killed here")
	if _, err := w.Rotate(t.Context(), 2); err == nil {
		t.Fatal("rotated without a device")
	}
	m.failure = nil
	m.devices["weft0"].PrivateKey = wgtypes.Key{1}
	own, err := m.lanes(dir).Ensure(t.Context())
	if err != nil || Key(m.devices["weft0"].PrivateKey.PublicKey()) != own.Lanes[0].PublicKey {
		t.Errorf("device and publication differ: %+v, %v", own, err)
	}
}

func TestHandshakeUnderAnOldKeyDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		w := m.lanes(t.TempDir())
		mustSet(t, w, true, somebody("a", 'a', "10.2.1.0/24"))
		pass(time.Second)
		for _, d := range m.devices {
			d.Peers[0].LastHandshakeTime = time.Now()
		}
		shaken := func() [2]bool {
			st, err := w.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return st.Peers[0].Handshaken()
		}
		if got := shaken(); got != [2]bool{true, true} {
			t.Errorf("before: %v", got)
		}
		pass(time.Second)
		if _, err := w.Rotate(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if got := shaken(); got != [2]bool{true, false} {
			t.Errorf("after rotating lane 1: %v", got)
		}
		pass(time.Second)
		m.devices["weft1"].Peers[0].LastHandshakeTime = time.Now()
		if got := shaken(); got != [2]bool{true, true} {
			t.Errorf("after a handshake under the new key: %v", got)
		}
	})
}

func TestQuiet(t *testing.T) {
	for _, kind := range []Kind{Userspace, Kernel} {
		t.Run(string(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine()
				m.kind = kind
				w := m.lanes(t.TempDir())
				mustSet(t, w, true, somebody("a", 'a', "10.2.1.0/24"))
				receive := func(bytes int64, packets uint64) {
					m.devices["weft1"].Peers[0].ReceiveBytes += bytes
					m.packets["weft1"] += packets
				}
				look := func(want time.Duration) {
					t.Helper()
					st, err := w.Status(t.Context())
					if err != nil || st.Quiet[1] != want {
						t.Errorf("quiet for %v, %v, want %v", st.Quiet[1], err, want)
					}
				}
				look(0)
				pass(time.Second)
				look(time.Second)
				pass(time.Second)
				receive(messageInitiation+messageKeepalive, 0) // no data in it
				look(2 * time.Second)
				pass(time.Second)
				receive(messageKeepalive, 0)
				look(3 * time.Second)
				receive(64, 1) // the smallest that carries a packet
				look(0)
				pass(time.Second)
				receive(messageResponse+messageKeepalive+96, 1)
				look(0)
			})
		})
	}
}

func TestDeadUserspaceIsNamed(t *testing.T) {
	m := newMachine()
	w := m.lanes(t.TempDir())
	for _, cause := range []error{fs.ErrNotExist, fmt.Errorf("dial: %w", syscall.ECONNREFUSED)} {
		m.failure = cause
		_, err := w.Ensure(t.Context())
		if !errors.Is(err, ErrNoWireGuard) || !strings.Contains(err.Error(), "weft0") {
			t.Errorf("%v: %v", cause, err)
		}
	}
	if _, err := w.Status(context.Background()); err == nil {
		t.Error("status of lanes that were never there")
	}
}

func TestSavedConfigurationIsStable(t *testing.T) {
	a := "private_key=aa\nlisten_port=1\npublic_key=22\nrx_bytes=5\nallowed_ip=10.0.0.0/8\npublic_key=11\nendpoint=192.0.2.1:1\nlast_handshake_time_sec=9\n"
	b := "private_key=aa\nlisten_port=1\npublic_key=11\nendpoint=192.0.2.1:1\nlast_handshake_time_sec=0\ntx_bytes=1\npublic_key=22\nallowed_ip=10.0.0.0/8\n"
	want := "private_key=aa\nlisten_port=1\npublic_key=11\nendpoint=192.0.2.1:1\npublic_key=22\nallowed_ip=10.0.0.0/8\n"
	if durable(a) != want || durable(b) != want {
		t.Errorf("saved as\n%s\nand\n%s\nwant\n%s", durable(a), durable(b), want)
	}
}

func TestOnlyUnansweredPeersAreGreetedAgain(t *testing.T) {
	peer := func(key, handshake, endpoint, keepalive string) string {
		return "public_key=" + key + "\npreshared_key=00\n" + endpoint +
			"last_handshake_time_sec=" + handshake + "\ntx_bytes=1\npersistent_keepalive_interval=" + keepalive + "\nallowed_ip=10.0.0.0/8\n"
	}
	report := "private_key=aa\nlisten_port=1\n" +
		peer("11", "5", "endpoint=192.0.2.1:1\n", "25") + // answered
		peer("22", "0", "endpoint=192.0.2.2:1\n", "25") +
		peer("33", "0", "", "25") + // nowhere to send to
		peer("44", "0", "endpoint=192.0.2.4:1\n", "0") // not ours to begin
	want := "public_key=22\nremove=true\npublic_key=22\npreshared_key=00\nendpoint=192.0.2.2:1\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\n"
	if got := unanswered(report); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, none := range []string{"", "private_key=aa\n"} {
		if got := unanswered(none); got != "" {
			t.Errorf("without peers: %s", got)
		}
	}
}

func TestErrorsOfEveryPacketAreToldOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines strings.Builder
		log := deviceLogger(slog.New(slog.NewTextHandler(&lines, nil)))
		for range 1000 {
			log.Errorf("no way to %s", "n1")
		}
		log.Errorf("something else")
		pass(logPause)
		log.Errorf("no way to %s", "n2")
		if got := strings.Count(lines.String(), "\n"); got != 3 || !strings.Contains(lines.String(), `msg="no way to n2" untold=999`) {
			t.Errorf("%d lines:\n%s", got, &lines)
		}
	})
}
