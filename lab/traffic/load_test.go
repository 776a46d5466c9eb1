package traffic

import (
	"bufio"
	"bytes"
	"context"
	"testing"
	"time"
)

// Segments may be lost, or turn out not to have been, while no request is pending: here
// the count changes between any two looks at a connection.
func TestEveryLostSegmentIsTold(t *testing.T) {
	_, tcp, _ := startServer(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var conn *connection
	var conns, looks int
	var count, want int32
	look := func(c *connection) int32 {
		if c != conn { // its count is its own, and begins with what its making took
			conn, looks, conns = c, 0, conns+1
			count = int32(100 / conns)
			return count
		}
		looks++
		change := int32(3)
		if looks%2 == 0 {
			change = -2
		}
		count, want = count+change, want+change
		if looks == 3 { // the next request fails, and the one after it is on a new connection
			c.Close()
		}
		if conns == 3 {
			cancel()
		}
		return count
	}
	var out bytes.Buffer
	l := &load{LoadConfig: LoadConfig{Target: Target{Scheme: "tcp", Host: tcp}, Rate: 1000, Timeout: time.Minute, Keep: 1},
		out: bufio.NewWriter(&out), open: map[int64]time.Time{}, lost: look}
	if err := l.kept(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if err := l.out.Flush(); err != nil {
		t.Fatal(err)
	}
	var got int32
	for _, s := range parseSamples(t, out.String()) {
		got += s.Resent
	}
	if conns != 3 || got != want {
		t.Errorf("on %d connections %d lost segments are told, of %d\n%s", conns, got, want, out.String())
	}
}
