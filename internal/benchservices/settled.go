package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/lab"
)

// settled returns when a machine knows all services: those that lead somewhere answer, and
// the others are in the kernel too.
func (b *bench) settled(ctx context.Context, m *machine) error {
	if err := b.answers(ctx, m); err != nil {
		return err
	}
	switch m.mode {
	case weft:
		return until(ctx, b.patience, func() error { return programmed(m, b.services+1) })
	case iptables, nftables:
		return until(ctx, b.patience, func() error {
			if err := synced(ctx, m); err != nil {
				return err
			}
			n, err := b.written(ctx, m)
			if err == nil && n < b.services+1 {
				err = fmt.Errorf("kube-proxy in %s mode has written %d of %d services", m.mode, n, b.services+1)
			}
			return err
		})
	}
	return nil
}

// answers returns when each service that leads somewhere has answered on a machine.
func (b *bench) answers(ctx context.Context, m *machine) error {
	var at int64
	err := m.run(ctx, &at, "await", "-to", b.destinations(m), "-patience", b.patience.String())
	return errors.Join(err, b.kube.failed(m))
}

// programmed is nil if Weft's map has so many services.
func programmed(m *machine, want int) error {
	all, err := filepath.Glob(filepath.Join(m.node.Path("/sys/fs/bpf/weft"), "weft_services_v*"))
	if err != nil || len(all) != 1 {
		return fmt.Errorf("node %s has %d maps of services", m.node.Full(), len(all))
	}
	rows, err := ebpf.LoadPinnedMap(all[0], &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer rows.Close()
	const batch = 4096
	keys, values, n := make([]bpf.ServiceKey, batch), make([]bpf.Service, batch), 0
	for cursor := (ebpf.MapBatchCursor{}); ; {
		got, err := rows.BatchLookup(&cursor, keys, values, nil)
		n += got
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			break
		}
		if err != nil {
			return err
		}
	}
	if n < want {
		return fmt.Errorf("Weft has %d of %d services in the kernel", n, want)
	}
	return nil
}

// written is how many services kube-proxy has in the kernel.
func (b *bench) written(ctx context.Context, m *machine) (int, error) {
	if m.mode == iptables {
		order, err := b.chain(ctx)
		return len(order), err
	}
	var stdout, stderr bytes.Buffer
	if err := b.lab.RunAt(ctx, lab.Place{Node: m.node}, &stdout, &stderr, "/usr/bin/env", "nft", "list", "map", "ip", "kube-proxy", "service-ips"); err != nil {
		return 0, fmt.Errorf("nft: %w: %s", err, stderr.String())
	}
	return bytes.Count(stdout.Bytes(), []byte("goto service-")), nil
}

// synced is nil if kube-proxy has nothing left to write.
func synced(ctx context.Context, m *machine) error {
	values, err := proxyMetrics(ctx, m)
	if err != nil {
		return err
	}
	const rules = "kubeproxy_sync_proxy_rules_"
	queued, done := values[rules+"last_queued_timestamp_seconds"], values[rules+"last_timestamp_seconds"]
	endpoints, services := values[rules+"endpoint_changes_pending"], values[rules+"service_changes_pending"]
	if done < queued || endpoints > 0 || services > 0 {
		return fmt.Errorf("kube-proxy in %s mode has changes left to write", m.mode)
	}
	return nil
}

// proxyMetrics are kube-proxy's metrics; those of one name are added, if they are told apart
// by IP family or table.
func proxyMetrics(ctx context.Context, m *machine) (map[string]float64, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = m.node.Do(func() (err error) {
			c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10249/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return parseMetrics(resp.Body)
}

// parseMetrics reads Prometheus' text format. Of one family's and another's value the first
// is kept for a time, and counts are added.
func parseMetrics(r io.Reader) (map[string]float64, error) {
	values := map[string]float64{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			return nil, fmt.Errorf("metric %q: %w", lines.Text(), err)
		}
		name, labels, _ := strings.Cut(fields[0], "{")
		if strings.Contains(labels, `ip_family="IPv6"`) {
			continue // all services here are of IPv4
		}
		values[name] += v
	}
	return values, lines.Err()
}
