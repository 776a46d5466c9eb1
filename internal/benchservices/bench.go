package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/lab"
)

// plan is how thoroughly something is measured.
type plan struct {
	rounds   int           // how often each measurement is repeated
	slice    time.Duration // for how long a client runs at a time
	syncs    int           // how often all rules are made from nothing
	changes  int           // how often one slice is changed
	patience time.Duration // for how long services are waited for
}

// bench is the four machines and what they know.
type bench struct {
	plan
	weft, kubernetes string
	agent            []string // flags of weft agent
	variant          string   // of iptables
	print            func(figure)
	wants            func(line string) bool

	lab      *lab.Lab
	machines map[mode]*machine
	stores   map[mode]store // one of Weft's, one of Kubernetes'
	kube     *kubernetes
	pods     []netip.Addr // the backends'
	services int          // how many there are, beside extra
	targets  []target
}

const weftCluster, kubeCluster = "weft", "kube"

// topology has an API server on a machine of its own for each side.
func topology(agent []string) lab.Topology {
	return lab.Topology{Clusters: []lab.Cluster{
		{Name: weftCluster, ID: 1, Nodes: []string{"server", "node"}, PodCIDR: podCIDR, ServiceCIDR: serviceCIDR, Agent: agent},
		{Name: kubeCluster, ID: 2, Nodes: []string{"server", string(iptables), string(nftables), string(plain)}, Bare: true},
	}}
}

// run raises the machines and measures with each number of services.
func (b *bench) run(ctx context.Context, sizes []int) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if b.lab, err = lab.Raise(ctx, lab.Config{Topology: topology(b.agent), Binary: b.weft, File: "bench-services"}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.lab.Close()) }()
	b.machines = map[mode]*machine{}
	for m, name := range map[mode]string{weft: weftCluster + "/node", iptables: kubeCluster + "/" + string(iptables),
		nftables: kubeCluster + "/" + string(nftables), plain: kubeCluster + "/" + string(plain)} {
		n, err := b.lab.Node(name)
		if err != nil {
			return err
		}
		b.machines[m] = &machine{mode: m, node: n, lab: b.lab, self: self}
	}
	if err := b.start(ctx); err != nil {
		return errors.Join(err, b.lab.Failures())
	}
	for _, n := range sizes {
		if err := b.measure(ctx, n); err != nil {
			return errors.Join(fmt.Errorf("%d services: %w", n, err), b.lab.Failures())
		}
	}
	return b.lab.Failures()
}

// start starts both control planes, the pods on all machines, and kube-proxy.
func (b *bench) start(ctx context.Context) error {
	began := time.Now()
	if err := b.lab.Boot(ctx); err != nil {
		return err
	}
	ws, err := newWeftStore(b.lab)
	if err != nil {
		return err
	}
	node := b.machines[weft].node
	for _, name := range append([]string{clientName}, backendNames...) {
		if err := ws.apply(ctx, encode(pod(name, node.Name))); err != nil {
			return err
		}
	}
	addrs := map[string]netip.Addr{}
	for _, name := range append([]string{clientName}, backendNames...) {
		err := until(ctx, time.Minute, func() (err error) {
			addrs[name], err = ws.podAddr(ctx, name)
			return err
		})
		if err != nil {
			return fmt.Errorf("Weft's pod %s: %w", name, err)
		}
	}
	for _, name := range backendNames {
		b.pods = append(b.pods, addrs[name])
	}
	server, err := b.lab.Node(kubeCluster + "/server")
	if err != nil {
		return err
	}
	if b.kube, err = startKubernetes(ctx, b.lab, server, b.kubernetes); err != nil {
		return err
	}
	b.stores = map[mode]store{weft: ws, iptables: b.kube}
	for _, m := range modes {
		m := b.machines[m]
		if m.mode != weft {
			if err := m.addPods(addrs); err != nil {
				return err
			}
		}
		if err := m.start(); err != nil {
			return err
		}
		if m.mode == iptables {
			if err := chooseIPTables(m, b.variant); err != nil {
				return err
			}
		}
		if m.mode == iptables || m.mode == nftables {
			if err := b.kube.addNode(ctx, m); err != nil {
				return err
			}
			if err := b.kube.startProxy(m); err != nil {
				return err
			}
		}
	}
	one := []*discoveryv1.EndpointSlice{endpointSlice(extra, b.pods[:1])}
	for _, s := range b.stores {
		if err := s.create(ctx, []*corev1.Service{service(extra, extraService)}, one); err != nil {
			return err
		}
	}
	progress("started in %v", time.Since(began).Round(time.Millisecond))
	return nil
}

// grow adds services until there are n, and waits until those that lead somewhere answer
// everywhere.
func (b *bench) grow(ctx context.Context, n int) error {
	var services []*corev1.Service
	var slices []*discoveryv1.EndpointSlice
	for i := b.services; i < n; i++ {
		services = append(services, service(serviceName(i), serviceAddr(i).Addr()))
		slices = append(slices, endpointSlice(serviceName(i), endpointsOf(i, b.pods)))
	}
	// kube-proxy would write all rules again every second meanwhile.
	for _, m := range []mode{iptables, nftables} {
		if err := b.kube.stopProxy(b.machines[m]); err != nil {
			return err
		}
	}
	for m, s := range b.stores {
		began := time.Now()
		if err := s.create(ctx, services, slices); err != nil {
			return fmt.Errorf("create services for %s: %w", m, err)
		}
		progress("%d services: wrote %d for %s in %v", n, len(services), m, time.Since(began).Round(time.Millisecond))
	}
	b.services = n
	for _, m := range modes {
		began := time.Now()
		if m == iptables || m == nftables {
			if err := b.kube.startProxy(b.machines[m]); err != nil {
				return err
			}
		}
		if err := b.settled(ctx, b.machines[m]); err != nil {
			return err
		}
		progress("%d services: %s knows them after another %v", n, m, time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// answering is how many of the services lead to pods.
func (b *bench) answering() int { return min(b.services, realServices) }

// destinations are the addresses at which a machine's client finds all services that
// answer. Where there are no services, that is the first backend.
func (b *bench) destinations(m *machine) string {
	if m.mode == plain {
		return b.destination(m, 0)
	}
	var all []string
	for i := range b.answering() {
		all = append(all, serviceAddr(i).String())
	}
	return strings.Join(all, ",")
}

func (b *bench) destination(m *machine, service int) string {
	if m.mode == plain {
		return netip.AddrPortFrom(b.pods[0], servePort).String()
	}
	return serviceAddr(service).String()
}

// chain is the order of services in iptables.
func (b *bench) chain(ctx context.Context) ([]netip.Addr, error) {
	var stdout, stderr bytes.Buffer
	if err := b.lab.RunAt(ctx, lab.Place{Node: b.machines[iptables].node}, &stdout, &stderr, "/usr/bin/env", "iptables-save", "-t", "nat"); err != nil {
		return nil, fmt.Errorf("iptables-save: %w: %s", err, stderr.String())
	}
	return chain(&stdout), nil
}

// until tries something again until it succeeds.
func until(ctx context.Context, patience time.Duration, try func() error) error {
	for began := time.Now(); ; {
		err := try()
		if err == nil || time.Since(began) > patience {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
