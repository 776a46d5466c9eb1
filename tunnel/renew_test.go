package tunnel

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A peer that never shook hands is replaced, less and less often and then no longer;
// one that did is never touched.
func TestStrangersAreAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.firstKeys(t)
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

// Two nodes that call each other look at their lanes twice a second. If they do so in
// step, like agents woken by the same event, they never replace each other at once; and
// not every time, however much later one began.
func TestStrangersDoNotMeetAgain(t *testing.T) {
	small, great, start := Key{1}, Key{2}, time.Now()
	const turn = 500 * time.Millisecond
	calls := func(own, other Key, begin time.Duration) map[time.Duration]bool {
		s, called := strangers{}, map[time.Duration]bool{}
		peers := []wgtypes.Peer{{PublicKey: wgtypes.Key(other), Endpoint: &net.UDPAddr{}}}
		for at := begin; at < begin+time.Minute; at += turn {
			if due, _ := s.due(own, peers, nil, time.Time{}, start.Add(at)); len(due) > 0 {
				called[at] = true
			}
		}
		return called
	}
	first := calls(small, great, 0)
	if len(first) != len(renewals) || !first[turn] {
		t.Errorf("the smaller key calls again after %v", slices.Sorted(maps.Keys(first)))
	}
	for begin := -20 * turn; begin <= 20*turn; begin += turn {
		second := calls(great, small, begin)
		// Its first call is the keepalive that it gets after waiting for the other's.
		if len(second) != len(renewals)-1 {
			t.Errorf("the greater key calls again after %v", slices.Sorted(maps.Keys(second)))
		}
		met := 0
		for at := range second {
			if first[at] {
				met++
			}
		}
		if met > 2 || met > 0 && begin == 0 {
			t.Errorf("begun %v apart they meet %d times", begin, met)
		}
	}
}

// Of two nodes one calls, and the other only if it was not called. A keepalive is what has a
// new peer called.
func TestOneOfTwoNodesCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.firstKeys(t)
		w := m.lanes(t.TempDir())
		smaller, greater := somebody("smaller", 's', "10.2.1.0/24"), somebody("greater", 'g', "10.2.2.0/24")
		smaller.Keys[0] = Key{}
		smaller.Keys[0][31] = 1
		called := func(p Peer) bool {
			i := slices.IndexFunc(m.devices["weft0"].Peers, func(q wgtypes.Peer) bool { return Key(q.PublicKey) == p.Keys[0] })
			return m.devices["weft0"].Peers[i].PersistentKeepaliveInterval == Keepalive
		}
		mustSet(t, w, true)
		if _, err := w.Change(t.Context(), []Peer{smaller, greater}, nil, true); err != nil {
			t.Fatal(err)
		}
		for passed := time.Duration(0); passed < patience; passed += patience / 4 {
			mustSet(t, w, true, smaller, greater)
			if called(smaller) || !called(greater) {
				t.Fatalf("after %v: the smaller key called: %v, the greater: %v", passed, called(smaller), called(greater))
			}
			pass(patience / 4)
		}
		mustSet(t, w, true, smaller, greater)
		if !called(smaller) || !called(greater) {
			t.Errorf("after %v: the smaller key called: %v, the greater: %v", patience, called(smaller), called(greater))
		}

		// One that was called keeps the session from now on.
		m.devices["weft0"].Peers = nil
		mustSet(t, w, true, smaller)
		if called(smaller) {
			t.Error("a new peer with a smaller key is called at once")
		}
		m.devices["weft0"].Peers[0].LastHandshakeTime = time.Now()
		mustSet(t, w, true, smaller)
		if !called(smaller) {
			t.Error("a peer that called gets no keepalive")
		}
	})
}

// A peer that calls just now is not replaced: that would end the session that it has by then.
func TestACallerIsNotReplaced(t *testing.T) {
	own, key, start := Key{1}, Key{2}, time.Now()
	peer := wgtypes.Peer{PublicKey: wgtypes.Key(key), Endpoint: &net.UDPAddr{}}
	s := strangers{}
	s.due(own, []wgtypes.Peer{peer}, nil, time.Time{}, start)
	peer.ReceiveBytes = messageInitiation
	if due, _ := s.due(own, []wgtypes.Peer{peer}, nil, time.Time{}, start.Add(time.Second)); len(due) > 0 {
		t.Error("a peer that has called since the last look is replaced")
	}
	if due, _ := s.due(own, []wgtypes.Peer{peer}, nil, time.Time{}, start.Add(2*time.Second)); len(due) == 0 {
		t.Error("a peer whose call was no handshake is not replaced")
	}
	// Nor does it make the other node call.
	s = strangers{}
	s.due(key, []wgtypes.Peer{{PublicKey: wgtypes.Key(own), Endpoint: &net.UDPAddr{}}}, nil, time.Time{}, start)
	peer.PublicKey = wgtypes.Key(own)
	if _, awaited := s.due(key, []wgtypes.Peer{peer}, nil, time.Time{}, start.Add(time.Second)); !awaited[own] {
		t.Error("the call of a peer that calls is not awaited any longer")
	}
}

// A handshake from before this node's own key changed is none.
func TestOwnNewKeyMakesStrangers(t *testing.T) {
	own, key, now := Key{1}, Key{2}, time.Now()
	peers := []wgtypes.Peer{{PublicKey: wgtypes.Key(key), Endpoint: &net.UDPAddr{}, LastHandshakeTime: now}}
	for since, called := range map[time.Time]bool{now.Add(-time.Second): false, now.Add(time.Second): true} {
		s := strangers{}
		s.due(own, peers, nil, since, now)
		if due, _ := s.due(own, peers, nil, since, now.Add(renewals[0])); (len(due) > 0) != called {
			t.Errorf("a key since %v after the handshake: called again: %v", since.Sub(now), len(due) > 0)
		}
	}
}

// Two nodes may end up with keys that differ, and both take the handshake for completed. A
// session that never carried anything is begun anew while nothing comes back; one that did
// is kept.
func TestASessionThatNeverWorkedIsBegunAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		w := m.lanes(t.TempDir())
		p := somebody("a", 'a', "10.2.1.0/24")
		mustSet(t, w, true, p)
		pass(time.Hour) // the lane's key is older than what follows
		for name, c := range map[string]struct {
			silent           bool
			received, sent   int64
			lastHandshakeAgo time.Duration
			renewed          bool
		}{
			"never worked":            {true, messageResponse, 5000, time.Minute, true},
			"is rather new":           {true, messageResponse, 5000, 0, false},
			"other paths are silent":  {false, messageResponse, 5000, time.Minute, false},
			"worked and fell silent":  {true, 5000, 5000, time.Minute, false},
			"nothing was sent so far": {true, messageResponse, messageInitiation + messageKeepalive, time.Minute, false},
		} {
			q := &m.devices["weft0"].Peers[0]
			q.LastHandshakeTime, q.ReceiveBytes, q.TransmitBytes = time.Now().Add(-c.lastHandshakeAgo), c.received, c.sent
			p.Silent = false
			mustSet(t, w, true, p)
			p.Silent = c.silent
			clear(m.touched)
			for range 3 {
				mustSet(t, w, true, p)
				pass(300 * time.Millisecond)
			}
			if renewed := m.touched[wgtypes.Key(p.Keys[0])] > 0; renewed != c.renewed {
				t.Errorf("%s: begun anew: %v", name, renewed)
			}
		}
	})
}

// Where handshakes pass and nothing else does, sessions are begun anew less and less often and
// then no longer, until something is heard.
func TestSessionsThatNeverWorkAreGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.firstKeys(t)
		w := m.lanes(t.TempDir())
		p := somebody("a", 'a', "10.2.1.0/24")
		turns := func(span time.Duration, received int64) (touched int) {
			clear(m.touched)
			for range span / (500 * time.Millisecond) {
				mustSet(t, w, true, p)
				for i := range m.devices["weft0"].Peers {
					q := &m.devices["weft0"].Peers[i]
					if q.TransmitBytes = 5000; q.LastHandshakeTime.IsZero() {
						q.LastHandshakeTime, q.ReceiveBytes = time.Now(), received
					}
				}
				pass(500 * time.Millisecond)
			}
			return m.touched[wgtypes.Key(p.Keys[0])] / 2
		}
		turns(5*time.Second, messageResponse)
		p.Silent = true
		if got := turns(5*time.Minute, messageResponse); got != len(renewals) {
			t.Errorf("begun anew %d times, want %d", got, len(renewals))
		}
		p.Silent = false
		turns(time.Second, messageResponse)
		p.Silent = true
		if got := turns(time.Minute, 5000); got != 1 {
			t.Errorf("after it was heard, and silent again until a session worked, begun anew %d times", got)
		}
	})
}

// The endpoint where a peer was last heard is kept when it is replaced: behind NAT it
// may be known from nowhere else.
func TestStrangersKeepTheirEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.firstKeys(t)
		w := m.lanes(t.TempDir())
		a, hidden := somebody("a", 'a', "10.2.1.0/24"), somebody("hidden", 'h', "10.2.2.0/24")
		hidden.Endpoint = [LaneCount]netip.AddrPort{}
		mustSet(t, w, true, a, hidden)
		for i := range m.devices["weft0"].Peers {
			m.devices["weft0"].Peers[i].Endpoint = &net.UDPAddr{IP: net.IPv4(198, 51, 100, byte(i)), Port: 1234}
		}
		want := m.holds("weft0")
		clear(m.touched)
		for range 60 {
			pass(time.Second)
			mustSet(t, w, true, a, hidden)
			if got := m.holds("weft0"); got != want {
				t.Fatalf("weft0 holds\n%s\nwant\n%s", got, want)
			}
		}
		for _, p := range []Peer{a, hidden} {
			if got := m.touched[wgtypes.Key(p.Keys[0])]; got != 2*len(renewals) {
				t.Errorf("%s was touched %d times, want %d", p.Node, got, 2*len(renewals))
			}
		}
	})
}

// A peer that is no longer wanted is not replaced, stays for as long as plan keeps it,
// and is called again once it is wanted.
func TestStrangersThatNobodyWantsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		m.firstKeys(t)
		w := m.lanes(t.TempDir())
		mustSet(t, w, true, somebody("a", 'a', "10.2.1.0/24"))
		want := m.holds("weft0")
		for range 60 {
			pass(time.Second)
			mustSet(t, w, false)
			if got := m.holds("weft0"); got != want {
				t.Fatalf("weft0 holds\n%s\nwant\n%s", got, want)
			}
		}
		clear(m.touched)
		for range 60 {
			pass(time.Second)
			mustSet(t, w, true, somebody("a", 'a', "10.2.1.0/24"))
		}
		if got := m.touched[wgtypes.Key(somebody("a", 'a').Keys[0])]; got != 2*len(renewals) {
			t.Errorf("wanted again, it was touched %d times, want %d", got, 2*len(renewals))
		}
	})
}

// The kernel restarts a peer's counters when it is replaced, which is not data.
func TestStrangersAreQuiet(t *testing.T) {
	start := time.Now()
	w := watch{last: start}
	key := Key{1}
	for i, received := range []int64{0, messageInitiation, 0, messageResponse, messageKeepalive} {
		w.bytes([]wgtypes.Peer{{PublicKey: wgtypes.Key(key), ReceiveBytes: received}}, start.Add(time.Duration(i)*time.Second))
	}
	if !w.last.Equal(start) {
		t.Errorf("what a new peer was sent counts as data, %v after the start", w.last.Sub(start))
	}
	w.bytes([]wgtypes.Peer{{PublicKey: wgtypes.Key(key), ReceiveBytes: messageKeepalive + 64}}, start.Add(time.Minute))
	if got := w.last.Sub(start); got != time.Minute {
		t.Errorf("data was last seen after %v, want a minute", got)
	}
}
