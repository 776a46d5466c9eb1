package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Probe is a pod's readiness check as the agent runs it.
type Probe struct {
	Target string // host:port for TCP, URL for HTTP
	HTTP   bool
	Host   string // of the HTTP request; "" means the target's
	Header http.Header

	Delay, Period, Timeout time.Duration
	// Failures in a row make a pod not ready, Successes in a row ready again.
	Failures, Successes int
}

// What a manifest leaves out. Kubernetes would ask every 10 s.
const (
	defaultPeriod    = time.Second
	defaultTimeout   = time.Second
	defaultFailures  = 3
	defaultSuccesses = 1

	// doubtPeriod is the pause while the last answer speaks against the present
	// state. A dead process is out after one period and two of these.
	doubtPeriod = 100 * time.Millisecond
)

// ReadProbes reads the readiness probes of a pod's containers, sidecars included. A
// pod without any is ready as soon as it runs. A probe that names no host asks ip.
func ReadProbes(pod *corev1.Pod, ip netip.Addr) ([]*Probe, error) {
	var probes []*Probe
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.ReadinessProbe == nil {
			continue
		}
		p, err := readProbe(&c, ip)
		if err != nil {
			return nil, fmt.Errorf("container %q: %w", c.Name, err)
		}
		probes = append(probes, p)
	}
	return probes, nil
}

func readProbe(c *corev1.Container, ip netip.Addr) (*Probe, error) {
	in := c.ReadinessProbe
	p := &Probe{
		Delay:     time.Duration(in.InitialDelaySeconds) * time.Second,
		Period:    seconds(in.PeriodSeconds, defaultPeriod),
		Timeout:   seconds(in.TimeoutSeconds, defaultTimeout),
		Failures:  number(in.FailureThreshold, defaultFailures),
		Successes: number(in.SuccessThreshold, defaultSuccesses),
	}
	switch {
	case in.TCPSocket != nil:
		port, err := probePort(c, in.TCPSocket.Port)
		if err != nil {
			return nil, err
		}
		p.Target = net.JoinHostPort(orIP(in.TCPSocket.Host, ip), fmt.Sprint(port))
	case in.HTTPGet != nil:
		port, err := probePort(c, in.HTTPGet.Port)
		if err != nil {
			return nil, err
		}
		if in.HTTPGet.Scheme == corev1.URISchemeHTTPS {
			return nil, fmt.Errorf("httpGet with scheme HTTPS is not supported; use HTTP or tcpSocket")
		}
		p.HTTP, p.Header = true, http.Header{}
		p.Target = "http://" + net.JoinHostPort(orIP(in.HTTPGet.Host, ip), fmt.Sprint(port)) + "/" + trimSlash(in.HTTPGet.Path)
		for _, h := range in.HTTPGet.HTTPHeaders {
			if strings.EqualFold(h.Name, "Host") {
				p.Host = h.Value // net/http ignores the header of this name
				continue
			}
			p.Header.Add(h.Name, h.Value)
		}
	default:
		return nil, fmt.Errorf("only tcpSocket and httpGet are supported")
	}
	return p, nil
}

func trimSlash(path string) string {
	if path != "" && path[0] == '/' {
		return path[1:]
	}
	return path
}

func seconds(n int32, otherwise time.Duration) time.Duration {
	if n <= 0 {
		return otherwise
	}
	return time.Duration(n) * time.Second
}

func number(n int32, otherwise int) int {
	if n <= 0 {
		return otherwise
	}
	return int(n)
}

func orIP(host string, ip netip.Addr) string {
	if host == "" {
		return ip.String()
	}
	return host
}

func probePort(c *corev1.Container, port intstr.IntOrString) (int32, error) {
	if port.Type == intstr.Int && port.IntVal > 0 && port.IntVal < 1<<16 {
		return port.IntVal, nil
	}
	for _, p := range c.Ports {
		if port.Type == intstr.String && p.Name == port.StrVal {
			return p.ContainerPort, nil
		}
	}
	return 0, fmt.Errorf("port %q is neither a number nor the name of a container port", port.String())
}

// Ask probes once.
func (p *Probe) Ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	if !p.HTTP {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.Target)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Target, nil)
	if err != nil {
		return err
	}
	req.Header, req.Host = p.Header, p.Host
	resp, err := probeClient.Do(req)
	if err != nil {
		return short(err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 10<<10)
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		// The text of the status line is the pod's, and of any length.
		return fmt.Errorf("answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	return nil
}

// maxReason is how much of an error is kept, in bytes. Errors of net/http quote what
// the pod sent, and every error is written to etcd, where one that is too large would
// keep this node from reporting anything.
const maxReason = 256

func short(err error) error {
	if text := err.Error(); len(text) > maxReason {
		return errors.New(strings.ToValidUTF8(text[:maxReason], "") + "…")
	}
	return err
}

// probeClient opens a connection per probe and takes a redirect as success.
var probeClient = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, Proxy: nil, MaxResponseHeaderBytes: 64 << 10},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// WatchAll watches all probes of a pod until ctx ends. It calls changed, never
// concurrently, with each verdict on the pod: ready when every probe succeeds. It
// starts from ready, as known from before.
func WatchAll(ctx context.Context, probes []*Probe, ready bool, changed func(ready bool, why error)) {
	type verdict struct {
		known, ready bool
		why          error
	}
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex // guards verdicts, and is held during changed
		verdicts = make([]verdict, len(probes))
	)
	for i, p := range probes {
		wg.Go(func() {
			p.Watch(ctx, ready, p.Ask, func(ready bool, why error) {
				mu.Lock()
				defer mu.Unlock()
				verdicts[i] = verdict{true, ready, why}
				known := true
				for _, v := range verdicts {
					if v.known && !v.ready {
						changed(false, v.why)
						return
					}
					known = known && v.known
				}
				if known {
					changed(true, nil)
				}
			})
		})
	}
	wg.Wait()
}

// Watch asks until ctx ends and calls changed with every new verdict, the first
// one included. It starts from ready, as known from before.
func (p *Probe) Watch(ctx context.Context, ready bool, ask func(context.Context) error, changed func(ready bool, why error)) {
	state, first, streak := ready, true, 0
	wait := p.Delay
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		err := ask(ctx)
		if ctx.Err() != nil {
			return
		}
		agrees := (err == nil) == state
		if agrees {
			streak = 0
		} else {
			streak++
		}
		turned := !agrees && streak >= p.needed(state)
		if turned {
			state, streak = !state, 0
		}
		if turned || first && agrees {
			first = false
			changed(state, err)
		}
		wait = p.Period
		if streak > 0 || !state {
			wait = min(p.Period, doubtPeriod)
		}
	}
}

func (p *Probe) needed(ready bool) int {
	if ready {
		return p.Failures
	}
	return p.Successes
}
