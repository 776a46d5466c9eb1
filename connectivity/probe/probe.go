// Package probe asks and answers in the pods of a connectivity test: who answered, whom it
// saw asking, and how a request failed.
//
// What is asked and what the answers should be is decided in package connectivity.
package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Protocols of questions.
const (
	TCP     = "tcp"
	UDP     = "udp"
	Ping    = "ping"    // an ICMP echo
	Connect = "connect" // TCP, to somebody else's server: a connection is enough
	Fetch   = "fetch"   // an HTTP GET of To as a URL, whose body is Try.Text
)

// MaxTries and MaxSize bound a question.
const (
	MaxTries = 1000
	MaxSize  = 4 << 20
	maxText  = 4 << 20
)

// Question asks one server several times, each time on a new connection.
type Question struct {
	Protocol string `json:"protocol"`
	To       string `json:"to"` // address:port; of Ping, an address
	Tries    int    `json:"tries,omitempty"`
	// Patience bounds each try.
	Patience time.Duration `json:"patience"`
	// Size is how many bytes are sent and returned, over TCP and UDP.
	Size int `json:"size,omitempty"`
	// Largest makes the datagram as large as the device allows, and no packet of the request
	// and the answer may be fragmented.
	Largest bool `json:"largest,omitempty"`
}

// Validate says what is wrong with a question.
func (q *Question) Validate() error {
	switch {
	case q.Tries < 0 || q.Tries > MaxTries:
		return fmt.Errorf("tries is 0 to %d, not %d", MaxTries, q.Tries)
	case q.Size < 0 || q.Size > MaxSize:
		return fmt.Errorf("size is 0 to %d, not %d", MaxSize, q.Size)
	case q.Patience <= 0:
		return errors.New("patience is missing")
	}
	switch q.Protocol {
	case TCP, UDP, Connect:
		if _, err := netip.ParseAddrPort(q.To); err != nil {
			return fmt.Errorf("to: %w", err)
		}
	case Ping:
		if _, err := netip.ParseAddr(q.To); err != nil {
			return fmt.Errorf("to: %w", err)
		}
	case Fetch:
	default:
		return fmt.Errorf("there is no protocol %q", q.Protocol)
	}
	return nil
}

// How a try failed.
const (
	Refused     = "refused"     // by a TCP reset or an ICMP error
	Unreachable = "unreachable" // by an ICMP error, or without a route
	Timeout     = "timeout"
	Reset       = "reset" // after it was connected
	TooLarge    = "too large"
	Other       = "other"
)

// Try is what became of one request.
type Try struct {
	OK bool `json:"ok"`
	// By is who answered, as cluster/namespace/pod, and Seen the address that it saw the
	// request come from. Both are empty for a ping.
	By   string `json:"by,omitempty"`
	Seen string `json:"seen,omitempty"`
	// Bytes is how much came back.
	Bytes int    `json:"bytes,omitempty"`
	Text  string `json:"text,omitempty"`
	// Failure is one of the words above, and Error the whole story.
	Failure string        `json:"failure,omitempty"`
	Error   string        `json:"error,omitempty"`
	Took    time.Duration `json:"took"`
}

// Answer answers one question.
type Answer struct {
	Tries []Try `json:"tries"`
}

// All answers questions, all at once.
func All(ctx context.Context, questions []Question) ([]Answer, error) {
	for i := range questions {
		if err := questions[i].Validate(); err != nil {
			return nil, fmt.Errorf("question %d: %w", i+1, err)
		}
	}
	answers := make([]Answer, len(questions))
	var asked sync.WaitGroup
	for i, q := range questions {
		asked.Go(func() { answers[i] = ask(ctx, q) })
	}
	asked.Wait()
	return answers, nil
}

// ask asks one question.
func ask(ctx context.Context, q Question) (a Answer) {
	for range max(q.Tries, 1) {
		begin := time.Now()
		limited, cancel := context.WithTimeout(ctx, q.Patience)
		t, err := try(limited, q)
		cancel()
		if err != nil {
			t = Try{Failure: failure(err), Error: err.Error()}
		}
		t.OK, t.Took = err == nil, time.Since(begin)
		a.Tries = append(a.Tries, t)
	}
	return a
}

// failure says in one word how a request failed.
func failure(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Reset
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return Unreachable
	case errors.Is(err, syscall.EMSGSIZE):
		return TooLarge
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return Timeout
	}
	return Other
}

func try(ctx context.Context, q Question) (Try, error) {
	switch q.Protocol {
	case Ping:
		return ping(ctx, netip.MustParseAddr(q.To))
	case Fetch:
		return fetch(ctx, q.To)
	}
	network := TCP
	if q.Protocol == UDP {
		network = UDP
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, q.To)
	if err != nil || q.Protocol == Connect {
		if err == nil {
			conn.Close()
		}
		return Try{}, err
	}
	defer conn.Close()
	until, _ := ctx.Deadline()
	if err := conn.SetDeadline(until); err != nil {
		return Try{}, err
	}
	if q.Protocol == UDP {
		return datagram(conn.(*net.UDPConn), q)
	}
	return stream(conn, q)
}

// word is what both sides send first, as a line of JSON. What follows is padding.
type word struct {
	ID    string `json:"id"`
	Size  int    `json:"size,omitempty"`
	Whole bool   `json:"whole,omitempty"` // the datagram may not be fragmented
	By    string `json:"by,omitempty"`
	Seen  string `json:"seen,omitempty"`
}

func newID() string {
	var id [8]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// line is the word as it is sent, filled up to a size.
func (w word) line(size int) []byte {
	text, err := json.Marshal(w)
	if err != nil {
		panic(err) // strings and numbers alone
	}
	text = append(text, '\n')
	if more := size - len(text); more > 0 {
		text = append(text, bytes.Repeat([]byte{'.'}, more)...)
	}
	return text
}

func stream(conn net.Conn, q Question) (t Try, err error) {
	w := word{ID: newID(), Size: q.Size}
	if _, err := conn.Write(append(w.line(0), bytes.Repeat([]byte{'.'}, q.Size)...)); err != nil {
		return t, err
	}
	in := bufio.NewReader(conn)
	text, err := in.ReadBytes('\n')
	if err != nil {
		return t, err
	}
	if err := t.read(text, w.ID); err != nil {
		return t, err
	}
	n, err := io.CopyN(io.Discard, in, int64(q.Size))
	t.Bytes = int(n)
	return t, err
}

// read takes the answer to the word of an ID.
func (t *Try) read(text []byte, id string) error {
	var w word
	if first, _, ok := bytes.Cut(text, []byte{'\n'}); ok {
		text = first
	}
	if err := json.Unmarshal(text, &w); err != nil || w.ID != id {
		return fmt.Errorf("%.60q is not an answer to the request", text)
	}
	t.By, t.Seen = w.By, w.Seen
	return nil
}

func datagram(conn *net.UDPConn, q Question) (t Try, err error) {
	size := q.Size
	if q.Largest {
		mtu, err := mtuOf(conn.LocalAddr())
		if err != nil {
			return t, err
		}
		size = mtu - 28
		if addr, _ := netip.AddrFromSlice(conn.LocalAddr().(*net.UDPAddr).IP); !addr.Unmap().Is4() {
			size = mtu - 48
		}
	}
	if err := mayFragment(conn, !q.Largest); err != nil {
		return t, err
	}
	w := word{ID: newID(), Whole: q.Largest}
	if _, err := conn.Write(w.line(size)); err != nil {
		return t, err
	}
	in := make([]byte, 1<<16)
	for {
		n, err := conn.Read(in)
		if err != nil {
			return t, err
		}
		if t.read(in[:n], w.ID) == nil {
			t.Bytes = n
			return t, nil
		}
	}
}

// mtuOf is the MTU of the device that has an address.
func mtuOf(local net.Addr) (int, error) {
	own := local.(*net.UDPAddr).IP
	devices, err := net.Interfaces()
	if err != nil {
		return 0, err
	}
	for _, d := range devices {
		addrs, err := d.Addrs()
		if err != nil {
			return 0, err
		}
		for _, a := range addrs {
			if p, ok := a.(*net.IPNet); ok && p.IP.Equal(own) {
				return min(d.MTU, 65535), nil // the length of a packet has 16 bits
			}
		}
	}
	return 0, fmt.Errorf("no device has the address %v", own)
}

// mayFragment decides whether a socket's datagrams may be fragmented.
func mayFragment(conn *net.UDPConn, may bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	mode := unix.IP_PMTUDISC_DO
	if may {
		mode = unix.IP_PMTUDISC_DONT
	}
	var four, six error
	err = raw.Control(func(fd uintptr) {
		four = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, mode)
		six = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, mode)
	})
	if err == nil && four != nil && six != nil {
		err = four
	}
	return err
}

// fetch asks a server that is not of the test.
func fetch(ctx context.Context, url string) (t Try, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return t, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return t, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxText))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered with status %s", url, resp.Status)
	}
	return Try{Text: string(text)}, err
}
