package traffic

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Target is a server's address: http://web/, tcp://web:81 or udp://10.1.1.2:82; with sendto://
// instead of udp://, it is asked from a socket that is not connected. One of https is somebody else's.
type Target struct {
	Scheme string // http, https, tcp, udp, sendto
	Host   string // host:port
	URL    string // as it was written
}

// ParseTarget reads a Target. The scheme defaults to http.
func ParseTarget(s string) (Target, error) {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return Target{}, fmt.Errorf("target: %w", err)
	}
	t := Target{Scheme: u.Scheme, Host: u.Host, URL: s}
	switch {
	case !slices.Contains([]string{"http", "https", "tcp", "udp", "sendto"}, u.Scheme):
		return Target{}, fmt.Errorf("target %q: write http://…, https://…, tcp://…, udp://… or sendto://…", s)
	case u.Port() == "" && u.Scheme == "https":
		t.Host = net.JoinHostPort(u.Hostname(), "443")
	case u.Port() == "" && u.Scheme != "http":
		return Target{}, fmt.Errorf("target %q: needs a port", s)
	case u.Port() == "":
		t.Host = net.JoinHostPort(u.Hostname(), "80")
	}
	return t, nil
}

// Request makes one request on a new connection. from, if not empty, is the local
// address or address:port to use.
func Request(ctx context.Context, t Target, from, echo string) (Answer, error) {
	switch t.Scheme {
	case "http":
		return requestHTTP(ctx, t, from, echo)
	case "https":
		return requestHTTPS(ctx, t, from)
	}
	conn, err := dial(ctx, t, from)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	return conn.ask(ctx, echo)
}

// Together connects to all targets from one address and port, and then asks each of them in
// turn, so many times. None is http.
func Together(ctx context.Context, limit time.Duration, targets []Target, from string, times int) (answers []Answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var open []*connection
	for _, t := range targets {
		conn, err := dial(ctx, t, from)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.URL, err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	for round := range times {
		for i, conn := range open {
			a, err := conn.ask(ctx, fmt.Sprintf("%d-%d", round, i))
			if err != nil {
				return answers, fmt.Errorf("%s: %w", targets[i].URL, err)
			}
			answers = append(answers, a)
		}
	}
	return answers, nil
}

// once is a transport for one request, from a local address.
func once(from string) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		d, err := dialer("tcp", from)
		if err != nil {
			return nil, err
		}
		return d.DialContext(ctx, "tcp"+family(ctx, addr), addr)
	}}
}

// requestHTTPS asks a server that is not of the lab, such as that of the Kubernetes API, whatever
// its certificate says: the question is whether it is reached. The first words of what it answers
// are the echo.
func requestHTTPS(ctx context.Context, t Target, from string) (Answer, error) {
	transport := once(from)
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.URL, nil)
	if err != nil {
		return Answer{}, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 256))
	switch {
	case err != nil:
		return Answer{}, fmt.Errorf("read answer: %w", err)
	case resp.StatusCode != http.StatusOK:
		return Answer{}, fmt.Errorf("answer has status %s", resp.Status)
	}
	return Answer{Echo: strings.Join(strings.Fields(string(body)), " ")}, nil
}

func requestHTTP(ctx context.Context, t Target, from, echo string) (Answer, error) {
	transport := once(from)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.URL, nil)
	if err != nil {
		return Answer{}, err
	}
	if echo != "" {
		q := req.URL.Query()
		q.Set("echo", echo)
		req.URL.RawQuery = q.Encode()
	}
	req.Header.Set("User-Agent", Marker)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	line, err := body.ReadString('\n')
	if err != nil {
		return Answer{}, fmt.Errorf("read answer: %w", err)
	}
	if _, err := io.Copy(io.Discard, body); err != nil {
		return Answer{}, fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return Answer{}, fmt.Errorf("answer has status %s", resp.Status)
	}
	return ParseAnswer(line)
}

// family ends the name of a network: 6 for an IPv6 address and its port, and for a name that
// has addresses of IPv6 alone, otherwise 4.
func family(ctx context.Context, at string) string {
	if strings.HasPrefix(at, "[") {
		return "6"
	}
	host, _, err := net.SplitHostPort(at)
	if _, literal := netip.ParseAddr(host); err != nil || literal == nil {
		return "4"
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() }) {
		return "4" // whoever connects says what is wrong with the name
	}
	return "6"
}

func dialer(network, from string) (*net.Dialer, error) {
	d := &net.Dialer{}
	if from == "" {
		return d, nil
	}
	if !strings.Contains(from, ":") {
		from += ":0"
	}
	var err error
	if network == "udp" {
		d.LocalAddr, err = net.ResolveUDPAddr("udp4", from)
	} else {
		d.LocalAddr, err = net.ResolveTCPAddr("tcp4", from)
	}
	if err != nil {
		return nil, fmt.Errorf("local address: %w", err)
	}
	// Several sockets may share a port, as long as they speak to different addresses.
	d.Control = func(_, _ string, c syscall.RawConn) (err error) {
		if failed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); failed != nil {
			return failed
		}
		return err
	}
	return d, nil
}

// connection is a TCP or UDP connection to a server of the lab.
type connection struct {
	net.Conn
	in *bufio.Reader // of a stream; nil for UDP
}

// keepAlive makes idle connections send something now and then: one that sends nothing
// never learns that the other side is gone.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second}

func dial(ctx context.Context, t Target, from string) (*connection, error) {
	if t.Scheme == "sendto" {
		return openTo(ctx, t, from)
	}
	d, err := dialer(t.Scheme, from)
	if err != nil {
		return nil, err
	}
	network := "udp"
	if t.Scheme != "udp" {
		network = "tcp"
		d.KeepAliveConfig = keepAlive
	}
	conn, err := d.DialContext(ctx, network+family(ctx, t.Host), t.Host)
	if err != nil {
		return nil, err
	}
	// A socket that was given a service's backend still sees the service.
	if asked, err := netip.ParseAddrPort(t.Host); err == nil && conn.RemoteAddr().String() != asked.String() {
		conn.Close()
		return nil, fmt.Errorf("connected to %v instead of %v", conn.RemoteAddr(), asked)
	}
	c := &connection{Conn: conn}
	if t.Scheme != "udp" {
		c.in = bufio.NewReader(conn)
	}
	return c, nil
}

// unconnected is a UDP socket that is not connected, and speaks to one address.
type unconnected struct {
	*net.UDPConn
	to *net.UDPAddr
}

func openTo(ctx context.Context, t Target, from string) (*connection, error) {
	network := "udp" + family(ctx, t.Host)
	to, err := net.ResolveUDPAddr(network, t.Host)
	if err != nil {
		return nil, err
	}
	d, err := dialer("udp", from)
	if err != nil {
		return nil, err
	}
	local := ""
	if d.LocalAddr != nil {
		local = d.LocalAddr.String()
	}
	socket, err := (&net.ListenConfig{Control: d.Control}).ListenPacket(ctx, network, local)
	if err != nil {
		return nil, err
	}
	return &connection{Conn: &unconnected{socket.(*net.UDPConn), to}}, nil
}

func (u *unconnected) Write(b []byte) (int, error) { return u.WriteTo(b, u.to) }

func (u *unconnected) Read(b []byte) (int, error) {
	n, from, err := u.ReadFrom(b)
	if err == nil && from.String() != u.to.String() {
		err = fmt.Errorf("asked %v, but %v answered", u.to, from)
	}
	return n, err
}

// ask sends a word and waits for the answer to it until ctx ends.
func (c *connection) ask(ctx context.Context, echo string) (Answer, error) {
	if echo == "" {
		echo = "hello"
	}
	if err := c.deadline(ctx); err != nil {
		return Answer{}, err
	}
	if _, err := fmt.Fprintf(c, "%s %s\n", echo, Marker); err != nil {
		return Answer{}, err
	}
	for {
		line, err := c.line()
		if err != nil {
			return Answer{}, err
		}
		a, err := ParseAnswer(line)
		if err != nil || a.Echo == echo {
			return a, err
		}
	}
}

func (c *connection) deadline(ctx context.Context) error {
	until, _ := ctx.Deadline()
	return c.SetDeadline(until)
}

func (c *connection) line() (string, error) {
	if c.in != nil {
		return c.in.ReadString('\n')
	}
	pkt := make([]byte, 65536)
	n, err := c.Read(pkt)
	return string(pkt[:n]), err
}

// Idle asks a server over TCP once, and then says nothing and waits until the connection ends: it
// returns the answer, and how that ended. Nothing is sent to keep it alive.
func Idle(ctx context.Context, limit time.Duration, t Target, from string) (a Answer, ended, err error) {
	if t.Scheme != "tcp" {
		return a, nil, fmt.Errorf("%s: only a connection over TCP can be idle", t.URL)
	}
	asking, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := dial(asking, t, from)
	if err != nil {
		return a, nil, err
	}
	defer conn.Close()
	if err := conn.Conn.(*net.TCPConn).SetKeepAlive(false); err != nil {
		return a, nil, err
	}
	if a, err = conn.ask(asking, ""); err != nil {
		return a, nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return a, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, ended = conn.line()
	return a, ended, ctx.Err()
}

// lost is how many segments a TCP connection has lost since it was made, as far as the
// kernel knows: those it sent again, except those that the other side reported as
// received twice, which were only slow.
func (c *connection) lost() (count int32) {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), syscall.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			count = int32(info.Total_retrans) - int32(info.Dsack_dups)
		}
	})
	return count
}

// RequestWithin is Request with a time limit.
func RequestWithin(ctx context.Context, limit time.Duration, t Target, from, echo string) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return Request(ctx, t, from, echo)
}
