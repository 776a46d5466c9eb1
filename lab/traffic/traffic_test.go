package traffic

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/internal/loopbacktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnswerReadsBack(t *testing.T) {
	want := Answer{Cluster: "west", Node: "n1", Namespace: "default", Pod: "web-1", Peer: "10.1.1.2:4711", Echo: "7"}
	got, err := ParseAnswer(want.String() + "\n")
	if err != nil || got != want {
		t.Errorf("ParseAnswer = %+v, %v; want %+v", got, err, want)
	}
	if _, err := ParseAnswer("HTTP/1.1 502 Bad Gateway"); err == nil {
		t.Error("an answer from another server is accepted")
	}
}

func TestRefusedWithin(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: unix.ECONNREFUSED}
	for _, c := range []struct {
		name string
		took time.Duration
		err  error
		want string // part of the error, empty: none
	}{
		{"refused at once", time.Millisecond, refused, ""},
		{"refused when the packet came again", time.Second, refused, "refused only after 1s, not within 300ms"},
		{"timeout", time.Millisecond, context.DeadlineExceeded, "ended after 1ms"},
		{"reset", time.Millisecond, unix.ECONNRESET, "should have been refused"},
		{"answered", time.Millisecond, nil, "answered"},
	} {
		err := RefusedWithin(300*time.Millisecond, c.took, c.err)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func startServer(t *testing.T) (http, tcp, udp string) {
	t.Helper()
	addr := loopbacktest.Addr(t)
	http, tcp, udp = fmt.Sprintf("%v:10080", addr), fmt.Sprintf("%v:10081", addr), fmt.Sprintf("%v:10082", addr)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, ServeConfig{HTTP: []string{http}, TCP: []string{tcp}, UDP: []string{udp}, Self: Answer{Cluster: "east", Pod: "web"}})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for _, address := range []string{"http://" + http, "tcp://" + tcp, "udp://" + udp} {
		target, err := ParseTarget(address)
		if err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); ; {
			_, err := RequestWithin(t.Context(), time.Second, target, "", "0")
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s does not answer: %v", address, err)
			}
		}
	}
	return http, tcp, udp
}

// enough collects a load's lines and ends it after enough samples, however long a
// busy machine takes.
type enough struct {
	bytes.Buffer
	samples int
	end     func()
}

func (e *enough) Write(p []byte) (int, error) {
	n, err := e.Buffer.Write(p)
	if bytes.Count(e.Bytes(), []byte(`"took":`)) >= e.samples {
		e.end()
	}
	return n, err
}

// load10 makes requests until ten have ended.
func load10(t *testing.T, target string, keep int) Tally {
	t.Helper()
	to, err := ParseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out := &enough{samples: 10, end: cancel}
	if err := Load(ctx, LoadConfig{Target: to, Rate: 100, Timeout: time.Minute, Keep: keep}, out); err != nil {
		t.Fatal(err)
	}
	return Count(parseSamples(t, out.String()))
}

func TestLoad(t *testing.T) {
	http, tcp, udp := startServer(t)
	for name, c := range map[string]struct {
		target string
		keep   int
	}{
		"http, new connections": {"http://" + http + "/?bytes=5000", 0},
		"tcp, new connections":  {"tcp://" + tcp, 0},
		"tcp, kept connections": {"tcp://" + tcp, 2},
		"udp, kept sockets":     {"udp://" + udp, 2},
		"udp, new sockets":      {"udp://" + udp, 0},
	} {
		t.Run(name, func(t *testing.T) {
			tally := load10(t, c.target, c.keep)
			if tally.Failed > 0 || tally.Requests < 10 || tally.ByPod["east/web"] != tally.Requests {
				t.Errorf("tally = %+v", tally)
			}
		})
	}
}

func parseSamples(t *testing.T, text string) (samples []Sample) {
	t.Helper()
	for line := range strings.Lines(text) {
		var l Line
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Oldest == 0 {
			samples = append(samples, l.Sample)
		}
	}
	return samples
}

// An idle connection must notice within seconds that it is dead.
func TestConnectionsAreKeptAlive(t *testing.T) {
	_, tcp, _ := startServer(t)
	c, err := dial(t.Context(), Target{Scheme: "tcp", Host: tcp}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range []struct {
		name                string
		level, number, want int
	}{
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1},
	} {
		var got int
		controlled := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), option.level, option.number) })
		if err = errors.Join(controlled, err); err != nil || got != option.want {
			t.Errorf("%s = %d (%v), want %d", option.name, got, err, option.want)
		}
	}
}

func TestLoadCountsFailures(t *testing.T) {
	tally := load10(t, fmt.Sprintf("tcp://%v:10080", loopbacktest.Addr(t)), 0)
	if tally.Failed < 10 || tally.Errors["refused"] != tally.Requests {
		t.Errorf("tally = %+v", tally)
	}
}

func TestRecovery(t *testing.T) {
	// Requests every 100 ms; the fault is at 1 s.
	timeline := func(bad ...int) (samples []Sample) {
		for i := range 30 {
			s := Sample{At: int64(i) * 100_000, Took: 1000}
			for _, b := range bad {
				if b == i {
					s.Error = "timeout"
				}
			}
			samples = append(samples, s)
		}
		return samples
	}
	slow := timeline()
	slow[11].Took = 600_000
	for name, tt := range map[string]struct {
		samples []Sample
		want    time.Duration
		ok      bool
	}{
		"nothing went wrong":       {timeline(), 0, true},
		"two failed":               {timeline(10, 11), 200 * time.Millisecond, true},
		"good in between":          {timeline(10, 14), 500 * time.Millisecond, true},
		"bad before the fault":     {timeline(3), 0, true},
		"slow counts as bad":       {slow, 200 * time.Millisecond, true},
		"not yet steady":           {timeline(10, 28), 0, false},
		"nothing good afterwards":  {timeline()[:10], 0, false},
		"some are still under way": {timeline(10)[:14], 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := Recovery(tt.samples, time.UnixMicro(1_000_000), time.UnixMicro(3_000_000), 500*time.Millisecond, 500*time.Millisecond)
			if got != tt.want || ok != tt.ok {
				t.Errorf("Recovery = %v, %v; want %v, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestPercentile(t *testing.T) {
	values := []float64{5, 1, 3, 2, 4}
	for share, want := range map[float64]float64{0.5: 3, 0.99: 5, 1: 5, 0: 1} {
		if got := Percentile(values, share); got != want {
			t.Errorf("Percentile(%v) = %v, want %v", share, got, want)
		}
	}
}

// A server of somebody else's is reached whatever its certificate says.
func TestRequestToATLSServer(t *testing.T) {
	status := http.StatusOK
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, "ok\n", r.URL.Path)
	}))
	defer s.Close()
	target, err := ParseTarget(s.URL + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := Request(t.Context(), target, "", ""); err != nil || a.Echo != "ok /readyz" {
		t.Errorf("answer %+v, %v", a, err)
	}
	status = http.StatusForbidden
	if _, err := Request(t.Context(), target, "", ""); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("forbidden: %v", err)
	}
	if target, err := ParseTarget("https://10.101.0.1/readyz"); err != nil || target.Host != "10.101.0.1:443" {
		t.Errorf("without a port: %+v, %v", target, err)
	}
}

// A connection that only waits sends nothing, and tells how it ended.
func TestIdle(t *testing.T) {
	addr := netip.AddrPortFrom(loopbacktest.Addr(t), 10083)
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	target, err := ParseTarget("tcp://" + addr.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"closed", "reset"} {
		served := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				served <- err
				return
			}
			defer c.Close()
			in := bufio.NewReader(c)
			if _, err = in.ReadString('\n'); err == nil {
				_, err = fmt.Fprintln(c, Answer{Cluster: "east", Pod: "web", Echo: "hello"})
			}
			if want == "reset" {
				err = errors.Join(err, c.(*net.TCPConn).SetLinger(0))
			}
			served <- err
		}()
		a, ended, err := Idle(t.Context(), time.Minute, target, "")
		if err != nil || a.Pod != "web" || Reason(ended) != want {
			t.Errorf("%s: answered by %+v, ended with %v; %v", want, a, ended, err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Idle(ctx, time.Minute, target, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
