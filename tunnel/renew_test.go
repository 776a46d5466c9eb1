package tunnel

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A peer that never shook hands is made anew, less and less often and then no
// more, and one that did is never touched.
func TestStrangersAreAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		w := m.lanes(t.TempDir())
		silent, known := somebody("silent", 's', "10.2.1.0/24"), somebody("known", 'k', "10.2.2.0/24")
		mustSet(t, w, true, silent, known)
		want := m.holds("weft0")
		shakeHands := func(p Peer) {
			for _, d := range m.devices {
				for i := range d.Peers {
					if key := Key(d.Peers[i].PublicKey); key == p.Keys[0] || key == p.Keys[1] {
						d.Peers[i].LastHandshakeTime = time.Now()
					}
				}
			}
		}
		shakeHands(known)
		turns := func(span time.Duration) (touched int) {
			clear(m.touched)
			for range span / (500 * time.Millisecond) {
				pass(500 * time.Millisecond)
				mustSet(t, w, true, silent, known)
				if got := m.holds("weft0"); got != want {
					t.Fatalf("weft0 holds\n%s\nwant\n%s", got, want)
				}
			}
			for p := range m.touched {
				if Key(p) == known.Keys[0] || Key(p) == known.Keys[1] {
					t.Error("a peer that shook hands was touched")
				}
			}
			return m.touched[wgtypes.Key(silent.Keys[0])] / 2 // removed and added
		}
		if got := turns(1500 * time.Millisecond); got != 1 {
			t.Errorf("in the first 1.5 s asked again %d times", got)
		}
		if got := turns(time.Minute); got != len(renewals)-1 {
			t.Errorf("in the next minute asked again %d times", got)
		}
		shakeHands(silent)
		if got := turns(time.Minute); got != 0 {
			t.Errorf("after its handshake asked again %d times", got)
		}
	})
}

// Of two that call each other one waits longer.
func TestStrangersDoNotMeetAgain(t *testing.T) {
	small, great, now := Key{1}, Key{2}, time.Now()
	asks := func(own, other Key, after time.Duration) bool {
		s := strangers{}
		peers := []wgtypes.Peer{{PublicKey: wgtypes.Key(other), Endpoint: &net.UDPAddr{}}}
		s.due(own, peers, now)
		return s.due(own, peers, now.Add(after))[other]
	}
	if first := renewals[0]; !asks(small, great, first) || asks(great, small, first) || !asks(great, small, first*3/2) {
		t.Error("both call again at once, or one does not")
	}
}

// Who is not wanted any more is not made anew, and stays as long as plan keeps it.
func TestStrangersThatNobodyWantsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		w := m.lanes(t.TempDir())
		mustSet(t, w, true, somebody("a", 'a', "10.2.1.0/24"))
		want := m.holds("weft0")
		for range 10 {
			pass(time.Second)
			mustSet(t, w, false)
			if got := m.holds("weft0"); got != want {
				t.Fatalf("weft0 holds\n%s\nwant\n%s", got, want)
			}
		}
	})
}
