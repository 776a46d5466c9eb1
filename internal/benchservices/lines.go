package main

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// What the client runs with: on one CPU, with the backends on whichever there is.
const (
	clientCPU = 0
	// loaded is how many threads make requests at once for p95.
	loaded = 8
	// softirqConnections are the connections that softirq is about.
	softirqConnections = 50_000
)

// samples are what a mode's client saw in each round.
type samples map[mode][]observed

func (s samples) each(m mode, of func(observed) float64) (values []float64) {
	for _, o := range s[m] {
		values = append(values, of(o))
	}
	return values
}

// failures are requests without an answer.
func (s samples) failures(m mode) (n int) {
	for _, o := range s[m] {
		n += o.Failed
	}
	return n
}

// measure grows to a number of services and measures all lines.
func (b *bench) measure(ctx context.Context, n int) error {
	if err := b.grow(ctx, n); err != nil {
		return err
	}
	order, err := b.chain(ctx)
	if err != nil {
		return err
	}
	if b.targets = targets(order, b.answering()); len(b.targets) == 0 {
		return fmt.Errorf("none of %d services in the chain leads to a pod", len(order))
	}
	for _, t := range b.targets {
		progress("%d services: %s is %s, at %d of %d in the chain", n, t.place, serviceName(t.service), t.at+1, len(order))
	}
	for _, step := range []struct {
		lines []string
		do    func(context.Context) error
	}{
		{[]string{"first-packet", "crr"}, b.connections},
		{[]string{"rr"}, b.requests},
		{[]string{"p95"}, b.load},
		{[]string{"softirq"}, b.softirq},
		{[]string{"memory"}, b.memory},
		{[]string{"sync-one"}, b.syncOne},
		{[]string{"sync-full"}, b.syncFull},
	} {
		wanted := false
		for _, line := range step.lines {
			wanted = wanted || b.wants(line)
		}
		if !wanted {
			continue
		}
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.lines[0], err)
		}
		progress("%d services: measured %v in %v", n, step.lines, time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// round has the client of each mode run once, each round beginning with another mode.
func (b *bench) round(ctx context.Context, into samples, round, service int, args ...string) error {
	for i := range modes {
		m := b.machines[modes[(i+round)%len(modes)]]
		var o observed
		if err := m.run(ctx, &o, append([]string{"client", "-to", b.destination(m, service)}, args...)...); err != nil {
			return err
		}
		if o.Requests == 0 {
			return fmt.Errorf("%s: the client got no answer", m.mode)
		}
		if o.Failed > 0 {
			progress("%s: %d of %d requests failed: %s", m.mode, o.Failed, o.Failed+o.Requests, o.Failure)
		}
		into[m.mode] = append(into[m.mode], o)
	}
	return nil
}

// show prints one figure of each mode.
func (b *bench) show(line, place, unit string, s samples, value func(observed) float64, detail map[string]func(observed) float64) {
	if !b.wants(line) {
		return
	}
	var same []figure
	for _, m := range modes {
		values := s.each(m, value)
		f := figure{Line: line, Place: place, Mode: m, Services: b.services, Value: median(values), Unit: unit,
			Detail: map[string]float64{"rounds": float64(len(values)), "min": percentile(values, 0), "max": percentile(values, 1), "failed": float64(s.failures(m))}}
		for name, of := range detail {
			f.Detail[name] = median(s.each(m, of))
		}
		same = append(same, f)
	}
	for _, f := range compared(same) {
		b.print(f)
	}
}

func (o observed) rate() float64 { return float64(o.Requests) / o.Seconds }

// connections measures new connections from a single thread.
func (b *bench) connections(ctx context.Context) error {
	at := map[string]samples{}
	for _, t := range b.targets {
		at[t.place] = samples{}
	}
	for round := range b.rounds {
		for _, t := range b.targets {
			if err := b.round(ctx, at[t.place], round, t.service, "-cpu", strconv.Itoa(clientCPU), "-for", b.slice.String()); err != nil {
				return err
			}
		}
	}
	for _, t := range b.targets {
		b.show("first-packet", t.place, "µs", at[t.place], func(o observed) float64 { return o.Connect50 },
			map[string]func(observed) float64{"p99": func(o observed) float64 { return o.Connect99 }})
	}
	b.show("crr", "", "1/s", at[b.middle().place], observed.rate, map[string]func(observed) float64{"whole_p50_us": func(o observed) float64 { return o.Whole50 }})
	return nil
}

// middle is the target in the middle of the chain: what a service meets on average.
func (b *bench) middle() target { return b.targets[len(b.targets)/2] }

// requests measures requests on a connection that stays.
func (b *bench) requests(ctx context.Context) error {
	s := samples{}
	for round := range b.rounds {
		if err := b.round(ctx, s, round, b.middle().service, "-keep", "-cpu", strconv.Itoa(clientCPU), "-for", b.slice.String()); err != nil {
			return err
		}
	}
	b.show("rr", "", "1/s", s, observed.rate, nil)
	return nil
}

// load measures new connections with a request each from many threads at once.
func (b *bench) load(ctx context.Context) error {
	s := samples{}
	for round := range b.rounds {
		if err := b.round(ctx, s, round, b.middle().service, "-threads", strconv.Itoa(loaded), "-for", (2 * b.slice).String()); err != nil {
			return err
		}
	}
	b.show("p95", "", "µs", s, func(o observed) float64 { return o.Whole95 }, map[string]func(observed) float64{"rate": observed.rate, "p50": func(o observed) float64 { return o.Whole50 }})
	return nil
}

// softirq measures the time in soft interrupts, which handle packets, for so many
// connections in all rounds together.
func (b *bench) softirq(ctx context.Context) error {
	s := samples{}
	for round := range b.rounds {
		if err := b.round(ctx, s, round, b.middle().service, "-cpu", strconv.Itoa(clientCPU), "-count", strconv.Itoa(softirqConnections/b.rounds)); err != nil {
			return err
		}
	}
	per := func(of func(observed) float64) func(observed) float64 {
		return func(o observed) float64 { return of(o) / float64(o.Requests) * softirqConnections }
	}
	b.show("softirq", "", "s", s, per(func(o observed) float64 { return o.Softirq }), map[string]func(observed) float64{
		"busy":         per(func(o observed) float64 { return o.Busy }),
		"whole_p50_us": func(o observed) float64 { return o.Whole50 },
	})
	return nil
}

// memory measures what all processes of a side take, and those on the node alone.
func (b *bench) memory(context.Context) error {
	mib := func(bytes uint64) float64 { return float64(bytes) / (1 << 20) }
	server, err := b.lab.Node(weftCluster + "/server")
	if err != nil {
		return err
	}
	sum := func(of map[string]uint64, names ...string) (n uint64) {
		for _, name := range names {
			n += of[name]
		}
		return n
	}
	var same []figure
	for _, m := range modes {
		f := figure{Line: "memory", Mode: m, Services: b.services, Unit: "MiB"}
		switch m {
		case weft:
			node, control := sum(b.machines[m].node.Memory(), "agent", "tunnel"), sum(server.Memory(), "apiserver")
			f.Value, f.Detail = mib(node+control), map[string]float64{"node": mib(node), "control": mib(control)}
		case plain:
			continue // it has no processes
		default:
			node, control := sum(b.machines[m].node.Memory(), "kube-proxy"), sum(b.kube.server.Memory(), "etcd", "kube-apiserver")
			f.Value, f.Detail = mib(node+control), map[string]float64{"node": mib(node), "control": mib(control)}
		}
		same = append(same, f)
	}
	for _, f := range compared(same) {
		b.print(f)
	}
	return nil
}
