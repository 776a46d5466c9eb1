package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
)

// Config of the `weft dns` process.
type Config struct {
	// Socket is that of the node's agent.
	Socket string
	// Listen are addresses and ports, for UDP and TCP.
	Listen []string
	// ClusterDomain is the domain of the cluster's own services.
	ClusterDomain string
	// Upstream are the name servers that are asked about all other names, in turn: addresses
	// with or without a port. None: such questions are refused.
	Upstream []string
	Log      *slog.Logger `json:"-"`
}

// Port is where the name server listens, so that it stands in nobody's way; a service leads
// there from port 53.
const Port = 8053

// Defaults is the configuration of an ordinary node.
func Defaults() Config {
	return Config{Socket: "/run/weft/agent.sock", Listen: []string{fmt.Sprintf(":%d", Port)}, ClusterDomain: "cluster.local", Log: slog.Default()}
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	if c.Socket == "" {
		errs = append(errs, errors.New("socket is empty: give that of the node's agent"))
	}
	if len(c.Listen) == 0 {
		errs = append(errs, fmt.Errorf("listen is empty: give an address and port such as :%d", Port))
	}
	for _, l := range c.Listen {
		if _, _, err := net.SplitHostPort(l); err != nil {
			errs = append(errs, fmt.Errorf("listen %q: %w", l, err))
		}
	}
	if _, ok := dns.IsDomainName(c.ClusterDomain); !ok || c.ClusterDomain == "" || dns.CanonicalName(c.ClusterDomain) == "." {
		errs = append(errs, fmt.Errorf("cluster-domain %q is not a domain such as cluster.local", c.ClusterDomain))
	} else if dns.CanonicalName(c.ClusterDomain) == SetDomain {
		errs = append(errs, errors.New("cluster-domain is that of the cluster set: choose another one"))
	}
	for _, u := range c.Upstream {
		if _, err := upstream(u); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// upstream reads the address of a name server, with port 53 if it names none.
func upstream(text string) (string, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, 53).String(), nil
	}
	if a, err := netip.ParseAddrPort(text); err == nil {
		return a.String(), nil
	}
	return "", fmt.Errorf("upstream %q is not an IP address, with or without a port", text)
}

// again is the pause before the agent is asked again that has ended.
const again = 200 * time.Millisecond

// Serve answers until ctx ends or an address cannot be listened on.
func Serve(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	s := &server{zone: NewZone(c.ClusterDomain), slots: make(chan struct{}, mostForwarded)}
	for _, u := range c.Upstream {
		to, err := upstream(u)
		if err != nil {
			return err
		}
		s.upstream = append(s.upstream, to)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.follow(ctx, api.NewUnixClient(c.Socket), c.Log) })
	// Until then, whoever asks had better ask another node.
	select {
	case <-ctx.Done():
		return g.Wait()
	case <-s.zone.Known():
	}
	for _, l := range c.Listen {
		packets, err := net.ListenPacket("udp", l)
		if err != nil {
			cancel()
			return errors.Join(fmt.Errorf("listen for questions: %w", err), g.Wait())
		}
		stream, err := net.Listen("tcp", l)
		if err != nil {
			_ = packets.Close()
			cancel()
			return errors.Join(fmt.Errorf("listen for questions: %w", err), g.Wait())
		}
		g.Go(func() error { return s.serve(ctx, &dns.Server{PacketConn: packets, Handler: s}) })
		g.Go(func() error {
			return s.serve(ctx, &dns.Server{Listener: stream, Handler: s, IdleTimeout: func() time.Duration { return 10 * time.Second }, MaxTCPQueries: 1000})
		})
	}
	return g.Wait()
}

// follow learns from the agent, and keeps what it has learnt while there is none.
func (s *server) follow(ctx context.Context, agent *api.Client, log *slog.Logger) error {
	defer agent.Close()
	for told := false; ; {
		err := agent.FollowNames(ctx, s.zone.Follow())
		if ctx.Err() != nil {
			return nil
		}
		if !told && !closed(s.zone.Known()) {
			log.Warn("the agent does not tell what services there are: no questions are answered until it does", "err", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(again):
		}
	}
}

func (s *server) serve(ctx context.Context, d *dns.Server) error {
	started := make(chan struct{})
	d.NotifyStartedFunc = func() { close(started) }
	done := make(chan error, 1)
	go func() { done <- d.ActivateAndServe() }()
	select {
	case err := <-done:
		return err
	case <-started:
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// Whoever waits for an answer asks again, or asks somebody else.
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = d.ShutdownContext(stop)
	<-done
	return nil
}

// server answers questions.
type server struct {
	zone     *Zone
	upstream []string
	slots    chan struct{} // of questions that are passed on
}

// Limits of what is passed on.
const (
	mostForwarded = 256
	patience      = 2 * time.Second // with one name server
)

// largest is the size of an answer over UDP that is not split on its way.
const largest = 1232

// ServeDNS implements dns.Handler.
func (s *server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := s.reply(q)
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = min(max(int(o.UDPSize()), dns.MinMsgSize), largest)
		}
	}
	m.Truncate(size)
	_ = w.WriteMsg(m) // whoever asked has gone
}

// reply answers a message.
func (s *server) reply(q *dns.Msg) *dns.Msg {
	fail := func(rcode int) *dns.Msg {
		m := new(dns.Msg)
		m.SetRcode(q, rcode)
		return m
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return fail(dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return fail(dns.RcodeFormatError)
	case q.IsEdns0() != nil && q.IsEdns0().Version() != 0:
		m := fail(dns.RcodeBadVers)
		m.SetEdns0(largest, false)
		return m
	}
	m, ours := s.zone.Answer(q.Question[0])
	if !ours {
		return s.forward(q, fail)
	}
	rcode := m.Rcode
	authoritative := m.Authoritative
	m.SetReply(q)
	m.Rcode, m.Authoritative, m.RecursionAvailable, m.Compress = rcode, authoritative, len(s.upstream) > 0, true
	if q.IsEdns0() != nil {
		m.SetEdns0(largest, false)
	}
	return m
}

// forward asks the upstream name servers, in turn.
func (s *server) forward(q *dns.Msg, fail func(int) *dns.Msg) *dns.Msg {
	if len(s.upstream) == 0 {
		return fail(dns.RcodeRefused)
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return fail(dns.RcodeServerFailure) // enough wait already
	}
	for _, to := range s.upstream {
		for _, network := range []string{"udp", "tcp"} {
			c := dns.Client{Net: network, Timeout: patience, UDPSize: dns.MaxMsgSize}
			m, _, err := c.Exchange(q.Copy(), to)
			if err != nil {
				break
			}
			if m.Truncated && network == "udp" {
				continue
			}
			m.Id, m.Compress = q.Id, true
			return m
		}
	}
	return fail(dns.RcodeServerFailure)
}
