package traffic

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// LoadConfig describes a steady load.
type LoadConfig struct {
	Target Target
	// Rate is requests, or UDP packets, per second over all connections.
	Rate float64
	// Timeout is how long a request may take. A UDP packet without an answer
	// by then is lost.
	Timeout time.Duration
	// Keep is how many connections stay open and share the requests. 0 makes
	// a new connection for each request.
	Keep int
}

// Sample is the fate of one request.
type Sample struct {
	At      int64  `json:"at"`   // when it began, microseconds since 1970
	Took    int64  `json:"took"` // microseconds until the answer or the failure
	Error   string `json:"error,omitempty"`
	Detail  string `json:"detail,omitempty"` // of Error
	Cluster string `json:"cluster,omitempty"`
	Node    string `json:"node,omitempty"`
	Pod     string `json:"pod,omitempty"`
	Conn    int    `json:"conn,omitempty"`    // with Keep: which connection, from 1
	Resent  uint32 `json:"resent,omitempty"`  // TCP segments sent again during the request
	Renewed bool   `json:"renewed,omitempty"` // with Keep: the first on a new connection
}

// Begin is when the request began.
func (s Sample) Begin() time.Time { return time.UnixMicro(s.At) }

// End is when it was answered or failed.
func (s Sample) End() time.Time { return time.UnixMicro(s.At + s.Took) }

// Load makes requests until ctx ends, waits for those under way, and prints
// every Sample as a line of JSON. Requests begin at a steady rate whatever
// becomes of earlier ones; with Keep, a connection's next request waits for
// its last.
func Load(ctx context.Context, c LoadConfig, out io.Writer) error {
	if c.Rate <= 0 || c.Timeout <= 0 {
		return fmt.Errorf("load: rate and timeout must be above zero")
	}
	l := &load{LoadConfig: c, out: bufio.NewWriter(out)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.flush(ctx) })
	switch {
	case c.Keep == 0:
		g.Go(func() error { return l.fresh(ctx) })
	case c.Target.Scheme == "udp":
		for i := range c.Keep {
			g.Go(func() error { return l.packets(ctx, i+1) })
		}
	default:
		for i := range c.Keep {
			g.Go(func() error { return l.kept(ctx, i+1) })
		}
	}
	err := g.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		err = l.out.Flush()
	}
	return err
}

type load struct {
	LoadConfig
	mu  sync.Mutex
	out *bufio.Writer // guarded by mu
}

// flush lets readers see samples soon after they happened.
func (l *load) flush(ctx context.Context) error {
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return nil
		case <-tick.C:
			l.mu.Lock()
			err := l.out.Flush()
			l.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
}

func (l *load) note(begin time.Time, a Answer, err error, s Sample) {
	s.At, s.Took = begin.UnixMicro(), time.Since(begin).Microseconds()
	s.Cluster, s.Node, s.Pod = a.Cluster, a.Node, a.Pod
	if err != nil {
		s.Error, s.Detail = Reason(err), err.Error()
	}
	line, _ := json.Marshal(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out.Write(append(line, '\n'))
}

// pace calls each at the given rate until ctx ends. After a stall it catches
// up, so that the number of requests stays right.
func pace(ctx context.Context, rate float64, each func(n int)) {
	begin := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n++ {
		timer.Reset(time.Until(begin.Add(time.Duration(float64(n) / rate * float64(time.Second)))))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			each(n)
		}
	}
}

// fresh makes a new connection for each request.
func (l *load) fresh(ctx context.Context) error {
	var under sync.WaitGroup
	defer under.Wait()
	pace(ctx, l.Rate, func(n int) {
		under.Go(func() {
			begin := time.Now()
			a, err := RequestWithin(context.WithoutCancel(ctx), l.Timeout, l.Target, "", strconv.Itoa(n))
			l.note(begin, a, err, Sample{})
		})
	})
	return nil
}

// kept shares requests among connections that stay open; this is one of them.
func (l *load) kept(ctx context.Context, number int) error {
	var conn *connection
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	target := l.Target
	target.Scheme = "tcp"
	pace(ctx, l.Rate/float64(l.Keep), func(n int) {
		begin := time.Now()
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.Timeout)
		defer cancel()
		s := Sample{Conn: number}
		var a Answer
		var err error
		if conn == nil {
			s.Renewed = true
			conn, err = dial(limit, target, "")
		}
		if err == nil {
			before := conn.retransmits()
			a, err = conn.ask(limit, strconv.Itoa(n))
			s.Resent = conn.retransmits() - before
		}
		l.note(begin, a, err, s)
		if err != nil && conn != nil {
			conn.Close()
			conn = nil
		}
	})
	return nil
}

// packets sends numbered UDP packets from one socket and waits for the answer
// to each.
func (l *load) packets(ctx context.Context, number int) error {
	conn, err := dial(ctx, l.Target, "")
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	w := &window{sent: map[string]time.Time{}}
	g := new(errgroup.Group)
	g.Go(func() error {
		for {
			line, err := conn.line()
			if err != nil {
				if Reason(err) == "refused" || Reason(err) == "unreachable" {
					continue // told by ICMP; the packets count as lost in time
				}
				return nil // closed below
			}
			if a, err := ParseAnswer(line); err == nil {
				if begin, ok := w.take(a.Echo); ok {
					l.note(begin, a, nil, Sample{Conn: number})
				}
			}
		}
	})
	lost := func(all bool) {
		for _, begin := range w.expired(l.Timeout, all) {
			l.note(begin, Answer{}, errLost, Sample{Conn: number})
		}
	}
	pace(ctx, l.Rate/float64(l.Keep), func(n int) {
		word := strconv.Itoa(n)
		w.add(word)
		// A packet that is refused here is lost like any other.
		_, _ = fmt.Fprintf(conn, "%s %s\n", word, Marker)
		lost(false)
	})
	for end := time.Now().Add(l.Timeout); w.open() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	lost(true)
	conn.Close()
	return g.Wait()
}
