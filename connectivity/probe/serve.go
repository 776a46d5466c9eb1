package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// idle is how long a server waits for the rest of a request.
const idle = 30 * time.Second

// Server answers at some addresses, such as ":8080".
type Server struct {
	// Self is what it calls itself, as cluster/namespace/pod.
	Self     string
	TCP, UDP []string

	streams   []net.Listener
	datagrams []*net.UDPConn
}

// Listen opens all addresses, or none.
func (s *Server) Listen(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	var lc net.ListenConfig
	for _, at := range s.TCP {
		l, err := lc.Listen(ctx, "tcp", at)
		if err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		s.streams = append(s.streams, l)
	}
	for _, at := range s.UDP {
		l, err := lc.ListenPacket(ctx, "udp", at)
		if err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		s.datagrams = append(s.datagrams, l.(*net.UDPConn))
	}
	return nil
}

// Addr is the first address of TCP, which a port 0 leaves to the kernel.
func (s *Server) Addr() net.Addr { return s.streams[0].Addr() }

// Close closes what is open.
func (s *Server) Close() {
	for _, l := range s.streams {
		l.Close()
	}
	for _, l := range s.datagrams {
		l.Close()
	}
}

// Run answers until ctx ends; Listen comes first.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range s.streams {
		g.Go(func() error { return unlessClosed(s.accept(ctx, l)) })
	}
	for _, l := range s.datagrams {
		g.Go(func() error { return unlessClosed(s.echo(l)) })
	}
	g.Go(func() error { <-ctx.Done(); s.Close(); return nil })
	return g.Wait()
}

func unlessClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Server) accept(ctx context.Context, l net.Listener) error {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		open.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			_ = s.answer(conn) // the client sees how it ended
		})
	}
}

// answer answers one request.
func (s *Server) answer(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(idle)); err != nil {
		return err
	}
	in := bufio.NewReader(io.LimitReader(conn, MaxSize+4096))
	text, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var w word
	if err := json.Unmarshal(text, &w); err != nil || w.Size < 0 || w.Size > MaxSize {
		return fmt.Errorf("%.60q is not a request", text)
	}
	if _, err := io.CopyN(io.Discard, in, int64(w.Size)); err != nil {
		return err
	}
	reply := word{ID: w.ID, By: s.Self, Seen: conn.RemoteAddr().String()}.line(0)
	_, err = conn.Write(append(reply, make([]byte, w.Size)...))
	return err
}

// echo returns datagrams of the size that they have.
func (s *Server) echo(l *net.UDPConn) error {
	in := make([]byte, 1<<16)
	for {
		n, from, err := l.ReadFromUDPAddrPort(in)
		if err != nil {
			return err
		}
		var w word
		first := in[:n]
		for i, c := range first {
			if c == '\n' {
				first = first[:i]
				break
			}
		}
		if json.Unmarshal(first, &w) != nil {
			continue
		}
		if err := mayFragment(l, !w.Whole); err != nil {
			return err
		}
		// What cannot be sent is a lost datagram, which the client notices.
		_, _ = l.WriteToUDPAddrPort(word{ID: w.ID, By: s.Self, Seen: from.String()}.line(n), from)
	}
}

// ListenAnywhere opens a server at one port for TCP and UDP, which is free for both.
func ListenAnywhere(ctx context.Context, self string) (*Server, uint16, error) {
	var failed error
	for range 10 {
		s := &Server{Self: self, TCP: []string{":0"}}
		if err := s.Listen(ctx); err != nil {
			return nil, 0, err
		}
		port := s.Addr().(*net.TCPAddr).Port
		datagrams := &Server{UDP: []string{fmt.Sprintf(":%d", port)}}
		if failed = datagrams.Listen(ctx); failed == nil {
			s.datagrams = datagrams.datagrams
			return s, uint16(port), nil
		}
		s.Close()
	}
	return nil, 0, failed
}
