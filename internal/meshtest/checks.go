package meshtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
)

// checks are the ports at which an agent answers load balancers. The zero value has none.
type checks struct {
	mu   sync.Mutex // guards open
	open map[uint16]*listener
}

// listener is a net.Listener in memory.
type listener struct {
	of     *checks
	port   uint16
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

// listen implements meshagent.Edges.HealthCheck.
func (c *checks) listen(port uint16) (net.Listener, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[port] != nil {
		return nil, fmt.Errorf("port %d is taken", port)
	}
	l := &listener{of: c, port: port, conns: make(chan net.Conn), closed: make(chan struct{})}
	l.close = sync.OnceFunc(func() {
		c.mu.Lock()
		delete(c.open, port)
		c.mu.Unlock()
		close(l.closed)
	})
	if c.open == nil {
		c.open = map[uint16]*listener{}
	}
	c.open[port] = l
	return l, nil
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error { l.close(); return nil }

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return &net.TCPAddr{Port: int(l.port)} }

var errNobodyListens = errors.New("connection refused")

// dial connects to a port.
func (c *checks) dial(ctx context.Context, port uint16) (net.Conn, error) {
	c.mu.Lock()
	l := c.open[port]
	c.mu.Unlock()
	if l == nil {
		return nil, errNobodyListens
	}
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, errNobodyListens
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// HealthCheck asks the node as a load balancer does, and returns the status; 0: nobody listens
// there.
func (n *Node) HealthCheck(port uint16) int {
	t := n.cluster.mesh.t
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return n.checks.dial(ctx, port)
	}}}
	answer, err := client.Get("http://node/healthz")
	if errors.Is(err, errNobodyListens) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	return answer.StatusCode
}
