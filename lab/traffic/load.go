package traffic

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"syscall"
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
	// Keep is how many connections stay open and share the requests; 0 makes a new
	// connection for each request.
	Keep int
}

// Sample is how one request ended.
type Sample struct {
	At      int64  `json:"at"`   // when it began, microseconds since 1970
	Took    int64  `json:"took"` // microseconds until the answer or the failure
	Error   string `json:"error,omitempty"`
	Detail  string `json:"detail,omitempty"` // of Error
	Cluster string `json:"cluster,omitempty"`
	Node    string `json:"node,omitempty"`
	Pod     string `json:"pod,omitempty"`
	Conn    int    `json:"conn,omitempty"`    // with Keep: which connection, from 1
	Resent  int32  `json:"resent,omitempty"`  // TCP segments lost since the connection's last request; negative if an earlier one was not lost after all
	Renewed bool   `json:"renewed,omitempty"` // with Keep: the first on a new connection
}

// Progress is printed from time to time between samples: every request that began
// before Oldest has had its Sample.
type Progress struct {
	Oldest int64 `json:"oldest"` // microseconds since 1970; now, if none is pending
}

// Line is one line of a load's output: a Sample, or a Progress if Oldest is
// not zero.
type Line struct {
	Sample
	Progress
}

// Begin is when the request began.
func (s Sample) Begin() time.Time { return time.UnixMicro(s.At) }

// End is when it was answered or failed.
func (s Sample) End() time.Time { return time.UnixMicro(s.At + s.Took) }

// Load makes requests until ctx ends, waits for those pending, and prints every Sample
// as a line of JSON. Requests begin at a steady rate whether or not earlier ones have
// ended; with Keep, a TCP connection's next request waits for the previous one.
func Load(ctx context.Context, c LoadConfig, out io.Writer) error {
	if c.Rate <= 0 || c.Timeout <= 0 {
		return fmt.Errorf("load: rate and timeout must be above zero")
	}
	l := &load{LoadConfig: c, out: bufio.NewWriter(out), open: map[int64]time.Time{}, lost: (*connection).lost}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.flush(ctx) })
	switch {
	case c.Keep == 0:
		g.Go(func() error { return l.fresh(ctx) })
	case c.Target.Scheme == "udp" || c.Target.Scheme == "sendto":
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
	lost func(*connection) int32 // segments since it was made

	mu   sync.Mutex
	out  *bufio.Writer       // guarded by mu, like what follows
	open map[int64]time.Time // when the requests under way began
	last int64               // key in open
}

// begin records a pending request; note ends it.
func (l *load) begin() (key int64, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	at = time.Now()
	l.open[l.last] = at
	return l.last, at
}

// forget drops a request that was not made.
func (l *load) forget(key int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, key)
}

// flush lets readers see samples soon after they happened.
func (l *load) flush(ctx context.Context) error {
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return nil
		case <-tick.C:
			if err := l.progress(); err != nil {
				return err
			}
		}
	}
}

func (l *load) progress() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := time.Now()
	for _, at := range l.open {
		if at.Before(oldest) {
			oldest = at
		}
	}
	line, _ := json.Marshal(Progress{oldest.UnixMicro()})
	l.out.Write(append(line, '\n'))
	return l.out.Flush()
}

func (l *load) note(key int64, begin time.Time, a Answer, err error, s Sample) {
	s.At, s.Took = begin.UnixMicro(), time.Since(begin).Microseconds()
	s.Cluster, s.Node, s.Pod = a.Cluster, a.Node, a.Pod
	if err != nil {
		s.Error, s.Detail = Reason(err), err.Error()
	}
	line, _ := json.Marshal(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, key)
	l.out.Write(append(line, '\n'))
}

// pace calls each at the given rate until ctx ends. If each falls behind, the next call
// comes at once, and the missed ones are skipped.
func pace(ctx context.Context, rate float64, each func(n int)) {
	interval := time.Duration(float64(time.Second) / rate)
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n++ {
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if ctx.Err() != nil { // both had happened
			return
		}
		each(n)
		if next = next.Add(interval); next.Before(time.Now()) {
			next = time.Now()
		}
	}
}

// fresh makes a new connection for each request.
func (l *load) fresh(ctx context.Context) error {
	var under sync.WaitGroup
	defer under.Wait()
	pace(ctx, l.Rate, func(n int) {
		key, begin := l.begin()
		under.Go(func() {
			a, err := RequestWithin(context.WithoutCancel(ctx), l.Timeout, l.Target, "", strconv.Itoa(n))
			l.note(key, begin, a, err, Sample{})
		})
	})
	return nil
}

// kept is one of the connections that stay open and share the requests.
func (l *load) kept(ctx context.Context, number int) error {
	var conn *connection
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	var told int32 // of the segments that conn lost
	target := l.Target
	target.Scheme = "tcp"
	pace(ctx, l.Rate/float64(l.Keep), func(n int) {
		key, begin := l.begin()
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.Timeout)
		defer cancel()
		s := Sample{Conn: number}
		var a Answer
		var err error
		if conn == nil {
			s.Renewed = true
			conn, err = redial(ctx, l.Timeout, target)
			if err != nil && ctx.Err() != nil {
				l.forget(key)
				return // only a connection for later requests
			}
			if err == nil {
				told = l.lost(conn) // its SYN may be
			}
		}
		if err == nil {
			a, err = conn.ask(limit, strconv.Itoa(n))
			now := l.lost(conn)
			s.Resent, told = now-told, now
		}
		l.note(key, begin, a, err, s)
		if err != nil && conn != nil {
			conn.Close()
			conn = nil
		}
	})
	return nil
}

// redial makes a connection, unless ctx ends first.
func redial(ctx context.Context, limit time.Duration, t Target) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return dial(ctx, t, "")
}

// packets sends numbered UDP packets from one socket and waits for the answer to each. If
// the node ends the socket, another one takes its place.
func (l *load) packets(ctx context.Context, number int) error {
	conn, err := dial(ctx, l.Target, "")
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	w := &window{sent: map[string]packet{}}
	g := new(errgroup.Group)
	hear := func() {
		from := conn
		g.Go(func() error {
			for {
				line, err := from.line()
				if err != nil {
					if Reason(err) == "refused" || Reason(err) == "unreachable" {
						continue // told by ICMP; the packets count as lost in time
					}
					return nil // ended, or closed below
				}
				if a, err := ParseAnswer(line); err == nil {
					if p, ok := w.take(a.Echo); ok {
						l.note(p.key, p.begin, a, nil, Sample{Conn: number})
					}
				}
			}
		})
	}
	hear()
	lost := func(all bool) {
		for _, p := range w.expired(l.Timeout, all) {
			l.note(p.key, p.begin, Answer{}, errLost, Sample{Conn: number})
		}
	}
	pace(ctx, l.Rate/float64(l.Keep), func(n int) {
		word := strconv.Itoa(n)
		var p packet
		p.key, p.begin = l.begin()
		w.add(word, p)
		// A packet that is refused here is lost like any other.
		if _, err := fmt.Fprintf(conn, "%s %s\n", word, Marker); wasEnded(err) {
			if next, err := redial(ctx, l.Timeout, l.Target); err == nil {
				conn.Close()
				conn = next
				hear()
				_, _ = fmt.Fprintf(conn, "%s %s\n", word, Marker)
			}
		}
		lost(false)
	})
	for end := time.Now().Add(l.Timeout); w.open() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	lost(true)
	conn.Close()
	return g.Wait()
}

// wasEnded tells whether err of a UDP socket says that it was ended, which also disconnects it.
func wasEnded(err error) bool {
	return errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EDESTADDRREQ)
}
