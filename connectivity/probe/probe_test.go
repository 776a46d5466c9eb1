package probe

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// serve runs a server on the loopback until the test ends.
func serve(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if err := s.Listen(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

const patience = 10 * time.Second

func TestServersSayWhoAnsweredWhom(t *testing.T) {
	s := &Server{Self: "east/weft-test/server", TCP: []string{"127.0.0.1:0"}, UDP: []string{"127.0.0.1:0"}}
	serve(t, s)
	answers, err := All(t.Context(), []Question{
		{Protocol: TCP, To: s.Addr().String(), Tries: 3, Patience: patience, Size: 1 << 20},
		{Protocol: UDP, To: s.datagrams[0].LocalAddr().String(), Patience: patience, Size: 4000},
		{Protocol: UDP, To: s.datagrams[0].LocalAddr().String(), Patience: patience, Largest: true, Size: 10},
		{Protocol: Connect, To: s.Addr().String(), Patience: patience},
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(answers[0].Tries); n != 3 {
		t.Errorf("%d tries, want 3", n)
	}
	for i, a := range answers {
		for _, got := range a.Tries {
			if !got.OK || i < 3 && (got.By != s.Self || !strings.HasPrefix(got.Seen, "127.0.0.1:")) {
				t.Errorf("answer %d: %+v", i, got)
			}
		}
	}
	if got := answers[0].Tries[0].Bytes; got != 1<<20 {
		t.Errorf("%d bytes came back over TCP", got)
	}
	if got := answers[1].Tries[0].Bytes; got != 4000 {
		t.Errorf("%d bytes came back over UDP", got)
	}
	// The loopback allows packets larger than IP does.
	if got := answers[2].Tries[0].Bytes; got <= 4000 {
		t.Errorf("the largest datagram has %d bytes", got)
	}
}

func TestFailuresHaveANature(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		w.Write([]byte("up 1\n"))
	}))
	defer other.Close()
	answers, err := All(t.Context(), []Question{
		{Protocol: TCP, To: closed, Patience: patience},
		{Protocol: UDP, To: silent.LocalAddr().String(), Patience: 50 * time.Millisecond},
		{Protocol: TCP, To: strings.TrimPrefix(other.URL, "http://"), Patience: patience},
		{Protocol: Fetch, To: other.URL + "/metrics", Patience: patience},
		{Protocol: Fetch, To: other.URL, Patience: patience},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{Refused, Timeout, Other, "", Other} {
		if got := answers[i].Tries[0]; got.Failure != want || got.OK != (want == "") || want != "" && got.Error == "" {
			t.Errorf("question %d ended as %+v, want %q", i, got, want)
		}
	}
	if got := answers[3].Tries[0].Text; got != "up 1\n" {
		t.Errorf("fetched %q", got)
	}
}

func TestQuestionsAreChecked(t *testing.T) {
	for name, q := range map[string]Question{
		"protocol": {Protocol: "sctp", To: "127.0.0.1:1", Patience: 1},
		"patience": {Protocol: TCP, To: "127.0.0.1:1"},
		"to":       {Protocol: TCP, To: "127.0.0.1", Patience: 1},
		"address":  {Protocol: Ping, To: "127.0.0.1:1", Patience: 1},
		"tries":    {Protocol: TCP, To: "127.0.0.1:1", Patience: 1, Tries: MaxTries + 1},
		"size":     {Protocol: TCP, To: "127.0.0.1:1", Patience: 1, Size: -1},
	} {
		if _, err := All(t.Context(), []Question{q}); err == nil {
			t.Errorf("%s: %+v is accepted", name, q)
		}
	}
}

func TestPing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: opens a raw socket")
	}
	answers, err := All(t.Context(), []Question{{Protocol: Ping, To: "127.0.0.1", Patience: patience}})
	if err != nil || !answers[0].Tries[0].OK {
		t.Errorf("%+v, %v", answers, err)
	}
}

func TestChecksum(t *testing.T) {
	// The example of RFC 1071, section 3.
	if got := checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("checksum %#x", got)
	}
}
