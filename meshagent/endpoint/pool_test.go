package endpoint

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A /29 has addresses .2 to .6 for pods.
var small = []netip.Prefix{netip.MustParsePrefix("10.1.2.0/29")}

func at(last string) netip.Addr { return netip.MustParseAddr("10.1.2." + last) }

// take is the last part of the next address, or the error.
func take(t *testing.T, p *Pool, now time.Time) string {
	t.Helper()
	r, err := p.Take(now)
	switch {
	case errors.Is(err, ErrNoAddress):
		return "none"
	case errors.Is(err, ErrResting):
		return "resting"
	case err != nil:
		t.Fatal(err)
	case r.ID == 0 || r.ID == 7:
		t.Errorf("number %d was given out again", r.ID)
	}
	return strings.TrimPrefix(r.IP.String(), "10.1.2.")
}

func TestPoolGivesAnAddressBackAsLateAsPossible(t *testing.T) {
	now := time.Now()
	p := NewPool(small, []Record{{IP: at("3"), ID: 7}}, nil, now)
	for _, want := range []string{"4", "5", "6", "2", "none"} {
		if got := take(t, p, now); got != want {
			t.Errorf("took %s, want %s", got, want)
		}
	}
	// What no pod ever had need not rest.
	p.Return(Record{IP: at("5"), ID: 8})
	if got := take(t, p, now); got != "5" {
		t.Errorf("took %s after a return", got)
	}
}

func TestAReleasedAddressRests(t *testing.T) {
	began := time.Now()
	p := NewPool(small, []Record{{IP: at("6"), ID: 7}}, nil, began)
	steps := []struct {
		release string
		after   time.Duration
		want    string
	}{
		// The top address is free again, and others that no pod ever had go first.
		{"6", 0, "2"}, {"", 0, "3"}, {"", time.Second, "4"}, {"", time.Second, "5"},
		{"", 2 * time.Second, "resting"},
		{"3", 3 * time.Second, "resting"}, {"2", 4 * time.Second, "resting"},
		{"", Grace - 1, "resting"},
		{"", Grace, "6"}, {"", Grace, "resting"},
		// The one released the longest ago, not the lowest.
		{"", Grace + time.Hour, "3"}, {"", Grace + time.Hour, "2"}, {"", Grace + time.Hour, "none"},
	}
	for i, s := range steps {
		if s.release != "" {
			p.Release(Record{IP: at(s.release), ID: uint16(100 + i)}, began.Add(s.after))
		}
		if got := take(t, p, began.Add(s.after)); got != s.want {
			t.Errorf("step %d: took %s, want %s", i, got, s.want)
		}
	}
	left := time.Date(2026, 3, 1, 12, 0, 18, 0, time.UTC)
	p.Release(Record{IP: at("4"), ID: 200}, left)
	_, err := p.Take(left.Add(18 * time.Second))
	if want := "1 of 10.1.2.0/29 rest for 1m0s after a pod left them, the next until 12:01:18 UTC;"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("it says %v, want %q", err, want)
	}
}

func TestAReleasedAddressRestsAcrossRestarts(t *testing.T) {
	dir := Dir(filepath.Join(t.TempDir(), "endpoints"))
	began := time.Now()
	pod := Record{Namespace: "shop", Pod: "old", IP: at("2"), ID: 1}
	if err := dir.Save(pod); err != nil {
		t.Fatal(err)
	}
	if err := dir.Release(pod, began); err != nil {
		t.Fatal(err)
	}
	restart := func(now time.Time) *Pool {
		records, lost, err := dir.Load()
		if err != nil || len(records)+len(lost) != 0 {
			t.Fatalf("records %v, %v", records, err)
		}
		released, err := dir.Released()
		if err != nil {
			t.Fatal(err)
		}
		return NewPool(small, records, released, now)
	}
	if got := take(t, restart(began.Add(time.Second)), began.Add(time.Second)); got != "3" {
		t.Errorf("after a restart it gives out %s", got)
	}
	// A damaged file counts from when it was written, a clock put back from now.
	later := began.Add(time.Hour)
	for ip, text := range map[string]string{"3": "", "4": later.Add(time.Hour).Format(time.RFC3339), "5": "x", "6": "2"} {
		path := filepath.Join(string(dir), "10.1.2."+ip+".released")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, later, later); err != nil {
			t.Fatal(err)
		}
	}
	p := restart(later)
	for _, want := range []string{"2", "resting"} {
		if got := take(t, p, later); got != want {
			t.Errorf("took %s, want %s", got, want)
		}
	}
	if got := take(t, p, later.Add(Grace)); got == "resting" || got == "2" {
		t.Errorf("a grace later it gives out %s", got)
	}
	for range 2 {
		if err := dir.Taken(at("2")); err != nil {
			t.Error(err)
		}
	}
	if released, err := dir.Released(); err != nil || len(released) != 4 {
		t.Errorf("left: %v, %v", released, err)
	}
}

// The node has another CIDR since the pod started. Its address belongs to somebody
// else now.
func TestAnAddressOfAnEarlierCIDRIsNotGivenOut(t *testing.T) {
	now := time.Now()
	old := Record{IP: netip.MustParseAddr("10.1.9.2"), ID: 7}
	p := NewPool(small, []Record{old}, nil, now)
	p.Release(old, now)
	now = now.Add(2 * Grace)
	for _, want := range []string{"2", "3", "4", "5", "6"} {
		if r, err := p.Take(now); err != nil || r.IP != at(want) || r.Second.IsValid() {
			t.Errorf("took %+v (%v), want %s", r, err, at(want))
		}
	}
	if r, err := p.Take(now); !errors.Is(err, ErrNoAddress) {
		t.Errorf("with nothing left it gave out %v (%v)", r, err)
	}
}

// A pod has the same place in the CIDRs of both families; the smaller one counts.
func TestAPodHasTheSamePlaceInBothFamilies(t *testing.T) {
	addr, now := netip.MustParseAddr, time.Now()
	cidr := netip.MustParsePrefix
	six := "fd00:10:1:2::"
	for _, c := range []struct {
		name  string
		cidrs []netip.Prefix
		want  string // IP and Second of all that can be taken, and how it ends
	}{
		{"IPv4 first", []netip.Prefix{small[0], cidr(six + "/64")}, "10.1.2.2 fd00:10:1:2::2, 10.1.2.3 fd00:10:1:2::3, 10.1.2.4 fd00:10:1:2::4, 10.1.2.5 fd00:10:1:2::5, 10.1.2.6 fd00:10:1:2::6, none"},
		{"IPv6 first", []netip.Prefix{cidr(six + "/64"), small[0]}, "fd00:10:1:2::2 10.1.2.2, fd00:10:1:2::3 10.1.2.3, fd00:10:1:2::4 10.1.2.4, fd00:10:1:2::5 10.1.2.5, fd00:10:1:2::6 10.1.2.6, none"},
		{"a smaller IPv6 CIDR", []netip.Prefix{cidr("10.1.2.0/24"), cidr(six + "/126")}, "10.1.2.2 fd00:10:1:2::2, 10.1.2.3 fd00:10:1:2::3, none"},
		{"IPv6 alone", []netip.Prefix{cidr("fd00:10:1:2::f0/126")}, "fd00:10:1:2::f2 invalid IP, fd00:10:1:2::f3 invalid IP, none"},
	} {
		p := NewPool(c.cidrs, nil, nil, now)
		var got []string
		for {
			r, err := p.Take(now)
			if errors.Is(err, ErrNoAddress) {
				got = append(got, "none")
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r.IP.String()+" "+r.Second.String())
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("%s: %s\nwant %s", c.name, text, c.want)
		}
	}

	// A large CIDR is not used up: what was released is given out again.
	p := NewPool([]netip.Prefix{cidr(six + "/64")}, nil, nil, now)
	for i := range places {
		now = now.Add(Grace)
		r, err := p.Take(now)
		if err != nil {
			t.Fatal(err)
		}
		if p.Release(r, now); i == places-3 && r.IP != addr(six+"ffff") || i == places-2 && r.IP != addr(six+"2") {
			t.Errorf("pod %d has %v", i, r.IP)
		}
	}

	// What a pod has in one family, nobody else gets in the other.
	both := []netip.Prefix{small[0], cidr(six + "/64")}
	p = NewPool(both, []Record{{IP: at("2"), ID: 1}, {IP: netip.MustParseAddr("10.1.9.9"), Second: addr(six + "3"), ID: 2}}, nil, now)
	for _, c := range []struct {
		ips  []netip.Addr
		want string // of the record, or of the error
	}{
		{[]netip.Addr{addr(six + "2")}, "belongs to another pod"},
		{[]netip.Addr{at("3")}, "belongs to another pod"},
		{[]netip.Addr{at("5"), addr(six + "6")}, "different places"},
		{[]netip.Addr{at("7")}, "10.1.2.7 is not an address for pods in 10.1.2.0/29 and fd00:10:1:2::/64"},
		{[]netip.Addr{addr(six + "1")}, "is not an address for pods"},
		{[]netip.Addr{addr(six + "7")}, "is not an address for pods"},
		{[]netip.Addr{addr("fd00:10:1:3::5")}, "is not an address for pods"},
		{[]netip.Addr{addr(six + "5")}, "10.1.2.5 fd00:10:1:2::5"},
		{[]netip.Addr{addr(six + "6"), at("6")}, "10.1.2.6 fd00:10:1:2::6"},
	} {
		r, err := p.Claim(c.ips, now)
		text := r.IP.String() + " " + r.Second.String()
		if err != nil {
			text = err.Error()
		}
		if !strings.Contains(text, c.want) || (err != nil) != errors.Is(err, ErrClaim) {
			t.Errorf("claim %v: %s, want %s", c.ips, text, c.want)
		}
	}
	p.Release(Record{IP: at("5"), Second: addr(six + "5"), ID: 3}, now)
	if _, err := p.Claim([]netip.Addr{addr(six + "5")}, now); err == nil || !strings.Contains(err.Error(), "too recently") {
		t.Errorf("the second address of a pod that left: %v", err)
	}
}
