package traffic

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// ServeConfig lists the addresses to serve on, such as ":80".
type ServeConfig struct {
	HTTP, TCP, UDP []string
	Self           Answer
}

// maxBytes bounds how much a request may ask for.
const maxBytes = 64 << 20

// Serve answers until ctx ends. HTTP requests with ?bytes=n get n further
// bytes. TCP connections are answered line by line, UDP packet by packet.
func Serve(ctx context.Context, c ServeConfig) error {
	s, err := c.listen(ctx)
	if err != nil {
		return err
	}
	return c.serve(ctx, s)
}

// sockets are open, in the network namespace of the thread that opened them.
type sockets struct {
	http, tcp []net.Listener
	udp       []net.PacketConn
}

func (s *sockets) close() {
	for _, l := range slices.Concat(s.http, s.tcp) {
		l.Close()
	}
	for _, l := range s.udp {
		l.Close()
	}
}

func (c ServeConfig) listen(ctx context.Context) (s sockets, err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	var lc net.ListenConfig
	for _, addr := range c.HTTP {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return s, fmt.Errorf("serve http: %w", err)
		}
		s.http = append(s.http, l)
	}
	for _, addr := range c.TCP {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return s, fmt.Errorf("serve tcp: %w", err)
		}
		s.tcp = append(s.tcp, l)
	}
	for _, addr := range c.UDP {
		l, err := lc.ListenPacket(ctx, "udp", addr)
		if err != nil {
			return s, fmt.Errorf("serve udp: %w", err)
		}
		s.udp = append(s.udp, l)
	}
	return s, nil
}

func (c ServeConfig) serve(ctx context.Context, s sockets) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range s.http {
		server := &http.Server{Handler: c.handler()}
		g.Go(func() error { return ignoreClosed(server.Serve(l)) })
		g.Go(func() error { <-ctx.Done(); return ignoreClosed(server.Close()) })
	}
	for _, l := range s.tcp {
		g.Go(func() error { return ignoreClosed(c.acceptTCP(ctx, l)) })
	}
	for _, l := range s.udp {
		g.Go(func() error { return ignoreClosed(c.echoUDP(l)) })
	}
	g.Go(func() error { <-ctx.Done(); s.close(); return nil })
	return g.Wait()
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (c ServeConfig) answer(peer net.Addr, echo string) string {
	a := c.Self
	a.Peer, a.Echo = peer.String(), echo
	return a.String() + "\n"
}

func (c ServeConfig) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := c.Self
		a.Peer, a.Echo = r.RemoteAddr, r.URL.Query().Get("echo")
		fmt.Fprintln(w, a)
		more, _ := strconv.Atoi(r.URL.Query().Get("bytes"))
		for line := Marker + "\n"; more > 0 && more <= maxBytes; more -= len(line) {
			if _, err := fmt.Fprint(w, line[:min(more, len(line))]); err != nil {
				return
			}
		}
	})
}

func (c ServeConfig) acceptTCP(ctx context.Context, l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		// The connection ends with its client, or with the process.
		go func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				if _, err := fmt.Fprint(conn, c.answer(conn.RemoteAddr(), firstWord(lines.Text()))); err != nil {
					return
				}
			}
		}()
	}
}

func (c ServeConfig) echoUDP(l net.PacketConn) error {
	pkt := make([]byte, 65536)
	for {
		n, peer, err := l.ReadFrom(pkt)
		if err != nil {
			return err
		}
		// An answer that cannot be sent is a lost packet, which the client counts.
		_, _ = l.WriteTo([]byte(c.answer(peer, firstWord(string(pkt[:n])))), peer)
	}
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(strings.TrimSpace(s), " ")
	return word
}
