package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// metricsPorts are where Weft's processes serve /metrics by default, on their
// machine's loopback.
var metricsPorts = map[string]uint16{"agent": 9962, "apiserver": 9963}

// Metrics returns a process's metrics in Prometheus' text format.
func Metrics(ctx context.Context, r Ref) ([]byte, error) {
	port, ok := metricsPorts[r.Process]
	if !ok {
		return nil, fmt.Errorf("%s has no metrics: only agent and apiserver do", r)
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: r.Node.dial}
	url := fmt.Sprintf("http://127.0.0.1:%d/metrics", port)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", r, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics of %s: status %s", r, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// dial connects from within the node: a socket belongs to the namespace it was
// made in.
func (n *Node) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = n.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}
